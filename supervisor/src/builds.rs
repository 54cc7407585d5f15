//! What another build says about itself, and whether its plugins fit into the running node.

use crate::program::Program;
use bus::PROTOCOL;
use contracts::{Error, Result, plugin::PluginSpec};
use serde::{Deserialize, Serialize};
use std::{
    fs::Metadata,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

/// How long a build may take to say what it is. It reads nothing and opens nothing.
const BOUND: Duration = Duration::from_secs(10);
/// Most that it may say: a registration has a few hundred bytes.
const MOST: u64 = 1 << 20;

/// What `gantry facts` prints, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildFacts {
    /// Of the build.
    pub version: String,
    /// Of the control protocol and the bus.
    pub protocol: u32,
    /// Everything that is built in.
    pub plugins: Vec<PluginSpec>,
}

impl BuildFacts {
    /// The facts of this build.
    pub fn new(version: &str, plugins: Vec<PluginSpec>) -> Self {
        Self {
            version: version.into(),
            protocol: PROTOCOL,
            plugins,
        }
    }

    /// Whether this build can take over `plugins` of a running node.
    ///
    /// Errors: `InvalidArgument` for another protocol or a missing plugin; `FailedPrecondition` when a plugin needs
    /// other links, sockets or privileges than the node gives it: those are made when a daemon starts.
    pub(crate) fn fits(&self, plugins: &[&PluginSpec]) -> Result<()> {
        if self.protocol != PROTOCOL {
            let protocol = self.protocol;
            return Err(Error::invalid(format!(
                "speaks protocol {protocol}, this daemon {PROTOCOL}; restart the daemon from it instead"
            )));
        }
        for wanted in plugins.iter().filter(|spec| spec.exec.is_none()) {
            let theirs = self.plugins.iter().find(|spec| spec.id == wanted.id);
            let Some(theirs) = theirs else {
                let id = &wanted.id;
                return Err(Error::invalid(format!("has no plugin {id}")));
            };
            if let Some(what) = differs(wanted, theirs) {
                let id = &wanted.id;
                return Err(Error::precondition(format!(
                    "its plugin {id} has other {what} than the running one; restart the daemon from it instead"
                )));
            }
        }
        Ok(())
    }
}

fn differs(ours: &PluginSpec, theirs: &PluginSpec) -> Option<&'static str> {
    let serves_all = ours.serves.iter().all(|s| theirs.serves.contains(s));
    let privileges = |spec: &PluginSpec| {
        let mut capabilities = spec.privileges.capabilities.clone();
        capabilities.sort();
        (spec.privileges.root, capabilities)
    };
    [
        (serves_all, "contracts"),
        (ours.requires == theirs.requires, "requirements"),
        (ours.sockets == theirs.sockets, "sockets"),
        (privileges(ours) == privileges(theirs), "privileges"),
    ]
    .into_iter()
    .find_map(|(same, what)| (!same).then_some(what))
}

/// Checks the kind of a file, and whose it is: the supervisor runs it with all that it may do itself, and whoever asked
/// for that may be less, such as a plugin. Errors: `InvalidArgument`, `PermissionDenied`.
pub(crate) fn executable(facts: &Metadata) -> Result<()> {
    let mode = facts.permissions().mode();
    if !facts.is_file() || mode & 0o111 == 0 {
        return Err(Error::invalid("is not an executable file"));
    }
    let us = rustix::process::geteuid().as_raw();
    trusted(facts.uid(), mode, us).map_err(Error::denied)
}

/// Whether nobody but root and `us` can have written a file. Errors: in words.
fn trusted(owner: u32, mode: u32, us: u32) -> Result<(), String> {
    match (owner == 0 || owner == us, mode & 0o002) {
        (false, _) => Err(format!(
            "belongs to uid {owner}, who is not trusted with the node; try `chown {us}`"
        )),
        (true, 0) => Ok(()),
        (true, _) => Err("can be written by everybody; try `chmod o-w`".into()),
    }
}

/// Asks a build what it is. Errors: `InvalidArgument` when it does not say.
pub(crate) async fn ask(program: &Program) -> Result<BuildFacts> {
    let none = |why: String| Error::invalid(format!("is no build of gantry: {why}"));
    let mut child = Command::new(program.exec())
        .arg0(program.path())
        .arg("facts")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| none(e.to_string()))?;
    let (said, status) = tokio::time::timeout(BOUND, said(&mut child))
        .await
        .map_err(|_| {
            let bound = BOUND.as_secs();
            none(format!("`facts` did not end within {bound} s"))
        })?
        .map_err(|e| none(e.to_string()))?;
    if !status.success() {
        let ending = crate::process::ending(status);
        return Err(none(format!("`facts` ended with {ending}")));
    }
    serde_json::from_slice(&said).map_err(|e| none(format!("`facts` is not understood: {e}")))
}

async fn said(child: &mut Child) -> std::io::Result<(Vec<u8>, ExitStatus)> {
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_end(&mut said).await?;
    }
    Ok((said, child.wait().await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::spec;
    use contracts::plugin::Privileges;

    fn refusal(change: impl FnOnce(&mut BuildFacts)) -> String {
        let ours = spec("images/local", &["content"]);
        let mut facts = BuildFacts::new("1", vec![ours.clone()]);
        facts.fits(&[&ours]).unwrap();
        change(&mut facts);
        facts.fits(&[&ours]).unwrap_err().to_string()
    }

    #[test]
    fn a_build_whose_plugins_do_not_fit_is_refused_by_name() {
        assert!(refusal(|f| f.protocol += 1).contains("speaks protocol"));
        assert!(refusal(|f| f.plugins.clear()).contains("has no plugin images/local"));
        let requires = refusal(|f| f.plugins[0].requires.push("gc".into()));
        assert!(requires.contains("other requirements"), "{requires}");
        let privileges = refusal(|f| f.plugins[0].privileges = Privileges::root("more"));
        assert!(privileges.contains("other privileges"), "{privileges}");
    }

    #[test]
    fn plugins_that_are_not_built_in_need_not_be_in_it() {
        let mut foreign = spec("x/y", &[]);
        foreign.exec = Some(vec!["/bin/x".into()]);
        BuildFacts::new("1", Vec::new()).fits(&[&foreign]).unwrap();
    }

    #[test]
    fn a_build_that_others_can_have_written_is_refused() {
        trusted(0, 0o755, 1000).unwrap();
        trusted(1000, 0o775, 1000).unwrap();
        let refusal = trusted(7, 0o755, 0).unwrap_err();
        assert!(refusal.contains("uid 7"), "{refusal}");
        let refusal = trusted(0, 0o777, 0).unwrap_err();
        assert!(refusal.contains("chmod o-w"), "{refusal}");
    }

    async fn said_by(script: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("build");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program::open(&path).unwrap();
        match ask(&program).await {
            Ok(facts) => facts.version,
            Err(error) => error.message,
        }
    }

    #[actix::test]
    async fn a_program_says_what_it_is_or_is_refused() {
        let facts = r#"echo '{"version":"7","protocol":1,"plugins":[]}'"#;
        assert_eq!(said_by(facts).await, "7");
        let refused = said_by("exit 3").await;
        assert!(refused.contains("ended with exit code 3"), "{refused}");
        let refused = said_by("echo hello").await;
        assert!(refused.contains("not understood"), "{refused}");
    }
}
