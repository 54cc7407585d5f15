//! The few system calls that no safe wrapper covers, each with the reason why it is sound here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Parent { child: i32 },
    Child,
}

/// Forks the process.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the shim is single-threaded by construction, so the child may run any code.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent {
            child: child.as_raw(),
        }),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// Ends a forked child without running any destructor or exit handler it shares with its parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Sends any signal, real-time ones included.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes plain numbers; the caller owns the pid (a child that is not yet reaped).
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every signal its default action and an empty mask, since both survive `execve` when ignored
/// or blocked: Rust ignores SIGPIPE, and a container must not inherit that.
pub(crate) fn fresh_signals() {
    // All zeros are the kernel's `sigaction` with SIG_DFL. Past the C library, because that keeps
    // signals 32 and 33 to itself, and hands on what its own starter had ignored.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads 32 bytes at most; SIG_DFL installs no handler.
        unsafe {
            let none = std::ptr::null::<u64>();
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                none,
                8usize,
            );
        }
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Forgets that our starter was socket-activated: libcontainer would hand on descriptors 3 and up.
pub(crate) fn forget_activation() {
    // SAFETY: single-threaded by construction, so nobody reads the environment meanwhile.
    unsafe {
        std::env::remove_var("LISTEN_FDS");
        std::env::remove_var("LISTEN_PID");
    }
}

/// Closes every descriptor above stderr but those in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3u32;
    for fd in keep.into_iter().filter(|fd| *fd > 2) {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: only called in a forked child, whose owners of these descriptors are never dropped.
    unsafe { libc::close_range(first, last, 0) };
}

/// Keeps glibc from reserving an arena or large free areas: a shim is many, and each is small.
pub(crate) fn small_heap() {
    // SAFETY: mallopt only sets allocator parameters.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Returns free heap pages to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Lets `command` find the given descriptors under 3, 4, 5 …
pub(crate) fn pass_from_three(command: &mut Command, fds: Vec<OwnedFd>) {
    // SAFETY: between fork and exec the closure only calls dup2, which is async-signal-safe. The
    // descriptors were duplicated above the target range, so none overwrites another.
    unsafe {
        command.pre_exec(move || {
            for (target, fd) in (3..).zip(&fds) {
                if libc::dup2(fd.as_raw_fd(), target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Duplicates a descriptor to a number of at least 16, closed on exec.
pub(crate) fn dup_high(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 16)?)
}

/// Puts a descriptor under the reactor's eyes.
pub(crate) fn watched<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: callers hand over an `OwnedFd` or `File`, whose number does not change while they live,
    // and nobody takes them out of the `AsyncFd` or exchanges them inside of it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
