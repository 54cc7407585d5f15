//! What a client was told, and so what it may find after a cut. Pure.
//!
//! Each object is changed by one client, one request after the other. At any moment of the recording an object is in
//! the state of the last answered request, or in that of the one under way, which may have taken effect or not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A state of an object; `None` where there is none.
pub type State = Option<String>;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    begun: usize,
    answered: Option<usize>,
    state: State,
    /// What it may lead to instead when it is interrupted and taken up again later.
    instead: Vec<State>,
}

/// Everything that was asked and answered while a disk was recorded, in acts of its log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    objects: BTreeMap<String, Vec<Step>>,
}

impl History {
    /// Notes that a request was sent which will bring an object into a state.
    pub fn begin(&mut self, object: &str, state: State, at: usize) {
        let steps = self.objects.entry(object.to_owned()).or_default();
        steps.push(Step {
            begun: at,
            answered: None,
            state,
            instead: Vec::new(),
        });
    }

    /// Notes what the request under way may lead to instead, when it is interrupted and taken up again in another world.
    pub fn or(&mut self, object: &str, state: State) {
        let steps = self.objects.get_mut(object);
        if let Some(step) = steps.and_then(|steps| steps.last_mut()) {
            step.instead.push(state);
        }
    }

    /// Notes that the last request about an object was answered with success.
    pub fn answered(&mut self, object: &str, at: usize) {
        let steps = self.objects.get_mut(object);
        if let Some(step) = steps.and_then(|steps| steps.last_mut()) {
            step.answered = Some(at);
        }
    }

    /// Returns all moments at which something was answered about an object whose name begins like this.
    pub fn answers(&self, named: &str) -> Vec<usize> {
        let objects = self.objects.iter();
        let wanted = objects.filter(|(name, _)| name.starts_with(named));
        let steps = wanted.flat_map(|(_, steps)| steps);
        let moments: BTreeSet<usize> = steps.filter_map(|step| step.answered).collect();
        moments.into_iter().collect()
    }

    /// Returns how many requests had been answered at a moment.
    pub fn answered_by(&self, at: usize) -> usize {
        let steps = self.objects.values().flatten();
        steps
            .filter(|step| step.answered.is_some_and(|answered| answered <= at))
            .count()
    }

    /// Returns the states in which an object may be when the power goes at a moment, the answered one first.
    pub fn allowed(&self, object: &str, at: usize) -> Vec<State> {
        let steps = self.objects.get(object).map_or(&[][..], Vec::as_slice);
        let answered = steps
            .iter()
            .rposition(|step| step.answered.is_some_and(|answered| answered <= at));
        let sure = answered.and_then(|last| steps[last].state.clone());
        let later = steps.iter().skip(answered.map_or(0, |last| last + 1));
        let maybe = later
            .filter(|step| step.begun <= at)
            .flat_map(|step| [&step.state].into_iter().chain(&step.instead).cloned());
        [sure].into_iter().chain(maybe).collect()
    }

    /// Compares what is found after a cut with what may be there; a sentence for each object that is wrong.
    pub fn contradictions(&self, at: usize, found: &BTreeMap<String, String>) -> Vec<String> {
        let objects: BTreeSet<&String> = self.objects.keys().chain(found.keys()).collect();
        let wrong = objects.into_iter().filter_map(|object| {
            let now = found.get(object).cloned();
            let allowed = self.allowed(object, at);
            let text = |state: &State| state.clone().unwrap_or_else(|| "absent".into());
            let expected: Vec<String> = allowed.iter().map(text).collect();
            let expected = expected.join(" or ");
            (!allowed.contains(&now))
                .then(|| format!("{object}: {}, expected {expected}", text(&now)))
        });
        wrong.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: &str) -> State {
        Some(text.into())
    }

    fn history() -> History {
        let mut history = History::default();
        history.begin("image a", state("one"), 10);
        history.answered("image a", 20);
        history.begin("image a", state("two"), 30);
        history.answered("image a", 40);
        history.begin("image a", None, 50);
        history.or("image a", state("three"));
        history
    }

    #[test]
    fn what_was_answered_must_be_there_and_what_was_begun_may_be() {
        let history = history();
        let allowed = |at| history.allowed("image a", at);
        assert_eq!(allowed(9), [None]);
        assert_eq!(allowed(15), [None, state("one")]);
        assert_eq!(allowed(20), [state("one")]);
        assert_eq!(allowed(35), [state("one"), state("two")]);
        assert_eq!(allowed(60), [state("two"), None, state("three")]);
        assert_eq!(history.answers("image "), [20, 40]);
        assert!(history.answers("container ").is_empty());
        assert_eq!(history.answered_by(39), 1);
    }

    #[test]
    fn a_lost_a_stale_and_an_invented_object_are_named() {
        let history = history();
        let found = |states: &[(&str, &str)]| {
            let pairs = states.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            history.contradictions(45, &pairs.collect())
        };
        assert_eq!(found(&[("image a", "two")]), Vec::<String>::new());
        assert_eq!(found(&[]), ["image a: absent, expected two"]);
        assert_eq!(found(&[("image a", "one")]), ["image a: one, expected two"]);
        let invented = found(&[("image a", "two"), ("image b", "one")]);
        assert_eq!(invented, ["image b: one, expected absent"]);
    }
}
