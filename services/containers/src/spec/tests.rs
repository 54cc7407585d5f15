//! The whole spec, from request to JSON.

use super::fake::FakeHost;
use super::*;
use contracts::Labels;
use contracts::containers::{Options, Rlimit};
use proptest::prelude::*;
use serde_json::Value;

const IMAGE: &str = r#"{"architecture":"amd64","config":{"User":"web","Env":["PATH=/bin","LANG=C"],
    "Entrypoint":["/entry"],"Cmd":["serve"],"WorkingDir":"srv","StopSignal":"SIGQUIT",
    "Labels":{"privileged":"true","io.gantry.caps":"SYS_ADMIN"}}}"#;
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/var/web:/bin/sh\n";

fn request(options: Options) -> Generate {
    Generate {
        id: ContainerId::new("box").unwrap(),
        config: IMAGE.into(),
        passwd: PASSWD.into(),
        group: "web:x:102:\nlog:x:7:web\n".into(),
        options,
    }
}
fn make(options: Options) -> Result<Value> {
    make_on(options, &FakeHost::default())
}
fn make_on(options: Options, host: &FakeHost) -> Result<Value> {
    let namespace = Namespace::new("test").unwrap();
    let text = generate(&namespace, &request(options), host)?;
    check(&text).unwrap();
    Ok(serde_json::from_str(&text).unwrap())
}
fn words(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}
fn namespaces(spec: &Value) -> Vec<&str> {
    let all = spec["linux"]["namespaces"].as_array().unwrap();
    all.iter()
        .map(|one| one["type"].as_str().unwrap())
        .collect()
}

