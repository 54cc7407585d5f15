//! The actor: contract messages → engine.

mod integrity;

pub(crate) use integrity::fsck;

use crate::engine::Engine;
use crate::lifecycle::Input;
use crate::logs::follow::{self, Wanted};
use crate::logs::lines::Span;
use crate::record::Name;
use crate::store::StoreError;
use actix::{Actor, Context, Handler};
use bus::{Call, Ctx, Open, Reply, Routes, Streaming};
use contracts::integrity::{Check, Mend};
use contracts::tasks::{
    Audit, Checkpoint, CloseStdin, Create, Delete, Exec, Execs, Get, Kill, List, Logs, Metrics,
    Pause, Pids, Resize, Resume, Start, Stdin, Update, Wait,
};
use contracts::{ContainerId, Error, Result};
use std::rc::Rc;

/// Answers `tasks`.
pub(crate) struct TasksService {
    engine: Rc<Engine>,
}

impl TasksService {
    pub(crate) fn new(engine: Rc<Engine>) -> Self {
        Self { engine }
    }
}

/// A successor in the same process needs the records' file.
impl Drop for TasksService {
    fn drop(&mut self) {
        self.engine.let_go();
    }
}

impl Actor for TasksService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<TasksService> {
    Routes::default()
        .on::<Create>()
        .on::<Start>()
        .on::<Get>()
        .on::<List>()
        .on::<Kill>()
        .on::<Pause>()
        .on::<Resume>()
        .on::<Delete>()
        .on::<Wait>()
        .on::<Pids>()
        .on::<Exec>()
        .on::<Execs>()
        .on::<Resize>()
        .on::<Stdin>()
        .on::<CloseStdin>()
        .on::<Update>()
        .on::<Metrics>()
        .on::<Checkpoint>()
        .on::<Audit>()
        .on::<Check>()
        .on::<Mend>()
        .stream::<Logs>()
}

fn name(ctx: &Ctx, id: ContainerId) -> Result<Name> {
    let namespace = ctx.namespace()?.clone();
    Ok(Name { namespace, id })
}

impl Handler<Call<Create>> for TasksService {
    type Result = Reply<Create>;
    fn handle(&mut self, call: Call<Create>, _: &mut Context<Self>) -> Reply<Create> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.create(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Start>> for TasksService {
    type Result = Reply<Start>;
    fn handle(&mut self, call: Call<Start>, _: &mut Context<Self>) -> Reply<Start> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.start(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Get>> for TasksService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Reply<Get> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.get(&name(&call.ctx, call.body.id)?).await })
    }
}

impl Handler<Call<List>> for TasksService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Reply<List> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let namespace = call.ctx.namespace()?.clone();
            engine.list(namespace, call.body).await
        })
    }
}

impl Handler<Call<Kill>> for TasksService {
    type Result = Reply<Kill>;
    fn handle(&mut self, call: Call<Kill>, _: &mut Context<Self>) -> Reply<Kill> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.kill(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Pause>> for TasksService {
    type Result = Reply<Pause>;
    fn handle(&mut self, call: Call<Pause>, _: &mut Context<Self>) -> Reply<Pause> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.freeze(&call.ctx, &call.body.id, Input::Paused).await })
    }
}

impl Handler<Call<Resume>> for TasksService {
    type Result = Reply<Resume>;
    fn handle(&mut self, call: Call<Resume>, _: &mut Context<Self>) -> Reply<Resume> {
        let engine = self.engine.clone();
        Box::pin(async move {
            engine
                .freeze(&call.ctx, &call.body.id, Input::Resumed)
                .await
        })
    }
}

impl Handler<Call<Delete>> for TasksService {
    type Result = Reply<Delete>;
    fn handle(&mut self, call: Call<Delete>, _: &mut Context<Self>) -> Reply<Delete> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.delete(&call.ctx, call.body).await })
    }
}

