//! What an owner answers about the file of its ledger, and what is done about a file whose owner does not run.
//!
//! An owner with nothing else on disk answers [`check`] and [`mend`] as they are. One with more on its disk gives its
//! own steps tokens of its own: [`check`] is asked while [`is_mine`] says so, and where its `next` is empty the owner
//! puts its own first token. Findings that [`mend`] answers with `None` are the owner's.

use crate::{Fault, Ledger};
use contracts::Error;
use contracts::integrity::{Checked, Cure, Damage, Finding, Mended};
use std::path::Path;

/// Most records of one step.
const STEP: usize = 500;
/// Most bytes of one step.
const STEP_BYTES: u64 = 4 << 20;
/// What begins the tokens of the ledger's own steps.
const MINE: &str = "records ";

/// What was found wrong with a store's file, and how it was mended, where it was.
pub type Found = Vec<(Finding, Option<Mended>)>;

/// Whether the step that `token` begins is the ledger's own: the first is.
pub fn is_mine(token: &str) -> bool {
    token.is_empty() || token.starts_with(MINE)
}

/// Reads some hundred records and checks each against its checksum. Blocks for disk reads.
///
/// Errors: `Damaged` when the file cannot be read on, which only [`fsck`] mends; `Token`; `Io`.
pub fn check(ledger: &Ledger, token: &str) -> Result<Checked, Fault> {
    let (table, after) = place(token)?;
    ledger.read(|snapshot| {
        let mut checked = Checked::default();
        let mut wrong = Vec::new();
        for name in snapshot.tables()? {
            let after = match table.cmp(name.as_str()) {
                std::cmp::Ordering::Less => None,
                std::cmp::Ordering::Equal => Some(after),
                std::cmp::Ordering::Greater => continue,
            };
            snapshot.raw(&name, after, &mut |key, value| {
                if !snapshot.proves(&name, key, value) {
                    wrong.push(format!("{name}/{key:?}"));
                }
                checked.things += 1;
                checked.bytes += value.len() as u64;
                let full = checked.things >= STEP as u64 || checked.bytes >= STEP_BYTES;
                if full {
                    checked.next = format!("{MINE}{name} {key}");
                }
                !full
            })?;
            if !checked.next.is_empty() {
                break;
            }
        }
        checked.findings = wrong.into_iter().map(damaged).collect();
        Ok(checked)
    })
}

fn damaged(subject: String) -> Finding {
    Finding {
        damage: Damage::Record,
        namespace: None,
        subject,
        what: "its checksum is wrong".into(),
        cure: Cure::Rebuild,
    }
}

/// Mends what the ledger itself found; `None` when the finding is not the ledger's.
///
/// Errors: `Stopped` for what only [`fsck`] mends while the owner is stopped.
pub fn mend(ledger: &Ledger, finding: &Finding) -> Result<Option<Mended>, Fault> {
    match finding.damage {
        Damage::Store | Damage::Record => Err(Fault::Stopped(ledger.path().to_owned())),
        _ => Ok(None),
    }
}

/// The whole answer to a mend, of an owner that has nothing but its ledger.
///
/// Errors: `FailedPrecondition` for what is mended while the owner is stopped, or is none of the ledger's.
pub fn mend_only(ledger: &Ledger, finding: &Finding) -> contracts::Result<Mended> {
    mend(ledger, finding)?.ok_or_else(|| {
        let (file, subject) = (ledger.path().display(), &finding.subject);
        Error::precondition(format!("{subject}: is nothing that {file} could mend"))
    })
}

/// Looks at the file of a store whose owner does not run, and rebuilds it when `repair` says so. Blocks.
///
/// A file that is not there and never was is no finding. Errors: `InUse` while its owner runs, `Newer`, `Full`, `Io`.
pub fn fsck(path: &Path, repair: bool) -> Result<Found, Fault> {
    crate::repair::fsck(path, repair)
}

/// Table and key after which a step begins.
fn place(token: &str) -> Result<(&str, &str), Fault> {
    if token.is_empty() {
        return Ok(("", ""));
    }
    let rest = token.strip_prefix(MINE);
    rest.and_then(|rest| rest.split_once(' '))
        .ok_or_else(|| Fault::Token(token.to_owned()))
}
