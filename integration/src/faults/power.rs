//! Power cuts: many moments of one recording, each with a node started on what the disk then held.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::image::{Cut, Image, Loss, Replay};
use super::kept::{keep, load};
use super::record::{Recording, node_on, record};
use super::soundness::{Patient, finding};
use crate::Outcome;
use crate::chaos::Random;
use crate::node::Setup;

/// How many cuts share a recording.
const SHARED: usize = 40;
/// Steps of each client in a recording.
const STEPS: usize = 16;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many cuts.
    pub cuts: usize,
    /// Decides about everything but the pace of the machine.
    pub seed: u64,
    /// With what the node is started.
    pub setup: Setup,
    /// Where the disk of every cut is kept that a node does not survive.
    pub keep: Option<PathBuf>,
    /// Which moments.
    pub moments: Moments,
}

/// When the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// Every second time exactly when something was answered, else anywhere; with every kind of loss.
    All,
    /// When something about objects whose names begin like this was answered, and all that was not synced is lost: where
    /// a lie about them is found first. After the first finding no more is asked.
    Answers(&'static str),
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Cuts that were looked at.
    pub cuts: usize,
    /// Findings, each with its cut.
    pub wrong: Vec<String>,
    /// Time of all checks, without the recordings.
    pub checking: Duration,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.checking.as_secs_f32() / self.cuts.max(1) as f32;
        let (cuts, wrong) = (self.cuts, self.wrong.len());
        write!(
            f,
            "{cuts} power cuts, {each:.2} s to check each, {wrong} findings"
        )
    }
}

/// Cuts the power as often as the plan says; tells `say` about every step.
///
/// Errors: a recording could not be made; findings are not errors.
pub async fn run(plan: &Plan, say: impl Fn(&str)) -> Outcome<Verdict> {
    let mut verdict = Verdict::default();
    let mut chance = Random::new(plan.seed, 0);
    while verdict.cuts < plan.cuts && !plan.is_content(&verdict) {
        let recording = record(chance.number(), STEPS, plan.setup.clone()).await?;
        say(&describe(&recording));
        let count = SHARED.min(plan.cuts - verdict.cuts);
        let mut replay = Replay::new(recording.start.clone(), &recording.log);
        for cut in cuts(&recording, plan, count, &mut chance) {
            let image = replay.after(cut);
            plan.one(&recording, cut, image, &mut verdict, &say).await?;
            if plan.is_content(&verdict) {
                break;
            }
        }
    }
    Ok(verdict)
}

impl Plan {
    /// Whether more cuts would tell nothing new.
    fn is_content(&self, verdict: &Verdict) -> bool {
        self.moments != Moments::All && !verdict.wrong.is_empty()
    }

    async fn one(
        &self,
        recording: &Recording,
        cut: Cut,
        image: Image,
        verdict: &mut Verdict,
        say: impl Fn(&str),
    ) -> Outcome {
        let began = Instant::now();
        let wrong = check(recording, cut, image.clone(), &self.setup).await;
        let wrong = finding("the check ended early", wrong);
        verdict.cuts += 1;
        verdict.checking += began.elapsed();
        let place = format!(
            "cut {} of {}: {}",
            verdict.cuts,
            self.cuts,
            text(recording, cut)
        );
        let result = if wrong.is_empty() {
            "sound"
        } else {
            "NOT SOUND"
        };
        say(&format!("{place}: {result} ({:.1?})", began.elapsed()));
        wrong.iter().for_each(|line| say(&format!("    {line}")));
        if let Some(folder) = self.keep.as_ref().filter(|_| !wrong.is_empty()) {
            let name = format!("cut-{}", verdict.cuts);
            let kept = keep(folder, &name, recording, cut, &image)?;
            say(&format!("    --again {} tries it again", kept.display()));
        }
        let wrong = wrong.into_iter().map(|line| format!("{place}: {line}"));
        verdict.wrong.extend(wrong);
        Ok(())
    }
}

fn describe(recording: &Recording) -> String {
    format!(
        "recorded {} writes and flushes (ext4, {}) and {} answers in {:.1?}",
        recording.log.len(),
        recording.options,
        recording.history.answers("").len(),
        recording.took
    )
}

fn text(recording: &Recording, cut: Cut) -> String {
    let (all, answered) = (recording.log.len(), recording.history.answered_by(cut.at));
    format!(
        "after act {} of {all}, {answered} answers, unsynced {:?}",
        cut.at, cut.loss
    )
}

/// Chooses cuts, in the order of time.
fn cuts(recording: &Recording, plan: &Plan, count: usize, chance: &mut Random) -> Vec<Cut> {
    let choose = |number| match plan.moments {
        Moments::All => anywhere(recording, number, chance),
        Moments::Answers(objects) => answered(recording, objects, chance),
    };
    let mut cuts: Vec<Cut> = (0..count).map(choose).collect();
    cuts.sort_by_key(|cut| cut.at);
    cuts
}

fn anywhere(recording: &Recording, number: usize, chance: &mut Random) -> Cut {
    let losses = [Loss::Everything, Loss::Blocks, Loss::Sectors, Loss::Nothing];
    let moment = chance.below(recording.log.len() as u64 + 1) as usize;
    let answered = chance.one(&recording.history.answers("")).copied();
    Cut {
        at: answered
            .filter(|_| number.is_multiple_of(2))
            .unwrap_or(moment),
        loss: losses[number / 2 % losses.len()],
        seed: chance.number(),
    }
}

fn answered(recording: &Recording, objects: &str, chance: &mut Random) -> Cut {
    let answered = chance.one(&recording.history.answers(objects)).copied();
    Cut {
        at: answered.unwrap_or(recording.log.len()),
        loss: Loss::Everything,
        seed: chance.number(),
    }
}

/// Tries a cut again that was kept; returns everything that is wrong. Errors: it cannot be loaded.
pub async fn again(kept: &Path, setup: &Setup) -> Outcome<Vec<String>> {
    let (recording, cut, image) = load(kept).await?;
    let wrong = check(&recording, cut, image, setup).await;
    Ok(finding("the check ended early", wrong))
}

/// Starts a node on what a cut has left and returns everything that is wrong with it.
async fn check(
    recording: &Recording,
    cut: Cut,
    image: Image,
    setup: &Setup,
) -> Outcome<Vec<String>> {
    let mut disk = Disk::new(image)?;
    disk.mount("")?;
    let folder = disk.folder().join("look");
    fs::create_dir(&folder)?;
    let node = node_on(&disk, setup.clone()).await?;
    let patient = Patient {
        node: &node,
        namespace: &recording.namespace,
        catalog: &recording.catalog,
        registry: &recording.registry,
        folder: &folder,
    };
    patient.settle().await?;
    let mut found = patient.found().await?;
    let mut wrong = finding(
        "events",
        patient.events(&recording.history, &mut found).await,
    );
    wrong.extend(recording.history.contradictions(cut.at, &found));
    wrong.extend(finding("blobs", patient.blobs().await));
    wrong.extend(finding("snapshots", patient.snapshots().await));
    wrong.extend(finding("images", patient.unpacked().await));
    wrong.extend(finding(
        "afterwards",
        patient.heals_and_goes(Random::new(cut.seed, 1)).await,
    ));
    wrong.extend(finding(
        "stop",
        node.stop_clean().await.map(|()| Vec::new()),
    ));
    wrong.extend(finding("unmount", disk.unmount().map(|()| Vec::new())));
    Ok(wrong)
}
