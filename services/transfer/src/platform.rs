//! Platforms: which manifest of an index suits this machine, or the one asked for.
//!
//! Pure. Source: OCI image-spec, image-index.md "platform"; fallbacks between variants as containerd's
//! platforms package has them (a newer processor also runs what was built for an older one).

use contracts::{Descriptor, Error, Platform, Result};

/// Marks a build attestation, which stands in an index beside images but is none.
const ATTESTATION: (&str, &str) = ("vnd.docker.reference.type", "attestation-manifest");

/// Parses `os`, `arch`, `os/arch` or `os/arch/variant` and normalises it; what is left out is this machine's.
///
/// Errors: `InvalidArgument` naming the text.
pub fn parse(text: &str) -> Result<Platform> {
    let fault = || {
        Error::invalid(format!(
            "platform {text:?}: write it as in linux/amd64 or linux/arm64/v8"
        ))
    };
    let parts: Vec<&str> = text.split('/').collect();
    let word = |part: &&str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    if !parts.iter().all(word) {
        return Err(fault());
    }
    let here = host();
    let (os, architecture, variant) = match parts.as_slice() {
        [os] if is_os(os) => (*os, here.architecture.as_str(), ""),
        [architecture] => (here.os.as_str(), *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => return Err(fault()),
    };
    Ok(normalise(&platform(os, architecture, variant)))
}

/// Tells the platform of this machine.
pub fn host() -> Platform {
    normalise(&platform(std::env::consts::OS, std::env::consts::ARCH, ""))
}

/// Writes `linux/arm/v7`, as [`parse`] reads it.
pub fn format(platform: &Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if !platform.variant.is_empty() {
        text.push('/');
        text.push_str(&platform.variant);
    }
    text
}

/// Brings the many spellings of one platform to one: `x86_64` is `amd64`, `aarch64` is `arm64`, `armhf` is `arm/v7`.
pub fn normalise(given: &Platform) -> Platform {
    let os = match given.os.to_ascii_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    };
    let variant = given.variant.to_ascii_lowercase();
    let architecture = given.architecture.to_ascii_lowercase();
    let (architecture, variant) = processor(&architecture, &variant);
    Platform {
        os,
        architecture: architecture.to_owned(),
        variant,
        ..given.clone()
    }
}

fn processor<'a>(architecture: &'a str, variant: &str) -> (&'a str, String) {
    match (architecture, variant) {
        ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", String::new()),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", String::new()),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other.to_owned()),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", String::new()),
        ("aarch64" | "arm64", other) => ("arm64", other.to_owned()),
        ("armhf", _) => ("arm", "v7".to_owned()),
        ("armel", _) => ("arm", "v6".to_owned()),
        ("arm", "" | "7") => ("arm", "v7".to_owned()),
        ("arm", "5" | "6" | "8") => ("arm", format!("v{variant}")),
        ("powerpc64" | "powerpc64le", _) => ("ppc64le", String::new()),
        ("loongarch64", other) => ("loong64", other.to_owned()),
        (other, variant) => (other, variant.to_owned()),
    }
}

/// Lists what runs on `wanted`, best first.
pub fn runnable(wanted: &Platform) -> Vec<Platform> {
    let wanted = normalise(wanted);
    let at = |architecture: &str, variant: &str| Platform {
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..wanted.clone()
    };
    let mut list = vec![wanted.clone()];
    match (wanted.architecture.as_str(), level(&wanted.variant)) {
        ("amd64", level) => {
            list.extend(
                (2..level)
                    .rev()
                    .map(|lower| at("amd64", &format!("v{lower}"))),
            );
            if level > 1 {
                list.push(at("amd64", ""));
            }
            list.push(at("386", ""));
        }
        ("arm64", level) => {
            list.extend(
                (9..level)
                    .rev()
                    .map(|lower| at("arm64", &format!("v{lower}"))),
            );
            if !wanted.variant.is_empty() {
                list.push(at("arm64", ""));
            }
            list.extend((5..=8).rev().map(|lower| at("arm", &format!("v{lower}"))));
        }
        ("arm", level) => list.extend(
            (5..level)
                .rev()
                .map(|lower| at("arm", &format!("v{lower}"))),
        ),
        _ => {}
    }
    list
}

/// Reads `v8.2` as 8; an absent variant is level 0.
fn level(variant: &str) -> u32 {
    let digits = variant
        .trim_start_matches('v')
        .split('.')
        .next()
        .unwrap_or_default();
    // A hostile index must not make the list of candidates long.
    digits.parse().unwrap_or(0).min(16)
}

/// Chooses the manifest of an index for `wanted`: an exact match, then lower variants; entries without
/// a platform are the last resort, attestations are no candidates.
///
/// Errors: `NotFound` listing the platforms there are.
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor> {
    let candidates: Vec<&Descriptor> = manifests.iter().filter(|entry| is_image(entry)).collect();
    let matches = |wanted: &Platform, entry: &Descriptor| {
        entry
            .platform
            .as_ref()
            .is_some_and(|offered| same(wanted, offered))
    };
    let ranked = runnable(wanted);
    ranked
        .iter()
        .find_map(|rank| candidates.iter().find(|entry| matches(rank, entry)))
        .or_else(|| candidates.iter().find(|entry| entry.platform.is_none()))
        .copied()
        .ok_or_else(|| nothing_suits(&candidates, wanted))
}

/// Tells whether an entry of an index is an image, not an attestation about one.
pub fn is_image(entry: &Descriptor) -> bool {
    let attestation = entry
        .annotations
        .get(ATTESTATION.0)
        .is_some_and(|kind| kind == ATTESTATION.1);
    let unknown = entry
        .platform
        .as_ref()
        .is_some_and(|p| p.os == "unknown" || p.architecture == "unknown");
    !attestation && !unknown
}

