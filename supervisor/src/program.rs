//! A build of gantry, pinned: what is started from it is this very file, whatever becomes of its path.

use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// An open build. A file that is replaced or removed lives on until nobody holds it.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    file: OwnedFd,
}

impl Program {
    /// The build that this process runs, which people know as `path`.
    pub(crate) fn running(path: &Path) -> io::Result<Self> {
        let shown = path.to_string_lossy();
        let shown = shown.strip_suffix(" (deleted)").unwrap_or(&shown);
        Ok(Self {
            path: shown.into(),
            file: pin(Path::new("/proc/self/exe"))?,
        })
    }

    /// The build at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            file: pin(path)?,
        })
    }

    /// The path that people know it by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What to execute: through this process, because the descriptor is closed before a script's interpreter reads it.
    pub(crate) fn exec(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.file.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }
}

fn pin(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    fn script(path: &Path, says: &str) {
        fs::write(path, format!("#!/bin/sh\necho {says}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn says(program: &Program) -> String {
        let output = Command::new(program.exec()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_pinned_build_stays_what_it_is_when_its_file_is_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("build"), folder.path().join("other"));
        script(&path, "old");
        script(&other, "new");
        let old = Program::open(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        let new = Program::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!((says(&old), says(&new)), ("old\n".into(), "new\n".into()));
    }

    #[test]
    fn the_running_build_is_shown_by_a_path_that_can_be_read() {
        let program = Program::running(Path::new("/usr/bin/gantry (deleted)")).unwrap();
        assert_eq!(program.path(), Path::new("/usr/bin/gantry"));
        assert!(program.exec().exists());
    }
}
