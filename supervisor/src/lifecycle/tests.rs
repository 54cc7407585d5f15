//! The machine against a simulated world: processes that come, refuse, crash and hang in any order.

use super::*;
use crate::samples::{graph, id, spec};
use contracts::plugin::{PluginSpec, State};
use proptest::prelude::*;

mod live;

const NOW: Duration = Duration::from_secs(1);

fn machine(specs: &[PluginSpec]) -> Lifecycle {
    let alone: Vec<_> = specs.iter().map(|s| vec![s.id.clone()]).collect();
    shared(specs, &alone)
}

fn shared(specs: &[PluginSpec], processes: &[Vec<PluginId>]) -> Lifecycle {
    let (policy, timing) = (Policy::default(), unprobed());
    Lifecycle::new(graph(specs), processes, policy, timing, Box::new(|| 1.0))
}

/// These processes do not answer questions.
fn unprobed() -> Timing {
    Timing {
        probe: Duration::ZERO,
        ..Timing::default()
    }
}

/// `a` requires `b` requires `c`; processes 0, 1, 2. All hellos are said.
fn chain() -> Lifecycle {
    let specs = [spec("a/x", &["b"]), spec("b/x", &["c"]), spec("c/x", &[])];
    let mut machine = machine(&specs);
    machine.handle(Input::Begin, NOW);
    for process in 0..3 {
        machine.handle(Input::Hello(process), NOW);
    }
    machine
}

fn running() -> Lifecycle {
    let mut machine = chain();
    for plugin in ["c/x", "b/x", "a/x"] {
        machine.handle(Input::Ready(id(plugin)), NOW);
    }
    machine
}

fn state(machine: &Lifecycle, plugin: &str) -> State {
    machine.standing(&id(plugin)).state
}

fn starts(outputs: &[Output]) -> Vec<&str> {
    let start = |o: &'_ Output| matches!(o, Output::Start(_));
    outputs
        .iter()
        .filter(|o| start(o))
        .map(|o| match o {
            Output::Start(plugin) => plugin.as_str(),
            _ => "",
        })
        .collect()
}

#[test]
fn all_processes_are_spawned_at_once_and_every_edge_is_wired_once() {
    let specs = [spec("a/x", &["b", "supervisor"]), spec("b/x", &[])];
    let outputs = machine(&specs).handle(Input::Begin, NOW);
    let wire = |caller, peer| Output::Wire {
        caller: id(caller),
        peer: id(peer),
    };
    assert!(outputs.contains(&Output::Spawn(0)) && outputs.contains(&Output::Spawn(1)));
    assert!(outputs.contains(&wire("a/x", "b/x")));
    assert!(outputs.contains(&wire("a/x", SUPERVISOR)));
    let wires = outputs.iter().filter(|o| matches!(o, Output::Wire { .. }));
    assert_eq!(wires.count(), 2);
}

#[test]
fn a_plugin_starts_when_what_it_requires_is_ready() {
    let mut machine = chain();
    assert_eq!(state(&machine, "a/x"), State::Pending);
    assert_eq!(machine.standing(&id("a/x")).chain.last(), Some(&id("c/x")));
    assert_eq!(state(&machine, "c/x"), State::Starting);
    let outputs = machine.handle(Input::Ready(id("c/x")), NOW);
    assert_eq!(starts(&outputs), ["b/x"]);
    let outputs = machine.handle(Input::Ready(id("b/x")), NOW);
    assert_eq!(starts(&outputs), ["a/x"]);
    machine.handle(Input::Ready(id("a/x")), NOW);
    assert_eq!(state(&machine, "a/x"), State::Ready);
    assert_eq!(machine.next_due(), None);
}