fn same(wanted: &Platform, offered: &Platform) -> bool {
    let offered = normalise(offered);
    let version = wanted.os_version.is_empty() || wanted.os_version == offered.os_version;
    wanted.os == offered.os
        && wanted.architecture == offered.architecture
        && wanted.variant == offered.variant
        && version
}

fn nothing_suits(candidates: &[&Descriptor], wanted: &Platform) -> Error {
    let mut offered: Vec<String> = candidates
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .map(format)
        .collect();
    offered.sort();
    offered.dedup();
    let offered = if offered.is_empty() {
        "none".into()
    } else {
        offered.join(", ")
    };
    let wanted = format(wanted);
    Error::not_found(format!(
        "platform {wanted}: the image is not built for it; there are: {offered}"
    ))
}

fn is_os(word: &str) -> bool {
    matches!(
        word.to_ascii_lowercase().as_str(),
        "linux"
            | "windows"
            | "darwin"
            | "macos"
            | "freebsd"
            | "netbsd"
            | "openbsd"
            | "solaris"
            | "illumos"
            | "android"
    )
}

fn platform(os: &str, architecture: &str, variant: &str) -> Platform {
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::Digest;

    fn entry(number: u8, text: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: crate::manifest::OCI_MANIFEST.into(),
            digest: Digest::sha256(&[number; 32]),
            size: 1,
            annotations: Default::default(),
            platform: text.map(|text| {
                let mut parts = text.split('/');
                let mut next = || parts.next().unwrap_or_default();
                platform(next(), next(), next())
            }),
            urls: Vec::new(),
        }
    }

    fn chosen(index: &[Option<&str>], wanted: &str) -> Result<u8> {
        let entries: Vec<_> = (0u8..)
            .zip(index)
            .map(|(n, text)| entry(n, *text))
            .collect();
        let found = choose(&entries, &parse(wanted)?)?;
        Ok((0u8..)
            .zip(&entries)
            .find(|(_, e)| *e == found)
            .map_or(255, |(n, _)| n))
    }

    #[test]
    fn spellings_of_one_platform_are_one() {
        let text = |given| {
            parse(given)
                .map(|p| format(&p))
                .unwrap_or_else(|e| e.message)
        };
        assert_eq!(text("linux/x86_64"), "linux/amd64");
        assert_eq!(text("linux/aarch64"), "linux/arm64");
        assert_eq!(text("linux/arm64/v8"), "linux/arm64");
        assert_eq!(text("linux/arm"), "linux/arm/v7");
        assert_eq!(text("linux/armhf"), "linux/arm/v7");
        assert_eq!(text("linux/armel"), "linux/arm/v6");
        assert_eq!(text("Linux/AMD64/v1"), "linux/amd64");
        assert_eq!(text("macos/arm64"), "darwin/arm64");
        assert_eq!(text("s390x"), format!("{}/s390x", host().os));
        assert_eq!(text("linux"), format!("linux/{}", host().architecture));
        for wrong in ["", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(text(wrong).contains("write it as"), "{wrong:?}");
        }
    }

    #[test]
    fn an_exact_match_is_preferred_wherever_it_stands() {
        let index = [
            Some("linux/386"),
            Some("linux/arm/v6"),
            Some("linux/amd64"),
            Some("linux/arm/v7"),
        ];
        assert_eq!(chosen(&index, "linux/amd64"), Ok(2));
        assert_eq!(chosen(&index, "linux/arm"), Ok(3));
    }

    #[test]
    fn a_newer_processor_takes_what_was_built_for_an_older_one_but_not_the_reverse() {
        assert_eq!(
            chosen(
                &[Some("linux/arm/v5"), Some("linux/arm/v6")],
                "linux/arm/v7"
            ),
            Ok(1)
        );
        assert_eq!(
            chosen(&[Some("linux/arm/v6"), Some("linux/arm/v7")], "linux/arm64"),
            Ok(1)
        );
        assert_eq!(
            chosen(
                &[Some("linux/amd64"), Some("linux/amd64/v2")],
                "linux/amd64/v3"
            ),
            Ok(1)
        );
        assert_eq!(chosen(&[Some("linux/arm64/v8")], "linux/arm64"), Ok(0));
        assert!(chosen(&[Some("linux/arm/v7")], "linux/arm/v6").is_err());
        assert!(chosen(&[Some("linux/amd64/v3")], "linux/amd64").is_err());
    }

    #[test]
    fn attestations_are_no_candidates_and_a_miss_lists_what_there_is() {
        let index = [
            Some("unknown/unknown"),
            Some("linux/s390x"),
            Some("linux/arm/v7"),
        ];
        let error = chosen(&index, "linux/amd64").map_or_else(|e| e.message, |n| n.to_string());
        assert_eq!(
            error,
            "platform linux/amd64: the image is not built for it; there are: linux/arm/v7, linux/s390x"
        );
        let mut attestation = entry(1, None);
        attestation
            .annotations
            .insert(ATTESTATION.0.into(), ATTESTATION.1.into());
        assert!(choose(&[attestation], &host()).is_err());
    }

    #[test]
    fn an_entry_without_a_platform_is_the_last_resort() {
        assert_eq!(chosen(&[None, Some("linux/amd64")], "linux/amd64"), Ok(1));
        assert_eq!(chosen(&[None, Some("linux/s390x")], "linux/amd64"), Ok(0));
    }
}
