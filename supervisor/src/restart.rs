//! How long to wait before a failed process is started again: pure arithmetic over a history of failures.

use std::time::Duration;

/// The figures of the backoff.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Longest pause before the first restart; doubled for each further one. 50 ms: a killed plugin is back well within a second.
    pub first: Duration,
    /// Longest pause between restarts. 30 s: often enough to heal by itself, too seldom to burn a core.
    pub longest: Duration,
    /// How many failures in quick succession make a process [`Failed`](contracts::plugin::State::Failed).
    pub failures: u32,
    /// Pause between attempts once failed. 60 s.
    pub rare: Duration,
    /// How long a process must answer until all its failures are forgiven; a part of it forgives a part of them. 60 s.
    pub forgive: Duration,
    /// Pause after the first refusal to start; doubled up to `rare`. 1 s: a full disk or a taken port seldom frees sooner.
    pub refused: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(30),
            failures: 10,
            rare: Duration::from_secs(60),
            forgive: Duration::from_secs(60),
            refused: Duration::from_secs(1),
        }
    }
}

/// What to do after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// How long to wait.
    pub length: Duration,
    /// Whether the process counts as failed, and is tried rarely.
    pub failed: bool,
}

/// The recent failures of one process.
#[derive(Clone, Debug, Default)]
pub struct History {
    failures: u32,
}

impl History {
    /// Notes that the process ended after it had answered for `ready`, and says how long to wait.
    ///
    /// `jitter` in 0..1 spreads pauses over their upper half, so that processes felled together do not rise together.
    pub fn ended(&mut self, policy: &Policy, ready: Duration, jitter: f64) -> Pause {
        self.forgive(policy, ready);
        let failed = self.failures >= policy.failures;
        let full = match failed {
            true => policy.rare,
            false => doubled(policy.first, self.failures).min(policy.longest),
        };
        self.failures = self.failures.saturating_add(1);
        Pause {
            length: jittered(full, jitter),
            failed,
        }
    }

    /// Notes that the process refused to start, and says how long to wait.
    pub fn refused(&mut self, policy: &Policy, jitter: f64) -> Pause {
        let full = doubled(policy.refused, self.failures).min(policy.rare);
        self.failures = self.failures.saturating_add(1);
        Pause {
            length: jittered(full, jitter),
            failed: true,
        }
    }

    /// Forgets all failures, because a user asks for a fresh start.
    pub fn clear(&mut self) {
        self.failures = 0;
    }

    fn forgive(&mut self, policy: &Policy, ready: Duration) {
        let part = match policy.forgive.is_zero() {
            true => 1.0,
            false => ready.as_secs_f64() / policy.forgive.as_secs_f64(),
        };
        // Saturating by definition of `as`: a long time forgives more than there can be.
        let forgiven = (part * f64::from(policy.failures)) as u32;
        self.failures = match part >= 1.0 {
            true => 0,
            false => self.failures.saturating_sub(forgiven),
        };
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(20))
}

fn jittered(full: Duration, jitter: f64) -> Duration {
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn the_first_restart_comes_at_once_and_each_pause_doubles_up_to_the_longest() {
        let policy = Policy {
            failures: 100,
            ..Policy::default()
        };
        let mut history = History::default();
        let pauses: Vec<_> = (0..12)
            .map(|_| history.ended(&policy, NEVER, 1.0).length.as_millis())
            .collect();
        assert_eq!(
            pauses,
            [
                50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000
            ]
        );
    }

    #[test]
    fn jitter_takes_at_most_half_of_a_pause() {
        let policy = Policy::default();
        for jitter in [0.0, 0.3, 1.0, 7.0] {
            let length = History::default().ended(&policy, NEVER, jitter).length;
            assert!(length >= policy.first / 2 && length <= policy.first);
        }
    }

    #[test]
    fn many_quick_failures_make_it_failed_and_rare() {
        let policy = Policy::default();
        let mut history = History::default();
        for _ in 0..policy.failures {
            assert!(!history.ended(&policy, NEVER, 1.0).failed);
        }
        let pause = history.ended(&policy, NEVER, 1.0);
        assert!(pause.failed && pause.length == policy.rare);
    }

    #[test]
    fn being_ready_forgives_in_proportion_and_a_minute_forgives_all() {
        let policy = Policy::default();
        let mut history = History::default();
        for _ in 0..6 {
            history.ended(&policy, NEVER, 1.0);
        }
        let half = history.clone().ended(&policy, Duration::from_secs(30), 1.0);
        assert_eq!(half.length, Duration::from_millis(100));
        let all = history.ended(&policy, Duration::from_secs(60), 1.0);
        assert_eq!(all.length, policy.first);
    }

    #[test]
    fn a_refusal_is_failed_at_once_and_tried_ever_more_rarely() {
        let policy = Policy::default();
        let mut history = History::default();
        let pauses: Vec<_> = (0..8).map(|_| history.refused(&policy, 1.0)).collect();
        assert!(pauses.iter().all(|p| p.failed));
        assert_eq!(pauses[0].length, Duration::from_secs(1));
        assert_eq!(pauses[7].length, policy.rare);
        history.clear();
        assert_eq!(history.refused(&policy, 1.0).length, policy.refused);
    }
}
