//! The listening sockets of plugins. The supervisor opens and keeps them, so that connections wait while a plugin restarts.

use contracts::{
    Fd,
    plugin::{PluginSpec, Socket},
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// How many connections wait. Source: Linux, `net.core.somaxconn`, its default.
const BACKLOG: i32 = 4096;

/// All open listening sockets, by name; dropping it removes their files.
#[derive(Debug)]
pub(crate) struct Sockets {
    state: PathBuf,
    open: BTreeMap<String, Fd>,
}

/// A listening socket that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("socket {}: {source}", path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

impl Sockets {
    /// Opens the sockets of all `specs` below `state`, replacing what a killed supervisor left.
    pub(crate) fn open<'a>(
        state: &Path,
        specs: impl Iterator<Item = &'a PluginSpec>,
    ) -> Result<Self, SocketError> {
        let mut sockets = Self {
            state: state.into(),
            open: BTreeMap::new(),
        };
        sockets.add(specs)?;
        Ok(sockets)
    }

    /// Opens what `specs` have and is not open yet: all of it, or none.
    pub(crate) fn add<'a>(
        &mut self,
        specs: impl Iterator<Item = &'a PluginSpec>,
    ) -> Result<(), SocketError> {
        let mut fresh = Self {
            state: self.state.clone(),
            open: BTreeMap::new(),
        };
        for socket in specs.flat_map(|spec| &spec.sockets) {
            let name = &socket.name;
            if self.open.contains_key(name) || fresh.open.contains_key(name) {
                continue;
            }
            let path = self.state.join(name);
            let fd = listen(&path, socket).map_err(|source| SocketError { path, source })?;
            fresh.open.insert(name.clone(), fd);
        }
        self.open.append(&mut fresh.open);
        Ok(())
    }

    /// Closes what no spec has any more.
    pub(crate) fn retain<'a>(&mut self, specs: impl Iterator<Item = &'a PluginSpec>) {
        let sockets = specs.flat_map(|spec| &spec.sockets);
        let wanted: Vec<&str> = sockets.map(|socket| socket.name.as_str()).collect();
        self.open.retain(|name, _| {
            let stays = wanted.contains(&name.as_str());
            if !stays {
                let _ = fs::remove_file(self.state.join(name));
            }
            stays
        });
    }

    /// The sockets of one plugin, in the order of its registration.
    pub(crate) fn of(&self, spec: &PluginSpec) -> Vec<Fd> {
        let found = spec.sockets.iter().filter_map(|s| self.open.get(&s.name));
        found.cloned().collect()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for name in self.open.keys() {
            let _ = fs::remove_file(self.state.join(name));
        }
    }
}

fn listen(path: &Path, socket: &Socket) -> io::Result<Fd> {
    if Path::new(&socket.name).components().count() != 1 {
        return Err(io::Error::other("its name must be a plain file name"));
    }
    remove_stale(path)?;
    let address = SocketAddrUnix::new(path).map_err(|_| {
        let length = path.as_os_str().len();
        let what = format!(
            "its path has {length} bytes, at most 107 are possible; choose a shorter state folder"
        );
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })?;
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&fd, &address)?;
    // Before it listens nobody can connect, so nobody meets the wrong mode.
    fs::set_permissions(path, fs::Permissions::from_mode(socket.mode))?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Fd::from(fd))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::other(
            "a file that is no socket is in its place; move it away",
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::spec;
    use std::os::unix::net::UnixStream;

    fn with_socket(name: &str) -> PluginSpec {
        let mut spec = spec("gateway/http", &[]);
        spec.sockets.push(Socket {
            name: name.into(),
            mode: 0o660,
        });
        spec
    }

    #[test]
    fn a_socket_listens_with_its_mode_replaces_a_stale_one_and_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("g.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let spec = with_socket("g.sock");
        let sockets = Sockets::open(state.path(), [&spec].into_iter()).unwrap();
        assert_eq!(sockets.of(&spec).len(), 1);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn when_one_of_several_cannot_be_added_none_is() {
        let state = tempfile::tempdir().unwrap();
        let mut sockets = Sockets::open(state.path(), std::iter::empty()).unwrap();
        fs::write(state.path().join("b.sock"), "precious").unwrap();
        let specs = [with_socket("a.sock"), with_socket("b.sock")];
        sockets.add(specs.iter()).unwrap_err();
        assert!(!state.path().join("a.sock").exists());
        assert!(sockets.of(&specs[0]).is_empty());
    }

    #[test]
    fn what_is_in_the_way_or_too_long_is_named() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("g.sock"), "precious").unwrap();
        let refused = |name: &str| {
            let spec = with_socket(name);
            let error = Sockets::open(state.path(), [&spec].into_iter()).unwrap_err();
            error.to_string()
        };
        assert!(refused("g.sock").contains("move it away"));
        assert!(refused(&"x".repeat(200)).contains("choose a shorter state folder"));
        assert!(refused("../g.sock").contains("plain file name"));
    }
}
