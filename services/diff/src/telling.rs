//! Long work that tells how far it is, and that nobody waits for when its caller has gone.

use bus::{Items, items};
use contracts::{Error, Request, Result};
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// How often progress is told: often enough for a moving bar.
pub(crate) const PROGRESS: Duration = Duration::from_millis(100);
/// Items that may wait for the caller; the next one is simply newer.
const AHEAD: usize = 4;

/// Where progress is told; it is closed when the caller has gone.
pub(crate) type Tell<R> = mpsc::Sender<Result<<R as Request>::Reply>>;

/// Begins `run`, whose answer is the last item. Dropping the stream closes what `run` tells to.
pub(crate) fn telling<R: Request>(
    run: impl AsyncFnOnce(&Tell<R>) -> Result<R::Reply> + 'static,
) -> Items<R> {
    let (tell, told) = mpsc::channel(AHEAD);
    actix::spawn(async move {
        let last = run(&tell).await;
        // a caller that has gone needs no answer
        let _ = tell.send(last).await;
    });
    items(stream::unfold(told, |mut told| async move {
        told.recv().await.map(|item| (item, told))
    }))
}

/// Waits for a step as long as its caller is there. Errors: the step's; `Cancelled` when the caller goes first.
pub(crate) async fn attended<T, I>(
    tell: &mpsc::Sender<I>,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = step => done,
        () = tell.closed() => Err(Error::cancelled("the caller has gone")),
    }
}

/// Waits for one of the places that `room` has. Errors: `Cancelled` when the caller goes first; `Unavailable`.
pub(crate) async fn place<I>(
    tell: &mpsc::Sender<I>,
    room: &Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit> {
    attended(tell, async {
        let permit = room.clone().acquire_owned().await;
        permit.map_err(|_| Error::unavailable("diff: this plugin is stopping"))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::diff::Verify;
    use std::future::pending;

    fn waiting(room: &Arc<Semaphore>) -> Items<Verify> {
        let room = room.clone();
        telling::<Verify>(async move |tell| {
            let _place = place(tell, &room).await?;
            attended(tell, pending()).await
        })
    }

    #[actix::test]
    async fn a_caller_that_goes_while_a_blob_is_opened_frees_its_place() {
        let room = Arc::new(Semaphore::new(1));
        let (first, second) = (waiting(&room), waiting(&room));
        while room.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        drop(second);
        drop(first);
        let freed = tokio::time::timeout(Duration::from_secs(20), room.acquire());
        drop(freed.await.unwrap().unwrap());
    }
}
