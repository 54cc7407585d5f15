//! Real processes: scripts of a few lines that behave, or do not.

use super::*;
use crate::actor::{Incoming, Response};
use crate::{Ctx, testing::LocalBus};
use std::path::Path;

/// Bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(20);
/// Reads what it is told and says that it is ready.
const READY: &str = r#"read -r start; echo '{"ready": true}'; "#;

struct Host {
    foreign: Foreign,
    told: mpsc::UnboundedReceiver<FromPlugin>,
    folder: tempfile::TempDir,
}

impl Host {
    fn of(command: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.to_string_lossy().into_owned()
        };
        let boot = PluginBoot {
            id: PluginId::new("shell/test")?,
            exec: None,
            root: path("root"),
            state: path("state"),
            config: r#"{"greeting":"hello"}"#.into(),
            sockets: Vec::new(),
            peers: Vec::new(),
        };
        let command: Vec<String> = command.iter().map(|&word| word.into()).collect();
        let bus = LocalBus::new().start(folder.path())?.bus();
        let (tell, told) = mpsc::unbounded_channel();
        let foreign = Foreign::start(&boot, &command, bus, tell)?;
        Ok(Self {
            foreign,
            told,
            folder,
        })
    }

    fn shell(script: &str) -> Self {
        Self::of(&["/bin/sh", "-c", script]).unwrap()
    }

    async fn told(&mut self) -> FromPlugin {
        timeout(SOON, self.told.recv()).await.unwrap().unwrap()
    }

    async fn is_ready(&mut self) {
        let told = self.told().await;
        assert!(matches!(told, FromPlugin::Ready { .. }), "{told:?}");
    }

    /// Why it is of no more use.
    async fn failed(&mut self) -> String {
        match self.told().await {
            FromPlugin::Failed { plugin, error } if plugin.as_str() == "shell/test" => {
                error.message
            }
            told => panic!("{told:?}"),
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }
}

async fn until_gone(pid: &str) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z"))
}

#[actix::test]
async fn a_program_is_told_who_it_is_and_where_its_folders_are() {
    let script = r#"read -r start; echo "$start" > told; pwd > where
        echo "$GANTRY_PLUGIN $GANTRY_ROOT $GANTRY_STATE" > env; echo '{"ready": true}'; read -r end"#;
    let mut host = Host::shell(script);
    host.is_ready().await;
    let read = |name: &str| std::fs::read_to_string(host.root().join(name)).unwrap();
    let (root, state) = (host.root(), host.folder.path().join("state"));
    let told: Value = serde_json::from_str(&read("told")).unwrap();
    let expected = serde_json::json!({"start": {
        "id": "shell/test", "settings": {"greeting": "hello"}, "root": root, "state": state,
    }});
    assert_eq!(told, expected);
    let (root, state) = (root.display(), state.display());
    assert_eq!(read("env"), format!("shell/test {root} {state}\n"));
    assert_eq!(read("where"), format!("{root}\n"));
}

#[actix::test]
async fn every_end_has_a_cause_that_says_what_was_wrong() {
    let silent = format!("{READY} exec >&-; read -r end");
    let killed = format!("{READY} kill -9 $$");
    let talks = format!("{READY} echo Hello; read -r end");
    let answers = format!("{READY} echo '{{\"id\": 1, \"answer\": 1}}'; exit 4");
    for (script, cause) in [
        (
            "echo one >&2; echo two >&2; exit 7",
            "its program ended with exit code 7; last it logged \"two\"",
        ),
        (killed.as_str(), "its program ended with signal 9 (SIGKILL)"),
        (silent.as_str(), "its program closed its stdout"),
        (
            talks.as_str(),
            "its stdout is for JSON lines of the protocol (expected value at line 1 column 1): \"Hello\"",
        ),
        (
            answers.as_str(),
            "it answered call 1, which was not asked or is answered",
        ),
    ] {
        let mut host = Host::shell(script);
        if script.starts_with(READY) {
            host.is_ready().await;
        }
        let why = host.failed().await;
        assert!(why.contains(cause), "{script}: {why}");
    }
}

