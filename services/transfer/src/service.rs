//! The actor: which message leads to which function.

use crate::{
    archive::{export, import, tape::Limits},
    config::Config,
    image, ingest,
    manifest::Document,
    progress::Report,
    registry::Registries,
    send,
    store::Store,
};
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Items, Open, Reply, Routes, Streaming, items};
use contracts::{
    Error, ImageName, Request, Result,
    transfer::{
        Children, Explain, Explanation, Export, Fetch, Import, Imported, Plan, Progress, Push,
        Resolve, Resolved,
    },
};
use futures_util::stream;
use reference::Reference;
use std::{fs::File, future::Future, path::PathBuf, rc::Rc};
use tokio::sync::{Semaphore, mpsc};

/// Reports that may wait for a slow caller; past this, reports of progress are dropped.
const WAITING: usize = 256;
/// Most entries of one archive: an image has hundreds, an archive of all images of a node some ten thousand.
const MAX_ENTRIES: u64 = 1_000_000;

/// Answers the transfer contract.
pub struct TransferService {
    bus: Bus,
    registries: Rc<Registries>,
    downloads: Rc<Semaphore>,
    limits: Limits,
}

impl TransferService {
    /// Makes the actor. Nothing is opened and nobody asked before the first call.
    pub fn new(config: &Config, bus: Bus) -> Self {
        let folder = PathBuf::from(&config.config_path);
        Self {
            bus,
            registries: Registries::new(folder, config.patience()),
            downloads: Rc::new(Semaphore::new(
                config
                    .max_concurrent_downloads
                    .clamp(1, Semaphore::MAX_PERMITS),
            )),
            limits: Limits {
                bytes: config.max_import_bytes,
                entries: MAX_ENTRIES,
            },
        }
    }

    fn store(&self, ctx: Ctx) -> Store {
        Store::new(self.bus.clone(), ctx)
    }
}

impl Actor for TransferService {
    type Context = Context<Self>;
}

/// Which messages the actor answers.
pub fn routes() -> Routes<TransferService> {
    Routes::default()
        .on::<Resolve>()
        .stream::<Fetch>()
        .on::<Plan>()
        .on::<Children>()
        .stream::<Push>()
        .stream::<Import>()
        .stream::<Export>()
        .on::<Explain>()
}

impl Handler<Call<Resolve>> for TransferService {
    type Result = Reply<Resolve>;
    fn handle(&mut self, call: Call<Resolve>, _: &mut Context<Self>) -> Reply<Resolve> {
        let registries = Rc::clone(&self.registries);
        Box::pin(async move {
            let reference = Reference::parse(&call.body.reference)?;
            let name = ImageName::new(reference.to_string())?;
            let found = registries
                .open(reference, &call.body.access)?
                .resolve()
                .await?;
            Ok(Resolved {
                name,
                target: found.target,
                host: found.host,
            })
        })
    }
}

impl Handler<Open<Fetch>> for TransferService {
    type Result = Streaming<Fetch>;
    fn handle(&mut self, open: Open<Fetch>, _: &mut Context<Self>) -> Streaming<Fetch> {
        let (store, registries, downloads) = (
            self.store(open.ctx),
            Rc::clone(&self.registries),
            Rc::clone(&self.downloads),
        );
        let fetch = open.body;
        streamed::<Fetch, _, _>(move |reports| async move {
            let reference = Reference::parse(fetch.name.as_str())?;
            let repository = registries.open(reference, &fetch.access)?;
            // The semaphore is never closed.
            let _permit = downloads.acquire().await;
            let report: Report<'_> = &|progress| drop(reports.try_send(Ok(progress)));
            ingest::fetch(
                &store,
                &repository,
                &fetch.target,
                &fetch.r#ref,
                fetch.labels,
                report,
            )
            .await?;
            Ok(finished(fetch.target.digest.to_string(), fetch.target.size))
        })
    }
}

impl Handler<Call<Plan>> for TransferService {
    type Result = Reply<Plan>;
    fn handle(&mut self, call: Call<Plan>, _: &mut Context<Self>) -> Reply<Plan> {
        let (store, plan) = (self.store(call.ctx), call.body);
        Box::pin(
            async move { image::plan(&store, &plan.target, &plan.platform, plan.shallow).await },
        )
    }
}

