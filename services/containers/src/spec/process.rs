//! What runs, as whom, where and with which limits of its own.

use super::caps::CapSet;
use super::env;
use super::error::{Result, SpecError};
use super::image::ImageConfig;
use super::paths;
use super::user::{Files, Identity};
use crate::host::Facts;
use contracts::containers::{Generate, Options, Rlimit};
use oci_spec::runtime::{
    LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User,
};
use std::collections::HashSet;

/// Soft limit of open files: programs that use `select(2)` break above, and whoever wants more may raise it.
const OPEN_FILES: u64 = 1024;

/// Hard limit of open files, when the host allows as many.
const MOST_OPEN_FILES: u64 = 1 << 20;

/// Assembles the process from image and options.
pub(super) fn make(
    request: &Generate,
    image: &ImageConfig,
    hostname: &str,
    caps: CapSet,
    facts: &Facts,
) -> Result<Process> {
    let options = &request.options;
    let identity = identity(request, image)?;
    let mut process = Process::default();
    process
        .set_terminal(Some(options.tty))
        .set_args(Some(args(options, image)?))
        .set_env(Some(environment(options, image, hostname, &identity)?))
        .set_cwd(cwd(options, image)?.into())
        .set_user(user(identity))
        .set_capabilities(Some(capabilities(caps)))
        .set_rlimits(Some(rlimits(&options.rlimits, facts)?))
        .set_no_new_privileges(no_new_privileges(options))
        .set_oom_score_adj(oom_score_adj(options, facts)?);
    Ok(process)
}

fn identity(request: &Generate, image: &ImageConfig) -> Result<Identity> {
    let files = Files {
        passwd: &request.passwd,
        group: &request.group,
    };
    let options = &request.options;
    if options.user.is_empty() {
        return files.resolve("user of the image", image.user(), &options.groups);
    }
    files.resolve("user", &options.user, &options.groups)
}

fn user(identity: Identity) -> User {
    let mut user = User::default();
    user.set_uid(identity.uid)
        .set_gid(identity.gid)
        .set_additional_gids(Some(identity.groups));
    user
}

/// Source: OCI image-spec, config.md "Entrypoint", "Cmd".
fn args(options: &Options, image: &ImageConfig) -> Result<Vec<String>> {
    if !options.args.is_empty() && !options.command.is_empty() {
        let problem = "may not stand beside args: args replaces entrypoint and command, command only the latter";
        return Err(SpecError::new(
            "command",
            options.command.join(" "),
            problem,
        ));
    }
    if !options.args.is_empty() {
        return named("args", options.args.clone());
    }
    let command = if options.command.is_empty() {
        image.cmd()
    } else {
        &options.command
    };
    named("args", [image.entrypoint(), command].concat())
}

fn named(option: &str, args: Vec<String>) -> Result<Vec<String>> {
    match args.first().map(String::as_str) {
        None => Err(SpecError::new(
            option,
            "",
            "neither the request nor the image says what to run, give a command",
        )),
        Some("") => Err(SpecError::new(
            option,
            "",
            "the first one is empty, it must name the program",
        )),
        Some(_) => Ok(args),
    }
}

fn environment(
    options: &Options,
    image: &ImageConfig,
    hostname: &str,
    identity: &Identity,
) -> Result<Vec<String>> {
    let mut defaults = vec![
        ("PATH", env::PATH),
        ("HOSTNAME", hostname),
        ("HOME", identity.home.as_str()),
    ];
    if options.tty {
        defaults.push(("TERM", "xterm"));
    }
    env::merge(&defaults, image.env(), &options.env)
}

/// A working folder below `/proc` may be a descriptor that a runtime left open, and so the host (CVE-2024-21626).
fn cwd(options: &Options, image: &ImageConfig) -> Result<String> {
    let (option, cwd) = if options.cwd.is_empty() {
        let folder = paths::below("working folder of the image", image.working_dir())?;
        ("working folder of the image", format!("/{folder}"))
    } else {
        ("cwd", paths::absolute("cwd", &options.cwd)?)
    };
    if cwd == "/proc" || cwd.starts_with("/proc/") {
        return Err(SpecError::new(
            option,
            cwd,
            "must not be below /proc, choose another",
        ));
    }
    Ok(cwd)
}

/// Left out rather than false: libcontainer takes false for "load seccomp after capabilities are gone", which fails.
fn no_new_privileges(options: &Options) -> Option<bool> {
    (options.new_privileges == Some(false)).then_some(true)
}

/// Nothing is inheritable: it would come back in programs with file capabilities (CVE-2022-24769).
fn capabilities(caps: CapSet) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(caps.to_oci()))
        .set_permitted(Some(caps.to_oci()))
        .set_effective(Some(caps.to_oci()))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

fn rlimits(asked: &[Rlimit], facts: &Facts) -> Result<Vec<PosixRlimit>> {
    let mut limits = Vec::new();
    let mut seen = HashSet::new();
    for one in asked {
        let limit = rlimit(one)?;
        if !seen.insert(limit.typ().to_string()) {
            return Err(SpecError::new(
                "rlimits",
                &one.r#type,
                "is named twice, name it once",
            ));
        }
        limits.push(limit);
    }
    if !seen.contains("RLIMIT_NOFILE") {
        let hard = facts.open_files.min(MOST_OPEN_FILES);
        limits.push(limit(
            PosixRlimitType::RlimitNofile,
            OPEN_FILES.min(hard),
            hard,
        )?);
    }
    Ok(limits)
}

fn rlimit(asked: &Rlimit) -> Result<PosixRlimit> {
    let upper = asked.r#type.to_ascii_uppercase();
    let bare = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
    let Ok(typ) = format!("RLIMIT_{bare}").parse::<PosixRlimitType>() else {
        let problem = "unknown limit, setrlimit(2) lists them, as in nofile";
        return Err(SpecError::new("rlimits", &asked.r#type, problem));
    };
    if asked.soft > asked.hard {
        let problem = format!("soft {} is above hard {}, lower it", asked.soft, asked.hard);
        return Err(SpecError::new("rlimits", &asked.r#type, problem));
    }
    limit(typ, asked.soft, asked.hard)
}

fn limit(typ: PosixRlimitType, soft: u64, hard: u64) -> Result<PosixRlimit> {
    let limit = PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard);
    Ok(limit.build()?)
}

fn oom_score_adj(options: &Options, facts: &Facts) -> Result<Option<i32>> {
    match options.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => Err(SpecError::new(
            "oom_score_adj",
            score,
            "must be -1000 to 1000",
        )),
        score => Ok(score.map(|score| score.max(facts.lowest_oom_score_adj))),
    }
}
