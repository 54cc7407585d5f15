//! The supervisor as a service: what plugins that require it may ask, over links like any other.

use crate::daemon::{Action, Question};
use actix::{Actor, Context, Handler};
use bus::{Call, Reply, Routes};
use contracts::{
    Error, OperationId, PluginId, Request, Result,
    plugin::{
        Get, Graph, List, Node, PluginInfo, Reload, Restart, Start, Stop, Upgrade, Upgrading,
    },
};
use std::{cell::RefCell, collections::VecDeque, rc::Rc};
use tokio::sync::{mpsc, oneshot};

/// Passes questions on to the daemon's loop, which alone knows.
pub(crate) struct SupervisorService {
    daemon: mpsc::Sender<Question>,
    restarted: Restarted,
}

/// Restarts that were asked for lately, and their answers: a repetition must not restart again, least of all when it
/// is the gateway that was restarted and never got to tell. Nobody repeats one beyond the life of the supervisor.
type Restarted = Rc<RefCell<VecDeque<(OperationId, PluginInfo)>>>;

/// How many are remembered.
const REMEMBERED: usize = 256;

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
            restarted: Restarted::default(),
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
        let (restarted, operation) = (self.restarted.clone(), call.ctx.operation);
        let before = restarted
            .borrow()
            .iter()
            .find(|(known, _)| *known == operation)
            .cloned();
        if let Some((_, answer)) = before {
            return Box::pin(async move { Ok(answer) });
        }
        let answer = self.act::<Restart>(Action::Restart, call.body.id);
        Box::pin(async move {
            let answer = answer.await?;
            let mut restarted = restarted.borrow_mut();
            restarted.push_back((operation, answer.clone()));
            if restarted.len() > REMEMBERED {
                restarted.pop_front();
            }
            Ok(answer)
        })
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
        self.ask::<Reload>(|reply| Question::Reload(call.body, reply))
    }
}

impl Handler<Call<Upgrade>> for SupervisorService {
    type Result = Reply<Upgrade>;
    fn handle(&mut self, call: Call<Upgrade>, _: &mut Context<Self>) -> Reply<Upgrade> {
        self.ask::<Upgrade>(|reply| Question::Upgrade(call.body, reply))
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
    use contracts::plugin::Supervisor;

    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert_eq!(super::routes().missing::<Supervisor>(), [""; 0]);
    }
}