#[test]
fn a_refusal_leaves_dependants_degraded_with_cause_and_chain_and_others_untouched() {
    let specs = [spec("a/x", &["b"]), spec("b/x", &[]), spec("z/x", &[])];
    let mut machine = machine(&specs);
    machine.handle(Input::Begin, NOW);
    for process in 0..3 {
        machine.handle(Input::Hello(process), NOW);
    }
    machine.handle(Input::Ready(id("z/x")), NOW);
    let refusal = Input::Refused(id("b/x"), Error::internal("store is damaged"));
    let outputs = machine.handle(refusal, NOW);
    assert_eq!(starts(&outputs), ["a/x"]);
    machine.handle(Input::Exited(1, "exit code 1".into()), NOW);
    machine.handle(Input::Ready(id("a/x")), NOW);
    let standing = machine.standing(&id("a/x"));
    assert_eq!(standing.state, State::Degraded);
    assert_eq!(
        standing.cause,
        "b/x is failed: it does not start: store is damaged"
    );
    assert_eq!(standing.chain, [id("a/x"), id("b/x")]);
    assert_eq!(state(&machine, "b/x"), State::Failed);
    assert_eq!(state(&machine, "z/x"), State::Ready);
    assert_eq!(machine.last_exit(&id("b/x")), "store is damaged");
}

#[test]
fn a_failed_plugin_stays_failed_while_it_is_tried_again_and_until_it_is_ready() {
    let mut machine = machine(&[spec("a/x", &["b"]), spec("b/x", &[])]);
    machine.handle(Input::Begin, NOW);
    machine.handle(Input::Hello(1), NOW);
    machine.handle(Input::Refused(id("b/x"), Error::internal("no")), NOW);
    machine.handle(Input::Exited(1, "exit code 1".into()), NOW);
    let due = machine.next_due().unwrap();
    let news = machine.handle(Input::Tick, due);
    assert!(news.contains(&Output::Spawn(1)));
    let news = machine.handle(Input::Hello(1), due);
    assert!(!news.iter().any(|o| matches!(o, Output::Changed(..))));
    assert_eq!(state(&machine, "b/x"), State::Failed);
    machine.handle(Input::Ready(id("b/x")), due);
    assert_eq!(state(&machine, "b/x"), State::Ready);
}

#[test]
fn a_crash_restarts_one_process_rewires_it_and_tells_its_callers() {
    let mut machine = running();
    let outputs = machine.handle(Input::Exited(1, "signal 9 (SIGKILL)".into()), NOW);
    let told = outputs.iter().any(|o| matches!(o, Output::Notify { caller, standing, .. } if caller.as_str() == "a/x" && standing.state == State::Backoff));
    assert!(told, "{outputs:?}");
    assert_eq!(state(&machine, "a/x"), State::Degraded);
    let due = machine.next_due().unwrap();
    assert!(due <= NOW + Duration::from_millis(50));

    let outputs = machine.handle(Input::Tick, due);
    let spawned: Vec<_> = outputs
        .iter()
        .filter(|o| matches!(o, Output::Spawn(_)))
        .collect();
    assert_eq!(spawned, [&Output::Spawn(1)]);
    let wires = outputs.iter().filter(|o| matches!(o, Output::Wire { .. }));
    assert_eq!(wires.count(), 2);

    machine.handle(Input::Hello(1), due);
    machine.handle(Input::Ready(id("b/x")), due);
    assert_eq!(state(&machine, "a/x"), State::Ready);
    assert_eq!(machine.restarts(&id("b/x")), 1);
    assert_eq!(machine.restarts(&id("a/x")), 0);
}

#[test]
fn a_stuck_requirement_holds_up_its_dependants_only_for_a_while() {
    let mut machine = chain();
    let due = machine.next_due().unwrap();
    assert_eq!(due, NOW + Timing::default().patience);
    let outputs = machine.handle(Input::Tick, due);
    assert_eq!(starts(&outputs), ["b/x"]);
    machine.handle(Input::Ready(id("b/x")), due);
    let standing = machine.standing(&id("b/x"));
    assert_eq!(
        (standing.state, standing.cause.as_str()),
        (State::Degraded, "c/x is starting")
    );
}

