//! Many who pull, tag, run and delete, while collections follow one another: nothing that somebody needs may ever go.

use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{cell::Cell, collections::BTreeSet};

use contracts::{ContainerId, ImageName, Labels, Result, SnapshotKey};
use contracts::{containers as c, images as i, snapshots as s};

use super::house::{Image, Tenant, house};

/// How long everybody is busy.
const BUSY: Duration = Duration::from_secs(5);
const WORKERS: u64 = 4;

/// A xorshift generator: a storm that went wrong can be made again.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

struct Worker {
    tenant: Tenant,
    number: u64,
    random: Random,
    turns: u64,
}

impl Worker {
    /// One of a few images that share layers with each other.
    fn image(&mut self) -> Image {
        let (a, b) = (self.random.below(3), self.random.below(3));
        Image::of(&[a, 10 + b, 20 + self.random.below(2)])
    }

    async fn turn(&mut self) -> Result<()> {
        self.turns += 1;
        let driver = if self.random.below(2) == 0 {
            "overlayfs"
        } else {
            "native"
        };
        let image = self.image();
        match self.random.below(3) {
            0 => self.named(driver, &image).await,
            1 => self.renamed(driver, &image).await,
            _ => self.run(driver, &image).await,
        }
    }

    fn own(&self, what: &str) -> String {
        format!("{what}-{}-{}", self.number, self.turns)
    }

    async fn check(&self, driver: &str, image: &Image, when: &str) -> Result<()> {
        let missing = self.tenant.missing(driver, image).await?;
        assert_eq!(
            missing,
            BTreeSet::new(),
            "lost {when}: {}",
            self.own(driver)
        );
        Ok(())
    }

    async fn named(&mut self, driver: &str, image: &Image) -> Result<()> {
        let name = format!("r/{}:1", self.own("named"));
        self.tenant
            .pull(&self.own("pull"), driver, &name, image)
            .await?;
        self.check(driver, image, "after a pull").await?;
        self.tenant.forget(&name).await
    }

    /// The name moves on, again and again, and what it stands for with it.
    async fn renamed(&mut self, driver: &str, image: &Image) -> Result<()> {
        let mut name = format!("r/{}:0", self.own("moved"));
        self.tenant
            .pull(&self.own("pull"), driver, &name, image)
            .await?;
        for turn in 0..4 {
            let next = format!("r/{}:{}", self.own("moved"), 9 - turn);
            let tag = i::Tag {
                source: ImageName::new(name.clone())?,
                name: ImageName::new(next.clone())?,
                force: false,
            };
            self.tenant.call(tag).await?;
            self.tenant.forget(&name).await?;
            name = next;
        }
        self.check(driver, image, "after moving").await?;
        // From a name to a lease, and back to a name.
        let ctx = self.tenant.lease(&self.own("keep"), Labels::new()).await?;
        self.tenant
            .blob(&ctx, &image.manifest, Labels::new())
            .await?;
        self.tenant.forget(&name).await?;
        self.check(driver, image, "under a lease alone").await?;
        self.tenant.name(&name, image).await?;
        self.tenant.release(&ctx).await?;
        self.check(driver, image, "after coming back from a lease")
            .await?;
        self.tenant.forget(&name).await
    }

    async fn run(&mut self, driver: &str, image: &Image) -> Result<()> {
        let id = self.own("box");
        let ctx = self.tenant.lease(&self.own("run"), Labels::new()).await?;
        self.tenant.bring(&ctx, driver, image).await?;
        self.tenant.container(&ctx, &id, driver, image).await?;
        self.tenant.release(&ctx).await?;
        let there = self.tenant.there().await?;
        for key in image
            .chain()
            .into_iter()
            .chain([SnapshotKey::new(id.clone())?])
        {
            let key = format!("{driver} {key}");
            assert!(there.contains(&key), "lost under a container: {key}");
        }
        let delete = c::Delete {
            id: ContainerId::new(id.clone())?,
        };
        self.tenant.call(delete).await?;
        let key = SnapshotKey::new(id)?;
        let gone = self
            .tenant
            .bus
            .call_named(driver, &self.tenant.ctx(), s::Remove { key })
            .await;
        match gone {
            // The collector was faster.
            Err(error) if error.is(contracts::Code::NotFound) => Ok(()),
            gone => gone,
        }
    }
}

async fn storm(seed: u64) {
    let house = house();
    let (until, over) = (Instant::now() + BUSY, Rc::new(Cell::new(false)));
    let workers = (0..WORKERS).map(|number| {
        let mut worker = Worker {
            tenant: house.tenant.clone(),
            number,
            random: Random(seed + number * 7919),
            turns: 0,
        };
        async move {
            while Instant::now() < until {
                let turn = worker.turn().await;
                assert!(turn.is_ok(), "seed {seed}: {turn:?}");
            }
            worker.turns
        }
    });
    let (collecting, stop) = (house.tenant.clone(), over.clone());
    let collector = tokio::task::spawn_local(async move {
        let (mut rounds, mut gone) = (0, 0);
        while !stop.get() {
            gone += collecting.collect().await.unwrap().total;
            rounds += 1;
        }
        (rounds, gone)
    });
    let turns: u64 = futures_util::future::join_all(workers).await.iter().sum();
    over.set(true);
    let (rounds, gone) = collector.await.unwrap();
    println!("seed {seed}: {turns} turns against {rounds} collections that removed {gone}");
    assert!(turns > 4 && rounds > 4 && gone > 4);
    house.tenant.collect().await.unwrap();
    let left = house.tenant.there().await.unwrap();
    assert_eq!(
        left,
        BTreeSet::new(),
        "seed {seed}: what nobody needs stays"
    );
}

#[actix_rt::test]
async fn nothing_that_somebody_needs_is_lost_in_a_storm() {
    storm(0x9E37_79B9).await;
}

#[actix_rt::test]
async fn nothing_is_lost_in_another_storm_either() {
    let seed = std::env::var("GANTRY_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    storm(seed.unwrap_or(20_251_123)).await;
}
