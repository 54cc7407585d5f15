//! From compressed bytes to hashed, uncompressed chunks: one thread inflates, another hashes and extracts.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes of one chunk: large enough to make hand-over free, small enough that a few of them stay in the cache.
const CHUNK: usize = 256 << 10;
/// Chunks between the two threads; what evens out a burst of small files.
const CHUNKS: usize = 8;
/// Bytes read from the source at once.
const SOURCE: usize = 256 << 10;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, of one or more members.
    Gzip,
    /// RFC 8878, of one or more frames.
    Zstd,
}

impl Compression {
    /// Reads the media type of a layer.
    ///
    /// Errors: `Unsupported` when it names no layer. Source: OCI image-spec, media-types.md; Docker image manifest v2.2.
    pub fn of(media_type: &str) -> Result<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/x-tar" => Ok(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            other => Err(Error::Unsupported(format!(
                "media type {other:?} is no layer that can be unpacked"
            ))),
        }
    }

    /// Recognises the first bytes. The magic wins over the media type, as in containerd: registries hold both lies.
    fn magic(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Marks errors of the source, so that they are not taken for damage.
struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| {
            match error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
                true => error,
                false if error.kind() == io::ErrorKind::Interrupted => error,
                false => Error::Source(error).into(),
            }
        })
    }
}

/// Opens the decoder that the first bytes ask for.
pub(crate) fn decoder<'a>(
    source: impl Read + 'a,
    stated: Compression,
) -> Result<Box<dyn Read + 'a>> {
    let mut source = Source(source);
    let mut head = Vec::with_capacity(4);
    (&mut source).take(4).read_to_end(&mut head)?;
    let found = Compression::magic(&head);
    let whole = BufReader::with_capacity(SOURCE, io::Cursor::new(head).chain(source));
    match found {
        Compression::Gzip => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        Compression::Zstd => Ok(Box::new(
            zstd::stream::read::Decoder::with_buffer(whole).map_err(damaged)?,
        )),
        Compression::None if stated == Compression::None => Ok(Box::new(whole)),
        Compression::None => plain(whole, stated),
    }
}

/// A layer that claims to be compressed and is not must at least be a tar.
fn plain<'a>(
    mut whole: BufReader<impl Read + 'a>,
    stated: Compression,
) -> Result<Box<dyn Read + 'a>> {
    let mut first = Vec::with_capacity(crate::archive::BLOCK);
    (&mut whole)
        .take(crate::archive::BLOCK as u64)
        .read_to_end(&mut first)?;
    let block = first.as_slice().try_into().ok();
    match block.is_some_and(|block| crate::archive::header::Header::checked(block).is_ok()) {
        true => Ok(Box::new(io::Cursor::new(first).chain(whole))),
        false if first.is_empty() => Err(Error::Truncated("compressed stream")),
        false => Err(Error::Damaged(format!(
            "its media type says {stated:?}, its bytes are neither that nor tar"
        ))),
    }
}

fn damaged(error: io::Error) -> Error {
    Error::Damaged(error.to_string())
}

struct Chunk {
    bytes: Box<[u8]>,
    length: usize,
}

/// The end of the channel that inflates.
pub(crate) struct Pump {
    full: SyncSender<io::Result<Chunk>>,
    empty: Receiver<Chunk>,
}

/// The end of the channel that hashes what it hands out; counts it too, and stops at a limit.
pub(crate) struct Tap {
    full: Receiver<io::Result<Chunk>>,
    empty: SyncSender<Chunk>,
    now: Option<Chunk>,
    at: usize,
    ended: bool,
    hash: Sha256,
    size: u64,
    most: u64,
    seen: Box<dyn FnMut(u64) -> bool + Send>,
}

/// Connects an inflating thread with a hashing one. `seen` hears the size so far and says whether to go on.
pub(crate) fn channel(most: u64, seen: Box<dyn FnMut(u64) -> bool + Send>) -> (Pump, Tap) {
    let (fill, full) = sync_channel(CHUNKS);
    let (give_back, empty) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        // cannot fail: the channel is exactly that long
        let _ = give_back.try_send(Chunk {
            bytes: vec![0; CHUNK].into(),
            length: 0,
        });
    }
    let tap = Tap {
        full,
        empty: give_back,
        now: None,
        at: 0,
        ended: false,
        hash: Sha256::new(),
        size: 0,
        most,
        seen,
    };
    (Pump { full: fill, empty }, tap)
}

