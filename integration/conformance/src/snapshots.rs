//! What every snapshot driver promises.
//!
//! [`records`] needs nothing; [`collection`] needs a node without anything of value; [`files`] mounts for real and so
//! needs root, see [`can_mount`]; [`before_a_restart`] and [`after_a_restart`] are the two halves of a promise that holds
//! across the end of the plugin's process.

mod collection;
mod files;
mod mounted;
mod records;
mod restart;

pub use collection::collection;
pub use files::files;
pub use mounted::{Mounted, can_mount};
pub use records::records;
pub use restart::{Kept, after_a_restart, before_a_restart};

use bus::{Bus, Ctx};
use contracts::snapshots::{
    Commit, Driver, Info, Mounts, Prepare, Remove, Snapshots, Stat, Usage, Used, View,
};
use contracts::{Code, Labels, Mount, Namespace, Request, Result, SnapshotKey};

/// One driver as one tenant sees it.
struct Subject {
    bus: Bus,
    driver: String,
    ctx: Ctx,
}

impl Subject {
    /// A tenant of its own for each promise, so that none disturbs another.
    fn new(bus: &Bus, driver: &str, tenant: &str) -> Self {
        let namespace = Namespace::new(tenant).unwrap();
        Self {
            bus: bus.clone(),
            driver: driver.to_owned(),
            ctx: Ctx::new(Some(namespace)),
        }
    }

    /// Makes a call of its own: the same message again is another call.
    async fn call<R: Request<Service = Snapshots>>(&self, request: R) -> Result<R::Reply> {
        let ctx = Ctx::new(self.ctx.namespace.clone());
        self.bus.call_named(&self.driver, &ctx, request).await
    }

    async fn prepare(&self, name: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.prepare_with(name, parent, labels(&[])).await
    }

    async fn prepare_with(
        &self,
        name: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let (key, parent) = (key(name), parent.map(key));
        self.call(Prepare {
            key,
            parent,
            labels,
        })
        .await
    }

    async fn view(&self, name: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        let (key, parent, labels) = (key(name), parent.map(key), labels(&[]));
        self.call(View {
            key,
            parent,
            labels,
        })
        .await
    }

    async fn mounts(&self, name: &str) -> Result<Vec<Mount>> {
        self.call(Mounts { key: key(name) }).await
    }

    async fn commit(&self, name: &str, active: &str) -> Result<()> {
        self.commit_on(name, active, None).await
    }

    async fn commit_on(&self, name: &str, active: &str, parent: Option<&str>) -> Result<()> {
        self.call(Commit {
            name: key(name),
            key: key(active),
            parent: parent.map(key),
            labels: labels(&[]),
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.call(Remove { key: key(name) }).await
    }

    async fn stat(&self, name: &str) -> Result<Info> {
        self.call(Stat { key: key(name) }).await
    }

    async fn usage(&self, name: &str) -> Result<Used> {
        self.call(Usage { key: key(name) }).await
    }

    /// Whether a parent may be set at commit.
    async fn rebases(&self) -> bool {
        self.call(Driver {}).await.unwrap().rebase
    }

    /// Makes a committed snapshot without files.
    async fn committed(&self, name: &str, parent: Option<&str>) {
        let active = format!("making {name}");
        self.prepare(&active, parent).await.unwrap();
        self.commit(name, &active).await.unwrap();
    }
}

fn key(name: &str) -> SnapshotKey {
    SnapshotKey::new(name).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = |(label, value): &(&str, &str)| ((*label).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// Expects a refusal of a certain class, whose message says `about`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, code: Code, about: &str) {
    match result {
        Err(error) => {
            assert_eq!(error.code, code, "{error}");
            assert!(
                error.message.contains(about),
                "{error}: says nothing of {about:?}"
            );
        }
        Ok(value) => panic!("expected {code:?}, got {value:?}"),
    }
}
