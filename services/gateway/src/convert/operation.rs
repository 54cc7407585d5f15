//! Operations: progress, and the result as the object that it is.

use super::container::ContainerView;
use super::image::PulledView;
use super::lease::ResourceView;
use super::task::{ExitView, TaskView};
use crate::errors::{Problem, ProblemView};
use contracts::gc::Collected;
use contracts::integrity::{Cure, Damage};
use contracts::operations::{Operation, Outcome, Part, Scrubbed, State};
use contracts::{Namespace, OperationId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

/// One operation.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Operation)]
pub(crate) struct OperationView {
    /// Its id.
    #[schema(value_type = String)]
    id: OperationId,
    /// `pull`, `push`, `import`, `export`, `unpack`, `create`, `run`, `remove`, `collect` or `scrub`.
    kind: String,
    /// What it is about: an image or container name.
    subject: String,
    /// `running`, `done`, `failed` or `cancelled`.
    #[schema(value_type = String)]
    state: State,
    /// Part by part.
    progress: Vec<PartView>,
    /// What it came to, when done: an image, images, a container, a task, an exit, what was collected, or null.
    result: Option<OutcomeView>,
    /// Why it failed, when it did.
    error: Option<ProblemView>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it last moved.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// How often it was picked up again after a crash.
    resumed: u32,
}

/// How far one part is.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Part)]
pub(crate) struct PartView {
    /// A digest, or a step's name.
    name: String,
    /// `waiting`, `resolving`, `fetching`, `unpacking`, `committing`, `exists`, `done`, …
    phase: String,
    /// Bytes done in this phase.
    offset: u64,
    /// Bytes in all; 0 when unknown.
    total: u64,
}

impl From<Part> for PartView {
    fn from(part: Part) -> Self {
        Self {
            name: part.name,
            phase: part.phase,
            offset: part.offset,
            total: part.total,
        }
    }
}

/// What finished work answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Outcome)]
pub(crate) enum OutcomeView {
    /// An image.
    Image(Box<PulledView>),
    /// Several images.
    Images(Vec<PulledView>),
    /// A container.
    Container(Box<ContainerView>),
    /// A started task.
    Task(TaskView),
    /// How a task ended.
    Exit(ExitView),
    /// What was collected.
    Collected(CollectedView),
    /// What a scrub found.
    Scrubbed(ScrubbedView),
}

impl OutcomeView {
    fn of(outcome: Outcome) -> Option<Self> {
        Some(match outcome {
            Outcome::None => return None,
            Outcome::Image(image) => Self::Image(Box::new(image.into())),
            Outcome::Images(images) => Self::Images(images.into_iter().map(Into::into).collect()),
            Outcome::Container(container) => Self::Container(Box::new(container.into())),
            Outcome::Task(task) => Self::Task(task.into()),
            Outcome::Exit(exit) => Self::Exit(exit.into()),
            Outcome::Collected(collected) => Self::Collected(collected.into()),
            Outcome::Scrubbed(scrubbed) => Self::Scrubbed(scrubbed.into()),
        })
    }
}

impl From<Operation> for OperationView {
    fn from(operation: Operation) -> Self {
        Self {
            id: operation.id,
            kind: operation.kind,
            subject: operation.subject,
            state: operation.state,
            progress: operation.progress.into_iter().map(Into::into).collect(),
            result: operation.result.and_then(OutcomeView::of),
            error: operation.error.map(|error| Problem::from(error).view()),
            started_at: operation.started_at,
            updated_at: operation.updated_at,
            resumed: operation.resumed,
        }
    }
}

impl OperationView {
    /// The JSON of one record of a progress stream: the operation, and which kind of record it is.
    pub(crate) fn record(self, kind: &'static str) -> String {
        #[derive(Serialize)]
        struct Step {
            r#type: &'static str,
            #[serde(flatten)]
            operation: OperationView,
        }
        let step = Step {
            r#type: kind,
            operation: self,
        };
        serde_json::to_string(&step).unwrap_or_default()
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Scrub)]
pub(crate) struct ScrubbedView {
    /// What is not as it should be; at most 100, the events `/integrity/found` have all.
    findings: Vec<FindingView>,
    /// How many there were.
    found: u64,
    /// How many of them were mended.
    mended: u64,
    /// Records, files and blobs that were looked at.
    things: u64,
    /// Bytes that were read.
    bytes: u64,
    /// Layers that were compared with their blobs.
    layers: u64,
    /// What could not be checked, and why.
    unchecked: Vec<String>,
    /// Microseconds it took.
    micros: u64,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Finding)]
pub(crate) struct FindingView {
    /// `store`, `record`, `blob`, `layer`, `missing`, `leftover`.
    #[schema(value_type = String)]
    damage: Damage,
    /// Whose; null for what belongs to the node.
    #[schema(value_type = Option<String>)]
    namespace: Option<Namespace>,
    /// A digest, a snapshot key, a path below the owner's folder.
    subject: String,
    /// What was expected, what is there.
    what: String,
    /// What would mend it: `rebuild`, `remove`, `fetch`, `none`.
    #[schema(value_type = String)]
    cure: Cure,
}

impl From<Scrubbed> for ScrubbedView {
    fn from(scrubbed: Scrubbed) -> Self {
        let findings = scrubbed.findings.into_iter().map(|finding| FindingView {
            damage: finding.damage,
            namespace: finding.namespace,
            subject: finding.subject,
            what: finding.what,
            cure: finding.cure,
        });
        Self {
            findings: findings.collect(),
            found: scrubbed.found,
            mended: scrubbed.mended,
            things: scrubbed.things,
            bytes: scrubbed.bytes,
            layers: scrubbed.layers,
            unchecked: scrubbed.unchecked,
            micros: scrubbed.micros,
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Collection)]
pub(crate) struct CollectedView {
    /// Its generation.
    generation: u64,
    /// At most 200 rows.
    removed: Vec<RemovalView>,
    /// How many went in all.
    total: u64,
    /// Bytes that went, as far as known.
    bytes: u64,
    /// How many resources stayed.
    kept: u64,
    /// Microseconds it took.
    micros: u64,
}

/// One resource that goes.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Removal)]
pub(crate) struct RemovalView {
    /// Its namespace.
    #[schema(value_type = String)]
    namespace: Namespace,
    /// What it is.
    resource: ResourceView,
    /// Why it goes.
    reason: String,
    /// Bytes, 0 when unknown.
    size: u64,
}

impl From<Collected> for CollectedView {
    fn from(collected: Collected) -> Self {
        let removed = collected.removed.into_iter().map(|removal| RemovalView {
            namespace: removal.node.namespace,
            resource: removal.node.resource.into(),
            reason: removal.reason,
            size: removal.size,
        });
        Self {
            generation: collected.generation,
            removed: removed.collect(),
            total: collected.total,
            bytes: collected.bytes,
            kept: collected.kept,
            micros: collected.micros,
        }
    }
}
