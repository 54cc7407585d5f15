//! `delete`: what a shim that was killed could not do itself.

use std::fs;
use std::io::Write;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;

use crate::args::ShimArgs;
use crate::bootstrap::{end_server, socket_path};
use crate::error::{About, Result};
use crate::events::timestamp;
use crate::record::{Record, unseen};
use crate::runtime::{self, Facts, Place};
use crate::{rootfs, server};

/// Mounts that may be stacked on a rootfs by somebody's mistake; each round removes one.
const MOUNTS_MAX: usize = 16;

/// Removes what is left of a container and prints how it ended.
pub(crate) fn delete(args: &ShimArgs) -> Result<()> {
    let socket = socket_path(args)?;
    end_server(&socket);
    faults::point("shim.cleanup.server-ended");
    let record = Record::load(&args.bundle);
    let (pid, exit) = match &record {
        Some(record) => (record.pid, record.exit().unwrap_or_else(unseen)),
        None => (0, unseen()),
    };
    if let Some(record) = record {
        bury(args, record)?;
    }
    faults::point("shim.cleanup.container-ended");
    rootfs::unmount_all(&args.bundle.join("rootfs"), MOUNTS_MAX);
    let _ = fs::remove_dir_all(args.bundle.join("runtime"));
    server::sweep(&args.bundle, &socket);
    faults::point("shim.cleanup.swept");
    Record::remove(&args.bundle);
    let answer = DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at)).into(),
        ..DeleteResponse::default()
    };
    let bytes = answer.write_to_bytes().about("encode the answer")?;
    std::io::stdout().write_all(&bytes).about("stdout")
}

fn bury(args: &ShimArgs, record: Record) -> Result<()> {
    record.cgroup.destroy().about("remove the cgroups")?;
    let place = Place {
        namespace: args.namespace.clone(),
        id: args.id.clone(),
        bundle: args.bundle.clone(),
        root: record.root,
    };
    let facts = Facts::read(&args.bundle).unwrap_or_default();
    runtime::choose(place, record.options, &facts).delete()
}