#[test]
fn a_process_without_hello_is_killed_and_counts_as_failed() {
    let mut machine = machine(&[spec("a/x", &[])]);
    machine.handle(Input::Begin, NOW);
    let due = machine.next_due().unwrap();
    let outputs = machine.handle(Input::Tick, due);
    assert!(outputs.contains(&Output::Kill(0)));
    assert_eq!(state(&machine, "a/x"), State::Backoff);
    machine.handle(Input::Exited(0, "signal 9 (SIGKILL)".into()), due);
    assert_eq!(
        machine.standing(&id("a/x")).cause,
        "it never said hello on its control link"
    );
}

#[test]
fn a_stopped_plugin_stays_down_until_a_user_starts_it() {
    let mut machine = running();
    let outputs = machine.handle(Input::Stop(id("b/x")), NOW);
    assert!(outputs.contains(&Output::Stop(1)) && machine.is_settling(&id("b/x")));
    machine.handle(Input::Exited(1, "exit code 0".into()), NOW);
    assert_eq!(state(&machine, "b/x"), State::Stopped);
    assert!(!machine.is_settling(&id("b/x")));
    assert_eq!(
        machine.standing(&id("a/x")).cause,
        "b/x is stopped: stopped by a user"
    );
    let later = NOW + Duration::from_secs(3600);
    assert!(machine.handle(Input::Tick, later).is_empty() && machine.next_due().is_none());
    let outputs = machine.handle(Input::Start(id("b/x")), later);
    assert!(outputs.contains(&Output::Spawn(1)));
}

#[test]
fn a_restart_waits_for_the_end_and_kills_what_does_not_end() {
    let mut machine = running();
    machine.handle(Input::Restart(id("c/x")), NOW);
    let due = machine.next_due().unwrap();
    assert_eq!(due, NOW + Timing::default().stop);
    assert!(machine.handle(Input::Tick, due).contains(&Output::Kill(2)));
    let outputs = machine.handle(Input::Exited(2, "signal 9 (SIGKILL)".into()), due);
    assert!(outputs.contains(&Output::Spawn(2)));
}

#[test]
fn plugins_of_one_process_share_its_fate_and_name_who_is_to_blame() {
    let specs = [spec("a/x", &["b"]), spec("b/x", &[])];
    let mut machine = shared(&specs, &[vec![id("a/x"), id("b/x")]]);
    machine.handle(Input::Begin, NOW);
    assert_eq!(starts(&machine.handle(Input::Hello(0), NOW)), ["b/x"]);
    machine.handle(Input::Ready(id("b/x")), NOW);
    machine.handle(
        Input::Refused(id("a/x"), Error::invalid("no such user")),
        NOW,
    );
    machine.handle(Input::Exited(0, "exit code 1".into()), NOW);
    let standing = machine.standing(&id("b/x"));
    assert_eq!(standing.state, State::Failed);
    assert_eq!(standing.chain, [id("b/x"), id("a/x")]);
}

#[test]
fn shutdown_stops_callers_first_and_then_is_finished() {
    let mut machine = running();
    let stops = |outputs: &[Output]| -> Vec<Output> {
        let stop = |o: &&Output| matches!(o, Output::Stop(_));
        outputs.iter().filter(stop).cloned().collect()
    };
    let outputs = machine.handle(Input::Shutdown, NOW);
    assert_eq!(stops(&outputs), [Output::Stop(0)]);
    for process in [0, 1] {
        let outputs = machine.handle(Input::Exited(process, "exit code 0".into()), NOW);
        assert_eq!(stops(&outputs), [Output::Stop(process + 1)]);
    }
    let outputs = machine.handle(Input::Exited(2, "exit code 0".into()), NOW);
    assert_eq!(outputs.last(), Some(&Output::Finished));
    assert_eq!(state(&machine, "c/x"), State::Stopped);
}

