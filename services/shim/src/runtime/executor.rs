//! The last steps of a process of the embedded runtime, inside the container.
//!
//! libcontainer's own executor refuses programs that are not executable for *others* and processes
//! without `PATH`; and its exec does not load the container's seccomp profile. The latter is made up
//! for here, which is why an exec keeps its capabilities until this point: loading a filter without
//! `no_new_privs` takes CAP_SYS_ADMIN.

use std::ffi::CString;
use std::path::Path;

use libcontainer::capabilities::drop_privileges;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execv};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};

/// Runs the program; for an exec, confines it first.
#[derive(Clone, Default)]
pub(super) struct Launch {
    pub(super) confine: Option<Confinement>,
}

/// What an exec must take on between the runtime's set-up and its program.
#[derive(Clone)]
pub(super) struct Confinement {
    pub(super) seccomp: Option<LinuxSeccomp>,
    pub(super) capabilities: Option<LinuxCapabilities>,
    pub(super) no_new_privileges: bool,
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(confinement) = &self.confine {
            confinement.apply()?;
        }
        let args = args(spec).ok_or(ExecutorError::InvalidArg)?;
        let program = find(&args[0], path_of(spec)).map_err(|why| other(&args[0], why.desc()))?;
        let text = |s: &String| CString::new(s.as_bytes()).map_err(|_| ExecutorError::InvalidArg);
        let words = args.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let error = match execv(&text(&program)?, &words) {
            Err(Errno::ENOEXEC) => through_shell(&program, args),
            Err(error) => error,
            Ok(never) => match never {},
        };
        Err(other(&program, error.desc()))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let fail = |text: String| Err(ExecutorValidationError::ArgValidationError(text));
        let Some(args) = args(spec) else {
            return fail("the process has no arguments".into());
        };
        match find(&args[0], path_of(spec)) {
            Ok(_) => Ok(()),
            Err(why) => fail(format!("exec {:?}: {}", args[0], why.desc())),
        }
    }
}

impl Confinement {
    fn apply(&self) -> Result<(), ExecutorError> {
        if self.no_new_privileges {
            self.drop_capabilities()?;
            self.load_seccomp()
        } else {
            self.load_seccomp()?;
            self.drop_capabilities()
        }
    }

    fn load_seccomp(&self) -> Result<(), ExecutorError> {
        let Some(profile) = &self.seccomp else {
            return Ok(());
        };
        match initialize_seccomp(profile) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(other(
                "seccomp profile",
                "has a listener, which exec cannot serve",
            )),
            Err(error) => Err(other("seccomp profile", error)),
        }
    }

    fn drop_capabilities(&self) -> Result<(), ExecutorError> {
        let Some(wanted) = &self.capabilities else {
            return Ok(());
        };
        drop_privileges(wanted, create_syscall().as_ref()).map_err(|e| other("capabilities", e))
    }
}

fn other(what: &str, why: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::Execution(format!("{what}: {why}").into())
}

fn args(spec: &Spec) -> Option<&Vec<String>> {
    spec.process()
        .as_ref()?
        .args()
        .as_ref()
        .filter(|args| !args.is_empty())
}

/// The container's `PATH`, or what shells assume without one.
fn path_of(spec: &Spec) -> &str {
    let env = spec
        .process()
        .as_ref()
        .and_then(|process| process.env().as_ref());
    let path = env.and_then(|env| {
        env.iter()
            .rev()
            .find_map(|entry| entry.strip_prefix("PATH="))
    });
    path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// The program a name means; `ENOENT` when there is none, `EACCES` when none may be run.
fn find(name: &str, path: &str) -> Result<String, Errno> {
    if name.contains('/') {
        return usable(name).map(|()| name.to_owned());
    }
    let mut worst = Errno::ENOENT;
    for folder in path.split(':') {
        let candidate = format!("{}/{name}", if folder.is_empty() { "." } else { folder });
        match usable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(worst)
}

fn usable(path: &str) -> Result<(), Errno> {
    if Path::new(path).is_dir() {
        return Err(Errno::EACCES);
    }
    access(path, AccessFlags::X_OK)
}

/// A script without `#!` is run by the shell, as `execvp` does.
fn through_shell(program: &str, args: &[String]) -> Errno {
    let words = ["/bin/sh", program]
        .into_iter()
        .chain(args[1..].iter().map(String::as_str));
    let words: Result<Vec<CString>, _> = words.map(CString::new).collect();
    match words.map(|words| execv(&words[0], &words)) {
        Ok(Err(error)) => error,
        Ok(Ok(never)) => match never {},
        Err(_) => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_would() {
        assert_eq!(find("sh", "/nowhere:/bin"), Ok("/bin/sh".into()));
        assert_eq!(find("/bin/sh", ""), Ok("/bin/sh".into()));
        assert_eq!(find("no-such-program", "/bin"), Err(Errno::ENOENT));
        assert_eq!(find("/etc/passwd", ""), Err(Errno::EACCES));
        assert_eq!(find("/etc", ""), Err(Errno::EACCES));
    }
}
