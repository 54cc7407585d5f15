//! A disk without bytes or without inodes: what needs room says which and how to make some, what makes room works, and
//! then everything works again, with nothing started anew and nothing damaged. Needs root, for a file system of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use integration::Outcome;
use integration::http::Response;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::registry::Registry;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A small file system in memory; it goes when this is dropped.
struct Small {
    point: PathBuf,
    _folder: TempDir,
}

impl Small {
    fn new(options: &str) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("g-full-").tempdir()?;
        let point = folder.path().join("disk");
        fs::create_dir(&point)?;
        let options = format!("mode=0711,{options}");
        mount(
            Some("tmpfs"),
            &point,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        // Plugins run under uids of their own and walk through it.
        fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )?;
        Ok(Self {
            point,
            _folder: folder,
        })
    }

    fn filler(&self) -> PathBuf {
        self.point.join("filler")
    }

    /// Takes bytes until only so many are left.
    fn fill(&self, left: u64) -> Outcome {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(self.filler())?;
        loop {
            let disk = nix::sys::statvfs::statvfs(&self.point)?;
            let free = disk.blocks_available() * disk.fragment_size();
            let piece = (free - free.min(left)).min(1 << 20);
            if piece == 0 || file.write_all(&vec![7; usize::try_from(piece)?]).is_err() {
                return Ok(());
            }
        }
    }

    /// Takes names until only so many are left.
    fn names(&self, left: u64) -> Outcome {
        fs::create_dir(self.filler())?;
        for number in 0.. {
            let disk = nix::sys::statvfs::statvfs(&self.point)?;
            let file = self.filler().join(number.to_string());
            if disk.files_free() <= left || File::create(file).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn room(&self) -> Outcome {
        match self.filler().is_dir() {
            true => fs::remove_dir_all(self.filler())?,
            false => fs::remove_file(self.filler())?,
        }
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}

async fn node_on(root: &Path) -> Outcome<Node> {
    let share = "[plugins.\"operations/local\"]\nscrub_share = 100\n";
    let root = root.join("root");
    let root = root.to_string_lossy();
    Node::start_with(Setup::default().config(share).arg("--root").arg(&root)).await
}

/// A pull that finds no room says so, says how to make some, and leaves nothing that looks like an image.
async fn refused(node: &Node, name: &str) -> Outcome {
    let body = json!({"ref": name, "plain_http": true});
    let answer: Response = node.post(&node.at("/images:pull?wait=true"), body).await?;
    let text = answer.text();
    assert!(
        text.contains("RESOURCE_EXHAUSTED"),
        "{} {text}",
        answer.status
    );
    let says = |what: &str| text.to_lowercase().contains(what);
    assert!(says("inodes") || says("no space"), "what was full: {text}");
    assert!(says("free some") || says("/v1/gc"), "the way out: {text}");
    let images = node.list("/images").await?;
    assert!(
        images.iter().all(|image| image["name"] != name),
        "{images:?}"
    );
    let active = node.list("/snapshots/overlayfs").await?;
    let active: Vec<&Value> = active
        .iter()
        .filter(|row| row["kind"] != "committed")
        .collect();
    assert!(active.is_empty(), "{active:?}");
    Ok(())
}

/// Everything that makes room works.
async fn makes_room(node: &Node, name: &str) -> Outcome {
    for resource in ["/images", "/content", "/snapshots/overlayfs", "/leases"] {
        node.list(resource).await?;
    }
    let path = node.at(&format!("/images/{name}"));
    node.delete(&path).await?.ok()?;
    node.collect().await?;
    let left = node.list("/snapshots/overlayfs").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Nothing was started anew, and nothing is damaged.
async fn is_sound(node: &Node) -> Outcome {
    for plugin in node.plugins().await? {
        assert_eq!(
            plugin["restarts"].as_u64().unwrap_or_default(),
            0,
            "{plugin}"
        );
    }
    let scrub = node.post("/v1/scrub?wait=true", ()).await?.ok()?;
    assert_eq!(scrub["found"], 0, "{scrub}");
    assert_eq!(scrub["unchecked"], json!([]), "{scrub}");
    Ok(())
}

/// Fills the disk in two steps: first little is left, then nothing.
async fn story(
    disk: Small,
    little: impl Fn(&Small) -> Outcome,
    nothing: impl Fn(&Small) -> Outcome,
) -> Outcome {
    let registry = Registry::start().await?;
    let (small, large) = (sample::layers(1, 1 << 20)?, sample::layers(3, 40 << 20)?);
    registry.push(&small, "small", "1").await?;
    registry.push(&large, "large", "1").await?;
    let (small, large) = (registry.name("small:1"), registry.name("large:1"));
    let node = node_on(&disk.point).await?;
    node.pull(&small).await?;

    little(&disk)?;
    refused(&node, &large).await?;
    disk.room()?;
    nothing(&disk)?;
    refused(&node, &large).await?;
    makes_room(&node, &small).await?;
    disk.room()?;
    node.pull(&large).await?;
    is_sound(&node).await?;
    makes_room(&node, &large).await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_disk_without_bytes_refuses_clearly_and_recovers_by_itself() -> Outcome {
    let disk = Small::new("size=192m")?;
    story(disk, |disk| disk.fill(20 << 20), |disk| disk.fill(0)).await
}

#[actix_rt::test]
async fn a_disk_without_inodes_refuses_clearly_and_recovers_by_itself() -> Outcome {
    let disk = Small::new("size=192m,nr_inodes=4000")?;
    story(disk, |disk| disk.names(100), |disk| disk.names(0)).await
}
