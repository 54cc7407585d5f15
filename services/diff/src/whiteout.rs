//! Names by which a layer deletes. Source: OCI image-spec, layer.md, "Whiteouts".

use crate::root;

const PREFIX: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the path of an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// An ordinary entry.
    Nothing,
    /// Bookkeeping of aufs that means nothing here.
    Ignore,
    /// Hide all that lower layers have in this directory.
    Opaque(&'a [u8]),
    /// Hide one name of this directory.
    Remove(&'a [u8], &'a [u8]),
    /// A whiteout that names nothing, or an entry inside of one.
    Broken,
}

/// Reads a [`root::normal`] path.
pub(crate) fn asked(path: &[u8]) -> Asked<'_> {
    let Some((parent, name)) = root::split(path) else {
        return Asked::Nothing;
    };
    let inside: Vec<_> = parent
        .split(|byte| *byte == b'/')
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    if inside.iter().any(|name| name.starts_with(META)) {
        return Asked::Ignore;
    }
    if !inside.is_empty() {
        return Asked::Broken;
    }
    match name.strip_prefix(PREFIX) {
        None => Asked::Nothing,
        Some(_) if name == OPAQUE => Asked::Opaque(parent),
        Some(_) if name.starts_with(META) => Asked::Ignore,
        Some(b"" | b"." | b"..") => Asked::Broken,
        Some(hidden) => Asked::Remove(parent, hidden),
    }
}

/// The entry name that hides `path`.
pub(crate) fn of(path: &[u8]) -> Vec<u8> {
    match root::split(path) {
        Some((b"", name)) => [PREFIX, name].concat(),
        Some((parent, name)) => [parent, b"/", PREFIX, name].concat(),
        None => PREFIX.to_vec(),
    }
}

/// The entry name that makes the directory `path` opaque.
pub(crate) fn opaque(path: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => OPAQUE.to_vec(),
        false => [path, b"/", OPAQUE].concat(),
    }
}

/// Whether a file of this name could not be told from a whiteout once it is in a layer.
pub(crate) fn reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_are_told_from_names_and_from_aufs_bookkeeping() {
        assert_eq!(asked(b"etc/.wh.passwd"), Asked::Remove(b"etc", b"passwd"));
        assert_eq!(asked(b".wh..wh..opq"), Asked::Opaque(b""));
        assert_eq!(asked(b"etc/.wh..wh..opq"), Asked::Opaque(b"etc"));
        assert_eq!(asked(b".wh..wh.plnk/12.34"), Asked::Ignore);
        assert_eq!(asked(b".wh..wh.aufs"), Asked::Ignore);
        assert_eq!(asked(b"etc/.whale"), Asked::Nothing);
    }

    #[test]
    fn whiteouts_of_dots_are_broken() {
        for path in [&b"a/.wh."[..], b"a/.wh..", b"a/.wh...", b".wh.a/b"] {
            assert_eq!(asked(path), Asked::Broken, "{path:?}");
        }
        assert_eq!(asked(b".wh...."), Asked::Remove(b"", b"..."));
    }
}
