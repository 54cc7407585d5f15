//! The life of one process, first or added: what may follow what, and what is told about it. Pure.
//!
//! ```text
//! creating → created → running ⇄ paused
//!     └────────┴──────────┴────────┴──→ stopped
//! ```
//!
//! A process is told about once, however often its end is reported: by the answer to `Wait`, by a forwarded event, by
//! `State` after a restart. Every input goes through [`Process::step`] inside the store's transaction.

use contracts::tasks::{Exit, Status};
use serde::{Deserialize, Serialize};

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Journaled; the host may hold anything between nothing and all of it.
    Creating,
    /// Set up, not started.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

/// One process as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) phase: Phase,
    /// Host process id; 0 until known.
    pub(crate) pid: u32,
    pub(crate) exit: Option<Exit>,
    /// A change was found on the shim after a restart, and nobody was answered for it: the call that asked comes again.
    pub(crate) unanswered: bool,
}

/// What happened to a process, or what a caller asked of it and its shim did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Created {
        pid: u32,
    },
    Started {
        pid: u32,
    },
    Paused,
    Resumed,
    Exited(Exit),
    /// As the input in it, but seen on the shim and not asked for by anybody that waits.
    Found(Box<Input>),
}

/// What has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Created,
    Started,
    Paused,
    Resumed,
    Exited,
}

/// What an input would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// It fits: the shim may be asked.
    Do,
    /// It was found done, and this is the call that asked for it.
    IsDone,
}

/// Why an input does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("was created before")]
    CreatedBefore,
    #[error("was started before")]
    StartedBefore,
    #[error("is still being created")]
    Creating,
    #[error("was not started")]
    NotStarted,
    #[error("is not paused")]
    NotPaused,
    #[error("is paused: resume it first")]
    IsPaused,
    #[error("has ended")]
    Ended,
}

impl Process {
    /// A process that is about to be made.
    pub(crate) fn creating() -> Self {
        Self {
            phase: Phase::Creating,
            pid: 0,
            exit: None,
            unanswered: false,
        }
    }

    /// A process that waits for its start.
    pub(crate) fn created() -> Self {
        Self {
            phase: Phase::Created,
            ..Self::creating()
        }
    }

    /// Takes an input; answers what has to be told, if anything. A refused input changes nothing.
    pub(crate) fn step(&mut self, input: &Input) -> Result<Option<Told>, Refusal> {
        match input {
            Input::Found(input) => {
                let told = self.advance(input)?;
                self.unanswered = true;
                Ok(told)
            }
            Input::Exited(_) => self.advance(input),
            _ if self.may(input)? == May::IsDone => {
                self.unanswered = false;
                Ok(None)
            }
            _ => self.advance(input),
        }
    }

    /// Says what an input would meet, so that the shim is asked only for what fits.
    pub(crate) fn may(&self, input: &Input) -> Result<May, Refusal> {
        if self.unanswered && self.is_at(input) {
            return Ok(May::IsDone);
        }
        self.fits(input).map(|()| May::Do)
    }

    fn fits(&self, input: &Input) -> Result<(), Refusal> {
        match (input, self.phase) {
            (Input::Created { .. }, Phase::Creating)
            | (Input::Started { .. }, Phase::Created)
            | (Input::Paused, Phase::Running)
            | (Input::Resumed, Phase::Paused)
            | (Input::Exited(_) | Input::Found(_), _) => Ok(()),
            (Input::Created { .. }, _) => Err(Refusal::CreatedBefore),
            (_, Phase::Creating) => Err(Refusal::Creating),
            (Input::Started { .. }, _) => Err(Refusal::StartedBefore),
            (_, Phase::Created) => Err(Refusal::NotStarted),
            (_, Phase::Stopped) => Err(Refusal::Ended),
            (Input::Paused, _) => Err(Refusal::IsPaused),
            (Input::Resumed, _) => Err(Refusal::NotPaused),
        }
    }

    fn is_at(&self, input: &Input) -> bool {
        match input {
            Input::Started { .. } => !matches!(self.phase, Phase::Creating | Phase::Created),
            Input::Paused => self.phase == Phase::Paused,
            Input::Resumed => self.phase == Phase::Running,
            _ => false,
        }
    }

