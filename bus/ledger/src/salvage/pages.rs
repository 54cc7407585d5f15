//! The pages of a redb file as bytes: headers, branches and leaves, whatever state they are in.
//!
//! Written from the description of the format (redb 4, docs/design.md, "File format"). Nothing here trusts a length or
//! an offset: what does not fit is `None`.

use xxhash_rust::xxh3::xxh3_128;

/// Bytes of the smallest page; every page begins at a multiple of it.
pub(super) const PAGE: usize = 4096;
/// Highest power of two that a page may be larger by.
const ORDERS: u64 = 20;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Where the two commit slots of the header begin, and their size.
const SLOTS: [usize; 2] = [64, 192];
const SLOT: usize = 128;

/// Where a tree begins: its first page and what the page must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) page: u64,
    pub(super) sum: u128,
    /// How many entries the tree has.
    pub(super) length: u64,
}

/// The file, and where its pages are.
pub(super) struct Pages<'a> {
    pub(super) bytes: &'a [u8],
    region: u64,
}

/// A page that hashes to what its parent says.
pub(super) enum Node<'a> {
    /// Keys and values.
    Leaf(Vec<(&'a [u8], &'a [u8])>),
    /// Children, each with the highest key that may be below it; the last has none.
    Branch(Vec<(Root, Option<&'a [u8]>)>),
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|bytes| u32::from_le_bytes(bytes) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// A root as it is stored: page, checksum, number of entries.
pub(super) fn root(bytes: &[u8]) -> Option<Root> {
    Some(Root {
        page: u64_at(bytes, 0)?,
        sum: u128::from_le_bytes(number(bytes, 8)?),
        length: u64_at(bytes, 24)?,
    })
}

impl<'a> Pages<'a> {
    /// Takes the file apart as if each of its regions had `pages` pages.
    pub(super) fn new(bytes: &'a [u8], pages: u64) -> Self {
        Self {
            bytes,
            region: pages * PAGE as u64,
        }
    }

    /// The sizes of regions that the file may have: what its header says, and what this build and older ones made.
    pub(super) fn regions(bytes: &[u8]) -> Vec<u64> {
        let said = u32_at(bytes, 20).map(|pages| pages as u64);
        let said = said.filter(|pages| (1..=1 << 20).contains(pages));
        let mut sizes: Vec<_> = said.into_iter().chain([1 << 8, 1 << 20]).collect();
        sizes.dedup();
        sizes
    }

    /// The trees of tables of the commits whose slots are whole, newest first. A commit may have no table.
    pub(super) fn commits(bytes: &[u8]) -> Vec<Option<Root>> {
        let slot = |at: usize| -> Option<(u64, Option<Root>)> {
            let slot = bytes.get(at..at + SLOT)?;
            let sum = u128::from_le_bytes(number(slot, SLOT - 16)?);
            if sum != xxh3_128(&slot[..SLOT - 16]) {
                return None;
            }
            let tables = if slot[1] == 0 {
                None
            } else {
                Some(root(&slot[8..])?)
            };
            Some((u64_at(slot, 104)?, tables))
        };
        let mut slots: Vec<_> = SLOTS.into_iter().filter_map(slot).collect();
        slots.sort_by_key(|(transaction, _)| std::cmp::Reverse(*transaction));
        slots.into_iter().map(|(_, root)| root).collect()
    }

    /// Where a page begins and ends in the file.
    pub(super) fn place(&self, page: u64) -> Option<std::ops::Range<usize>> {
        let order = page >> 59;
        if order > ORDERS {
            return None;
        }
        let index = page & (0xF_FFFF >> order);
        let region = (page >> 20) & 0xF_FFFF;
        let size = (PAGE as u64) << order;
        let start = PAGE as u64 + region.checked_mul(self.region)? + index * size;
        Some(usize::try_from(start).ok()?..usize::try_from(start + size).ok()?)
    }

    /// The page of `root`, when it is the page that was written there.
    pub(super) fn node(&self, root: &Root) -> Option<Node<'a>> {
        let page = self.bytes.get(self.place(root.page)?)?;
        let (node, end) = match *page.first()? {
            LEAF => {
                let (entries, end) = leaf(page, count(page)?)?;
                (Node::Leaf(entries), end)
            }
            BRANCH => {
                let (children, end) = branch(page)?;
                (Node::Branch(children), end)
            }
            _ => return None,
        };
        (xxh3_128(page.get(..end)?) == root.sum).then_some(node)
    }

    /// Whatever can be read of a leaf that begins at `at`, whether it is one or not; `proves` says which entries are
    /// entries. The number of entries is taken from the page, and where that leads to nothing it is found by trying.
    pub(super) fn wreck(
        &self,
        at: usize,
        proves: &dyn Fn(&[u8], &[u8]) -> bool,
    ) -> Vec<(&'a [u8], &'a [u8])> {
        let page = &self.bytes[at..];
        let all = |count: usize| -> Vec<_> {
            let entries = (0..count).filter_map(|index| entry(page, count, index));
            entries.filter(|(key, value)| proves(key, value)).collect()
        };
        let said = count(page).unwrap_or(0).min(MOST);
        let found = all(said);
        if !found.is_empty() {
            return found;
        }
        let proven = |count: usize, index| {
            entry(page, count, index).is_some_and(|(key, value)| proves(key, value))
        };
        let fits = (1..MOST).find(|&count| proven(count, 0) || proven(count, count - 1));
        fits.map(all).unwrap_or_default()
    }
}

/// More entries than a leaf can have.
const MOST: usize = 512;

fn count(page: &[u8]) -> Option<usize> {
    number(page, 2).map(|bytes| usize::from(u16::from_le_bytes(bytes)))
}

/// One entry of a leaf of `count` entries.
fn entry(page: &[u8], count: usize, index: usize) -> Option<(&[u8], &[u8])> {
    let key_end = |index: usize| u32_at(page, 4 + 4 * index);
    let value_end = |index: usize| u32_at(page, 4 + 4 * count + 4 * index);
    let key_start = match index {
        0 => 4 + 8 * count,
        _ => key_end(index - 1)?,
    };
    let value_start = match index {
        0 => key_end(count - 1)?,
        _ => value_end(index - 1)?,
    };
    let key = page.get(key_start..key_end(index)?)?;
    Some((key, page.get(value_start..value_end(index)?)?))
}

/// Keys and values.
type Entries<'a> = Vec<(&'a [u8], &'a [u8])>;

/// All entries of a leaf, and where the last one ends.
fn leaf(page: &[u8], count: usize) -> Option<(Entries<'_>, usize)> {
    let last = count.checked_sub(1)?;
    let end = u32_at(page, 4 + 4 * count + 4 * last)?;
    let entries = (0..count).map(|index| entry(page, count, index));
    Some((entries.collect::<Option<_>>()?, end))
}

/// Children of a branch.
type Children<'a> = Vec<(Root, Option<&'a [u8]>)>;

/// All children of a branch, and where its last key ends.
fn branch(page: &[u8]) -> Option<(Children<'_>, usize)> {
    let keys = count(page)?;
    let last = keys.checked_sub(1)?;
    let ends = 8 + 24 * (keys + 1);
    let key_end = |index: usize| u32_at(page, ends + 4 * index);
    let child = |index: usize| {
        let start = match index {
            0 => ends + 4 * keys,
            _ => key_end(index - 1)?,
        };
        let highest = if index < keys {
            Some(page.get(start..key_end(index)?)?)
        } else {
            None
        };
        let root = Root {
            sum: u128::from_le_bytes(number(page, 8 + 16 * index)?),
            page: u64_at(page, 8 + 16 * (keys + 1) + 8 * index)?,
            length: 0,
        };
        Some((root, highest))
    };
    let children = (0..=keys).map(child).collect::<Option<_>>()?;
    Some((children, key_end(last)?))
}