/// Holds no part of the engine while it waits: a restart in place needs all of it back.
impl Handler<Call<Wait>> for TasksService {
    type Result = Reply<Wait>;
    fn handle(&mut self, call: Call<Wait>, _: &mut Context<Self>) -> Reply<Wait> {
        let wait = name(&call.ctx, call.body.id)
            .and_then(|name| self.engine.wait(&name, call.body.exec.as_ref()));
        Box::pin(async move { wait?.await })
    }
}

impl Handler<Call<Pids>> for TasksService {
    type Result = Reply<Pids>;
    fn handle(&mut self, call: Call<Pids>, _: &mut Context<Self>) -> Reply<Pids> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.pids(&call.ctx, &call.body.id).await })
    }
}

impl Handler<Call<Exec>> for TasksService {
    type Result = Reply<Exec>;
    fn handle(&mut self, call: Call<Exec>, _: &mut Context<Self>) -> Reply<Exec> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.exec(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Execs>> for TasksService {
    type Result = Reply<Execs>;
    fn handle(&mut self, call: Call<Execs>, _: &mut Context<Self>) -> Reply<Execs> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.execs(&call.ctx, &call.body.id).await })
    }
}

impl Handler<Call<Resize>> for TasksService {
    type Result = Reply<Resize>;
    fn handle(&mut self, call: Call<Resize>, _: &mut Context<Self>) -> Reply<Resize> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.resize(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Stdin>> for TasksService {
    type Result = Reply<Stdin>;
    fn handle(&mut self, call: Call<Stdin>, _: &mut Context<Self>) -> Reply<Stdin> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.stdin(&call.ctx, call.body).await })
    }
}

impl Handler<Call<CloseStdin>> for TasksService {
    type Result = Reply<CloseStdin>;
    fn handle(&mut self, call: Call<CloseStdin>, _: &mut Context<Self>) -> Reply<CloseStdin> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.close_stdin(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Update>> for TasksService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Reply<Update> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.update(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Metrics>> for TasksService {
    type Result = Reply<Metrics>;
    fn handle(&mut self, call: Call<Metrics>, _: &mut Context<Self>) -> Reply<Metrics> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.metrics(&call.ctx, &call.body.id).await })
    }
}

impl Handler<Call<Checkpoint>> for TasksService {
    type Result = Reply<Checkpoint>;
    fn handle(&mut self, call: Call<Checkpoint>, _: &mut Context<Self>) -> Reply<Checkpoint> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.checkpoint(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Audit>> for TasksService {
    type Result = Reply<Audit>;
    fn handle(&mut self, call: Call<Audit>, _: &mut Context<Self>) -> Reply<Audit> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.audit(call.body).await })
    }
}

impl Handler<Open<Logs>> for TasksService {
    type Result = Streaming<Logs>;
    fn handle(&mut self, open: Open<Logs>, _: &mut Context<Self>) -> Streaming<Logs> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let wanted = wanted(&engine, &open.ctx, open.body).await?;
            Ok(bus::items(follow::batches(wanted)))
        })
    }
}

async fn wanted(engine: &Engine, ctx: &Ctx, logs: Logs) -> Result<Wanted> {
    let name = name(ctx, logs.id)?;
    let exec = logs.exec.as_ref();
    let path = engine.layout.log(&name, exec);
    let tracked = engine.tracked(&name, exec).ok();
    if tracked.is_none() && !(engine.owns_logs(&name).await? && path.exists()) {
        let missing = match logs.exec {
            Some(exec) => StoreError::MissingExec(name, exec),
            None => StoreError::Missing(name),
        };
        return Err(Error::from(missing));
    }
    Ok(Wanted {
        path,
        span: Span {
            since: logs.since,
            until: logs.until,
        },
        tail: logs.tail,
        follow: tracked
            .filter(|_| logs.follow)
            .map(|(_, tracked)| tracked.exit()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::tasks::Tasks;

    #[test]
    fn every_method_of_the_contract_is_routed() {
        assert!(routes().missing::<Tasks>().is_empty());
    }
}