#[actix::test]
async fn a_program_that_cannot_be_started_is_named_with_a_way_out() {
    let refused = |command: &[&str]| Host::of(command).err().map(|e| e.message).unwrap();
    let error = refused(&["/no/where"]);
    assert!(
        error.starts_with("program /no/where: No such file"),
        "{error}"
    );
    let error = refused(&["/etc/passwd"]);
    assert!(
        error.contains("Permission denied") && error.contains("chmod"),
        "{error}"
    );
    assert!(refused(&[]).contains("names no program"));
}

#[actix::test]
async fn a_program_that_is_not_ready_in_time_is_told_so_unless_it_asks_for_more() {
    let moment = Duration::from_millis(3);
    let late = timeout(SOON, Start::new(moment).late()).await.unwrap();
    assert!(
        late.contains("did not say {\"ready\": true} within 3ms"),
        "{late}"
    );
    let patient = Start::new(moment);
    patient.wait(SOON);
    assert!(timeout(3 * moment, patient.late()).await.is_err());
    patient.wait(moment);
    patient.is_ready.set(true);
    assert!(timeout(3 * moment, patient.late()).await.is_err());
}

#[actix::test]
async fn pongs_stand_for_the_program_once_it_is_ready() {
    let mut host = Host::shell(
        r#"read -r start; read -r go < go; echo '{"ready": true}'; read -r ping; echo "$ping" | sed s/ping/pong/; read -r end"#,
    );
    rustix::fs::mknodat(
        rustix::fs::CWD,
        host.root().join("go"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    host.foreign.ping(1);
    let told = host.told().await;
    assert!(matches!(told, FromPlugin::Pong { number: 1 }), "{told:?}");
    tokio::fs::write(host.root().join("go"), "go\n")
        .await
        .unwrap();
    host.is_ready().await;
    host.foreign.ping(2);
    let told = host.told().await;
    assert!(matches!(told, FromPlugin::Pong { number: 2 }), "{told:?}");
}

#[actix::test]
async fn a_call_goes_through_a_real_pipe_and_back() {
    let script =
        format!("{READY} read -r call; echo '{{\"id\": 1, \"answer\": [1]}}'; read -r end");
    let mut host = Host::shell(&script);
    host.is_ready().await;
    let call = Incoming {
        method: "shell.any".into(),
        ctx: Ctx::new(None),
        body: codec::encode(&"{}").unwrap(),
        fds: Vec::new(),
    };
    let Response::One(_, answer) = host.foreign.dispatch().dispatch(call).0 else {
        panic!("a stream");
    };
    let (answer, _) = timeout(SOON, answer).await.unwrap().unwrap();
    assert_eq!(codec::decode::<String>(&answer).unwrap(), "[1]");
}

#[actix::test]
async fn a_stop_is_said_and_what_does_not_stop_is_killed_with_all_that_it_started() {
    let mut polite = Host::shell(&format!("{READY} read -r stop; echo \"$stop\" > stopped"));
    polite.is_ready().await;
    polite.foreign.stop().await;
    let said = std::fs::read_to_string(polite.root().join("stopped")).unwrap();
    assert_eq!(said, "{\"stop\":true}\n");
    assert!(
        polite.told.try_recv().is_err(),
        "an end that was asked for is no failure"
    );

    let script = format!("sleep 1000 & echo $! > child; {READY} cat > all");
    let mut stubborn = Host::shell(&script.replace("sleep 1000", "/usr/bin/tail -f /dev/null"));
    stubborn.is_ready().await;
    let child = std::fs::read_to_string(stubborn.root().join("child")).unwrap();
    assert!(is_alive(&child));
    stubborn.foreign.stop().await;
    drop(stubborn);
    until_gone(&child).await;
}
