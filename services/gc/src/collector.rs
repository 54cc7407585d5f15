//! One collection, step by step.

use crate::marks::Marks;
use bus::{Bus, Ctx};
use contracts::collect::{Begin, Edge, Mark, Node, References, Resource, Roots, Sweep, Swept};
use contracts::gc::Collected;
use contracts::snapshots::Snapshots;
use contracts::{PluginId, Result, Service};
use std::{collections::BTreeMap, time::Instant};

/// Nodes of one question. Source: contracts, `collect`.
const PAGE: usize = 200;
/// Rows of a report. Source: contracts, `gc`.
const ROWS: usize = 200;

/// A collection under way.
pub(crate) struct Collector<'a> {
    bus: &'a Bus,
    ctx: &'a Ctx,
    generation: u64,
    pub(crate) marks: Marks,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(bus: &'a Bus, ctx: &'a Ctx, generation: u64) -> Self {
        Self {
            bus,
            ctx,
            generation,
            marks: Marks::default(),
        }
    }

    /// Opens the generation everywhere and marks everything that the roots reach.
    pub(crate) async fn mark(&mut self) -> Result<()> {
        let begun = self.bus.all_peers().map(|owner| {
            self.bus.call_at(
                owner,
                self.ctx,
                Begin {
                    generation: self.generation,
                },
            )
        });
        futures_util::future::try_join_all(begun).await?;
        faults::point("gc.collect.opened");
        let owners: Vec<PluginId> = self.bus.all_peers().cloned().collect();
        for owner in &owners {
            self.roots(owner).await?;
        }
        faults::point("gc.collect.marked");
        Ok(())
    }

    /// Sweeps every owner: those whose fresh records may refer to others come before the others.
    pub(crate) async fn sweep(&mut self, dry_run: bool) -> Result<Collected> {
        let began = Instant::now();
        let (naming, holding): (Vec<PluginId>, Vec<PluginId>) = self
            .bus
            .all_peers()
            .cloned()
            .partition(|owner| !points_back(owner));
        let mut done = Collected {
            generation: self.generation,
            ..Collected::default()
        };
        for owner in &naming {
            self.sweep_one(owner, dry_run, &mut done).await?;
        }
        let drivers: Vec<PluginId> = self.bus.peers::<Snapshots>().to_vec();
        for driver in &drivers {
            // A fresh snapshot may refer to content, and content to snapshots: what the former keep is heard first.
            self.sweep_one(driver, true, &mut Collected::default())
                .await?;
        }
        faults::point("gc.collect.names-swept");
        for owner in &holding {
            self.sweep_one(owner, dry_run, &mut done).await?;
        }
        faults::point("gc.collect.swept");
        done.kept = self.marks.len();
        done.micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(done)
    }

    async fn roots(&mut self, owner: &PluginId) -> Result<()> {
        let mut token = String::new();
        loop {
            let roots = Roots {
                generation: self.generation,
                token,
            };
            let page = self.bus.call_at(owner, self.ctx, roots).await?;
            self.follow(page.items).await?;
            token = page.next;
            if token.is_empty() {
                return Ok(());
            }
        }
    }

    /// Follows edges to their ends, telling owners what is reached.
    async fn follow(&mut self, edges: Vec<Edge>) -> Result<()> {
        let mut news = self.marks.follow(edges);
        while !news.is_empty() {
            let mut edges = Vec::new();
            for (owner, nodes) in self.by_owner(&news) {
                for nodes in nodes.chunks(PAGE) {
                    self.tell(&owner, nodes).await?;
                    edges.extend(self.ask(&owner, nodes).await?);
                    for other in self
                        .bus
                        .all_peers()
                        .filter(|other| **other != owner && points_back(other))
                    {
                        edges.extend(self.ask(other, nodes).await?);
                    }
                }
            }
            news = self.marks.follow(edges);
        }
        Ok(())
    }

    async fn tell(&self, owner: &PluginId, nodes: &[(Node, bool)]) -> Result<()> {
        let nodes = nodes.iter().map(|(node, _)| node.clone()).collect();
        self.bus
            .call_at(
                owner,
                self.ctx,
                Mark {
                    generation: self.generation,
                    nodes,
                },
            )
            .await
    }

    async fn ask(&self, owner: &PluginId, nodes: &[(Node, bool)]) -> Result<Vec<Edge>> {
        let nodes: Vec<Node> = nodes
            .iter()
            .filter(|(_, deep)| *deep)
            .map(|(node, _)| node.clone())
            .collect();
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        self.bus
            .call_at(
                owner,
                self.ctx,
                References {
                    generation: self.generation,
                    nodes,
                },
            )
            .await
    }

    /// Sorts nodes by who owns them; a node of a driver that this node does not have is nobody's.
    fn by_owner(&self, nodes: &[(Node, bool)]) -> BTreeMap<PluginId, Vec<(Node, bool)>> {
        let mut sorted: BTreeMap<PluginId, Vec<(Node, bool)>> = BTreeMap::new();
        for (node, deep) in nodes {
            let owner = self.bus.all_peers().find(|peer| owns(peer, &node.resource));
            if let Some(owner) = owner {
                sorted
                    .entry(owner.clone())
                    .or_default()
                    .push((node.clone(), *deep));
            }
        }
        sorted
    }

    async fn sweep_one(
        &mut self,
        owner: &PluginId,
        dry_run: bool,
        done: &mut Collected,
    ) -> Result<()> {
        let (mut token, mut round) = (String::new(), 0);
        loop {
            let sweep = Sweep {
                generation: self.generation,
                dry_run,
                token,
            };
            // Each round is a call of its own: the same words again are not a repetition.
            let ctx = self.ctx.step(&format!("{owner} {round}"));
            let swept = self.bus.call_at(owner, &ctx, sweep).await?;
            let Swept {
                removed,
                late,
                done: last,
                next,
            } = swept;
            self.follow(late).await?;
            done.total += removed.len() as u64;
            done.bytes += removed.iter().map(|removal| removal.size).sum::<u64>();
            let room = ROWS - done.removed.len();
            done.removed.extend(removed.into_iter().take(room));
            if last {
                return Ok(());
            }
            token = next;
            round += 1;
        }
    }
}

/// Whether a plugin's resources may name whom they keep themselves alive by (`containerd.io/gc.bref.*`).
fn points_back(owner: &PluginId) -> bool {
    matches!(owner.service(), "content" | "snapshots")
}

/// Whether a plugin owns a resource.
fn owns(owner: &PluginId, resource: &Resource) -> bool {
    use contracts::{containers::Containers, content::Content, images::Images, leases::Leases};
    match resource {
        Resource::Content(_) | Resource::Ingest(_) => owner.service() == Content::NAME,
        Resource::Snapshot { driver, .. } => {
            owner.service() == Snapshots::NAME && owner.id() == driver
        }
        Resource::Image(_) => owner.service() == Images::NAME,
        Resource::Container(_) => owner.service() == Containers::NAME,
        Resource::Lease(_) => owner.service() == Leases::NAME,
    }
}
