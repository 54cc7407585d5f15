//! Where things of a task are: what is lost with a reboot below `state`, what is kept below `root`.

use crate::record::Name;
use contracts::{ContainerId, ExecId, Timestamp};
use std::path::{Path, PathBuf};

/// The folders of the plugin.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    state: PathBuf,
    /// Most bytes of one log; 0 for no bound.
    pub(crate) log_bytes: u64,
}

impl Layout {
    pub(crate) fn new(root: &Path, state: &Path) -> Self {
        Self {
            root: root.into(),
            state: state.into(),
            log_bytes: 0,
        }
    }

    /// All bundles, in a folder per namespace.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    pub(crate) fn bundle(&self, name: &Name) -> PathBuf {
        self.bundles()
            .join(name.namespace.as_str())
            .join(name.id.as_str())
    }

    /// Where a shim listens: short, because a socket's path has at most 107 bytes, and never used twice.
    pub(crate) fn socket(&self, name: &Name, made: Timestamp) -> PathBuf {
        let text = format!("{}/{}/{}", name.namespace, name.id, made.0);
        // FNV-1a: the same in every build.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.sockets().join(format!("{hash:016x}"))
    }

    /// Where gantry's own shims listen.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.state.join("sockets")
    }

    /// Which start of the machine the records are about.
    pub(crate) fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// Bundles that are being removed, out of the way of the next task of that name.
    pub(crate) fn gone(&self) -> PathBuf {
        self.state.join("gone")
    }

    /// Where the bundle of a shim goes when its task has.
    pub(crate) fn grave(&self, socket: &Path) -> PathBuf {
        self.gone().join(socket.file_name().unwrap_or_default())
    }

    /// Where the shim of a bundle that is on its way out listened.
    pub(crate) fn socket_of(&self, grave: &Path) -> PathBuf {
        self.sockets().join(grave.file_name().unwrap_or_default())
    }

    /// Where shims forward their events to.
    pub(crate) fn events(&self) -> PathBuf {
        self.state.join("events.sock")
    }

    /// All logs, in a folder per namespace.
    pub(crate) fn all_logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn logs(&self, name: &Name) -> PathBuf {
        self.all_logs()
            .join(name.namespace.as_str())
            .join(name.id.as_str())
    }

    pub(crate) fn log(&self, name: &Name, exec: Option<&ExecId>) -> PathBuf {
        let file = match exec {
            None => "init.log".to_owned(),
            Some(exec) => format!("exec-{exec}.log"),
        };
        self.logs(name).join(file)
    }
}

/// The tasks that a folder of folders names: `<namespace>/<container>`.
pub(crate) fn names_in(folder: &Path) -> Vec<Name> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = Vec::new();
    for space in entries(folder) {
        let Some(Ok(namespace)) = space.file_name().to_str().map(contracts::Namespace::new) else {
            continue;
        };
        for one in entries(&space.path()) {
            if let Some(Ok(id)) = one.file_name().to_str().map(ContainerId::new) {
                let namespace = namespace.clone();
                names.push(Name { namespace, id });
            }
        }
    }
    names
}
