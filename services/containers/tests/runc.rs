//! What a generated spec does in a real runtime.
//!
//! Needs `runc` and a static busybox; only root makes containers, others pass with a word.

use containers::host::ThisHost;
use containers::spec::generate;
use contracts::containers::{Caps, Generate, Options, Resources, UserMount};
use contracts::{ContainerId, Namespace};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const IMAGE: &str = r#"{"config":{"Env":["FROM=image"],"Cmd":["sh"],"WorkingDir":"/srv"}}"#;
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n";
const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:7:web\n";

/// A bundle with busybox as its root file system; what it ran is gone when it is.
struct Bundle {
    folder: TempDir,
    id: String,
}

impl Bundle {
    fn new(name: &str) -> Option<Self> {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("skipped: only root makes containers");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("spec").tempdir().unwrap();
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        for tool in [
            "sh", "id", "cat", "grep", "hostname", "touch", "ls", "unshare", "mount", "stat", "ip",
        ] {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        let id = format!("{name}-{}", std::process::id());
        Some(Self { folder, id })
    }

    /// Runs `script` and returns what it printed, its errors included.
    fn run(&self, script: &str, options: Options) -> String {
        let request = Generate {
            id: ContainerId::new(&self.id).unwrap(),
            config: IMAGE.into(),
            passwd: PASSWD.into(),
            group: GROUP.into(),
            options: Options {
                args: ["sh", "-c", script].map(str::to_owned).to_vec(),
                // Its own at the root: the runtime removes it, and no parent is left behind.
                cgroup: format!("/{}", self.id),
                ..options
            },
        };
        let namespace = Namespace::new("spec-test").unwrap();
        let spec = generate(&namespace, &request, &ThisHost::look()).unwrap();
        fs::write(self.folder.path().join("config.json"), spec).unwrap();
        let output = self
            .runc()
            .args(["run", "--bundle"])
            .arg(self.folder.path())
            .arg(&self.id)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.folder.path().join("state"));
        runc
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.runc().args(["delete", "--force", &self.id]).output();
    }
}

fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

#[test]
fn a_container_is_confined_as_its_spec_says() {
    let Some(bundle) = Bundle::new("confined") else {
        return;
    };
    let script = "id; hostname; cat /proc/self/status; echo cwd:$PWD from:$FROM home:$HOME; ls /sys/fs/cgroup; \
        unshare -m true || echo no namespaces; cat /proc/keys; echo x >/proc/sys/kernel/hostname; ls /proc/self/fd";
    let text = bundle.run(script, Options::default());
    assert!(
        text.contains("uid=0(root)") || text.contains("uid=0 gid=0"),
        "{text}"
    );
    assert!(text.contains(&bundle.id), "{text}");
    assert_eq!(field(&text, "Seccomp:"), "2");
    assert_eq!(field(&text, "CapBnd:"), "00000000a80425fb");
    assert_eq!(field(&text, "CapEff:"), "00000000a80425fb");
    assert_eq!(field(&text, "CapInh:"), "0000000000000000");
    assert!(text.contains("cwd:/srv from:image home:/root"), "{text}");
    assert!(text.contains("no namespaces"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
}

#[test]
fn a_user_of_the_image_has_its_groups_and_no_capabilities() {
    let Some(bundle) = Bundle::new("user") else {
        return;
    };
    let options = Options {
        user: "web".into(),
        new_privileges: Some(false),
        ..Options::default()
    };
    let text = bundle.run("id -u; cat /proc/self/status", options);
    assert!(text.starts_with("101\n"), "{text}");
    assert_eq!(field(&text, "Groups:"), "7 102");
    assert_eq!(field(&text, "CapEff:"), "0000000000000000");
    assert_eq!(field(&text, "NoNewPrivs:"), "1");
}

#[test]
fn a_read_only_root_takes_writes_only_on_mounts() {
    let Some(bundle) = Bundle::new("readonly") else {
        return;
    };
    let shared = bundle.folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let options = Options {
        readonly: true,
        hostname: "reader".into(),
        mounts: vec![
            UserMount {
                r#type: "tmpfs".into(),
                destination: "/tmp".into(),
                ..UserMount::default()
            },
            UserMount {
                source: shared.to_str().unwrap().into(),
                destination: "/shared".into(),
                ..UserMount::default()
            },
        ],
        ..Options::default()
    };
    let text = bundle.run(
        "hostname; touch /x; touch /tmp/x /shared/x && echo written",
        options,
    );
    assert!(text.contains("reader"), "{text}");
    assert!(text.contains("/x: Read-only file system"), "{text}");
    assert!(
        text.contains("written") && shared.join("x").exists(),
        "{text}"
    );
}

#[test]
fn limits_reach_the_kernel() {
    let Some(bundle) = Bundle::new("limits") else {
        return;
    };
    let options = Options {
        resources: Resources {
            memory: 64 << 20,
            memory_swap: -1,
            cpu_millis: 500,
            cpu_shares: 512,
            pids: 50,
            ..Resources::default()
        },
        ..Options::default()
    };
    let text = bundle.run(
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max; cat pids/pids.max pids.max; ulimit -n; ulimit -Hn",
        options,
    );
    assert!(text.lines().any(|line| line == "67108864"), "{text}");
    assert!(text.lines().any(|line| line == "50"), "{text}");
    assert!(text.lines().any(|line| line == "1024"), "{text}");
}

#[test]
fn a_privileged_container_may_mount_and_sees_devices() {
    let Some(bundle) = Bundle::new("privileged") else {
        return;
    };
    let options = Options {
        privileged: true,
        ..Options::default()
    };
    let text = bundle.run(
        "cat /proc/self/status; mount -t tmpfs none /srv && echo mounted; ls /dev",
        options,
    );
    assert_eq!(field(&text, "Seccomp:"), "0");
    assert!(text.contains("mounted"), "{text}");
}

#[test]
fn an_added_capability_and_device_arrive() {
    let Some(bundle) = Bundle::new("added") else {
        return;
    };
    let options = Options {
        caps: Caps {
            add: vec!["sys_admin".into()],
            drop: vec!["NET_RAW".into()],
        },
        devices: vec!["/dev/null:/dev/my/null:rw".into()],
        sysctls: [("net.ipv4.ip_default_ttl".to_owned(), "42".to_owned())].into(),
        ..Options::default()
    };
    let text = bundle.run(
        "cat /proc/self/status; unshare -m true && echo unshared; echo x >/dev/my/null && echo wrote; \
         cat /proc/sys/net/ipv4/ip_default_ttl",
        options,
    );
    assert_eq!(field(&text, "Seccomp:"), "2");
    assert_eq!(field(&text, "CapBnd:"), "00000000a82405fb");
    assert!(
        text.contains("unshared") && text.contains("wrote"),
        "{text}"
    );
    assert!(text.lines().any(|line| line == "42"), "{text}");
}

#[test]
fn the_hosts_network_is_shared_with_its_names() {
    let Some(bundle) = Bundle::new("hostnet") else {
        return;
    };
    let options = Options {
        network: "host".into(),
        ..Options::default()
    };
    let text = bundle.run("ls -l /proc/self/ns/net; cat /etc/hosts", options);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(text.contains(own.to_str().unwrap()), "{text}");
    assert!(
        text.contains(fs::read_to_string("/etc/hosts").unwrap().trim()),
        "{text}"
    );
}
