//! What a broken file still proves.
//!
//! The trees of the two commits that the header knows are walked as far as pages hash to what their parents say. That
//! leaves ranges of keys whose pages are damaged. Records of those ranges, and records of commits that the trees do not
//! have, are looked for in every page of the file, reachable or not: whatever proves itself by its envelope is one, and
//! the newest commit of a key wins.
//!
//! A record that was removed leaves no trace of that. One of a damaged range, or of a lost commit, may come back: its
//! owner removes what the rest of the disk disproves.

mod pages;

use crate::mark::Mark;
use crate::seal::{OPEN, unseal};
use pages::{Node, PAGE, Pages, Root};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the ledger's own numbers.
const META: &str = "_meta";

/// Table and key.
pub(crate) type Name = (String, String);

/// What a file still proves.
#[derive(Debug, Default)]
pub(crate) struct Salvaged {
    /// Every record, as it is stored.
    pub(crate) records: BTreeMap<Name, Stored>,
    /// The format of the file.
    pub(crate) sealed: bool,
    /// Seed of its checksums.
    pub(crate) seed: u64,
    /// Whether a mark that there is belongs to another file.
    pub(crate) foreign: bool,
    /// The last commit of the tree that most was taken from.
    pub(crate) version: u64,
    /// Where pages are damaged, for people.
    pub(crate) damages: Vec<String>,
    /// How many records of the store came from older commits than the tree's, or from no tree at all.
    pub(crate) loose: usize,
    /// By table, how many records the tree had that are not found.
    pub(crate) missing: BTreeMap<String, u64>,
    /// Tables of which something is damaged.
    pub(crate) hurt: BTreeSet<String>,
}

/// The stored bytes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) commit: u64,
    pub(crate) value: Vec<u8>,
}

/// What one tree has.
#[derive(Default)]
struct Tree {
    records: BTreeMap<Name, Vec<u8>>,
    lengths: BTreeMap<String, u64>,
    lost: Vec<Range>,
}

/// Keys above `after`, up to and with `to`; of every table that the tree does not know when `table` is `None`.
#[derive(Clone, Debug)]
struct Range {
    table: Option<String>,
    after: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    at: usize,
}

impl Tree {
    fn has_lost(&self, table: &str, key: &str) -> bool {
        self.lost.iter().any(|range| match &range.table {
            None => !self.lengths.contains_key(table),
            Some(of) => {
                let key = key.as_bytes();
                of == table
                    && range.after.as_deref().is_none_or(|after| after < key)
                    && range.to.as_deref().is_none_or(|to| key <= to)
            }
        })
    }
}

/// Reads everything that `bytes` still prove. The mark says how far the file had come, and what its seed is.
pub(crate) fn salvage(bytes: &[u8], mark: Option<&Mark>) -> Salvaged {
    let sizes = Pages::regions(bytes);
    let all = sizes.into_iter().map(|size| with(bytes, size, mark));
    // A wrong size finds nearly nothing; the first is the likeliest.
    all.reduce(|best, next| {
        if next.damages.len() < best.damages.len() && next.records.len() >= best.records.len() {
            next
        } else {
            best
        }
    })
    .unwrap_or_default()
}

fn with(bytes: &[u8], size: u64, mark: Option<&Mark>) -> Salvaged {
    let pages = Pages::new(bytes, size);
    let commits = Pages::commits(bytes);
    let mut trees = commits.iter().map(|root| tree(&pages, root.as_ref()));
    let newest = trees.next();
    let older = trees.next().unwrap_or_else(nothing);
    let mut salvaged = Salvaged::default();
    if newest.is_none() {
        salvaged.damages.push("its header is damaged".into());
    }
    let newest = newest.unwrap_or_else(nothing);
    let mark = salvaged.begin(&newest, &older, mark);
    salvaged.describe(&newest);
    let behind = mark.is_some_and(|mark| mark.progress.commit > salvaged.version);
    salvaged.take(&newest, &older);
    if behind || !newest.lost.is_empty() {
        salvaged.search(&pages, &newest, &older, mark);
        salvaged.count(&newest);
    }
    salvaged
}

