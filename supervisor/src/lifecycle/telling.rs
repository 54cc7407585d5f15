//! Who is told what: the log about every change, callers about their peers, each thing once.

use super::{Lifecycle, Output, Phase, Progress, Then};
use crate::standing::{self, Own};
use contracts::{PluginId, plugin::State};

impl Lifecycle {
    /// Derives how everybody stands now, and tells the log and the callers what is new.
    pub(super) fn tell(&mut self) {
        let standings = standing::derive(&self.graph, |plugin| self.own(plugin));
        for (plugin, standing) in &standings {
            if self.standings.get(plugin) != Some(standing) {
                let changed = Output::Changed(plugin.clone(), standing.clone());
                self.out.push(changed);
            }
        }
        self.standings = standings;
        if !self.shutdown {
            self.notify();
        }
    }

    fn notify(&mut self) {
        let mut news = Vec::new();
        for (caller, peer) in self.graph.edges() {
            let edge = (caller.clone(), peer.clone());
            let standing = self.standing(peer);
            let told = self.told.get(&edge);
            // A caller starts out believing that its peer will come.
            let coming = matches!(standing.state, State::Pending | State::Starting);
            if self.is_live(caller) && told != Some(&standing) && (told.is_some() || !coming) {
                news.push((edge, standing));
            }
        }
        for ((caller, peer), standing) in news {
            self.told
                .insert((caller.clone(), peer.clone()), standing.clone());
            self.out.push(Output::Notify {
                caller,
                peer,
                standing,
            });
        }
    }

    fn own(&self, id: &PluginId) -> Own {
        let condition = |state, cause: &str| Own {
            state,
            cause: cause.into(),
            culprit: None,
            waits_for: None,
        };
        let (Some(plugin), Some(process)) = (self.plugins.get(id), self.of(id)) else {
            return condition(State::Pending, "");
        };
        let blamed = |state| Own {
            culprit: process.culprit.clone().filter(|culprit| culprit != id),
            ..condition(state, &process.cause)
        };
        match (&process.phase, plugin.progress) {
            (Phase::Down, _) if process.spawned == 0 => condition(State::Pending, ""),
            (Phase::Down, _) => blamed(State::Stopped),
            (Phase::Live { .. }, Progress::Answering(_)) => match process.pulse {
                Some(pulse) if pulse.silent => {
                    let since = self.wall(pulse.heard);
                    condition(
                        State::Degraded,
                        &format!("it does not answer since {since}"),
                    )
                }
                _ => condition(State::Ready, ""),
            },
            (Phase::Live { .. } | Phase::Resting { .. }, _) if process.failed => {
                blamed(State::Failed)
            }
            (Phase::Held, _) => blamed(State::Starting),
            (Phase::Resting { .. }, _) => blamed(State::Backoff),
            (Phase::Ending { then, .. }, _) => match then {
                Then::Stay => blamed(State::Stopped),
                Then::Again | Then::Hold => blamed(State::Starting),
                Then::Rest { .. } if process.trial => blamed(State::Starting),
                Then::Rest { refused: true } => blamed(State::Failed),
                Then::Rest { refused: false } => blamed(State::Backoff),
            },
            (Phase::Live { .. }, Progress::Starting(_)) => blamed(State::Starting),
            (Phase::Live { .. }, Progress::Waiting) => match self.waits_for(id) {
                Some(requirement) => Own {
                    waits_for: Some(requirement.clone()),
                    ..condition(State::Pending, "")
                },
                None => blamed(State::Starting),
            },
        }
    }
}
