//! Files that look like rules but are none: the misspellings people lose hours on.

use super::{FILE, folders, host_name};
use std::path::Path;

/// Lists what near `folder` was probably meant for `registry` but is not read.
pub(super) fn nearby(folder: &Path, registry: &str) -> Vec<String> {
    let mut hints = Vec::new();
    if !folder.is_dir() {
        hints.push(format!(
            "{}: does not exist; rules go to {}/{registry}/{FILE}",
            folder.display(),
            folder.display()
        ));
        return hints;
    }
    for entry in names(folder) {
        hints.extend(misplaced(folder, &entry, registry));
    }
    let used = folders(folder, registry);
    let first = used.iter().position(|folder| folder.is_dir());
    for (rank, folder) in used.iter().enumerate() {
        misnamed(folder, &mut hints);
        if first.is_some_and(|first| first < rank)
            && folder.join(FILE).is_file()
            && !folder.ends_with("_default")
        {
            hints.push(format!(
                "{}: is not read; {} comes first",
                folder.join(FILE).display(),
                used[first.unwrap_or(0)].display()
            ));
        }
    }
    hints
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A folder or file directly in the folder of rules that does not say what its maker thought.
fn misplaced(folder: &Path, name: &str, registry: &str) -> Option<String> {
    let path = folder.join(name);
    let shown = path.display();
    if path.is_file() && (name == FILE || looks_like_rules(name)) {
        return Some(format!(
            "{shown}: is not read here; move it to {}/{registry}/{FILE}",
            folder.display()
        ));
    }
    let hub = ["registry-1.docker.io", "index.docker.io", "hub.docker.com"];
    if registry == "docker.io" && hub.contains(&name) {
        return Some(format!(
            "{shown}: is not read; Docker Hub is called docker.io here"
        ));
    }
    if name.starts_with("http:") || name.starts_with("https:") {
        return Some(format!("{shown}: is not read; leave out the scheme"));
    }
    let bare = host_name(registry);
    if bare != registry && name == bare {
        return Some(format!(
            "{shown}: is not read for {registry}; name the folder with the port"
        ));
    }
    None
}

/// A file in a folder that is read, with nearly the right name.
fn misnamed(folder: &Path, hints: &mut Vec<String>) {
    for name in names(folder) {
        if name != FILE && looks_like_rules(&name) {
            hints.push(format!(
                "{}: is not read; did you mean {FILE}?",
                folder.join(&name).display()
            ));
        }
    }
}

fn looks_like_rules(name: &str) -> bool {
    name.ends_with(".toml") || name.starts_with("hosts.") || close(FILE, name)
}

/// Tells whether two words differ by at most two insertions, deletions or replacements.
pub(super) fn close(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()] <= 2
}
