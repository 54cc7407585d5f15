//! Bodies ↔ pipes: archives and ingests travel as descriptors, never as frames.

use crate::stream::Local;
use actix_web::web::{Bytes, Payload};
use contracts::{Error, Fd, Result};
use futures_util::{StreamExt, stream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::{fs::File, ops::Range, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// Bytes per read: a few of them are all the memory that a download holds.
const CHUNK: usize = 128 * 1024;

/// Makes a pipe: its reading and its writing end.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Error::exhausted(format!("pipe: {e}")))
}

/// Writes a body into a pipe and closes it. Answers how many bytes went.
///
/// Errors: `Aborted` when the client stopped in the middle; `Cancelled` when the reader closed its end.
pub(crate) async fn pump(mut body: Payload, pipe: OwnedFd) -> Result<u64> {
    let mut pipe = pipe::Sender::from_owned_fd(pipe).map_err(|e| broken(&e))?;
    let mut written = 0;
    while let Some(chunk) = body.next().await {
        let chunk =
            chunk.map_err(|e| Error::aborted(format!("body: {e} after {written} bytes")))?;
        pipe.write_all(&chunk).await.map_err(|e| broken(&e))?;
        written += chunk.len() as u64;
    }
    Ok(written)
}

fn broken(error: &std::io::Error) -> Error {
    Error::cancelled(format!("body: the store takes no more: {error}"))
}

/// Reads a pipe to its end.
pub(crate) fn drain(pipe: OwnedFd) -> Result<Local<Result<Bytes>>> {
    let failed = |e: std::io::Error| Error::internal(format!("pipe: {e}"));
    let pipe = pipe::Receiver::from_owned_fd(pipe).map_err(failed)?;
    let chunks = stream::try_unfold(pipe, move |mut pipe| async move {
        let mut chunk = Vec::with_capacity(CHUNK);
        let count = pipe.read_buf(&mut chunk).await.map_err(failed)?;
        Ok((count > 0).then(|| (Bytes::from(chunk), pipe)))
    });
    Ok(chunks.boxed_local())
}

/// Reads a part of an open file.
pub(crate) fn part(file: Fd, range: Range<u64>) -> Result<Local<Result<Bytes>>> {
    let failed = |e: std::io::Error| Error::data_loss(format!("blob: {e}"));
    let file = Arc::new(File::from(file.into_owned().map_err(failed)?));
    let chunks = stream::try_unfold((file, range), move |(file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let (reader, at) = (file.clone(), range.start);
        let length = usize::try_from(range.end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let read = move || {
            let mut chunk = vec![0; length];
            reader.read_exact_at(&mut chunk, at).map(|()| chunk)
        };
        let chunk = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| Error::internal(format!("blob: {e}")))?
            .map_err(failed)?;
        let next = at + chunk.len() as u64..range.end;
        Ok(Some((Bytes::from(chunk), (file, next))))
    });
    Ok(chunks.boxed_local())
}
