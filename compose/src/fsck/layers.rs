//! What a scrub says about layers, as rows of a report.

use super::Report;
use contracts::PluginId;
use contracts::integrity::{Damage, Finding, Mended};
use contracts::operations::Scrubbed;

/// Adds the damaged layers; all else the plugins have told themselves. Which of several were mended a scrub does not
/// say: they count as mended when all were.
pub(super) fn add(scrubbed: Scrubbed, by: &PluginId, repair: bool, report: &mut Report) {
    let mended = repair && scrubbed.mended == scrubbed.found;
    for finding in scrubbed.findings {
        if finding.damage == Damage::Layer {
            let how = || Mended {
                how: "was put right from its blob".into(),
            };
            report.add(&whose(&finding, by), finding, mended.then(how));
        }
    }
    for what in scrubbed.unchecked {
        report.fail(by, format!("not compared: {what}"));
    }
}

/// The subject of a damaged layer begins with its driver.
fn whose(finding: &Finding, otherwise: &PluginId) -> PluginId {
    let driver = finding.subject.split(' ').next().unwrap_or_default();
    PluginId::new(format!("snapshots/{driver}")).unwrap_or_else(|_| otherwise.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::integrity::Cure;

    fn finding(damage: Damage, subject: &str) -> Finding {
        Finding {
            damage,
            namespace: None,
            subject: subject.into(),
            what: "its bytes differ".into(),
            cure: Cure::Fetch,
        }
    }

    fn told(mended: u64, repair: bool) -> Report {
        let findings = vec![
            finding(Damage::Blob, "sha256:00"),
            finding(Damage::Layer, "overlayfs sha256:11 /bin/busybox"),
        ];
        let scrubbed = Scrubbed {
            found: findings.len() as u64,
            findings,
            mended,
            ..Scrubbed::default()
        };
        let mut report = Report::default();
        let by = PluginId::new("operations/local").expect("an id");
        add(scrubbed, &by, repair, &mut report);
        report
    }

    #[test]
    fn a_damaged_layer_is_told_under_its_driver_and_a_blob_not_twice() {
        let report = told(0, false);
        let plugins: Vec<_> = report
            .findings
            .iter()
            .map(|row| row.plugin.as_str())
            .collect();
        assert_eq!(plugins, ["snapshots/overlayfs"]);
    }

    #[test]
    fn a_layer_counts_as_mended_only_when_all_was_mended() {
        let mended = |report: Report| report.findings.iter().all(|row| row.mended.is_some());
        assert!(mended(told(2, true)));
        assert!(!mended(told(1, true)));
        assert!(!mended(told(2, false)));
    }
}
