//! What the settings of the plugins mean, for `gantry config default`: unit, bounds, and what a change does.

/// Service, setting, meaning. Drivers of one service share their settings.
const SETTINGS: &[(&str, &str, &str)] = &[
    (
        "containers",
        "cache_bytes",
        "Bytes of memory for the pages of its records; a record has about 10 KiB.",
    ),
    (
        "content",
        "ingest_hours",
        "Hours after which an ingest that nobody goes on with may be collected.",
    ),
    (
        "content",
        "policy",
        "\"shared\": who names a digest that another namespace has gets it; \"isolated\": who sends its bytes.",
    ),
    ("content", "sync", SYNC),
    (
        "content",
        "writers",
        "Number of uploads that are read at a time.",
    ),
    (
        "diff",
        "max_layer_bytes",
        "Bytes of one uncompressed layer, at most.",
    ),
    (
        "diff",
        "max_layer_entries",
        "Number of files of one layer, at most.",
    ),
    (
        "diff",
        "parallel",
        "Number of layers that are worked on at a time; by default twice the processors.",
    ),
    ("diff", "sync", SYNC),
    (
        "events",
        "retain_bytes",
        "Bytes of events that are kept; older ones go, and their readers are told of the gap.",
    ),
    (
        "events",
        "retain_hours",
        "Hours that an event is kept. Whichever of the two bounds is met first counts.",
    ),
    (
        "gateway",
        "heartbeat_seconds",
        "Seconds after which an idle stream shows that it lives.",
    ),
    (
        "gateway",
        "listen",
        "TCP addresses besides the Unix socket, as \"127.0.0.1:7171\"; requests must then show the token.",
    ),
    (
        "gateway",
        "tls_cert",
        "PEM file of the certificate chain; needed for addresses that are not loopback. Empty: no TLS.",
    ),
    (
        "gateway",
        "tls_client_ca",
        "PEM file of those who sign for clients: their certificates are as good as the token. Empty: none.",
    ),
    (
        "gateway",
        "tls_key",
        "PEM file of the certificate's key. Empty: no TLS.",
    ),
    (
        "gateway",
        "token_file",
        "File of the token; empty for `token` in the plugin's folder, made at the first start.",
    ),
    (
        "gc",
        "interval",
        "Seconds between collections that nobody asked for; 0: none.",
    ),
    (
        "operations",
        "keep",
        "Number of ended operations that are kept; those of the last day are, whatever their number.",
    ),
    (
        "operations",
        "parallel_layers",
        "Number of layers of one image that are fetched and extracted at a time, at least 1.",
    ),
    (
        "operations",
        "scrub_hours",
        "Hours between scrubs, which look for damage on the disk; 0: never by itself.",
    ),
    (
        "operations",
        "scrub_share",
        "Percent of the time in which a scrub uses the disk, 1 to 100; the rest is for others.",
    ),
    (
        "operations",
        "snapshotter",
        "Snapshot driver when neither request nor namespace names one.",
    ),
    ("snapshots", "sync", SYNC),
    (
        "tasks",
        "audit_seconds",
        "Seconds from one comparison of host and records to the next, which cleans what leaked; 0: none.",
    ),
    (
        "tasks",
        "cache_bytes",
        "Bytes of memory for the pages of its records; a record has about 512 bytes.",
    ),
    (
        "tasks",
        "log_bytes",
        "Bytes of the log of one process, at most; 0: no bound. Where the oldest went, the log says so.",
    ),
    (
        "tasks",
        "shim",
        "Program that parents containers; empty for this program's own.",
    ),
    (
        "transfer",
        "config_path",
        "Folder of rules for registries, as docker.io/hosts.toml; read anew at each use.",
    ),
    (
        "transfer",
        "idle_timeout_s",
        "Seconds of silence after which a transfer is tried again, at least 1.",
    ),
    (
        "transfer",
        "max_concurrent_downloads",
        "Number of blobs that are fetched at a time, over all images.",
    ),
    (
        "transfer",
        "max_import_bytes",
        "Bytes of one imported archive, at most.",
    ),
    (
        "transfer",
        "retry_pause_ms",
        "Milliseconds before the second try; each further pause is twice as long.",
    ),
    (
        "transfer",
        "tries",
        "Number of tries of one host without any progress, at least 1.",
    ),
];

const SYNC: &str = "true: bytes are on disk before their record is. false: faster, but a power cut may leave records without bytes.";

/// What a setting of a plugin means.
pub(crate) fn explained(plugin: &str, setting: &str) -> Option<&'static str> {
    let service = plugin
        .split_once('/')
        .map_or(plugin, |(service, _)| service);
    let found = SETTINGS
        .iter()
        .find(|(of, named, _)| *of == service && *named == setting);
    found.map(|(_, _, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_setting_is_explained_and_nothing_else_is() {
        let mut known = BTreeSet::new();
        for spec in crate::specs() {
            let service = spec.id.as_str().split('/').next().unwrap().to_owned();
            let defaults: serde_json::Value = serde_json::from_str(&spec.defaults).unwrap();
            let keys = defaults.as_object().unwrap().keys();
            known.extend(keys.map(|key| (service.clone(), key.clone())));
        }
        let explained = SETTINGS.iter();
        let explained: BTreeSet<_> = explained
            .map(|(service, setting, _)| (service.to_string(), setting.to_string()))
            .collect();
        assert_eq!(known, explained);
    }
}
