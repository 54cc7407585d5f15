//! What an archive or a layer is compressed with, by its first bytes; and reading it without being blown up.

use contracts::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

/// How much is read at once, in bytes.
const BUFFER: usize = 256 << 10;
/// Output below which no expansion is suspicious, in bytes.
const HARMLESS: u64 = 1 << 30;
/// Expansion that no real archive of images reaches; gzip itself ends at about 1030.
const BOMB: u64 = 200;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Recognises the magic numbers of RFC 1952 and RFC 8878.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Opens an archive, plain or compressed. `seen` counts the bytes that were taken from `source`.
///
/// Errors: `InvalidArgument` when it cannot be read.
pub(crate) fn open(source: impl Read + 'static, seen: Rc<Cell<u64>>) -> Result<Box<dyn Read>> {
    let counted = Counted {
        source,
        seen: Rc::clone(&seen),
    };
    let mut buffered = BufReader::with_capacity(BUFFER, counted);
    let unreadable = |error: io::Error| Error::invalid(format!("archive: {error}"));
    let compression = Compression::of(buffered.fill_buf().map_err(unreadable)?);
    Ok(match compression {
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(Guarded {
            source: MultiGzDecoder::new(buffered),
            seen,
            made: 0,
        }),
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(buffered).map_err(unreadable)?;
            Box::new(Guarded {
                source: decoder,
                seen,
                made: 0,
            })
        }
    })
}

struct Counted<R> {
    source: R,
    seen: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.seen
            .set(self.seen.get() + u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

/// Refuses to go on when a little input makes a lot of output.
struct Guarded<R> {
    source: R,
    seen: Rc<Cell<u64>>,
    made: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.made += u64::try_from(count).unwrap_or(0);
        if self.made > HARMLESS && self.made / BOMB > self.seen.get() {
            let what =
                "expands to more than 200 times its size; if that is right, import it uncompressed";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
        }
        Ok(count)
    }
}
