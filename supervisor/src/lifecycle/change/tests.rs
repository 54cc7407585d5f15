use super::super::Input;
use super::*;
use crate::samples::{graph, id, spec};
use contracts::{
    Error,
    plugin::{PluginSpec, State},
};

const NOW: Duration = Duration::from_secs(1);

/// `a` requires `b`; both run.
fn running() -> Lifecycle {
    let mut machine = of(&[spec("a/x", &["b"]), spec("b/x", &[])]);
    machine.handle(Input::Begin, NOW);
    comes_up(&mut machine, 1, "b/x");
    comes_up(&mut machine, 0, "a/x");
    machine
}

fn of(specs: &[PluginSpec]) -> Lifecycle {
    let policy = Policy::default();
    let timing = Timing {
        probe: Duration::ZERO,
        ..Timing::default()
    };
    let alone = alone(specs);
    Lifecycle::new(graph(specs), &alone, policy, timing, Box::new(|| 1.0))
}

fn alone(specs: &[PluginSpec]) -> Vec<Vec<PluginId>> {
    specs.iter().map(|s| vec![s.id.clone()]).collect()
}

fn comes_up(machine: &mut Lifecycle, process: usize, plugin: &str) {
    machine.handle(Input::Hello(process), NOW);
    machine.handle(Input::Ready(id(plugin)), NOW);
    assert_eq!(machine.condition(process), Condition::Up);
}

fn hold(process: usize, halt: Halt) -> Input {
    let why = "it is replaced".into();
    Input::Hold { process, why, halt }
}

fn told(outputs: &[Output]) -> Vec<State> {
    let notices = outputs.iter().filter_map(|o| match o {
        Output::Notify { standing, .. } => Some(standing.state),
        _ => None,
    });
    notices.collect()
}

#[test]
fn what_is_held_drains_stays_down_and_starts_when_released_while_its_callers_wait() {
    let mut machine = running();
    let outputs = machine.handle(hold(1, Halt::Drain), NOW);
    assert!(outputs.contains(&Output::Stop(1)));
    assert_eq!(told(&outputs), [State::Starting]);
    assert_eq!(machine.condition(1), Condition::Other);
    let outputs = machine.handle(Input::Exited(1, "exit code 0".into()), NOW);
    assert!(!outputs.contains(&Output::Spawn(1)));
    assert_eq!(machine.condition(1), Condition::Held);
    assert_eq!(machine.next_due(), None);
    let outputs = machine.handle(Input::Release(1), NOW);
    assert!(outputs.contains(&Output::Spawn(1)));
    comes_up(&mut machine, 1, "b/x");
    assert_eq!(machine.standing(&id("a/x")).state, State::Ready);
}

#[test]
fn a_trial_that_fails_is_held_and_callers_are_never_told_of_a_failure() {
    let ends: [fn() -> Vec<Input>; 3] = [
        || {
            let refusal = Input::Refused(id("b/x"), Error::internal("no"));
            vec![refusal, Input::Exited(1, "exit code 1".into())]
        },
        || vec![Input::Exited(1, "exit code 1".into())],
        || vec![Input::NotSpawned(1, "no such file".into())],
    ];
    for ends in ends {
        let mut machine = running();
        machine.handle(hold(1, Halt::Kill), NOW);
        machine.handle(Input::Exited(1, "signal 9".into()), NOW);
        machine.handle(Input::Release(1), NOW);
        let heard: Vec<_> = ends()
            .into_iter()
            .flat_map(|input| told(&machine.handle(input, NOW)))
            .collect();
        assert!(heard.iter().all(|s| *s == State::Starting), "{heard:?}");
        assert_eq!(machine.condition(1), Condition::Held);
        assert!(!machine.cause(1).is_empty());
    }
}

#[test]
fn who_is_trusted_is_started_again_after_a_crash() {
    let mut machine = running();
    machine.handle(hold(1, Halt::Kill), NOW);
    machine.handle(Input::Exited(1, "signal 9".into()), NOW);
    machine.handle(Input::Release(1), NOW);
    comes_up(&mut machine, 1, "b/x");
    machine.handle(Input::Trust(1), NOW);
    machine.handle(Input::Exited(1, "signal 9".into()), NOW);
    assert_eq!(machine.condition(1), Condition::Other);
    assert!(machine.next_due().is_some());
}

#[test]
fn who_retires_makes_room_at_once() {
    let mut machine = running();
    let outputs = machine.handle(hold(0, Halt::Retire), NOW);
    assert!(outputs.contains(&Output::Retire(0)));
    assert_eq!(machine.condition(0), Condition::Held);
    let outputs = machine.handle(Input::Release(0), NOW);
    assert!(outputs.contains(&Output::Spawn(0)));
}

#[test]
fn another_plan_leaves_alone_what_is_hosted_as_before() {
    let mut machine = running();
    let specs = [spec("b/x", &[]), spec("c/x", &["b"])];
    machine.handle(hold(0, Halt::Drain), NOW);
    machine.handle(Input::Exited(0, "exit code 0".into()), NOW);
    let processes = [vec![id("c/x")], vec![id("b/x")]];
    machine.replan(
        graph(&specs),
        &processes,
        Policy::default(),
        Timing::default(),
    );
    assert_eq!(machine.condition(0), Condition::Held);
    assert_eq!(machine.condition(1), Condition::Up);
    assert_eq!(machine.process_of(&id("a/x")), None);
    let outputs = machine.handle(Input::Release(0), NOW);
    let wire = Output::Wire {
        caller: id("c/x"),
        peer: id("b/x"),
    };
    assert!(outputs.contains(&Output::Spawn(0)) && outputs.contains(&wire));
    comes_up(&mut machine, 0, "c/x");
}

#[test]
fn a_shutdown_does_not_wait_for_what_is_held() {
    let mut machine = running();
    machine.handle(hold(0, Halt::Drain), NOW);
    machine.handle(Input::Exited(0, "exit code 0".into()), NOW);
    let outputs = machine.handle(Input::Shutdown, NOW);
    assert!(outputs.contains(&Output::Stop(1)));
    machine.handle(Input::Release(0), NOW);
    let outputs = machine.handle(Input::Exited(1, "exit code 0".into()), NOW);
    assert!(outputs.contains(&Output::Finished));
}
