//! One `diff.verify`: layers are opened, a snapshot is compared with them, its caller watched.

use crate::apply::{Limits, Watch};
use crate::error::{self, shown};
use crate::mend::{self, Verified};
use crate::stream::Compression;
use crate::telling::{PROGRESS, Tell, attended, place, telling};
use crate::verify::{Bounds, Proof, Subject};
use crate::{name, root};
use bus::{Bus, Ctx, Items};
use contracts::content::{self, Open};
use contracts::diff::{self, Difference, Verify, Verifying};
use contracts::{Code, Digest, Error, Result};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Longest wait for a blob that the content store reads as a whole before it hands it out.
const READ: Duration = Duration::from_secs(600);
/// Most differences of one answer.
const MOST: usize = 100;
/// Longest path in an answer, bytes: a hundred of them fit into a frame.
const PATH: usize = 256;

/// What a comparison with layers needs.
pub(crate) struct Work {
    pub(crate) bus: Bus,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) limits: Limits,
    /// Whether what was mended is flushed.
    pub(crate) sync: bool,
}

impl Work {
    /// Begins; dropping the stream stops it.
    pub(crate) fn start(self, ctx: Ctx, body: Verify) -> Items<Verify> {
        telling::<Verify>(async move |tell| self.run(ctx, body, tell).await)
    }

    async fn run(self, ctx: Ctx, body: Verify, tell: &Tell<Verify>) -> Result<Verifying> {
        let place = place(tell, &self.room).await?;
        let mut proofs = Vec::new();
        for proof in &body.layers {
            proofs.push(attended(tell, self.proof(&ctx, proof)).await?);
        }
        let bounds = Bounds {
            limits: self.limits,
            watch: Arc::default(),
        };
        let (mounts, mending, watch) = (body.mounts, body.mend, bounds.watch.clone());
        let sync = self.sync;
        let mut work = tokio::task::spawn_blocking(move || {
            let subject = Subject::of(&mounts)?;
            let verified = mend::verify(&subject, &proofs, &bounds, mending)?;
            if verified.mended > 0 && sync {
                root::sync(&subject.root)?;
            }
            Ok(verified)
        });
        let done = watched(&mut work, &watch, tell).await;
        drop(place);
        match done {
            Ok(verified) => Ok(answer(verified)),
            Err(error) if error.is(Code::DataLoss) => {
                for proof in &body.layers {
                    doubt(&self.bus, &ctx, &proof.layer.digest).await?;
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn proof(&self, ctx: &Ctx, proof: &diff::Proof) -> Result<Proof> {
        let stated = Compression::of(&proof.layer.media_type)?;
        let digest = proof.layer.digest.clone();
        let open = Open {
            digest: digest.clone(),
        };
        let opened = self
            .bus
            .call(&ctx.clone().with_deadline(READ), open)
            .await?;
        let fd = opened.fd.into_owned();
        let fd = fd.map_err(|e| Error::exhausted(format!("layer {digest}: descriptor: {e}")))?;
        let file = Arc::new(File::from(fd));
        let again = move || -> error::Result<Box<dyn Read + Send>> {
            let file = file.clone();
            Ok(Box::new(Whole { file, at: 0 }))
        };
        Ok(Proof {
            open: Box::new(again),
            stated,
            diff_id: proof.diff_id.to_string(),
        })
    }
}

/// Reads a file from its start without moving anybody's position.
struct Whole {
    file: Arc<File>,
    at: u64,
}

impl Read for Whole {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(into, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

type Comparison = tokio::task::JoinHandle<error::Result<Verified>>;

/// Waits for the comparison, tells its progress, and stops it when the caller goes.
async fn watched(work: &mut Comparison, watch: &Watch, tell: &Tell<Verify>) -> Result<Verified> {
    let mut clock = tokio::time::interval(PROGRESS);
    loop {
        tokio::select! {
            done = &mut *work => {
                let done = done.map_err(|e| Error::internal(format!("comparison: {e}")))?;
                return done.map_err(Error::from);
            }
            () = tell.closed(), if !watch.cancelled.load(Ordering::Relaxed) => {
                watch.cancelled.store(true, Ordering::Relaxed);
            }
            _ = clock.tick() => {
                let offset = watch.bytes.load(Ordering::Relaxed);
                // a full queue means that the caller has news enough
                let _ = tell.try_send(Ok(Verifying { offset, verified: None }));
            }
        }
    }
}

/// Tells the content store that a blob did not fit. Errors: `DataLoss` when the store finds it damaged, too.
pub(crate) async fn doubt(bus: &Bus, ctx: &Ctx, digest: &Digest) -> Result<()> {
    let verify = content::Verify {
        digest: digest.clone(),
        doubt: true,
    };
    match bus.call(&ctx.clone().with_deadline(READ), verify).await {
        Err(error) if error.is(Code::DataLoss) => Err(error),
        // It is right, or gone, or the store cannot say.
        _ => Ok(()),
    }
}

fn answer(verified: Verified) -> Verifying {
    let difference = |(path, what): &(Vec<u8>, String)| Difference {
        path: name::escape(&path[..path.len().min(PATH)]),
        what: shown(what.as_bytes()),
    };
    Verifying {
        offset: verified.bytes,
        verified: Some(diff::Verified {
            entries: verified.entries,
            bytes: verified.bytes,
            different: verified.wrong.len() as u64,
            differences: verified.wrong.iter().take(MOST).map(difference).collect(),
            mended: verified.mended,
        }),
    }
}
