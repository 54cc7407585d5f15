//! Giving up what a plugin was not granted: the first thing a plugin's process does, while it is single-threaded.

use contracts::{Error, Result, plugin::Boot};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Changes to the granted uid and capabilities, forbids gaining more, and dies with the supervisor.
///
/// Errors: `PermissionDenied` naming the step that the kernel refused; `InvalidArgument` for an unknown capability.
pub(crate) fn drop_to(boot: &Boot) -> Result<()> {
    if let Some((uid, gid)) = boot.uid
        && uid != 0
    {
        let keep = wanted(&boot.capabilities)?;
        change_user(uid, gid, keep)?;
    }
    if !boot.new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    }
    // After the change of uid, which clears it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(refused("death signal"))
}

fn change_user(uid: u32, gid: u32, keep: CapabilitySet) -> Result<()> {
    use rustix::thread::{
        set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    };
    for capability in CapabilitySet::all().difference(keep).iter() {
        // A capability that this kernel does not know cannot be dropped, and need not be.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let (uid, gid) = (
        rustix::process::Uid::from_raw(uid),
        rustix::process::Gid::from_raw(gid),
    );
    set_keep_capabilities(true).map_err(refused("keep capabilities"))?;
    set_thread_groups(&[gid]).map_err(refused("setgroups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(refused("setresgid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(refused("setresuid"))?;
    set_keep_capabilities(false).map_err(refused("keep capabilities"))?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(refused("capset"))
}

fn wanted(names: &[String]) -> Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        CapabilitySet::from_name(bare)
            .map(|capability| set | capability)
            .ok_or_else(|| Error::invalid(format!("capability {name:?}: unknown")))
    })
}

fn refused(step: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |e| Error::denied(format!("dropping privileges: {step}: {e}"))
}