/// A tree of which nothing is known.
fn nothing() -> Tree {
    let all = Range {
        table: None,
        after: None,
        to: None,
        at: 0,
    };
    Tree {
        lost: vec![all],
        ..Tree::default()
    }
}

fn tree(pages: &Pages<'_>, root: Option<&Root>) -> Tree {
    let mut tree = Tree::default();
    let Some(root) = root else {
        return tree;
    };
    let mut tables = Vec::new();
    let walked = &mut |key: &[u8], value: &[u8]| tables.push((key.to_vec(), value.to_vec()));
    walk(pages, root, (None, None), walked, &mut |range| {
        let table = None;
        tree.lost.push(Range { table, ..range });
    });
    for (name, definition) in tables {
        let (Ok(name), Some(known)) = (String::from_utf8(name), table(&definition)) else {
            continue;
        };
        tree.lengths.insert(name.clone(), 0);
        let Some(root) = known else {
            continue;
        };
        tree.lengths.insert(name.clone(), root.length);
        let each = &mut |key: &[u8], value: &[u8]| {
            if let Ok(key) = String::from_utf8(key.to_vec()) {
                tree.records.insert((name.clone(), key), value.to_vec());
            }
        };
        walk(pages, &root, (None, None), each, &mut |range| {
            let table = Some(name.clone());
            tree.lost.push(Range { table, ..range });
        });
    }
    tree
}

/// The root of a table by its definition; an empty table has none.
fn table(definition: &[u8]) -> Option<Option<Root>> {
    // Kind and number of entries, whether there is a root, the root.
    let present = *definition.get(9)? != 0;
    let root = pages::root(definition.get(10..)?)?;
    Some(present.then_some(root))
}

/// Shows every entry below `root`, and every range of keys whose pages are damaged.
fn walk(
    pages: &Pages<'_>,
    root: &Root,
    (after, to): (Option<&[u8]>, Option<&[u8]>),
    each: &mut dyn FnMut(&[u8], &[u8]),
    lost: &mut dyn FnMut(Range),
) {
    match pages.node(root) {
        Some(Node::Leaf(entries)) => entries.iter().for_each(|(key, value)| each(key, value)),
        Some(Node::Branch(children)) => {
            let mut from = after;
            for (child, highest) in children {
                walk(pages, &child, (from, highest.or(to)), each, lost);
                from = highest;
            }
        }
        None => lost(Range {
            table: None,
            after: after.map(<[u8]>::to_vec),
            to: to.map(<[u8]>::to_vec),
            at: pages.place(root.page).map_or(0, |place| place.start),
        }),
    }
}