    fn advance(&mut self, input: &Input) -> Result<Option<Told>, Refusal> {
        self.fits(input)?;
        Ok(match input {
            Input::Created { pid } => self.to(Phase::Created, *pid, Told::Created),
            Input::Started { pid } => self.to(Phase::Running, *pid, Told::Started),
            Input::Paused => self.to(Phase::Paused, self.pid, Told::Paused),
            Input::Resumed => self.to(Phase::Running, self.pid, Told::Resumed),
            Input::Exited(_) if self.phase == Phase::Stopped => None,
            Input::Exited(exit) => {
                self.exit = Some(exit.clone());
                self.to(Phase::Stopped, self.pid, Told::Exited)
            }
            Input::Found(_) => None,
        })
    }

    /// Whether it can still end.
    pub(crate) fn alive(&self) -> bool {
        self.phase != Phase::Stopped
    }

    /// As callers see it.
    pub(crate) fn status(&self) -> Status {
        match self.phase {
            Phase::Creating | Phase::Created => Status::Created,
            Phase::Running => Status::Running,
            Phase::Paused => Status::Paused,
            Phase::Stopped => Status::Stopped,
        }
    }

    fn to(&mut self, phase: Phase, pid: u32, told: Told) -> Option<Told> {
        self.phase = phase;
        self.pid = pid;
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::Timestamp;

    fn exit(exit_code: u32) -> Input {
        Input::Exited(Exit {
            exit_code,
            exited_at: Timestamp(7),
        })
    }

    fn running() -> Process {
        let mut process = Process::creating();
        process.step(&Input::Created { pid: 5 }).unwrap();
        process.step(&Input::Started { pid: 5 }).unwrap();
        process
    }

    #[test]
    fn a_whole_life_is_told_in_order_and_once() {
        let mut process = Process::creating();
        let inputs = [
            Input::Created { pid: 5 },
            Input::Started { pid: 5 },
            Input::Paused,
            Input::Resumed,
            exit(3),
            exit(4),
        ];
        let told: Vec<_> = inputs
            .iter()
            .map(|input| process.step(input).unwrap())
            .collect();
        assert_eq!(
            told,
            [
                Some(Told::Created),
                Some(Told::Started),
                Some(Told::Paused),
                Some(Told::Resumed),
                Some(Told::Exited),
                None
            ]
        );
        assert_eq!(process.exit.map(|exit| exit.exit_code), Some(3));
    }

    #[test]
    fn what_does_not_fit_changes_nothing_and_says_why() {
        let mut process = running();
        let before = process.clone();
        assert_eq!(
            process.step(&Input::Started { pid: 9 }),
            Err(Refusal::StartedBefore)
        );
        assert_eq!(process.step(&Input::Resumed), Err(Refusal::NotPaused));
        assert_eq!(process, before);
        process.step(&exit(0)).unwrap();
        assert_eq!(process.step(&Input::Paused), Err(Refusal::Ended));
        assert_eq!(
            Process::creating().step(&Input::Started { pid: 1 }),
            Err(Refusal::Creating)
        );
    }

    #[test]
    fn a_start_that_was_found_answers_the_call_that_comes_again_and_no_other() {
        let start = Input::Started { pid: 5 };
        let mut process = Process::created();
        let told = process.step(&Input::Found(Box::new(start.clone())));
        assert_eq!(told, Ok(Some(Told::Started)));
        process.step(&exit(0)).unwrap();
        assert_eq!(process.may(&start), Ok(May::IsDone));
        assert_eq!(process.step(&start), Ok(None));
        assert_eq!(process.step(&start), Err(Refusal::StartedBefore));
    }

    #[test]
    fn a_pause_that_was_found_does_not_answer_a_resume() {
        let mut process = running();
        process
            .step(&Input::Found(Box::new(Input::Paused)))
            .unwrap();
        assert_eq!(process.may(&Input::Resumed), Ok(May::Do));
        assert_eq!(process.step(&Input::Resumed), Ok(Some(Told::Resumed)));
    }
}