impl Pump {
    /// Inflates to the end. Stops early, without an error, when the other end has gone; the other end knows why.
    pub(crate) fn run(self, mut from: impl Read) {
        while let Ok(mut chunk) = self.empty.recv() {
            let filled = fill(&mut from, &mut chunk.bytes);
            let ended = !matches!(filled, Ok(1..));
            let sent = self
                .full
                .send(filled.map(|length| Chunk { length, ..chunk }));
            if ended || sent.is_err() {
                return;
            }
        }
    }

    /// Tells the other end that there is nothing to inflate, and why.
    pub(crate) fn fail(self, error: Error) {
        // a closed channel means that the other end failed first
        let _ = self.full.send(Err(error.into()));
    }
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < bytes.len() {
        match from.read(&mut bytes[have..]) {
            Ok(0) => break,
            Ok(some) => have += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

impl Tap {
    /// Reads what is left and answers digest and size of everything that came through.
    pub(crate) fn finish(mut self) -> Result<([u8; 32], u64)> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok((self.hash.finalize().into(), self.size)),
                some => self.consume(some),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if let Some(used) = self.now.take() {
            // the inflating thread may be through already
            let _ = self.empty.send(used);
        }
        let gone = || Error::Source(io::Error::other("the inflating thread is gone"));
        let chunk = self.full.recv().map_err(|_| gone())??;
        self.ended = chunk.length == 0;
        self.size += chunk.length as u64;
        if self.size > self.most {
            return Err(Error::Limit {
                what: "bytes",
                most: self.most,
            }
            .into());
        }
        if !(self.seen)(self.size) {
            return Err(Error::Cancelled.into());
        }
        self.hash.update(&chunk.bytes[..chunk.length]);
        self.at = 0;
        self.now = Some(chunk);
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        self.now
            .as_ref()
            .map_or(&[], |chunk| &chunk.bytes[self.at..chunk.length])
    }
}

impl BufRead for Tap {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest().is_empty() && !self.ended {
            self.receive()?;
        }
        Ok(self.rest())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Tap {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let some = bytes.len().min(into.len());
        into[..some].copy_from_slice(&bytes[..some]);
        self.consume(some);
        Ok(some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(bytes: &[u8], stated: Compression, most: u64) -> Result<u64> {
        let (pump, tap) = channel(most, Box::new(|_| true));
        std::thread::scope(|scope| {
            let hashed = scope.spawn(move || tap.finish());
            match decoder(bytes, stated) {
                Ok(decoder) => pump.run(decoder),
                Err(error) => pump.fail(error),
            }
            hashed.join().unwrap().map(|(_, size)| size)
        })
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
        let mut out = Vec::new();
        encoder.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn gzip_members_and_zstd_frames_may_follow_each_other() {
        let data = vec![7; 3 * CHUNK + 5];
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        let twice = 2 * data.len() as u64;
        assert_eq!(
            through(&gzip(&data).repeat(2), Compression::Gzip, u64::MAX).unwrap(),
            twice
        );
        assert_eq!(
            through(&zstd.repeat(2), Compression::Gzip, u64::MAX).unwrap(),
            twice
        );
    }

    #[test]
    fn a_cut_stream_is_truncated_not_ended() {
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&data), zstd::encode_all(&data[..], 1).unwrap()] {
            for cut in [5, whole.len() / 2, whole.len() - 1] {
                let error = through(&whole[..cut], Compression::Gzip, u64::MAX).unwrap_err();
                assert!(matches!(error, Error::Truncated(_)), "{cut}: {error}");
            }
        }
    }

    #[test]
    fn a_damaged_stream_is_damaged() {
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut whole = gzip(&data);
        let middle = whole.len() / 2;
        whole[middle] ^= 0x55;
        let error = through(&whole, Compression::Gzip, u64::MAX).unwrap_err();
        assert!(
            matches!(error, Error::Damaged(_) | Error::Truncated(_)),
            "{error}"
        );
        assert!(matches!(
            through(&[b'x'; 600], Compression::Zstd, u64::MAX).unwrap_err(),
            Error::Damaged(_)
        ));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(matches!(
            through(&bomb, Compression::Gzip, 1 << 20),
            Err(Error::Limit { .. })
        ));
    }

    #[test]
    fn media_types_that_are_no_layers_are_refused() {
        assert_eq!(
            Compression::of("application/vnd.oci.image.layer.v1.tar+zstd").unwrap(),
            Compression::Zstd
        );
        let encrypted = Compression::of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(matches!(encrypted, Err(Error::Unsupported(_))));
    }
}
