//! The supervisor as a service: what plugins that require it may ask, over links like any other.

use crate::daemon::{Action, Question};
use actix::{Actor, Context, Handler};
use bus::{Call, Reply, Routes};
use contracts::{
    Error, OperationId, PluginId, Request, Result,
    plugin::{
        Get, Graph, List, Node, PluginInfo, Reload, Reloaded, Restart, Start, Stop, Upgrade,
        UpgradeInfo, Upgrading,
    },
};
use std::{cell::RefCell, collections::VecDeque, rc::Rc};
use tokio::sync::{mpsc, oneshot};

/// Passes questions on to the daemon's loop, which alone knows.
pub(crate) struct SupervisorService {
    daemon: mpsc::Sender<Question>,
    restarted: Done<PluginInfo>,
    reloaded: Done<Reloaded>,
    upgraded: Done<UpgradeInfo>,
}

/// What was done lately, and its answers: a repetition must not do it again, least of all when it is the gateway that
/// was restarted and never got to tell. Nobody repeats anything beyond the life of the supervisor.
struct Done<T>(Rc<RefCell<VecDeque<(OperationId, T)>>>);

/// How many are remembered.
const REMEMBERED: usize = 256;

impl<T> Default for Done<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T: Clone + 'static> Done<T> {
    /// The answer that `operation` got before, or else what `ask` answers, which is remembered.
    fn once<R: Request<Reply = T>>(
        &self,
        operation: OperationId,
        ask: impl FnOnce() -> Reply<R>,
    ) -> Reply<R> {
        let done = self.0.borrow();
        let before = done.iter().find(|(known, _)| *known == operation);
        if let Some((_, answer)) = before.cloned() {
            return Box::pin(async move { Ok(answer) });
        }
        let (done, answer) = (self.0.clone(), ask());
        Box::pin(async move {
            let answer = answer.await?;
            let mut done = done.borrow_mut();
            done.push_back((operation, answer.clone()));
            if done.len() > REMEMBERED {
                done.pop_front();
            }
            Ok(answer)
        })
    }
}

impl Actor for SupervisorService {
    type Context = Context<Self>;
}

pub(crate) fn routes() -> Routes<SupervisorService> {
    Routes::default()
        .on::<List>()
        .on::<Get>()
        .on::<Graph>()
        .on::<Restart>()
        .on::<Stop>()
        .on::<Start>()
        .on::<Node>()
        .on::<Reload>()
        .on::<Upgrade>()
        .on::<Upgrading>()
}

impl SupervisorService {
    pub(crate) fn new(daemon: mpsc::Sender<Question>) -> Self {
        Self {
            daemon,
            restarted: Done::default(),
            reloaded: Done::default(),
            upgraded: Done::default(),
        }
    }

    fn ask<R: Request>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<R::Reply>>) -> Question,
    ) -> Reply<R> {
        let (reply, answer) = oneshot::channel();
        let (daemon, question) = (self.daemon.clone(), question(reply));
        Box::pin(async move {
            let stopping = || Error::unavailable("the supervisor is stopping");
            daemon.send(question).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        })
    }

    fn act<R: Request<Reply = PluginInfo>>(&self, action: Action, plugin: PluginId) -> Reply<R> {
        self.ask::<R>(|reply| Question::Act {
            action,
            plugin,
            reply,
        })
    }
}

impl Handler<Call<List>> for SupervisorService {
    type Result = Reply<List>;
    fn handle(&mut self, _: Call<List>, _: &mut Context<Self>) -> Reply<List> {
        self.ask::<List>(Question::List)
    }
}

impl Handler<Call<Get>> for SupervisorService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Reply<Get> {
        self.ask::<Get>(|reply| Question::Get(call.body.id, reply))
    }
}

impl Handler<Call<Graph>> for SupervisorService {
    type Result = Reply<Graph>;
    fn handle(&mut self, _: Call<Graph>, _: &mut Context<Self>) -> Reply<Graph> {
        self.ask::<Graph>(Question::Graph)
    }
}

impl Handler<Call<Restart>> for SupervisorService {
    type Result = Reply<Restart>;
    fn handle(&mut self, call: Call<Restart>, _: &mut Context<Self>) -> Reply<Restart> {
        let Call { body, ctx, .. } = call;
        let ask = || self.act::<Restart>(Action::Restart, body.id);
        self.restarted.once::<Restart>(ctx.operation, ask)
    }
}

impl Handler<Call<Stop>> for SupervisorService {
    type Result = Reply<Stop>;
    fn handle(&mut self, call: Call<Stop>, _: &mut Context<Self>) -> Reply<Stop> {
        self.act::<Stop>(Action::Stop, call.body.id)
    }
}

impl Handler<Call<Start>> for SupervisorService {
    type Result = Reply<Start>;
    fn handle(&mut self, call: Call<Start>, _: &mut Context<Self>) -> Reply<Start> {
        self.act::<Start>(Action::Start, call.body.id)
    }
}

impl Handler<Call<Node>> for SupervisorService {
    type Result = Reply<Node>;
    fn handle(&mut self, _: Call<Node>, _: &mut Context<Self>) -> Reply<Node> {
        self.ask::<Node>(Question::Node)
    }
}

impl Handler<Call<Reload>> for SupervisorService {
    type Result = Reply<Reload>;
    fn handle(&mut self, call: Call<Reload>, _: &mut Context<Self>) -> Reply<Reload> {
        let Call { body, ctx, .. } = call;
        let ask = || self.ask::<Reload>(|reply| Question::Reload(body, reply));
        self.reloaded.once::<Reload>(ctx.operation, ask)
    }
}

impl Handler<Call<Upgrade>> for SupervisorService {
    type Result = Reply<Upgrade>;
    fn handle(&mut self, call: Call<Upgrade>, _: &mut Context<Self>) -> Reply<Upgrade> {
        let Call { body, ctx, .. } = call;
        let ask = || self.ask::<Upgrade>(|reply| Question::Upgrade(body, reply));
        self.upgraded.once::<Upgrade>(ctx.operation, ask)
    }
}

impl Handler<Call<Upgrading>> for SupervisorService {
    type Result = Reply<Upgrading>;
    fn handle(&mut self, _: Call<Upgrading>, _: &mut Context<Self>) -> Reply<Upgrading> {
        self.ask::<Upgrading>(Question::Upgrading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::plugin::Supervisor;
    use std::cell::Cell;

    #[actix::test]
    async fn a_repetition_gets_the_first_answer_and_a_failure_is_tried_again() {
        let (done, asked) = (Done::<Reloaded>::default(), Cell::new(0));
        let once = |operation: &str, works: bool| {
            let ask = || -> Reply<Reload> {
                asked.set(asked.get() + 1);
                let answer = match works {
                    true => Ok(Reloaded::default()),
                    false => Err(Error::unavailable("not now")),
                };
                Box::pin(async move { answer })
            };
            done.once::<Reload>(OperationId::new(operation).unwrap(), ask)
        };
        once("a", false).await.unwrap_err();
        once("a", true).await.unwrap();
        once("a", true).await.unwrap();
        assert_eq!(asked.get(), 2);
        once("b", true).await.unwrap();
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert_eq!(super::routes().missing::<Supervisor>(), [""; 0]);
    }
}
