//! Files with holes: GNU's old header maps and the three PAX forms. Source: GNU tar manual, "Storing Sparse Files".

use super::{MAX_SPECIAL, header, pax};

/// Where the archived bytes of one sparse file belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// Size of the file with its holes, in bytes.
    pub(crate) real_size: u64,
    /// Offset and length of each run of data, ascending.
    pub(crate) runs: Vec<(u64, u64)>,
}

impl Map {
    /// Refuses overlapping or descending runs, runs past the end, and maps that do not use up exactly `stored` bytes.
    pub(crate) fn checked(self, stored: u64) -> Result<Self, String> {
        let mut end = 0;
        let mut total: u64 = 0;
        for (offset, length) in &self.runs {
            let next = offset
                .checked_add(*length)
                .filter(|next| *offset >= end && *next <= self.real_size);
            end = next.ok_or("sparse map is out of order or reaches past the end of the file")?;
            total += length;
        }
        match total == stored {
            true => Ok(self),
            false => Err(format!(
                "sparse map covers {total} bytes but {stored} are stored"
            )),
        }
    }
}

/// The `GNU.sparse.*` records of one extended header.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) name: Option<Vec<u8>>,
    major: Option<u32>,
    size: Option<u64>,
    numbers: Vec<u64>,
}

impl Records {
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"name" if !value.is_empty() && !value.contains(&0) => self.name = Some(value.to_vec()),
            b"name" => return Err("malformed sparse name".to_owned()),
            b"major" => self.major = Some(pax::decimal(value)?),
            b"size" | b"realsize" => self.size = Some(pax::decimal(value)?),
            b"offset" | b"numbytes" => self.numbers.push(pax::decimal(value)?),
            b"map" => {
                let numbers = value
                    .split(|byte| *byte == b',')
                    .filter(|text| !text.is_empty());
                self.numbers = numbers.map(pax::decimal).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the map stands in front of the data (version 1.0) instead of in the records.
    pub(crate) fn map_in_data(&self) -> bool {
        self.major.is_some_and(|major| major >= 1)
    }

    /// The map of versions 0.0 and 0.1, or the empty one that version 1.0 fills; none when the file is not sparse.
    pub(crate) fn map(&self) -> Result<Option<Map>, String> {
        match self.size {
            Some(real_size) if self.map_in_data() => Ok(Some(Map {
                real_size,
                runs: Vec::new(),
            })),
            Some(real_size) => Ok(Some(Map {
                real_size,
                runs: pairs(&self.numbers)?,
            })),
            None => Ok(None),
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, String> {
    match numbers.len() % 2 {
        0 => Ok(numbers
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect()),
        _ => Err("sparse map has an offset without a length".to_owned()),
    }
}

/// Reads the slots (12 bytes of offset, 12 of length) of an old GNU header; an empty slot ends them.
pub(crate) fn slots(bytes: &[u8], runs: &mut Vec<(u64, u64)>) -> Result<(), String> {
    let positive = |field| {
        header::number(field).and_then(|n| u64::try_from(n).map_err(|_| "is negative".to_owned()))
    };
    for slot in bytes.chunks_exact(24).take_while(|slot| slot[0] != 0) {
        runs.push((positive(&slot[..12])?, positive(&slot[12..])?));
    }
    match runs.len() as u64 * 24 > MAX_SPECIAL {
        true => Err("sparse map is too long".to_owned()),
        false => Ok(()),
    }
}

/// Collects a version 1.0 map, which comes in blocks as lines of decimal numbers: a count, then offsets and lengths.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    numbers: Vec<u64>,
    taken: u64,
}

impl Lines {
    /// Takes one block; answers the runs when they are complete.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<(u64, u64)>>, String> {
        self.taken += block.len() as u64;
        if self.taken > MAX_SPECIAL {
            return Err("sparse map is too long".to_owned());
        }
        for byte in block {
            match byte {
                b'\n' => self
                    .numbers
                    .push(pax::decimal(&std::mem::take(&mut self.partial))?),
                _ => self.partial.push(*byte),
            }
            if self.complete() {
                return pairs(&self.numbers[1..]).map(Some);
            }
        }
        Ok(None)
    }

    fn complete(&self) -> bool {
        let wanted = self
            .numbers
            .first()
            .and_then(|count| count.checked_mul(2)?.checked_add(1));
        wanted.is_some_and(|wanted| self.numbers.len() as u64 == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_ascend_and_use_all_bytes() {
        let map = |runs: &[(u64, u64)]| Map {
            real_size: 100,
            runs: runs.to_vec(),
        };
        assert!(map(&[(0, 10), (50, 50)]).checked(60).is_ok());
        assert!(map(&[(0, 10), (5, 10)]).checked(20).is_err());
        assert!(map(&[(95, 10)]).checked(10).is_err());
        assert!(map(&[(u64::MAX, 2)]).checked(2).is_err());
        assert!(map(&[(0, 10)]).checked(11).is_err());
    }

    #[test]
    fn a_map_in_the_data_may_span_blocks() {
        let mut lines = Lines::default();
        assert_eq!(lines.block(b"2\n0\n5").unwrap(), None);
        assert_eq!(
            lines.block(b"12\n1024\n7\n\0\0\0").unwrap(),
            Some(vec![(0, 512), (1024, 7)])
        );
    }
}
