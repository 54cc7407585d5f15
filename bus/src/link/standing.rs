//! What the supervisor said about the peer, and what callers are told because of it: the plugin, the cause, and the chain
//! that leads there.

use super::Link;
use contracts::{Error, PluginId, Result, plugin::State};

/// What the supervisor last said about the peer.
pub(super) struct Standing {
    pub(super) state: State,
    pub(super) cause: String,
    pub(super) chain: Vec<PluginId>,
}

impl Link {
    /// Hears from the supervisor how the peer stands; fails what waits for a peer that will not come back by itself.
    pub(crate) fn stands(&self, state: State, cause: String, chain: Vec<PluginId>) {
        let gone = matches!(state, State::Failed | State::Stopped);
        let before = self.standing.replace(Standing {
            state,
            cause,
            chain,
        });
        if gone {
            let pending: Vec<u64> = self.pending.borrow().keys().copied().collect();
            for id in pending {
                self.finish(id, Err(self.unavailable()));
            }
        }
        self.changed(before.state);
    }

    /// Whether the peer is ready, as far as the supervisor has told.
    pub(crate) fn is_ready(&self) -> bool {
        self.standing.borrow().state == State::Ready
    }

    pub(super) fn refuse_when_failed(&self) -> Result<()> {
        match self.standing.borrow().state {
            State::Failed | State::Stopped => Err(self.unavailable()),
            _ => Ok(()),
        }
    }

    /// What the peer says of a plugin that it needs: the chain to that begins with the peer.
    pub(super) fn through_me(&self, mut error: Error) -> Error {
        if error.plugin.is_some() && error.chain.first() != Some(&self.peer) {
            error.chain.insert(0, self.peer.clone());
        }
        error
    }

    /// What is said at the deadline: whom it was waited for, and what the supervisor knows about that.
    pub(super) fn too_late(&self, method: &str) -> Error {
        if self.connection.borrow().is_none() {
            return self.unavailable();
        }
        let (peer, chain) = (self.peer.clone(), vec![self.peer.clone()]);
        let error = Error::deadline(format!("{method}: {peer} did not answer in time"));
        self.explain(error.caused_by(peer, chain))
    }

    /// Adds to an error why the peer does not stand well, if it does not.
    pub(crate) fn explain(&self, mut error: Error) -> Error {
        let standing = self.standing.borrow();
        if standing.state == State::Ready || standing.cause.is_empty() {
            return error;
        }
        error.message = format!("{}: {}", error.message, standing.cause);
        let (culprit, chain) = self.blame(&standing);
        error.caused_by(culprit, chain)
    }

    pub(super) fn unavailable(&self) -> Error {
        let standing = self.standing.borrow();
        let (culprit, chain) = self.blame(&standing);
        let broke = self.broke.borrow();
        let cause = match (standing.cause.as_str(), standing.state, broke.as_str()) {
            ("", State::Ready, broke) if !broke.is_empty() => {
                format!("the link to it broke: {broke}")
            }
            ("", ..) => "it is not running".into(),
            (cause, ..) => cause.to_owned(),
        };
        Error::unavailable(format!("plugin {} is not available: {cause}", self.peer))
            .caused_by(culprit, chain)
    }

    /// The plugin that is the cause, and the chain to it from the peer on.
    fn blame(&self, standing: &Standing) -> (PluginId, Vec<PluginId>) {
        let mut chain = standing.chain.clone();
        if chain.first() != Some(&self.peer) {
            chain.insert(0, self.peer.clone());
        }
        let culprit = chain.last().unwrap_or(&self.peer).clone();
        (culprit, chain)
    }
}
