//! Scrub: every owner looks at its own disk, step by step; then every image's unpacked layers are compared with their blobs,
//! and then those that no image names any more, as long as their blobs are here.
//!
//! Gentle: after each step as much time passes without one as the setting `scrub_share` says. Nothing is held: what is
//! removed meanwhile is no finding. Begun again after a crash it looks at everything once more, for a finding that was
//! told once is told again while it is true.

use super::origin;
use super::prove::{self, Chain};
use super::unpack::{steps, steps_of};
use super::way::Way;
use crate::run::Run;
use contracts::diff::Verified;
use contracts::integrity::{Check, Checked, Cure, Damage, Finding, Integrity, Mend};
use contracts::operations::{Scrub, Scrubbed};
use contracts::snapshots::{Driver, DriverInfo, Snapshots, Stat};
use contracts::transfer::{ImagePlan, Plan};
use contracts::{Code, Error, Namespace, Paging, PluginId, Result, images, namespaces};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long one step may take: a step reads 64 MiB, on a disk that may be busy.
const STEP: Duration = Duration::from_secs(600);
/// Findings of one result, and bytes of their text: with the rest they fit into a frame.
const MOST: usize = 100;
const TEXT: usize = 32 << 10;
/// Reasons of one result.
const REASONS: usize = 20;
/// Events of one topic in one scrub: the log forgets others for them.
const TOLD: u64 = 1000;

/// Looks at everything. Errors: the journal cannot be written; what could not be checked is in the result.
pub(super) async fn scrub(run: &Run, asked: &Scrub) -> Result<Scrubbed> {
    let began = Instant::now();
    let mut sum = Sum::default();
    let owners = run.bus.peers::<Integrity>().to_vec();
    for owner in &owners {
        if let Err(error) = check(run, asked, owner, &mut sum).await {
            sum.unreadable(run, owner, error).await?;
        }
    }
    match namespaces(run, asked).await {
        Err(error) => sum.unchecked("namespaces", error),
        Ok(all) => {
            for namespace in all {
                let run = run.inside(&namespace);
                if let Err(error) = layers(&run, asked, &mut sum).await {
                    let what = format!("layers of namespace {namespace}");
                    sum.unchecked(&what, error);
                }
            }
        }
    }
    if is_whole(asked) {
        run.journal.scrubbed().await?;
    }
    faults::point("operations.scrub.noted");
    sum.close();
    sum.result.micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(sum.result)
}

/// Whether the clock may rest: a look at names, or at one namespace, leaves the rest as unknown as it was.
fn is_whole(asked: &Scrub) -> bool {
    asked.deep && asked.namespace.is_none()
}

/// What a scrub tells.
const TOPICS: [&str; 2] = ["/integrity/found", "/integrity/mended"];

/// What was found so far.
#[derive(Default)]
struct Sum {
    result: Scrubbed,
    text: usize,
    /// Events of what was found, and of what was mended, told or not.
    events: [u64; 2],
}

impl Sum {
    async fn found(&mut self, run: &Run, finding: &Finding) -> Result<()> {
        self.result.found += 1;
        self.text += finding.subject.len() + finding.what.len();
        if self.result.findings.len() < MOST && self.text < TEXT {
            self.result.findings.push(finding.clone());
        }
        self.tell(run, 0, finding).await
    }

    async fn mended(&mut self, run: &Run, finding: &Finding) -> Result<()> {
        self.result.mended += 1;
        self.tell(run, 1, finding).await
    }

    async fn tell(&mut self, run: &Run, which: usize, finding: &Finding) -> Result<()> {
        self.events[which] += 1;
        match self.events[which] <= TOLD {
            true => run.journal.tell(TOPICS[which], finding.clone()).await,
            false => Ok(()),
        }
    }

    /// Says of how much there was no event.
    fn close(&mut self) {
        for (topic, events) in TOPICS.into_iter().zip(self.events) {
            if let more @ 1.. = events.saturating_sub(TOLD) {
                let why = format!("{topic}: {more} more than the {TOLD} that have an event");
                self.result.unchecked.push(why);
            }
        }
    }

    /// A store that cannot be read is a finding, too.
    async fn unreadable(&mut self, run: &Run, owner: &PluginId, error: Error) -> Result<()> {
        if error.is(Code::DataLoss) {
            let finding = Finding {
                damage: Damage::Store,
                namespace: None,
                subject: owner.to_string(),
                what: error.message.clone(),
                cure: Cure::Rebuild,
            };
            self.found(run, &finding).await?;
        }
        self.unchecked(owner.as_str(), error);
        Ok(())
    }

