//! Folders of plugins that do not run.

use super::Report;
use crate::builtin;
use bus::Fsck;
use contracts::PluginId;
use std::path::Path;

/// Looks into the folder of every plugin of this build that has one.
pub(super) fn all(root: &Path, repair: bool) -> Report {
    let mut report = Report::default();
    for (plugin, _) in checks() {
        one(&plugin, root, repair, &mut report);
    }
    report
}

/// Looks into the folder of one plugin below `root`.
pub(super) fn one(plugin: &PluginId, root: &Path, repair: bool, report: &mut Report) {
    let folder = root.join(plugin.as_str());
    let check = checks().into_iter().find(|(id, _)| id == plugin);
    let Some((_, check)) = check.filter(|_| folder.is_dir()) else {
        return;
    };
    match check(&folder, repair) {
        Ok(found) => {
            report.looked_at.push(plugin.clone());
            for (finding, mended) in found {
                report.add(plugin, finding, mended);
            }
        }
        Err(error) => report.fail(plugin, error.to_string()),
    }
}

/// How many plugins of this build have a folder below `root`.
pub(super) fn folders(root: &Path) -> usize {
    let checks = checks().into_iter();
    checks
        .filter(|(id, _)| root.join(id.as_str()).is_dir())
        .count()
}

/// Every plugin that says how its folder is checked.
pub(super) fn checks() -> Vec<(PluginId, Fsck)> {
    let plugins = builtin::plugins().into_iter();
    plugins
        .filter_map(|plugin| Some((plugin.spec().id.clone(), plugin.offline()?)))
        .collect()
}
