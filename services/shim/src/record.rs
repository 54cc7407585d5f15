//! `shim.json` in the bundle: what a later `delete` must know when the shim is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::children::Exit;
use crate::error::{About, Result};
use crate::options::Options;

const FILE: &str = "shim.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) pid: i32,
    pub(crate) options: Options,
    /// Folder of the runtime's state, resolved.
    pub(crate) root: PathBuf,
    pub(crate) cgroup: Cgroup,
    /// Exit status and nanoseconds since the epoch, once init has ended.
    pub(crate) exit: Option<(u32, u64)>,
}

impl Record {
    pub(crate) fn load(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(bundle.join(FILE)).ok()?).ok()
    }

    /// Writes the record beside its place first, so that a reader never sees half of it.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        let (draft, place) = (bundle.join(".shim.json"), bundle.join(FILE));
        let bytes = serde_json::to_vec(self).about("encode shim.json")?;
        fs::write(&draft, bytes).about(draft.display())?;
        fs::rename(&draft, &place).about(place.display())
    }

    pub(crate) fn set_exit(&mut self, exit: Exit) {
        let since = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.exit = Some((
            exit.status,
            u64::try_from(since.as_nanos()).unwrap_or_default(),
        ));
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        let (status, nanos) = self.exit?;
        Some(Exit {
            status,
            at: UNIX_EPOCH + Duration::from_nanos(nanos),
        })
    }

    pub(crate) fn remove(bundle: &Path) {
        let _ = fs::remove_file(bundle.join(FILE));
    }
}

/// The exit that is reported when nobody saw the true one: killed, now.
pub(crate) fn unseen() -> Exit {
    Exit {
        status: 137,
        at: SystemTime::now(),
    }
}