#[test]
fn the_image_says_what_runs_as_whom_and_where() {
    let spec = make(Options::default()).unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], serde_json::json!(["/entry", "serve"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(
        process["user"],
        serde_json::json!({"uid": 101, "gid": 102, "additionalGids": [102, 7]})
    );
    assert_eq!(
        process["env"],
        serde_json::json!(["PATH=/bin", "HOSTNAME=box", "HOME=/var/web", "LANG=C"])
    );
    assert_eq!(process["terminal"], false);
    assert!(process.get("noNewPrivileges").is_none());
    assert_eq!(spec["hostname"], "box");
    assert_eq!(
        spec["root"],
        serde_json::json!({"path": "rootfs", "readonly": false})
    );
    assert_eq!(spec["linux"]["cgroupsPath"], "/gantry/test/box");
}

#[test]
fn labels_of_an_image_give_nothing() {
    let spec = make(Options::default()).unwrap();
    assert_eq!(
        spec["annotations"],
        serde_json::json!({STOP_SIGNAL: "SIGQUIT"})
    );
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert!(spec["process"]["capabilities"].get("inheritable").is_none());
}

#[test]
fn args_replace_all_and_command_only_the_last_part() {
    let args = |args: &[&str], command: &[&str]| {
        make(Options {
            args: words(args),
            command: words(command),
            ..Options::default()
        })
    };
    assert_eq!(
        args(&["a", "b"], &[]).unwrap()["process"]["args"],
        serde_json::json!(["a", "b"])
    );
    assert_eq!(
        args(&[], &["x"]).unwrap()["process"]["args"],
        serde_json::json!(["/entry", "x"])
    );
    assert_eq!(args(&["a"], &["x"]).unwrap_err().option, "command");
    assert_eq!(args(&[""], &[]).unwrap_err().option, "args");
    let nothing = Generate {
        config: String::new(),
        ..request(Options::default())
    };
    let namespace = Namespace::new("test").unwrap();
    let error = generate(&namespace, &nothing, &FakeHost::default()).unwrap_err();
    assert!(error.to_string().contains("give a command"), "{error}");
}

#[test]
fn a_terminal_brings_its_variable() {
    let spec = make(Options {
        tty: true,
        ..Options::default()
    })
    .unwrap();
    assert_eq!(spec["process"]["terminal"], true);
    assert!(
        spec["process"]["env"]
            .as_array()
            .unwrap()
            .contains(&"TERM=xterm".into())
    );
}

#[test]
fn namespaces_are_private_unless_the_host_is_asked_for() {
    let spec = make(Options::default()).unwrap();
    assert_eq!(
        namespaces(&spec),
        ["pid", "ipc", "uts", "mount", "network", "cgroup"]
    );
    let host = "host".to_owned();
    let shared = Options {
        network: host.clone(),
        pid: host.clone(),
        ipc: host,
        ..Options::default()
    };
    assert_eq!(
        namespaces(&make(shared).unwrap()),
        ["uts", "mount", "cgroup"]
    );
    for (options, option) in [
        (
            Options {
                network: "bridge".into(),
                ..Options::default()
            },
            "network",
        ),
        (
            Options {
                pid: "container:x".into(),
                ..Options::default()
            },
            "pid",
        ),
        (
            Options {
                ipc: "none".into(),
                ..Options::default()
            },
            "ipc",
        ),
    ] {
        assert_eq!(make(options).unwrap_err().option, option);
    }
}

#[test]
fn version_one_of_cgroups_has_no_namespace() {
    let mut host = FakeHost::default();
    host.facts.cgroup2 = false;
    let spec = make_on(Options::default(), &host).unwrap();
    assert!(!namespaces(&spec).contains(&"cgroup"));
}

#[test]
fn privileged_opens_what_the_host_has() {
    let mut host = FakeHost::default();
    host.facts.capabilities &= !(1 << 24);
    let spec = make_on(
        Options {
            privileged: true,
            ..Options::default()
        },
        &host,
    )
    .unwrap();
    let linux = &spec["linux"];
    for absent in ["seccomp", "maskedPaths", "readonlyPaths"] {
        assert!(linux.get(absent).is_none(), "{absent}");
    }
    assert_eq!(linux["devices"].as_array().unwrap().len(), 2);
    let caps = spec["process"]["capabilities"]["effective"]
        .as_array()
        .unwrap();
    assert_eq!(caps.len(), 40);
    assert!(!caps.contains(&"CAP_SYS_RESOURCE".into()));
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let asked = || Options {
        annotations: (0..9).map(|n| (format!("k{n}"), String::new())).collect(),
        sysctls: (0..9)
            .map(|n| (format!("net.ipv4.x{n}"), "1".to_owned()))
            .collect(),
        ..Options::default()
    };
    let namespace = Namespace::new("test").unwrap();
    let once = || generate(&namespace, &request(asked()), &FakeHost::default()).unwrap();
    assert_eq!(once(), once());
    assert!(once().len() < 16 * 1024, "{}", once().len());
}

#[test]
fn limits_of_the_process_follow_host_and_user() {
    let mut host = FakeHost::default();
    host.facts.lowest_oom_score_adj = 0;
    let asked = Options {
        rlimits: vec![Rlimit {
            r#type: "core".into(),
            soft: 0,
            hard: u64::MAX,
        }],
        oom_score_adj: Some(-500),
        ..Options::default()
    };
    let spec = make_on(asked, &host).unwrap();
    assert_eq!(
        spec["process"]["rlimits"],
        serde_json::json!([
            {"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX},
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        ])
    );
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let rlimit = |kind: &str, soft, hard| Options {
        rlimits: vec![Rlimit {
            r#type: kind.into(),
            soft,
            hard,
        }],
        ..Options::default()
    };
    for (options, option) in [
        (rlimit("files", 1, 1), "rlimits"),
        (rlimit("nofile", 2, 1), "rlimits"),
        (
            Options {
                oom_score_adj: Some(1001),
                ..Options::default()
            },
            "oom_score_adj",
        ),
        (
            Options {
                cwd: "tmp".into(),
                ..Options::default()
            },
            "cwd",
        ),
        (
            Options {
                cwd: "/proc/self/fd/7".into(),
                ..Options::default()
            },
            "cwd",
        ),
        (
            Options {
                cwd: "/a/../proc".into(),
                ..Options::default()
            },
            "cwd",
        ),
        (
            Options {
                hostname: "a b".into(),
                ..Options::default()
            },
            "hostname",
        ),
        (
            Options {
                hostname: "a".repeat(65),
                ..Options::default()
            },
            "hostname",
        ),
        (
            Options {
                cgroup: "/a/../../b".into(),
                ..Options::default()
            },
            "cgroup",
        ),
        (
            Options {
                cgroup: "/".into(),
                ..Options::default()
            },
            "cgroup",
        ),
        (
            Options {
                user: "nobody".into(),
                ..Options::default()
            },
            "user",
        ),
        (
            Options {
                args: words(&["a\0b"]),
                ..Options::default()
            },
            "options",
        ),
        (
            Options {
                annotations: Labels::from([(String::new(), "v".into())]),
                ..Options::default()
            },
            "annotations",
        ),
    ] {
        assert_eq!(make(options).unwrap_err().option, option);
    }
}

#[test]
fn a_working_folder_of_the_image_cannot_be_a_descriptor() {
    let config = r#"{"config":{"Cmd":["sh"],"WorkingDir":"//proc/./self/fd/8"}}"#;
    let hostile = Generate {
        config: config.into(),
        ..request(Options::default())
    };
    let namespace = Namespace::new("test").unwrap();
    let error = generate(&namespace, &hostile, &FakeHost::default()).unwrap_err();
    assert_eq!(error.option, "working folder of the image");
}

#[test]
fn a_long_id_makes_a_host_name_that_the_kernel_takes() {
    let id = ContainerId::new(format!("{}.{}", "a".repeat(63), "b".repeat(10))).unwrap();
    assert_eq!(hostname(&id, "").unwrap(), "a".repeat(63));
}

#[test]
fn an_error_says_option_value_and_way_out() {
    let error = make(Options {
        network: "bridge".into(),
        ..Options::default()
    })
    .unwrap_err();
    let error = contracts::Error::from(error);
    assert_eq!(error.message, r#"network "bridge": must be none or host"#);
    assert!(error.is(contracts::Code::InvalidArgument));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_options_give_a_spec_that_passes_or_an_error(
        args in proptest::collection::vec("\\PC{0,8}", 0..3),
        env in proptest::collection::vec("\\PC{0,8}", 0..3),
        user in "\\PC{0,8}",
        cwd in "/?\\PC{0,8}",
        devices in proptest::collection::vec("(/dev/[a-z:/]{0,8})|\\PC{0,8}", 0..2),
        caps in proptest::collection::vec("(cap_)?[a-z_]{0,9}", 0..2),
        privileged: bool,
    ) {
        let mut options = Options { args, env, user, cwd, devices, privileged, ..Options::default() };
        options.caps.add = caps;
        let _ = make(options);
    }
}
