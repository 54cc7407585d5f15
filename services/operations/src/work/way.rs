//! The way of one owner's check: an owner that answers a token again would never come to its end.

use contracts::{Error, Result};

/// Most steps of one owner: of 64 MiB each, what 64 TiB have.
const STEPS: u64 = 1 << 20;

/// Watches tokens. One earlier token is kept, and exchanged for the current one at every power of two, so that a circle
/// of any length is seen in a few rounds of it. Source: R. P. Brent, An improved Monte Carlo factorization algorithm,
/// section 2.
#[derive(Debug, Default)]
pub(super) struct Way {
    steps: u64,
    kept: String,
}

impl Way {
    /// Notes where the check goes on. Errors: `Internal` when it was there before, `OutOfRange` when it takes too long.
    pub(super) fn on(&mut self, next: &str) -> Result<()> {
        self.steps += 1;
        if next == self.kept {
            let steps = self.steps;
            return Err(Error::internal(format!(
                "its check goes in a circle: step {steps} answers {next:?} as another before it; the rest is not checked"
            )));
        }
        if self.steps >= STEPS {
            return Err(Error::out_of_range(format!(
                "its check has no end after {STEPS} steps; the rest is not checked"
            )));
        }
        if self.steps.is_power_of_two() {
            next.clone_into(&mut self.kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(token: impl Fn(u64) -> String, most: u64) -> String {
        let mut way = Way::default();
        let ended = (0..most).find_map(|step| way.on(&token(step)).err());
        ended.map(|error| error.message).unwrap_or_default()
    }

    #[test]
    fn a_circle_of_any_length_is_seen_in_a_few_rounds() {
        for length in [1, 2, 3, 1000] {
            let said = ends(|step| format!("{}", 7 + step % length), 4 * length + 4);
            assert!(said.contains("circle"), "{length}: {said}");
        }
    }

    #[test]
    fn what_goes_on_is_not_a_circle_and_is_ended_at_the_bound() {
        assert_eq!(ends(|step| step.to_string(), STEPS - 1), "");
        assert!(ends(|step| step.to_string(), STEPS).contains("no end"));
    }
}
