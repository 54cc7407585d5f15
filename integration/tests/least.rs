//! Each plugin has the least it needs, and what it has is what the API says, as the kernel sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use integration::Outcome;
use integration::node::Node;
use integration::process::tree;
use serde_json::Value;

/// Numbers of capabilities. Source: `linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What touches bytes of strangers, or only keeps records, has nothing.
const NOTHING: [&str; 10] = [
    "events/log",
    "leases/local",
    "content/local",
    "images/local",
    "transfer/local",
    "containers/local",
    "namespaces/local",
    "operations/local",
    "gc/local",
    "gateway/http",
];

/// The fields of `/proc/<pid>/status`.
fn status(pid: &Value) -> Outcome<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Ok(fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

fn set(status: &BTreeMap<String, String>, field: &str) -> Outcome<BTreeSet<String>> {
    let bits = u64::from_str_radix(&status[field], 16)?;
    let named = CAPABILITIES.iter().enumerate();
    Ok(named
        .filter(|(number, _)| bits >> number & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect())
}

fn granted(plugin: &Value) -> BTreeSet<String> {
    let names = plugin["capabilities"].as_array().into_iter().flatten();
    names
        .filter_map(|name| Some(name.as_str()?.to_owned()))
        .collect()
}

#[actix_rt::test]
async fn the_kernel_grants_each_plugin_exactly_what_the_api_says() -> Outcome {
    let node = Node::start().await?;
    let mut uids = BTreeSet::new();
    for row in node.plugins().await? {
        let id = row["id"].as_str().unwrap_or_default();
        let plugin = node.plugin(id).await?;
        let status = status(&plugin["pid"])?;
        let uid = plugin["uid"].to_string();
        let expected = [uid.as_str(); 4].join("\t");
        assert_eq!(status["Uid"], expected, "{id}");
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(set(&status, field)?, granted(&plugin), "{id}: {field}");
        }
        assert_eq!(set(&status, "CapInh")?, BTreeSet::new(), "{id}");
        assert_eq!(set(&status, "CapAmb")?, BTreeSet::new(), "{id}");
        let reason = plugin["privileges_reason"].as_str().unwrap_or_default();
        assert_eq!(
            reason.is_empty(),
            granted(&plugin).is_empty(),
            "{id}: {reason}"
        );
        if uid == "0" {
            continue;
        }
        assert_eq!(status["NoNewPrivs"], "1", "{id}");
        assert!(uids.insert(uid.clone()), "{id} shares uid {uid}");
        let gid = status["Gid"].split('\t').next().unwrap_or_default();
        assert_eq!(status["Groups"], gid, "{id}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn four_plugins_have_privileges_and_one_of_them_is_root() -> Outcome {
    let node = Node::start().await?;
    let plugins = node.plugins().await?;
    for id in NOTHING {
        let plugin = plugins.iter().find(|plugin| plugin["id"] == id);
        let plugin = plugin.ok_or_else(|| format!("no {id}"))?;
        assert_eq!(granted(plugin), BTreeSet::new(), "{id}");
        assert_ne!(plugin["uid"], 0, "{id}");
    }
    let roots = plugins.iter().filter(|plugin| plugin["uid"] == 0);
    let roots: Vec<&str> = roots.filter_map(|plugin| plugin["id"].as_str()).collect();
    assert_eq!(roots, ["supervisor/local", "tasks/local"]);
    assert_eq!(plugins.len(), NOTHING.len() + 5);
    node.stop_clean().await
}

fn facts(path: &Path) -> Outcome<(u32, u32)> {
    let facts = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((facts.mode() & 0o7777, facts.uid()))
}

#[actix_rt::test]
async fn nobody_but_a_plugin_looks_into_its_folders() -> Outcome {
    let node = Node::start().await?;
    for top in [node.root(), node.state()] {
        assert_eq!(facts(&top)?, (0o710, 0));
        let plugins = node.plugins().await?.into_iter();
        for plugin in plugins.filter(|plugin| plugin["id"] != "supervisor/local") {
            let id = plugin["id"].as_str().unwrap_or_default();
            let uid = u32::try_from(plugin["uid"].as_u64().unwrap_or_default())?;
            assert_eq!(facts(&top.join(id))?, (0o700, uid), "{id}");
        }
    }
    let socket = node.state().join("gantry.sock");
    assert_eq!(facts(&socket)?.0, 0o660);
    node.stop_clean().await
}

/// Inodes of the sockets that a process has open.
fn sockets(pid: i32) -> BTreeSet<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = open.into_iter().flatten().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets
        .filter_map(|target| {
            let text = target.to_string_lossy().into_owned();
            Some(
                text.strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect()
}

#[actix_rt::test]
async fn sockets_are_private_pairs_or_files_in_the_nodes_folder() -> Outcome {
    let node = Node::start().await?;
    let own: BTreeSet<String> = tree(node.pid()).into_iter().flat_map(sockets).collect();
    let table = fs::read_to_string("/proc/net/unix")?;
    let named: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let inode = fields.get(6).filter(|inode| own.contains(**inode))?;
            fields.get(7).filter(|_| !inode.is_empty()).copied()
        })
        .collect();
    // The name of an abstract one begins with @, and anybody may connect to it.
    let state = node.state();
    let strange = named
        .iter()
        .filter(|name| !Path::new(name).starts_with(&state));
    assert_eq!(strange.collect::<Vec<_>>(), Vec::<&&str>::new());
    assert!(named.contains(state.join("gantry.sock").to_string_lossy().as_ref()));
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/net/{table}"))?;
        let open = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(9));
        let ours: Vec<&str> = open.filter(|inode| own.contains(*inode)).collect();
        assert_eq!(ours, Vec::<&str>::new(), "listens on a network");
    }
    node.stop_clean().await
}