#[test]
fn a_second_shutdown_kills_at_once() {
    let mut machine = running();
    machine.handle(Input::Shutdown, NOW);
    let outputs = machine.handle(Input::Shutdown, NOW);
    for process in 0..3 {
        assert!(outputs.contains(&Output::Kill(process)), "{outputs:?}");
    }
}

/// What the machine's outputs would do, with events delivered in an order that the test chooses.
struct World {
    machine: Lifecycle,
    specs: Vec<PluginSpec>,
    now: Duration,
    generations: Vec<u32>,
    alive: Vec<bool>,
    /// Events on their way, each with the generation of its process.
    mail: Vec<(usize, u32, Input)>,
    refusals: Vec<u32>,
    chanced: BTreeSet<PluginId>,
    wired: BTreeMap<(PluginId, PluginId), (u32, u32)>,
    finished: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requires = self.specs.iter().map(|s| (s.id.as_str(), &s.requires));
        f.debug_map().entries(requires).finish()?;
        write!(f, " refusals {:?}", self.refusals)
    }
}

impl World {
    fn new(specs: Vec<PluginSpec>, refusals: Vec<u32>) -> Self {
        let count = specs.len();
        Self {
            machine: machine(&specs),
            specs,
            now: NOW,
            generations: vec![0; count],
            alive: vec![false; count],
            mail: Vec::new(),
            refusals,
            chanced: BTreeSet::new(),
            wired: BTreeMap::new(),
            finished: false,
        }
    }

    fn index(&self, plugin: &PluginId) -> usize {
        let mut ids = self.specs.iter().map(|s| &s.id);
        ids.position(|id| id == plugin).unwrap()
    }

    fn feed(&mut self, input: Input) {
        match &input {
            Input::Ready(plugin) | Input::Refused(plugin, _) | Input::Stop(plugin) => {
                self.chanced.insert(plugin.clone());
            }
            Input::Exited(process, _) => {
                self.chanced.insert(self.specs[*process].id.clone());
            }
            _ => {}
        }
        for output in self.machine.handle(input, self.now) {
            self.obey(output);
        }
    }

    fn obey(&mut self, output: Output) {
        match output {
            Output::Spawn(process) => {
                assert!(!self.alive[process], "two processes for one slot");
                self.alive[process] = true;
                self.generations[process] += 1;
                self.post(process, Input::Hello(process));
            }
            Output::Start(plugin) => self.start(&plugin),
            Output::Wire { caller, peer } => {
                let ends = [self.index(&caller), self.index(&peer)];
                assert!(ends.iter().all(|&p| self.alive[p]));
                let generations = (self.generations[ends[0]], self.generations[ends[1]]);
                self.wired.insert((caller, peer), generations);
            }
            Output::Stop(process) => {
                self.post(process, Input::Exited(process, "exit code 0".into()));
            }
            Output::Kill(process) if self.alive[process] => {
                self.post(process, Input::Exited(process, "signal 9".into()));
            }
            Output::Finished => self.finished = true,
            Output::Kill(_)
            | Output::Retire(_)
            | Output::Ping(..)
            | Output::Notify { .. }
            | Output::Changed(..) => {}
        }
    }

    fn start(&mut self, plugin: &PluginId) {
        let graph = self.machine.graph.clone();
        let patience_is_over = self.now >= NOW + Timing::default().patience;
        for requirement in graph.requires(plugin) {
            assert!(
                self.chanced.contains(requirement) || patience_is_over,
                "{plugin} before {requirement}"
            );
        }
        let process = self.index(plugin);
        match self.refusals[process].checked_sub(1) {
            Some(left) => {
                self.refusals[process] = left;
                self.post(
                    process,
                    Input::Refused(plugin.clone(), Error::internal("not yet")),
                );
                self.post(process, Input::Exited(process, "exit code 1".into()));
            }
            None => self.post(process, Input::Ready(plugin.clone())),
        }
    }

