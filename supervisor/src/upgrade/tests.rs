use super::*;
use crate::samples::id;
use proptest::prelude::*;

const READY: Duration = Duration::from_secs(15);

/// What becomes of a process that is started from the new build.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Good,
    Refuses,
    Hangs,
    /// Becomes ready and ends before it is trusted.
    Falls,
    /// Is killed from outside so often, then good.
    Killed(u32),
    /// Was stopped by a user before.
    Stopped,
}

struct World {
    fates: Vec<Fate>,
    kills: Vec<u32>,
    conditions: Vec<Condition>,
    builds: Vec<Build>,
    done: Vec<Output>,
    now: Duration,
}

impl View for World {
    fn condition(&self, process: usize) -> Condition {
        self.conditions[process].clone()
    }
    fn name(&self, process: usize) -> String {
        format!("p{process}/x")
    }
    fn cause(&self, _: usize) -> String {
        "it does not start: no".into()
    }
    fn has_answered(&self, _: usize, _: Duration) -> bool {
        true
    }
    fn was_killed(&self, process: usize) -> bool {
        self.kills[process] > 0
    }
}

impl World {
    fn new(fates: &[Fate]) -> Self {
        let begins = |fate: &Fate| match fate {
            Fate::Stopped => Condition::Down,
            _ => Condition::Up,
        };
        Self {
            kills: vec![0; fates.len()],
            conditions: fates.iter().map(begins).collect(),
            builds: vec![Build::Old; fates.len()],
            fates: fates.to_vec(),
            done: Vec::new(),
            now: Duration::ZERO,
        }
    }

    fn obey(&mut self, output: Output) {
        match &output {
            Output::Hold(process, ..) => self.conditions[*process] = Condition::Held,
            Output::Assign(process, build) => self.builds[*process] = *build,
            Output::Release(process) => self.release(*process),
            Output::Trust(_) => {}
        }
        self.done.push(output);
    }

    fn release(&mut self, process: usize) {
        let (fate, build) = (self.fates[process], self.builds[process]);
        self.conditions[process] = match (build, fate) {
            (Build::New, Fate::Refuses) => Condition::Held,
            (Build::New, Fate::Hangs) => Condition::Other,
            (Build::New, Fate::Killed(times)) if self.kills[process] < times => {
                self.kills[process] += 1;
                Condition::Held
            }
            _ => Condition::Up,
        };
    }

    /// Runs to the end; never may two processes be away at once.
    fn run(&mut self) -> Upgrade {
        let step = |process| Step::new(process, vec![id(&format!("p{process}/x"))], Halt::Drain);
        let steps = (0..self.fates.len()).map(step).collect();
        let mut machine = Upgrade::new(steps, READY, self.now);
        for _ in 0..10_000 {
            let outputs = machine.advance(self, self.now);
            if outputs.is_empty() {
                self.pass(&machine);
            }
            outputs.into_iter().for_each(|output| self.obey(output));
            if machine.is_over() {
                return machine;
            }
            let away = |c: &&Condition| !matches!(c, Condition::Up | Condition::Down);
            assert!(self.conditions.iter().filter(away).count() <= 1);
        }
        panic!("never over: {machine:?}");
    }

    fn pass(&mut self, machine: &Upgrade) {
        self.now += Duration::from_millis(100);
        if let (Phase::Settling { .. }, Some(present)) = (machine.phase, machine.present())
            && self.fates[present] == Fate::Falls
        {
            self.conditions[present] = Condition::Held;
        }
    }

    fn released(&self) -> Vec<usize> {
        let released = self.done.iter().filter_map(|output| match output {
            Output::Release(process) => Some(*process),
            _ => None,
        });
        released.collect()
    }
}

fn words(machine: &Upgrade) -> Vec<String> {
    machine.steps().into_iter().map(|s| s.phase).collect()
}