impl Salvaged {
    /// Finds out format, seed and last commit. Answers the mark, unless it belongs to another file.
    fn begin<'a>(
        &mut self,
        newest: &Tree,
        older: &Tree,
        mark: Option<&'a Mark>,
    ) -> Option<&'a Mark> {
        let meta = |key: &str| {
            let name = (META.to_owned(), key.to_owned());
            let value = newest.records.get(&name).or(older.records.get(&name))?;
            let sealed = unseal(OPEN, key, value)?;
            codec::decode::<u64>(sealed.record).ok()
        };
        let old = newest.records.contains_key(&(META.into(), "schema".into()))
            && meta("format").is_none();
        self.sealed = !old;
        let said = meta("seed");
        let mark = mark.filter(|mark| said.is_none_or(|seed| seed == mark.life.seed));
        self.foreign = mark.is_none() && said.is_some();
        self.seed = mark.map_or(said.unwrap_or(OPEN), |mark| mark.life.seed);
        self.version = meta("version").unwrap_or(0);
        mark
    }

    fn describe(&mut self, newest: &Tree) {
        // Byte 0 is the header, which is told already.
        for range in newest.lost.iter().filter(|range| range.at > 0) {
            let text = |key: &Option<Vec<u8>>, none: &str| match key {
                Some(key) => format!("{:?}", String::from_utf8_lossy(key)),
                None => none.to_owned(),
            };
            let (after, to) = (text(&range.after, "the first"), text(&range.to, "the last"));
            let table = range.table.as_deref();
            self.hurt.extend(range.table.clone());
            self.damages.push(match table {
                Some(table) => format!(
                    "page at byte {}: table {table}, records from {after} to {to}",
                    range.at
                ),
                None => format!("page at byte {}: the list of tables", range.at),
            });
        }
    }

    /// Takes what the newest tree has, and what only the older one has of its damaged ranges.
    fn take(&mut self, newest: &Tree, older: &Tree) {
        for (name, value) in &newest.records {
            match self.prove(name, value) {
                Some(commit) => drop(self.insert(name.clone(), commit, value.clone())),
                None => {
                    let (table, key) = name;
                    self.hurt.insert(table.clone());
                    let damage = format!("record {table}/{key:?}: its checksum is wrong");
                    self.damages.push(damage);
                }
            }
        }
        for (name, value) in &older.records {
            if newest.has_lost(&name.0, &name.1)
                && let Some(commit) = self.prove(name, value)
            {
                self.insert(name.clone(), commit, value.clone());
            }
        }
    }

    /// The commit of a record that proves itself.
    fn prove(&self, (table, key): &Name, value: &[u8]) -> Option<u64> {
        if !self.sealed {
            return Some(self.version);
        }
        let sealed = unseal(self.seed, key, value)?;
        (sealed.table == table).then_some(sealed.commit)
    }

    fn insert(&mut self, name: Name, commit: u64, value: Vec<u8>) -> bool {
        let newer = self
            .records
            .get(&name)
            .is_none_or(|had| had.commit < commit);
        if newer {
            self.records.insert(name, Stored { commit, value });
        }
        newer
    }

    /// Looks for records in every page.
    fn search(&mut self, pages: &Pages<'_>, newest: &Tree, older: &Tree, mark: Option<&Mark>) {
        if !self.sealed {
            return;
        }
        if self.seed == OPEN {
            self.seed = seed(pages).unwrap_or(OPEN);
        }
        let seed = self.seed;
        // What was not on disk when the mark was made may be half of a commit.
        let last = mark.map_or(u64::MAX, |mark| mark.progress.commit.max(self.version));
        let proves = |key: &[u8], value: &[u8]| {
            std::str::from_utf8(key).is_ok_and(|key| unseal(seed, key, value).is_some())
        };
        for at in (PAGE..pages.bytes.len()).step_by(PAGE) {
            for (key, value) in pages.wreck(at, &proves) {
                let Ok(key) = std::str::from_utf8(key) else {
                    continue;
                };
                let Some(sealed) = unseal(seed, key, value) else {
                    continue;
                };
                let (table, commit) = (sealed.table, sealed.commit);
                let wanted = commit <= last
                    && (commit > self.version
                        || newest.has_lost(table, key)
                            && (commit == self.version || older.has_lost(table, key)));
                if wanted && self.insert((table.into(), key.into()), commit, value.to_vec()) {
                    self.loose += usize::from(!table.starts_with('_'));
                }
            }
        }
    }

    /// Says of which tables fewer records are found than the tree had.
    fn count(&mut self, newest: &Tree) {
        for (table, length) in &newest.lengths {
            let range = (table.clone(), String::new())..;
            let found = self.records.range(range);
            let found = found.take_while(|((of, _), _)| of == table).count() as u64;
            if found < *length {
                self.missing.insert(table.clone(), length - found);
            }
        }
    }
}

/// The seed of a file whose mark is gone, from any page.
fn seed(pages: &Pages<'_>) -> Option<u64> {
    let is_seed = |key: &[u8], value: &[u8]| {
        let sealed = std::str::from_utf8(key)
            .ok()
            .and_then(|key| unseal(OPEN, key, value));
        key == b"seed" && sealed.is_some_and(|sealed| sealed.table == META)
    };
    (PAGE..pages.bytes.len()).step_by(PAGE).find_map(|at| {
        let found = pages.wreck(at, &is_seed);
        let (_, value) = found.first()?;
        codec::decode(unseal(OPEN, "seed", value)?.record).ok()
    })
}
