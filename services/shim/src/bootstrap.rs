//! `start`: the socket, the fork, the address.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{chdir, getpid, set_child_subreaper, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::args::ShimArgs;
use crate::error::{About, Error, Result};
use crate::server;
use crate::sys::{self, Forked};

/// The longest path a socket address holds, without its closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Starts the server and prints its address.
pub(crate) fn start(args: &ShimArgs) -> Result<()> {
    let path = socket_path(args)?;
    prepare_folder(&path)?;
    if UnixStream::connect(&path).is_ok() {
        return print(&path);
    }
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).about(path.display())?;
    faults::point("shim.start.bound");
    let started = launch(args, &path, listener).and_then(|()| {
        faults::point("shim.start.stands");
        print(&path)
    });
    if started.is_err() {
        // Nobody will ever call a server whose address nobody has heard.
        end_server(&path);
        server::sweep(&args.bundle, &path);
    }
    started
}

/// Where the server of these arguments listens.
pub(crate) fn socket_path(args: &ShimArgs) -> Result<PathBuf> {
    let path = args
        .socket
        .clone()
        .unwrap_or_else(|| args.bundle.join("shim.sock"));
    let length = path.as_os_str().len();
    if !path.is_absolute() || length > SOCKET_PATH_MAX {
        return Err(Error::invalid(format!(
            "socket {}: must be absolute and at most {SOCKET_PATH_MAX} bytes long: give -socket PATH",
            path.display()
        )));
    }
    Ok(path)
}

/// Makes sure that nobody else can reach the socket, or put another in its place.
fn prepare_folder(socket: &Path) -> Result<()> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    if let Err(error) = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
    {
        return Err(error).about(folder.display());
    }
    let meta = fs::metadata(folder).about(folder.display())?;
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Error::precondition(format!(
            "folder {} of the socket is open to others: make it 0700 and ours",
            folder.display()
        )));
    }
    Ok(())
}

fn print(socket: &Path) -> Result<()> {
    let address = format!("unix://{}", socket.display());
    let version: u32 = std::env::var("MAX_SHIM_VERSION")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let line = if version >= 3 {
        serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string()
    } else {
        address
    };
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .about("stdout")
}

/// Forks the server and waits until it stands.
fn launch(args: &ShimArgs, socket: &Path, listener: UnixListener) -> Result<()> {
    fs::write(
        args.bundle.join("address"),
        format!("unix://{}", socket.display()),
    )
    .about(args.bundle.display())?;
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC).about("ready pipe")?;
    match sys::fork().about("fork the server")? {
        Forked::Child => {
            drop(ready);
            sys::exit_now(stand(args, socket, listener, tell))
        }
        Forked::Parent { .. } => {
            drop(tell);
            let mut said = String::new();
            File::from(ready)
                .read_to_string(&mut said)
                .about("ready pipe")?;
            if said == "ready" {
                return Ok(());
            }
            Err(Error::internal(if said.is_empty() {
                "the server died".to_owned()
            } else {
                said
            }))
        }
    }
}

/// The server's life; returns its exit code.
fn stand(args: &ShimArgs, socket: &Path, listener: UnixListener, tell: OwnedFd) -> i32 {
    let mut tell = File::from(tell);
    if let Err(error) = detach(args, &listener, &tell) {
        let _ = tell.write_all(error.message.as_bytes());
        return 1;
    }
    faults::point("shim.serve.detached");
    let _ = tell.write_all(b"ready");
    drop(tell);
    let served = server::serve(args, listener);
    server::sweep(&args.bundle, socket);
    i32::from(served.is_err())
}

/// Leaves everything the starter owns: session, stdio, descriptors, mounts, folder.
fn detach(args: &ShimArgs, listener: &UnixListener, tell: &File) -> Result<()> {
    sys::close_all_but(&[listener.as_raw_fd(), tell.as_raw_fd()]);
    sys::small_heap();
    sys::forget_activation();
    rustix::process::setsid().about("setsid")?;
    redirect()?;
    set_child_subreaper(Some(getpid())).about("child subreaper")?;
    own_mounts()?;
    // The kernel tells our peers who called listen last: that must be us, see `end_server`.
    rustix::net::listen(listener, 128).about("listen")?;
    umask(Mode::from_raw_mode(0o022));
    chdir("/").about("chdir")?;
    let _ = rustix::thread::set_name(c"gantry-shim");
    let pid_file = args.bundle.join("shim.pid");
    fs::write(&pid_file, std::process::id().to_string()).about(pid_file.display())
}

fn redirect() -> Result<()> {
    let null =
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).about("/dev/null")?;
    dup2_stdin(&null).about("stdin")?;
    dup2_stdout(&null).about("stdout")?;
    match std::env::var_os("GANTRY_SHIM_LOG") {
        Some(path) => {
            let log = File::options()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path);
            let log = log.about(Path::new(&path).display())?;
            dup2_stderr(&log).about("stderr")
        }
        None => dup2_stderr(&null).about("stderr"),
    }
}

/// A mount namespace of our own: what we mount is gone when we are. Mounts of the host still reach us
/// (and, more important, their unmounting does), none of ours reaches the host.
fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| {
        Error::precondition(format!(
            "a mount namespace of its own: {error}: run as root"
        ))
    })?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).about("mount propagation")
}

/// Ends a server that still listens at `socket`; true when there was one.
pub(crate) fn end_server(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else {
        return false;
    };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else {
        return false;
    };
    let killed = sys::kill(peer.pid.as_raw_nonzero().get(), nix::libc::SIGKILL).is_ok();
    // The end of the connection says that it is gone.
    let mut stream = stream;
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(5)));
    while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
    killed
}
