//! What the stories of this plugin share: a content store in memory, servers that misbehave on purpose, a real
//! registry, and images made on the spot.

#![allow(dead_code, unreachable_pub)] // each story uses its own part

pub mod content;
pub mod images;
pub mod registry;
pub mod server;

use bus::{
    Bus, Ctx,
    testing::{LocalBus, LocalNode},
};
use content::Shelf;
use contracts::{
    Descriptor, Digest, ImageName, Labels, Namespace, Ref, Result,
    transfer::{Access, Auth, Fetch, Progress, Push, Resolve, Resolved},
};
use futures_util::StreamExt;
use std::{path::Path, time::Duration};

pub type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// The plugin over a bus, with a content store in memory.
pub struct House {
    pub shelf: Shelf,
    pub node: LocalNode,
    pub folder: tempfile::TempDir,
}

impl House {
    pub fn new() -> Result<Self> {
        let folder =
            tempfile::tempdir().map_err(|error| contracts::Error::internal(error.to_string()))?;
        let shelf = Shelf::default();
        let config = format!(
            r#"{{"config_path":{:?},"retry_pause_ms":1,"idle_timeout_s":5,"max_import_bytes":50000000}}"#,
            folder.path().join("certs.d")
        );
        let node = LocalBus::new()
            .fake(shelf.fake())
            .plugin_with(transfer::plugin(), &config)
            .start(folder.path())?;
        Ok(Self {
            shelf,
            node,
            folder,
        })
    }

    pub fn bus(&self) -> Bus {
        self.node.bus()
    }

    /// Writes the rules of one registry.
    pub fn rules(&self, registry: &str, text: &str) -> std::io::Result<()> {
        let folder = self.folder.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("hosts.toml"), text)
    }

    pub async fn resolve(&self, reference: &str, access: &Access) -> Result<Resolved> {
        let request = Resolve {
            reference: reference.into(),
            access: access.clone(),
        };
        self.bus().call(&ctx(), request).await
    }

    pub async fn fetch(
        &self,
        name: &str,
        target: &Descriptor,
        access: &Access,
    ) -> Result<Vec<Progress>> {
        let request = Fetch {
            name: ImageName::new(name)?,
            target: target.clone(),
            r#ref: Ref::new(format!("blob-{}", target.digest))?,
            labels: Labels::new(),
            access: access.clone(),
        };
        collect(&self.bus(), request).await
    }

    pub async fn push(
        &self,
        reference: &str,
        target: &Descriptor,
        access: &Access,
    ) -> Result<Vec<Progress>> {
        let (reference, platform) = (reference.to_owned(), String::new());
        collect(
            &self.bus(),
            Push {
                reference,
                target: target.clone(),
                platform,
                access: access.clone(),
            },
        )
        .await
    }

    /// Resolves and fetches everything that the reference leads to.
    pub async fn pull(&self, reference: &str, access: &Access) -> Result<Resolved> {
        let resolved = self.resolve(reference, access).await?;
        let mut queue = vec![resolved.target.clone()];
        while let Some(next) = queue.pop() {
            self.fetch(resolved.name.as_str(), &next, access).await?;
            if transfer::manifest::is_document(&next.media_type) {
                let children = contracts::transfer::Children { target: next };
                queue.extend(self.bus().call(&ctx(), children).await?);
            }
        }
        Ok(resolved)
    }
}

/// Reads a stream to its end.
pub async fn collect<R: contracts::Request>(bus: &Bus, request: R) -> Result<Vec<R::Reply>> {
    let mut items = bus.open(&ctx(), request).await?;
    let mut all = Vec::new();
    while let Some(item) = items.next().await {
        all.push(item?);
    }
    Ok(all)
}

pub fn ctx() -> Ctx {
    Ctx::new(Namespace::new("test").ok()).with_deadline(Duration::from_secs(60))
}

pub fn anonymous() -> Access {
    Access::default()
}

pub fn user(username: &str, password: &str) -> Access {
    let auth = Auth {
        username: username.into(),
        password: password.into(),
        ..Auth::default()
    };
    Access {
        plain_http: false,
        auth: Some(auth),
    }
}

pub fn message<T: std::fmt::Debug>(result: Result<T>) -> (Option<contracts::Code>, String) {
    match result {
        Ok(_) => (None, String::new()),
        Err(error) => (Some(error.code), error.message),
    }
}

pub fn blob(bytes: &[u8], media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest(bytes),
        size: u64::try_from(bytes.len()).unwrap_or(0),
        annotations: Labels::new(),
        platform: None,
        urls: Vec::new(),
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    transfer::manifest::digest_of(bytes)
}

pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    std::fs::write(path, bytes)
}