#[test]
fn every_process_moves_in_order_and_is_trusted() {
    let mut world = World::new(&[Fate::Good; 3]);
    let machine = world.run();
    assert_eq!(machine.state(), UpgradeState::Done);
    assert_eq!(world.released(), [0, 1, 2]);
    assert_eq!(world.builds, [Build::New; 3]);
    assert_eq!(words(&machine), ["ready"; 3]);
    let trusted = world.done.iter().filter(|o| matches!(o, Output::Trust(_)));
    assert_eq!(trusted.count(), 3);
}

#[test]
fn a_build_that_does_not_run_is_left_in_reverse_order() {
    for fate in [Fate::Refuses, Fate::Hangs, Fate::Falls, Fate::Killed(9)] {
        let mut world = World::new(&[Fate::Good, Fate::Stopped, Fate::Good, fate, Fate::Good]);
        let machine = world.run();
        assert_eq!(machine.state(), UpgradeState::RolledBack, "{fate:?}");
        assert_eq!(world.builds, [Build::Old; 5]);
        let released = world.released();
        assert_eq!(released[released.len() - 3..], [3, 2, 0], "{fate:?}");
        let back = "rolled_back";
        assert_eq!(words(&machine), [back, back, back, back, "waiting"]);
        assert!(machine.cause().starts_with("plugin p3/x: "));
    }
}

#[test]
fn what_hangs_is_given_up_before_callers_lose_patience() {
    let mut world = World::new(&[Fate::Hangs]);
    let machine = world.run();
    assert!(world.now < Duration::from_secs(20), "{:?}", world.now);
    assert!(machine.cause().contains("within 15 s"));
    let killed = |o: &Output| matches!(o, Output::Hold(0, Halt::Kill, _));
    assert!(world.done.iter().any(killed));
}

#[test]
fn a_kill_from_outside_is_no_fault_of_the_build() {
    let mut world = World::new(&[Fate::Good, Fate::Killed(2)]);
    assert_eq!(world.run().state(), UpgradeState::Done);
    assert_eq!(world.builds, [Build::New; 2]);
}

#[test]
fn what_is_not_up_is_prepared_and_not_started() {
    let mut world = World::new(&[Fate::Stopped, Fate::Good]);
    let machine = world.run();
    assert_eq!(words(&machine), ["prepared", "ready"]);
    assert_eq!(world.released(), [1]);
    assert_eq!(world.builds, [Build::New; 2]);
}

#[test]
fn who_restarts_when_its_turn_comes_is_waited_for() {
    let mut world = World::new(&[Fate::Good]);
    world.conditions[0] = Condition::Other;
    let step = Step::new(0, vec![id("a/x")], Halt::Drain);
    let mut machine = Upgrade::new(vec![step], READY, world.now);
    assert!(machine.advance(&world, world.now).is_empty());
    world.conditions[0] = Condition::Up;
    let outputs = machine.advance(&world, world.now);
    assert!(matches!(outputs[..], [Output::Hold(0, Halt::Drain, _)]));
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Good),
        1 => Just(Fate::Refuses),
        1 => Just(Fate::Hangs),
        1 => Just(Fate::Falls),
        1 => (0..5_u32).prop_map(Fate::Killed),
        1 => Just(Fate::Stopped),
    ]
}

proptest! {
    #[test]
    fn in_the_end_all_run_one_build(fates in proptest::collection::vec(fate(), 1..8)) {
        let mut world = World::new(&fates);
        let machine = world.run();
        let build = match machine.state() {
            UpgradeState::Done => Build::New,
            _ => Build::Old,
        };
        prop_assert!(world.builds.iter().all(|b| *b == build));
        let good = |f: &Fate| matches!(f, Fate::Good | Fate::Stopped | Fate::Killed(0..=2));
        prop_assert_eq!(machine.state() == UpgradeState::Done, fates.iter().all(good));
        for (fate, condition) in fates.iter().zip(&world.conditions) {
            let wanted = if *fate == Fate::Stopped { Condition::Down } else { Condition::Up };
            prop_assert_eq!(condition.clone(), wanted);
        }
    }
}