    fn unchecked(&mut self, what: &str, error: Error) {
        tracing::warn!(what, %error, "could not be checked");
        if self.result.unchecked.len() < REASONS {
            let why: String = error.to_string().chars().take(300).collect();
            self.result.unchecked.push(format!("{what}: {why}"));
        }
    }
}

/// One owner looks at its own disk.
async fn check(run: &Run, asked: &Scrub, owner: &PluginId, sum: &mut Sum) -> Result<()> {
    let (mut token, mut bytes, mut way) = (String::new(), 0, Way::default());
    loop {
        let began = Instant::now();
        let step = Check {
            deep: asked.deep,
            token,
        };
        let ctx = run.stream().with_deadline(STEP);
        let checked: Checked = run.bus.call_at(owner, &ctx, step).await?;
        bytes += checked.bytes;
        sum.result.bytes += checked.bytes;
        sum.result.things += checked.things;
        run.board.part(owner.as_str(), "checking", bytes, 0);
        for finding in checked.findings {
            sum.found(run, &finding).await?;
            if asked.repair {
                mend(run, owner, finding, sum).await?;
            }
        }
        if checked.next.is_empty() {
            run.board.part(owner.as_str(), "checked", bytes, bytes);
            faults::point("operations.scrub.checked");
            return Ok(());
        }
        way.on(&checked.next)?;
        token = checked.next;
        rest(run, began.elapsed()).await;
    }
}

async fn mend(run: &Run, owner: &PluginId, finding: Finding, sum: &mut Sum) -> Result<()> {
    let ctx = run.stream().with_deadline(STEP);
    let mend = Mend {
        finding: finding.clone(),
    };
    match run.bus.call_at(owner, &ctx, mend).await {
        Ok(_) => sum.mended(run, &finding).await,
        // Its cure is not in the owner's hands; the finding says in whose.
        Err(error) if error.is(Code::FailedPrecondition) => Ok(()),
        Err(error) => {
            sum.unchecked(&finding.subject, error);
            Ok(())
        }
    }
}

/// Leaves the disk to others for as long as the share says.
async fn rest(run: &Run, took: Duration) {
    let share = run.config.scrub_share.clamp(1, 100);
    tokio::time::sleep(took * (100 - share) / share).await;
}

async fn namespaces(run: &Run, asked: &Scrub) -> Result<Vec<Namespace>> {
    if let Some(only) = &asked.namespace {
        return Ok(vec![only.clone()]);
    }
    let (mut all, mut paging) = (Vec::new(), Paging::default());
    loop {
        let list = namespaces::List {
            paging: paging.clone(),
        };
        let page = run.call(list).await?;
        all.extend(page.items.into_iter().map(|info| info.name));
        if page.next.is_empty() {
            return Ok(all);
        }
        paging.token = page.next;
    }
}

/// The unpacked layers of a namespace's images, each once.
async fn layers(run: &Run, asked: &Scrub, sum: &mut Sum) -> Result<()> {
    let (mut seen, mut paging) = (BTreeSet::new(), Paging::default());
    loop {
        let list = images::List {
            paging: paging.clone(),
        };
        let page = run.call(list).await?;
        for image in page.items {
            let plan = Plan {
                target: image.target.clone(),
                platform: String::new(),
                shallow: false,
            };
            match run.call(plan).await {
                Ok(plan) => image_layers(run, asked, &plan, &mut seen, sum).await?,
                // Not of this machine's platform, or an artifact: nothing of it is unpacked.
                Err(error) if matches!(error.code, Code::NotFound | Code::InvalidArgument) => {}
                Err(error) => sum.unchecked(image.name.as_str(), error),
            }
        }
        if page.next.is_empty() {
            break;
        }
        paging.token = page.next;
    }
    match asked.deep {
        true => unnamed(run, asked, &mut seen, sum).await,
        false => Ok(()),
    }
}

