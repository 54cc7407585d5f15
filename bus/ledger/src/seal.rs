//! The envelope of a record: a value that proves by itself which table, key and commit it belongs to.
//!
//! ```text
//! 8 bytes   checksum of all that follows, of the key, and of the seed of the file
//! 8 bytes   number of the commit that stored it
//! 1 byte    length of the table's name
//! …         the table's name
//! …         the record
//! ```
//!
//! redb has checksums of pages, which say that a tree is whole. With an envelope a single record is proven without its
//! tree: it is found again where the tree is broken. The seed is random and known to nobody but the owner, so that
//! nothing which looks like a record can be smuggled in as a part of another one.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes before the table's name.
const HEAD: usize = 17;

/// A value that proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed<'a> {
    pub(crate) table: &'a str,
    pub(crate) commit: u64,
    pub(crate) record: &'a [u8],
}

/// The seed of the ledger's own numbers: they are read before the seed is known.
pub(crate) const OPEN: u64 = 0;

/// Puts `record` into its envelope. No table's name is longer than 255 bytes.
pub(crate) fn seal(seed: u64, table: &str, key: &str, commit: u64, record: &[u8]) -> Vec<u8> {
    let name = &table.as_bytes()[..table.len().min(255)];
    let mut value = Vec::with_capacity(HEAD + name.len() + record.len());
    value.extend_from_slice(&[0; 8]);
    value.extend_from_slice(&commit.to_le_bytes());
    value.push(name.len() as u8);
    value.extend_from_slice(name);
    value.extend_from_slice(record);
    let sum = sum(seed, key, &value[8..]);
    value[..8].copy_from_slice(&sum.to_le_bytes());
    value
}

/// What is in the envelope; `None` when it does not prove itself.
pub(crate) fn unseal<'a>(seed: u64, key: &str, value: &'a [u8]) -> Option<Sealed<'a>> {
    let (stored, rest) = value.split_first_chunk::<8>()?;
    let (commit, named) = rest.split_first_chunk::<8>()?;
    let (length, named) = named.split_first()?;
    let (table, record) = named.split_at_checked(usize::from(*length))?;
    let table = std::str::from_utf8(table).ok()?;
    let seed = if table == "_meta" { OPEN } else { seed };
    (u64::from_le_bytes(*stored) == sum(seed, key, rest)).then(|| Sealed {
        table,
        commit: u64::from_le_bytes(*commit),
        record,
    })
}

fn sum(seed: u64, key: &str, rest: &[u8]) -> u64 {
    xxh3_64_with_seed(rest, seed ^ xxh3_64(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_opened_by_its_own_key_and_seed_only() {
        let value = seal(7, "things", "a", 12, b"record");
        let sealed = unseal(7, "a", &value).unwrap();
        assert_eq!((sealed.table, sealed.commit), ("things", 12));
        assert_eq!(sealed.record, b"record");
        assert_eq!(unseal(7, "b", &value), None);
        assert_eq!(unseal(8, "a", &value), None);
    }

    #[test]
    fn no_single_bit_of_an_envelope_can_change() {
        let value = seal(7, "things", "a", 12, b"record");
        for bit in 0..value.len() * 8 {
            let mut changed = value.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(7, "a", &changed), None, "bit {bit}");
        }
        for end in 0..value.len() {
            assert_eq!(unseal(7, "a", &value[..end]), None, "cut to {end}");
        }
    }
}
