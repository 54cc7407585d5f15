//! Who the process is: `user[:group]`, by name or number, as the image's own passwd and group files have it.
//!
//! Numbers are decimal digits up to 2147483647. What is longer or larger is refused instead of wrapped around, for a
//! wrapped one may be root (CVE-2024-40635). Something that is not all digits is a name, so `-1` and `+0` are names.
//! Source: OCI image-spec, config.md "User"; Docker's rules where it is silent.

use super::error::{Result, SpecError};

/// What a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The primary group first: set-group-id checks look here too (CVE-2022-2989).
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// The image's own files of users and groups.
#[derive(Clone, Copy, Default)]
pub(super) struct Files<'a> {
    pub(super) passwd: &'a str,
    pub(super) group: &'a str,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

const LARGEST: u32 = i32::MAX as u32;

fn small(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|number| *number <= LARGEST);
    number.filter(|_| digits)
}

/// `Some` when `text` means a number, `None` when it is a name.
fn number(option: &str, text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match small(text) {
        Some(number) => Ok(Some(number)),
        None => Err(SpecError::new(
            option,
            text,
            format!("ids go from 0 to {LARGEST}"),
        )),
    }
}

/// Entries in order; lines that are none (comments, `+` of NIS, ids out of range) are passed over.
fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = small(fields.nth(1)?)?;
        let gid = small(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = small(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        Some(Group { name, gid, members })
    })
}

impl Files<'_> {
    /// Resolves `asked` (empty for root) and adds the supplementary groups `more`.
    ///
    /// `option` is who asked, for messages. A number that no file knows is taken as it is, with group 0.
    pub(super) fn resolve(&self, option: &str, asked: &str, more: &[String]) -> Result<Identity> {
        let (user, group) = asked.split_once(':').unwrap_or((asked, ""));
        if group.contains(':') {
            return Err(SpecError::new(option, asked, "must be user, or user:group"));
        }
        let (mut identity, name) = self.user(option, user)?;
        let mut others = Vec::new();
        if group.is_empty() {
            others.extend(self.memberships(name));
        } else {
            identity.gid = self.group(option, group)?;
        }
        for one in more {
            others.push(self.group("groups", one)?);
        }
        others.sort_unstable();
        others.dedup();
        others.retain(|gid| *gid != identity.gid);
        identity.groups = [vec![identity.gid], others].concat();
        Ok(identity)
    }

    fn user(&self, option: &str, asked: &str) -> Result<(Identity, &str)> {
        let id = if asked.is_empty() {
            Some(0)
        } else {
            number(option, asked)?
        };
        let wanted = |user: &User| id.map_or(user.name == asked, |id| user.uid == id);
        match (users(self.passwd).find(wanted), id) {
            (Some(user), _) => Ok((
                Identity {
                    uid: user.uid,
                    gid: user.gid,
                    groups: Vec::new(),
                    home: absolute(user.home),
                },
                user.name,
            )),
            (None, Some(uid)) => Ok((
                Identity {
                    uid,
                    home: absolute(""),
                    ..Identity::default()
                },
                "",
            )),
            (None, None) => Err(SpecError::new(
                option,
                asked,
                "no such user in the image's /etc/passwd, use one of it or a number",
            )),
        }
    }

    fn group(&self, option: &str, asked: &str) -> Result<u32> {
        if let Some(gid) = number(option, asked)? {
            return Ok(gid);
        }
        groups(self.group)
            .find(|group| group.name == asked)
            .map(|group| group.gid)
            .ok_or_else(|| {
                let problem = "no such group in the image's /etc/group, use one of it or a number";
                SpecError::new(option, asked, problem)
            })
    }

    fn memberships(&self, name: &str) -> impl Iterator<Item = u32> {
        groups(self.group)
            .filter(move |group| !name.is_empty() && group.members.split(',').any(|m| m == name))
            .map(|group| group.gid)
    }
}

fn absolute(home: &str) -> String {
    if home.starts_with('/') { home } else { "/" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "# people\nroot:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/srv:/sbin/nologin\n\
        big:x:4294967296:0::/:\nadm:x:1000:100:A,B:/home/adm:/bin/sh\n+::::::\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:root,adm\nwww:x:33:\nusers:x:100:\naudio:x:29:www,adm\n";
    const FILES: Files = Files {
        passwd: PASSWD,
        group: GROUP,
    };

    fn resolve(asked: &str) -> Result<Identity> {
        FILES.resolve("user", asked, &[])
    }
    fn ids(asked: &str) -> (u32, u32, Vec<u32>) {
        let identity = resolve(asked).unwrap();
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn names_and_numbers_find_the_same_entry() {
        assert_eq!(ids("adm"), (1000, 100, vec![100, 10, 29]));
        assert_eq!(ids("1000"), ids("adm"));
        assert_eq!(resolve("adm").unwrap().home, "/home/adm");
    }

    #[test]
    fn nobody_asked_is_root_with_its_groups() {
        assert_eq!(ids(""), (0, 0, vec![0, 10]));
        assert_eq!(resolve("").unwrap().home, "/root");
        let bare = Files::default().resolve("user", "", &[]).unwrap();
        assert_eq!((bare.uid, bare.gid, bare.home.as_str()), (0, 0, "/"));
    }

    #[test]
    fn a_group_that_is_named_replaces_all_groups() {
        assert_eq!(ids("adm:www"), (1000, 33, vec![33]));
        assert_eq!(ids("adm:77"), (1000, 77, vec![77]));
        assert_eq!(ids("4242:4243"), (4242, 4243, vec![4243]));
        assert_eq!(ids(":audio"), (0, 29, vec![29]));
        assert_eq!(ids("adm:"), ids("adm"));
    }

    #[test]
    fn a_number_that_nobody_has_is_taken_with_group_zero() {
        assert_eq!(ids("4242"), (4242, 0, vec![0]));
    }

    #[test]
    fn more_groups_come_by_name_and_number_once() {
        let more = ["audio".to_owned(), "7".to_owned(), "33".to_owned()];
        let identity = FILES.resolve("user", "www", &more).unwrap();
        assert_eq!(identity.groups, [33, 7, 29]);
        let error = FILES
            .resolve("user", "www", &["nope".to_owned()])
            .unwrap_err();
        assert_eq!(error.option, "groups");
    }

    #[test]
    fn numbers_never_wrap_around_to_root() {
        for bad in [
            "4294967296",
            "2147483648",
            "4294967295",
            "18446744073709551616",
            "-1",
            "+0",
            "0x0",
            "1000:4294967296",
            "a:b:c",
            "nobody",
            "big",
            "1e3",
            " 0",
            "٣",
        ] {
            let error = resolve(bad).unwrap_err();
            assert_eq!(error.option, "user", "{bad}");
        }
        assert_eq!(ids("2147483647").0, 2_147_483_647);
    }

    proptest! {
        #[test]
        fn only_zero_and_known_roots_become_root(asked in "[0-9+\\-: a-z]{0,24}") {
            if let Ok(identity) = resolve(&asked) {
                let user = asked.split(':').next().unwrap_or_default();
                let root = matches!(user, "" | "root") || user.bytes().all(|b| b == b'0');
                prop_assert_eq!(identity.uid == 0, root);
                prop_assert!(identity.uid <= LARGEST && identity.gid <= LARGEST);
            }
        }

        #[test]
        fn any_files_and_any_user_are_answered(asked in ".{0,20}", passwd in "(.{0,30}\n){0,5}", group in "(.{0,30}\n){0,5}") {
            let _ = Files { passwd: &passwd, group: &group }.resolve("user", &asked, &[]);
        }
    }
}