/// The layers that no image names: they wait for the collector, or a container lies on them. An image that shares one
/// would take it as it is, so one that cannot be compared is no longer trusted.
async fn unnamed(
    run: &Run,
    asked: &Scrub,
    seen: &mut BTreeSet<String>,
    sum: &mut Sum,
) -> Result<()> {
    for (driver, info) in drivers(run, sum).await {
        let known = origin::known(run, &driver).await?;
        for name in known.keys() {
            if !seen.insert(format!("{driver} {name}")) {
                continue;
            }
            let Some(layers) = origin::layers(&known, name) else {
                continue;
            };
            let below = if info.rebase { layers.len() - 1 } else { 0 };
            if !origin::are_here(run, &layers[below..]).await? {
                run.unproven(&driver, name);
                continue;
            }
            let chain = Chain {
                driver: &driver,
                steps: &steps_of(&layers)?,
                stacked: info.rebase,
            };
            one(run, asked, chain, layers.len() - 1, sum).await?;
        }
    }
    Ok(())
}

/// The drivers that answer.
async fn drivers(run: &Run, sum: &mut Sum) -> Vec<(String, DriverInfo)> {
    let mut drivers = Vec::new();
    for plugin in run.bus.peers::<Snapshots>().to_vec() {
        match run.call_at_driver(plugin.id(), Driver {}).await {
            Ok(info) => drivers.push((plugin.id().to_owned(), info)),
            Err(error) => sum.unchecked(plugin.as_str(), error),
        }
    }
    drivers
}

async fn image_layers(
    run: &Run,
    asked: &Scrub,
    plan: &ImagePlan,
    seen: &mut BTreeSet<String>,
    sum: &mut Sum,
) -> Result<()> {
    let steps = steps(plan)?;
    for (driver, info) in drivers(run, sum).await {
        let driver = driver.as_str();
        let chain = Chain {
            driver,
            steps: &steps,
            stacked: info.rebase,
        };
        for (index, step) in steps.iter().enumerate() {
            if !seen.insert(format!("{driver} {}", step.name)) {
                continue;
            }
            let key = step.name.clone();
            if run.call_at_driver(driver, Stat { key }).await.is_ok() {
                one(run, asked, chain, index, sum).await?;
            }
        }
    }
    Ok(())
}

async fn one(
    run: &Run,
    asked: &Scrub,
    chain: Chain<'_>,
    index: usize,
    sum: &mut Sum,
) -> Result<()> {
    if !asked.deep {
        return Ok(());
    }
    let began = Instant::now();
    let name = &chain.steps[index].name;
    run.board.part(name.as_str(), "comparing", 0, 0);
    match prove::layer(run, chain, index, asked.repair).await {
        Ok(None) => {}
        Ok(Some(verified)) => {
            sum.result.layers += 1;
            sum.result.bytes += verified.bytes;
            judge(run, asked, chain, index, verified, sum).await?;
        }
        Err(error) => {
            run.unproven(chain.driver, name);
            let what = format!("snapshot {name} of {}", chain.driver);
            sum.unchecked(&what, error);
        }
    }
    run.board.part(name.as_str(), "compared", 0, 0);
    rest(run, began.elapsed()).await;
    Ok(())
}

async fn judge(
    run: &Run,
    asked: &Scrub,
    chain: Chain<'_>,
    index: usize,
    verified: Verified,
    sum: &mut Sum,
) -> Result<()> {
    let (driver, name) = (chain.driver, &chain.steps[index].name);
    let whole = verified.different == verified.mended;
    match whole && (asked.repair || verified.different == 0) {
        true => run.proven(driver, name),
        false => run.unproven(driver, name),
    }
    let unlisted = verified.different - verified.differences.len() as u64;
    for difference in verified.differences {
        let finding = Finding {
            damage: Damage::Layer,
            namespace: run.ctx().namespace.clone(),
            subject: format!("{driver} {name} /{}", difference.path),
            what: difference.what,
            cure: Cure::Rebuild,
        };
        sum.found(run, &finding).await?;
        if whole && asked.repair {
            sum.mended(run, &finding).await?;
        }
    }
    sum.result.found += unlisted;
    if whole && asked.repair {
        sum.result.mended += unlisted;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deep_look_at_everything_lets_the_clock_rest() {
        let asked = |deep, namespace: Option<&str>| Scrub {
            repair: false,
            deep,
            namespace: namespace.map(|name| Namespace::new(name).unwrap()),
        };
        assert!(is_whole(&asked(true, None)));
        assert!(!is_whole(&asked(false, None)));
        assert!(!is_whole(&asked(true, Some("a"))));
    }
}