impl Handler<Call<Children>> for TransferService {
    type Result = Reply<Children>;
    fn handle(&mut self, call: Call<Children>, _: &mut Context<Self>) -> Reply<Children> {
        let (store, children) = (self.store(call.ctx), call.body);
        Box::pin(async move {
            let (document, _) = store.document(&children.target).await?;
            Ok(Document::children(&document).into_iter().cloned().collect())
        })
    }
}

impl Handler<Open<Push>> for TransferService {
    type Result = Streaming<Push>;
    fn handle(&mut self, open: Open<Push>, _: &mut Context<Self>) -> Streaming<Push> {
        let (store, registries) = (self.store(open.ctx), Rc::clone(&self.registries));
        let push = open.body;
        streamed::<Push, _, _>(move |reports| async move {
            let reference = Reference::parse(&push.reference)?;
            let name = reference.to_string();
            let repository = registries.open(reference, &push.access)?;
            let report: Report<'_> = &|progress| drop(reports.try_send(Ok(progress)));
            send::push(&store, &repository, &push.target, &push.platform, report).await?;
            Ok(finished(name, 0))
        })
    }
}

impl Handler<Open<Import>> for TransferService {
    type Result = Streaming<Import>;
    fn handle(&mut self, open: Open<Import>, _: &mut Context<Self>) -> Streaming<Import> {
        let (store, limits, body) = (self.store(open.ctx), self.limits, open.body);
        streamed::<Import, _, _>(move |reports| async move {
            let archive = body
                .archive
                .into_owned()
                .map_err(|error| Error::exhausted(format!("archive: {error}")))?;
            let read = std::cell::Cell::new(0);
            let progress = |offset| {
                read.set(offset);
                drop(reports.try_send(Ok(Imported {
                    offset,
                    ..Imported::default()
                })));
            };
            let images =
                import::import(&store, File::from(archive), &body.prefix, limits, &progress)
                    .await?;
            Ok(Imported {
                offset: read.get(),
                images,
                done: true,
            })
        })
    }
}

impl Handler<Open<Export>> for TransferService {
    type Result = Streaming<Export>;
    fn handle(&mut self, open: Open<Export>, _: &mut Context<Self>) -> Streaming<Export> {
        let (store, body) = (self.store(open.ctx), open.body);
        streamed::<Export, _, _>(move |reports| async move {
            let archive = body
                .archive
                .into_owned()
                .map_err(|error| Error::exhausted(format!("archive: {error}")))?;
            let report: Report<'_> = &|progress| drop(reports.try_send(Ok(progress)));
            let total = export::export(
                &store,
                &body.images,
                &body.platform,
                File::from(archive),
                report,
            )
            .await?;
            Ok(finished("archive".into(), total))
        })
    }
}

impl Handler<Call<Explain>> for TransferService {
    type Result = Reply<Explain>;
    fn handle(&mut self, call: Call<Explain>, _: &mut Context<Self>) -> Reply<Explain> {
        let explained = explain(&self.registries, &call.body.reference);
        Box::pin(async move { explained })
    }
}

fn explain(registries: &Rc<Registries>, reference: &str) -> Result<Explanation> {
    let reference = Reference::parse(reference)?;
    let explained = registries.explain(&reference);
    let hosts = explained
        .steps
        .into_iter()
        .map(|step| (step.url, format!("{} ({})", step.rule, step.capabilities)));
    Ok(Explanation {
        name: ImageName::new(explained.reference)?,
        hosts: hosts.collect(),
        ignored: explained.hints,
    })
}

fn finished(name: String, size: u64) -> Progress {
    Progress {
        name,
        offset: size,
        total: size,
        done: true,
    }
}

/// Runs `work` beside the actor; its reports and then its result are the stream. When the caller goes, so does the work.
fn streamed<R, W, F>(work: W) -> Streaming<R>
where
    R: Request,
    W: FnOnce(mpsc::Sender<Result<R::Reply>>) -> F,
    F: Future<Output = Result<R::Reply>> + 'static,
{
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let work = work(sender.clone());
    actix::spawn(async move {
        tokio::select! {
            biased;
            () = sender.closed() => {}
            last = work => drop(sender.send(last).await),
        }
    });
    let stream: Items<R> = items(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    Box::pin(async move { Ok(stream) })
}
