//! `uid`, `uid:gid` or a name → the `user` of an OCI process, read from the running container's own files.
//!
//! The files are the container's and it may have put anything there: they are opened beneath its root, links are
//! resolved within it, and no more than a megabyte is read. Source: OCI runtime-spec, config.md "User"; passwd(5).

use contracts::{Error, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;

/// More than any honest passwd file has.
const MOST: u64 = 1 << 20;

/// Looks a user up in the container that `pid` runs in. Blocks. Errors: `InvalidArgument` for a name it does not know.
pub(crate) fn user(pid: u32, asked: &str) -> Result<Value> {
    let read = |path: &str| beneath(pid, path).unwrap_or_default();
    resolve(asked, &read("etc/passwd"), &read("etc/group"))
}

fn beneath(pid: u32, path: &str) -> Option<String> {
    let root = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(root, flags, Mode::empty()).ok()?;
    // NONBLOCK: a fifo in that place must not hold anybody up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&root, path, flags, Mode::empty(), how).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve(asked: &str, passwd: &str, group: &str) -> Result<Value> {
    let (user, wanted_group) = match asked.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (asked, None),
    };
    let entry = entries(passwd).find(|entry| entry[0] == user || entry.get(2) == Some(&user));
    let number =
        |entry: &Vec<&str>, at: usize| entry.get(at).and_then(|field| field.parse::<u32>().ok());
    let known = entry.as_ref().and_then(|entry| number(entry, 2));
    let uid = user.parse::<u32>().ok().or(known).ok_or_else(|| {
        Error::invalid(format!("user {user:?}: is not in the container's passwd"))
    })?;
    let gid = match wanted_group {
        Some(wanted) => group_id(wanted, group)?,
        None => entry
            .as_ref()
            .and_then(|entry| number(entry, 3))
            .unwrap_or(0),
    };
    let mut more: Vec<u32> = Vec::new();
    if let (Some(entry), None) = (&entry, wanted_group) {
        let member = |line: &Vec<&str>| {
            line.get(3)
                .is_some_and(|members| members.split(',').any(|member| member == entry[0]))
        };
        more.extend(
            entries(group)
                .filter(member)
                .filter_map(|line| number(&line, 2)),
        );
    }
    let mut user = json!({ "uid": uid, "gid": gid });
    if !more.is_empty() {
        user["additionalGids"] = json!(more);
    }
    Ok(user)
}

fn group_id(wanted: &str, group: &str) -> Result<u32> {
    let named = entries(group)
        .find(|entry| entry[0] == wanted)
        .and_then(|entry| entry.get(2)?.parse().ok());
    wanted.parse().ok().or(named).ok_or_else(|| {
        Error::invalid(format!(
            "group {wanted:?}: is not in the container's group file"
        ))
    })
}

fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines()
        .filter(|line| !line.starts_with('#') && line.contains(':'))
        .map(|line| line.trim().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:\n# web:x:1:1\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:a,web\n";

    #[test]
    fn names_and_numbers_are_resolved_as_docker_does() {
        let user = |asked| resolve(asked, PASSWD, GROUP);
        assert_eq!(
            user("web").unwrap(),
            json!({"uid":33,"gid":34,"additionalGids":[50]})
        );
        assert_eq!(user("33").unwrap()["gid"], 34);
        assert_eq!(user("1000").unwrap(), json!({"uid":1000,"gid":0}));
        assert_eq!(user("web:logs").unwrap(), json!({"uid":33,"gid":50}));
        assert_eq!(user("5:6").unwrap(), json!({"uid":5,"gid":6}));
        assert!(user("nobody").is_err());
        assert!(user("web:nothing").is_err());
    }

    #[test]
    fn our_own_files_can_be_read_beneath_our_own_root() {
        let us = std::process::id();
        assert_eq!(user(us, "0").unwrap()["uid"], 0);
        assert!(beneath(us, "proc").is_none());
    }
}
