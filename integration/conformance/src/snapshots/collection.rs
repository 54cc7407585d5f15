//! What the collector is told and what it removes.

use super::{Subject, key, labels, refused};
use bus::{Bus, Ctx};
use contracts::collect::{
    Begin, Count, Edge, Mark, Node, References, Resource, Roots, Sweep, Tally,
};
use contracts::{Code, Namespace, PluginId};

/// Runs every promise about collection against one driver.
///
/// Sweeps whatever nothing refers to, in every namespace: not for a node that holds something.
pub async fn collection(bus: &Bus, driver: &str) {
    let tenant = |name: &str| Subject::new(bus, driver, name);
    what_nothing_refers_to_is_collected(bus, &tenant("collect")).await;
    what_is_touched_meanwhile_is_not_collected(bus, &tenant("touch")).await;
}

/// Asks the owner behind a driver what the collector asks.
struct Collector<'a> {
    bus: &'a Bus,
    plugin: PluginId,
    generation: u64,
}

impl<'a> Collector<'a> {
    async fn begin(bus: &'a Bus, t: &Subject, generation: u64) -> Self {
        let plugin = PluginId::new(format!("snapshots/{}", t.driver)).unwrap();
        let begin = Begin { generation };
        bus.call_at(&plugin, &Ctx::new(None), begin).await.unwrap();
        Self {
            bus,
            plugin,
            generation,
        }
    }

    async fn roots(&self) -> Vec<Edge> {
        let (generation, mut token, mut found) = (self.generation, String::new(), Vec::new());
        loop {
            let roots = Roots { generation, token };
            let page = self
                .bus
                .call_at(&self.plugin, &Ctx::new(None), roots)
                .await
                .unwrap();
            found.extend(page.items);
            token = page.next;
            if token.is_empty() {
                return found;
            }
        }
    }

    async fn references(&self, nodes: Vec<Node>) -> Vec<Edge> {
        let references = References {
            generation: self.generation,
            nodes,
        };
        self.bus
            .call_at(&self.plugin, &Ctx::new(None), references)
            .await
            .unwrap()
    }

    async fn mark(&self, nodes: Vec<Node>) {
        let mark = Mark {
            generation: self.generation,
            nodes,
        };
        self.bus
            .call_at(&self.plugin, &Ctx::new(None), mark)
            .await
            .unwrap();
    }

    /// Names what went, in order, by tenant, and what is kept elsewhere because of a touch.
    async fn sweep(&self, dry_run: bool, tenant: &Namespace) -> (Vec<String>, Vec<Edge>) {
        let (mut names, mut late, mut token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let sweep = Sweep {
                generation: self.generation,
                dry_run,
                token,
            };
            let swept = self
                .bus
                .call_at(&self.plugin, &Ctx::new(None), sweep)
                .await
                .unwrap();
            let own = swept
                .removed
                .into_iter()
                .filter(|one| one.node.namespace == *tenant);
            names.extend(own.map(|one| match one.node.resource {
                Resource::Snapshot { key, .. } => key.to_string(),
                other => panic!("{other:?} is no snapshot"),
            }));
            late.extend(swept.late);
            token = swept.next;
            if swept.done {
                return (names, late);
            }
        }
    }
}

fn node(t: &Subject, name: &str) -> Node {
    Node {
        namespace: t.ctx.namespace.clone().unwrap(),
        resource: Resource::Snapshot {
            driver: t.driver.clone(),
            key: key(name),
        },
    }
}

async fn what_nothing_refers_to_is_collected(bus: &Bus, t: &Subject) {
    let tenant = t.ctx.namespace.clone().unwrap();
    t.committed("base", None).await;
    t.committed("kept", Some("base")).await;
    t.committed("loose", Some("base")).await;
    t.prepare("open", Some("loose")).await.unwrap();
    let root = labels(&[("containerd.io/gc.root", "yes")]);
    t.prepare_with("root", Some("kept"), root).await.unwrap();
    let back = labels(&[("containerd.io/gc.bref.container", "c1")]);
    t.prepare_with("back", None, back).await.unwrap();

    let gc = Collector::begin(bus, t, 1000).await;
    let roots = gc.roots().await;
    let own: Vec<&Node> = roots
        .iter()
        .map(|edge| &edge.to)
        .filter(|to| to.namespace == tenant)
        .collect();
    assert_eq!(
        own,
        [&node(t, "root")],
        "an active snapshot is no root by itself"
    );
    let edges = gc.references(vec![node(t, "root"), node(t, "none")]).await;
    assert_eq!(edges.len(), 1);
    assert_eq!(
        (&edges[0].to, edges[0].reason.as_str()),
        (&node(t, "kept"), "parent")
    );
    let container = Node {
        namespace: tenant.clone(),
        resource: Resource::Container("c1".parse().unwrap()),
    };
    let edges = gc.references(vec![container]).await;
    assert_eq!(edges[0].to, node(t, "back"));
    gc.mark(
        ["root", "kept", "base", "back"]
            .map(|name| node(t, name))
            .into(),
    )
    .await;

    let (planned, _) = gc.sweep(true, &tenant).await;
    assert_eq!(planned, ["open", "loose"], "children before parents");
    t.stat("back").await.unwrap();
    let (removed, _) = gc.sweep(false, &tenant).await;
    assert_eq!(removed, planned);
    refused(t.stat("loose").await, Code::NotFound, "loose");
    t.stat("base").await.unwrap();
    let namespace = Some(tenant.clone());
    let tally = bus
        .call_at(&gc.plugin, &Ctx::new(None), Tally { namespace })
        .await
        .unwrap();
    let what = format!("{} snapshots", t.driver);
    assert_eq!(
        tally,
        [Count {
            namespace: tenant,
            what,
            count: 4
        }]
    );
    let old = Roots {
        generation: 999,
        token: String::new(),
    };
    let old = bus.call_at(&gc.plugin, &Ctx::new(None), old).await;
    refused(old, Code::FailedPrecondition, "begin again");
}

async fn what_is_touched_meanwhile_is_not_collected(bus: &Bus, t: &Subject) {
    let tenant = t.ctx.namespace.clone().unwrap();
    t.committed("base", None).await;
    t.committed("used", Some("base")).await;
    t.committed("named", None).await;
    t.committed("unused", None).await;
    let digest = format!("sha256:{}", "b".repeat(64));
    let gc = Collector::begin(bus, t, 2000).await;
    let label = format!("containerd.io/gc.ref.snapshot.{}", t.driver);
    let refers = labels(&[(&label, "named"), ("containerd.io/gc.ref.content", &digest)]);
    t.prepare_with("young", None, refers).await.unwrap();
    t.stat("used").await.unwrap();
    let (removed, late) = gc.sweep(false, &tenant).await;
    assert_eq!(removed, ["unused"]);
    let late: Vec<&Edge> = late
        .iter()
        .filter(|edge| edge.from == node(t, "young"))
        .collect();
    assert_eq!(late.len(), 1, "what others hold for it");
    assert_eq!(
        late[0].to.resource,
        Resource::Content(digest.parse().unwrap())
    );
    for name in ["base", "used", "named", "young"] {
        t.stat(name).await.unwrap();
    }
    let gc = Collector::begin(bus, t, 3000).await;
    let (removed, _) = gc.sweep(false, &tenant).await;
    assert_eq!(removed.len(), 4, "touched once, not for ever");
}
