//! The plugins of this build: one line each.

use bus::Registration;

/// Every plugin that a manifest may name.
pub(crate) fn plugins() -> Vec<Registration> {
    vec![
        events::plugin(),
        leases::plugin(),
        content::plugin(),
        snapshots::overlayfs(),
        snapshots::native(),
        diff::plugin(),
        images::plugin(),
        transfer::plugin(),
        containers::plugin(),
        tasks::plugin(),
        namespaces::plugin(),
        operations::plugin(),
        gc::plugin(),
        gateway::plugin(),
    ]
}

/// The manifests that come with this build, by name.
pub(crate) fn manifests() -> Vec<(String, String)> {
    vec![
        (
            "default".into(),
            include_str!("../manifests/default.toml").into(),
        ),
        (
            "minimal".into(),
            include_str!("../manifests/minimal.toml").into(),
        ),
    ]
}