    fn post(&mut self, process: usize, input: Input) {
        let generation = self.generations[process];
        self.mail.push((process, generation, input));
    }

    /// Delivers one event; those of one process stay in order, as on its control link.
    fn deliver(&mut self, choice: usize) {
        if self.mail.is_empty() {
            return;
        }
        let process = self.mail[choice % self.mail.len()].0;
        let at = self.mail.iter().position(|m| m.0 == process).unwrap();
        let (process, generation, input) = self.mail.remove(at);
        if generation != self.generations[process] || !self.alive[process] {
            return;
        }
        if matches!(input, Input::Exited(..)) {
            self.alive[process] = false;
        }
        self.feed(input);
    }

    fn crash(&mut self, choice: usize) {
        let process = choice % self.specs.len();
        if self.alive[process] {
            self.alive[process] = false;
            self.feed(Input::Exited(process, "signal 11 (SIGSEGV)".into()));
        }
    }

    fn pass_time(&mut self) {
        if let Some(due) = self.machine.next_due() {
            self.now = self.now.max(due);
            self.feed(Input::Tick);
        }
    }

    fn disturb(&mut self, kind: u8, choice: usize) {
        let plugin = self.specs[choice % self.specs.len()].id.clone();
        match kind {
            0..=5 => self.deliver(choice),
            6 => self.crash(choice),
            7 => self.pass_time(),
            8 => self.feed(Input::Restart(plugin)),
            _ => {
                self.feed(Input::Stop(plugin.clone()));
                self.feed(Input::Start(plugin));
            }
        }
    }

    fn settle(&mut self) {
        for step in 0..5000 {
            match self.mail.is_empty() {
                false => self.deliver(step),
                true if self.machine.next_due().is_some() => self.pass_time(),
                true => return,
            }
        }
        panic!("the world does not settle");
    }
}

fn specs_of(rows: &[Vec<bool>]) -> Vec<PluginSpec> {
    let one = |(i, row): (usize, &Vec<bool>)| {
        let requires: Vec<_> = (0..i)
            .filter(|&j| row[j])
            .map(|j| format!("s{j:02}"))
            .collect();
        let requires: Vec<_> = requires.iter().map(String::as_str).collect();
        spec(&format!("s{i:02}/x"), &requires)
    };
    rows.iter().enumerate().map(one).collect()
}

prop_compose! {
    fn worlds()(rows in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 8), 1..8))
        (refusals in proptest::collection::vec(0u32..3, rows.len()), rows in Just(rows)) -> World {
        World::new(specs_of(&rows), refusals)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_whatever_order_everybody_is_ready_and_wired_in_the_end(mut world in worlds(), troubles in proptest::collection::vec((0u8..10, 0usize..100), 0..60)) {
        world.feed(Input::Begin);
        for (kind, choice) in troubles {
            world.disturb(kind, choice);
        }
        world.settle();
        for spec in &world.specs {
            prop_assert_eq!(world.machine.standing(&spec.id).state, State::Ready);
        }
        for (caller, peer) in world.machine.graph.edges() {
            let now = (world.generations[world.index(caller)], world.generations[world.index(peer)]);
            prop_assert_eq!(world.wired.get(&(caller.clone(), peer.clone())), Some(&now));
            prop_assert!(world.machine.told.get(&(caller.clone(), peer.clone())).is_some_and(|s| s.state == State::Ready));
        }
    }

    #[test]
    fn a_shutdown_at_any_moment_ends_with_no_process(mut world in worlds(), troubles in proptest::collection::vec((0u8..10, 0usize..100), 0..40)) {
        world.feed(Input::Begin);
        for (kind, choice) in troubles {
            world.disturb(kind, choice);
        }
        world.feed(Input::Shutdown);
        world.settle();
        prop_assert!(world.finished);
        prop_assert!(world.alive.iter().all(|alive| !alive));
    }
}
