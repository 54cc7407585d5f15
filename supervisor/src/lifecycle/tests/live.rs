//! The live graph: six plugins that start in any order, late, crash, refuse, are stopped and go on, in any order of
//! events. At every moment exactly those are degraded whose requirements do not answer, and in the end all are ready.

use super::*;

const MOMENT: Duration = Duration::from_millis(100);

/// Processes that do what the machine says, as far as the test lets them.
struct Live {
    machine: Lifecycle,
    specs: Vec<PluginSpec>,
    now: Duration,
    processes: Vec<Simulated>,
    /// What is on its way to the machine: of which process, in which life.
    mail: Vec<(usize, u32, Input)>,
}

#[derive(Clone, Default)]
struct Simulated {
    life: u32,
    alive: bool,
    answering: bool,
    stopped: bool,
    /// Whether it has ended, which the machine is about to hear.
    dying: bool,
    /// Whether it was stopped and has not been heard of since.
    unheard: bool,
    /// A question that it will answer when it goes on.
    asked: Option<u64>,
    refusals: u32,
    /// How often it ended for a reason of its own.
    failures: u32,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requires = self.specs.iter().map(|s| (s.id.as_str(), &s.requires));
        f.debug_map().entries(requires).finish()
    }
}

impl Live {
    fn new(specs: Vec<PluginSpec>, refusals: &[u32]) -> Self {
        let alone: Vec<_> = specs.iter().map(|s| vec![s.id.clone()]).collect();
        let (policy, timing) = (Policy::default(), Timing::default());
        let machine = Lifecycle::new(graph(&specs), &alone, policy, timing, Box::new(|| 1.0));
        let simulated = |&refusals: &u32| Simulated {
            refusals,
            ..Simulated::default()
        };
        Self {
            machine,
            specs,
            now: NOW,
            processes: refusals.iter().map(simulated).collect(),
            mail: Vec::new(),
        }
    }

    fn index(&self, plugin: &PluginId) -> usize {
        self.specs.iter().position(|s| s.id == *plugin).unwrap()
    }

    fn feed(&mut self, input: Input) {
        for output in self.machine.handle(input, self.now) {
            self.obey(output);
        }
        self.check();
    }

    fn post(&mut self, at: usize, input: Input) {
        self.mail.push((at, self.processes[at].life, input));
    }

    fn obey(&mut self, output: Output) {
        match output {
            Output::Spawn(at) => {
                let process = &mut self.processes[at];
                assert!(!process.alive, "two processes for one slot");
                *process = Simulated {
                    life: process.life + 1,
                    alive: true,
                    refusals: process.refusals,
                    failures: process.failures,
                    ..Simulated::default()
                };
                assert!(
                    process.life <= 1 + process.failures,
                    "started again although it did not fail"
                );
                self.post(at, Input::Hello(at));
            }
            Output::Start(plugin) => self.start(&plugin),
            Output::Ping(at, number) => {
                let process = &mut self.processes[at];
                assert!(process.answering && process.asked.is_none(), "asked twice");
                match (process.dying, process.stopped) {
                    (true, _) => {}
                    (_, true) => process.asked = Some(number),
                    (_, false) => self.post(at, Input::Pong(at, number)),
                }
            }
            Output::Kill(at) if self.processes[at].alive => {
                assert!(self.processes[at].unheard || !self.processes[at].answering);
                self.die(at, "signal 9");
            }
            _ => {}
        }
    }

    fn start(&mut self, plugin: &PluginId) {
        let at = self.index(plugin);
        let input = match self.processes[at].refusals.checked_sub(1) {
            Some(left) => {
                self.processes[at].refusals = left;
                self.post(
                    at,
                    Input::Refused(plugin.clone(), Error::internal("not yet")),
                );
                Input::Exited(at, "exit code 1".into())
            }
            None => Input::Ready(plugin.clone()),
        };
        self.post(at, input);
    }

    fn die(&mut self, at: usize, how: &str) {
        let process = &mut self.processes[at];
        (process.stopped, process.unheard, process.dying) = (false, true, true);
        process.asked = None;
        self.mail.retain(|(of, ..)| *of != at);
        self.post(at, Input::Exited(at, how.into()));
    }

    /// Delivers one thing that a process said; a stopped one says nothing.
    fn deliver(&mut self, choice: usize) -> bool {
        let speaking = |(_, (at, ..)): &(usize, &(usize, u32, Input))| !self.processes[*at].stopped;
        let open: Vec<usize> = self
            .mail
            .iter()
            .enumerate()
            .filter(speaking)
            .map(|(i, _)| i)
            .collect();
        let Some(&chosen) = open.get(choice % open.len().max(1)) else {
            return false;
        };
        let of = self.mail[chosen].0;
        let first = self.mail.iter().position(|m| m.0 == of).unwrap();
        let (at, life, input) = self.mail.remove(first);
        let process = &mut self.processes[at];
        if life != process.life || !process.alive {
            return true;
        }
        match &input {
            Input::Exited(..) => {
                process.alive = false;
                process.answering = false;
                process.failures += 1;
            }
            Input::Ready(_) => process.answering = true,
            Input::Pong(..) => process.unheard = process.stopped,
            Input::Refused(..) => process.answering = false,
            _ => {}
        }
        self.feed(input);
        true
    }

    /// Answers to questions are quick; everything else takes as long as the test wants.
    fn answer(&mut self) {
        while let Some(at) = self.mail.iter().position(|(at, _, input)| {
            matches!(input, Input::Pong(..)) && !self.processes[*at].stopped
        }) {
            let (at, life, input) = self.mail.remove(at);
            if life == self.processes[at].life {
                self.processes[at].unheard = false;
                self.feed(input);
            }
        }
    }

    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        self.answer();
        while let Some(due) = self.machine.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.feed(Input::Tick);
            self.answer();
        }
        self.now = end;
    }

    fn stop(&mut self, at: usize) {
        self.processes[at].stopped = true;
        self.processes[at].unheard = true;
    }

    fn go_on(&mut self, at: usize) {
        self.processes[at].stopped = false;
        if let Some(number) = self.processes[at].asked.take() {
            self.post(at, Input::Pong(at, number));
        }
    }

    fn disturb(&mut self, kind: u8, choice: usize) {
        let at = choice % self.specs.len();
        match kind {
            0..=4 => drop(self.deliver(choice)),
            5 if self.processes[at].alive && !self.processes[at].dying => self.die(at, "signal 11"),
            6 if self.processes[at].alive && !self.processes[at].dying => self.stop(at),
            7 => self.go_on(at),
            8 => self.pass(MOMENT * (choice as u32 % 40)),
            9 => {
                // An answer that nobody asked for.
                let choice = u64::MAX - choice as u64;
                self.feed(Input::Pong(at, choice));
            }
            _ => {}
        }
    }

    fn settle(&mut self) {
        for at in 0..self.specs.len() {
            self.go_on(at);
        }
        for _ in 0..300 {
            while self.deliver(0) {}
            if self
                .specs
                .iter()
                .all(|s| self.stands(&s.id) == State::Ready)
            {
                return;
            }
            self.pass(Duration::from_secs(1));
        }
        panic!("the graph does not settle: {:?}", self.machine.standings);
    }

    fn stands(&self, plugin: &PluginId) -> State {
        self.machine.standing(plugin).state
    }

    /// What must hold at every moment.
    fn check(&self) {
        for spec in &self.specs {
            let standing = self.machine.standing(&spec.id);
            let process = &self.processes[self.index(&spec.id)];
            let graph = &self.machine.graph;
            let well = graph
                .requires(&spec.id)
                .all(|r| self.stands(r) == State::Ready);
            match standing.state {
                State::Ready => assert!(well && process.answering, "{} is not ready", spec.id),
                State::Degraded if standing.chain.len() == 1 => {
                    assert!(process.unheard && standing.cause.starts_with("it does not answer"));
                }
                State::Degraded => assert!(!well && process.answering, "{} is well", spec.id),
                _ => assert!(!process.answering || !process.alive || self.is_ending(&spec.id)),
            }
            self.check_chain(&spec.id, &standing);
        }
    }

    fn is_ending(&self, plugin: &PluginId) -> bool {
        self.machine.is_settling(plugin)
    }

    fn check_chain(&self, plugin: &PluginId, standing: &Standing) {
        let Some(culprit) = standing.chain.last() else {
            return;
        };
        assert_eq!(standing.chain.first(), Some(plugin));
        for pair in standing.chain.windows(2) {
            let mut requires = self.machine.graph.requires(&pair[0]);
            assert!(requires.any(|r| *r == pair[1]), "{:?}", standing.chain);
        }
        assert_ne!(self.stands(culprit), State::Ready, "{:?}", standing.chain);
    }
}

/// `f` requires `e` and `d`; `e` requires `c`; `d` requires `b` and `c`; `b` requires `a`.
fn six() -> Vec<PluginSpec> {
    vec![
        spec("a/x", &[]),
        spec("b/x", &["a"]),
        spec("c/x", &[]),
        spec("d/x", &["b", "c"]),
        spec("e/x", &["c"]),
        spec("f/x", &["d", "e"]),
    ]
}

fn permutations(items: Vec<usize>) -> Vec<Vec<usize>> {
    if items.len() <= 1 {
        return vec![items];
    }
    let first = |at: usize| {
        let mut rest = items.clone();
        let chosen = rest.remove(at);
        let rest = permutations(rest).into_iter();
        rest.map(move |rest| [vec![chosen], rest].concat())
    };
    (0..items.len()).flat_map(first).collect()
}

#[test]
fn in_each_of_720_orders_of_arrival_the_same_graph_gets_ready_and_nobody_is_started_twice() {
    for order in permutations((0..6).collect()) {
        let mut live = Live::new(six(), &[0; 6]);
        live.feed(Input::Begin);
        // Round after round the first in the order that has something to say says it.
        while !live.mail.is_empty() {
            let next = order
                .iter()
                .find(|at| live.mail.iter().any(|m| m.0 == **at));
            let next = *next.unwrap();
            let at = live.mail.iter().position(|m| m.0 == next).unwrap();
            live.deliver(at);
        }
        assert!(
            live.specs
                .iter()
                .all(|s| live.stands(&s.id) == State::Ready)
        );
        assert!(live.processes.iter().all(|p| p.life == 1));
    }
}

#[test]
fn who_is_stopped_degrades_exactly_its_dependants_within_two_seconds_and_is_ready_when_it_goes_on()
{
    for at in 0..6 {
        let mut live = Live::new(six(), &[0; 6]);
        live.feed(Input::Begin);
        live.settle();
        live.pass(Duration::from_secs(5));
        live.stop(at);
        live.pass(Duration::from_secs(2));
        let stopped = live.specs[at].id.clone();
        let dependants = live.machine.graph.dependants(&stopped);
        for spec in &live.specs {
            let degraded = spec.id == stopped || dependants.contains(&spec.id);
            let expected = if degraded {
                State::Degraded
            } else {
                State::Ready
            };
            assert_eq!(live.stands(&spec.id), expected, "{} of {stopped}", spec.id);
            let chain = live.machine.standing(&spec.id).chain;
            assert_eq!(chain.last(), degraded.then_some(&stopped));
        }
        live.go_on(at);
        live.answer();
        assert!(
            live.specs
                .iter()
                .all(|s| live.stands(&s.id) == State::Ready)
        );
        assert!(live.processes.iter().all(|p| p.life == 1));
    }
}

#[test]
fn who_stays_silent_is_killed_and_its_successor_is_ready() {
    let mut live = Live::new(six(), &[0; 6]);
    live.feed(Input::Begin);
    live.settle();
    live.stop(2);
    live.pass(Timing::default().kill);
    assert!(
        live.mail
            .iter()
            .any(|m| matches!(&m.2, Input::Exited(2, _)))
    );
    live.settle();
    let lives: Vec<_> = live.processes.iter().map(|p| p.life).collect();
    assert_eq!(lives, [1, 1, 2, 1, 1, 1]);
    assert_eq!(
        live.machine.last_exit(&id("c/x")),
        "it did not answer for 10 s and was killed"
    );
}

#[test]
fn a_supervisor_that_was_stopped_itself_blames_nobody() {
    let mut live = Live::new(six(), &[0; 6]);
    live.feed(Input::Begin);
    live.settle();
    live.pass(Duration::from_secs(3));
    // In the middle of a round: questions are asked, and their answers lie unread for a minute.
    let due = live.machine.next_due().unwrap();
    live.now = due;
    live.feed(Input::Tick);
    assert!(live.mail.iter().any(|m| matches!(m.2, Input::Pong(..))));
    live.now += Duration::from_secs(60);
    live.feed(Input::Tick);
    assert!(
        live.specs
            .iter()
            .all(|s| live.stands(&s.id) == State::Ready)
    );
    live.answer();
    live.pass(Duration::from_secs(20));
    assert!(live.processes.iter().all(|p| p.life == 1));
}

#[test]
fn a_start_that_never_ends_is_ended() {
    let mut machine = machine(&[spec("a/x", &[])]);
    machine.handle(Input::Begin, NOW);
    machine.handle(Input::Hello(0), NOW);
    let patience = machine.next_due().unwrap();
    assert!(
        !machine
            .handle(Input::Tick, patience)
            .contains(&Output::Kill(0))
    );
    let due = machine.next_due().unwrap();
    assert_eq!(due, NOW + Timing::default().start);
    assert!(machine.handle(Input::Tick, due).contains(&Output::Kill(0)));
    machine.handle(Input::Exited(0, "signal 9".into()), due);
    assert_eq!(
        machine.last_exit(&id("a/x")),
        "it was not ready after 600 s and was killed"
    );
}

#[test]
fn who_dies_as_soon_as_it_is_ready_is_tried_ever_more_rarely_and_hurts_only_its_dependants() {
    let mut live = Live::new(six(), &[0; 6]);
    live.feed(Input::Begin);
    live.settle();
    let began = live.now;
    let mut lives = 0;
    while live.now < began + Duration::from_secs(600) {
        while live.deliver(0) {}
        if live.processes[0].answering {
            lives += 1;
            live.die(0, "signal 11");
            live.deliver(0);
        }
        for plugin in ["c/x", "e/x"] {
            assert_eq!(live.stands(&id(plugin)), State::Ready);
        }
        live.pass(MOMENT);
    }
    // Ten in the first half minute, then one a minute.
    assert!((12..=24).contains(&lives), "{lives} lives in ten minutes");
    assert_eq!(live.machine.exits(&id("a/x")).len(), 8);
    assert!(live.processes[1..].iter().all(|p| p.life == 1));
}

#[test]
fn last_words_are_the_cause_of_the_end_and_the_clock_on_the_wall_tells_when() {
    let mut machine = running();
    let wall: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
    machine.set_clock(wall, NOW);
    let words = "panicked at services/x/src/y.rs:12:3: no".to_owned();
    machine.handle(Input::LastWords(1, words.clone()), NOW);
    let later = NOW + Duration::from_secs(1);
    machine.handle(Input::Exited(1, "signal 6 (SIGABRT)".into()), later);
    let exit = Exit {
        at: wall.plus_seconds(1),
        how: words.clone(),
    };
    assert_eq!(machine.exits(&id("b/x")), [exit]);
    assert_eq!(machine.last_exit(&id("b/x")), words);
    let cause = machine.standing(&id("b/x")).cause;
    assert_eq!(cause, format!("it ended: {words}"));
}

fn rewired(outputs: &[Output]) -> usize {
    let wires = outputs.iter();
    wires.filter(|o| matches!(o, Output::Wire { .. })).count()
}

#[test]
fn a_broken_link_is_made_anew_once_for_both_ends_and_ever_more_rarely_when_it_breaks_again() {
    let mut machine = running();
    let break_it = |machine: &mut Lifecycle, now| {
        for (plugin, peer) in [("a/x", "b/x"), ("b/x", "a/x")] {
            let (plugin, peer) = (id(plugin), id(peer));
            assert_eq!(
                rewired(&machine.handle(Input::Broken { plugin, peer }, now)),
                0
            );
        }
    };
    let (mut now, mut pauses) = (NOW + Duration::from_secs(100), Vec::new());
    for _ in 0..12 {
        break_it(&mut machine, now);
        let due = machine.next_due().unwrap();
        pauses.push(due - now);
        let outputs = machine.handle(Input::Tick, due);
        assert_eq!(rewired(&outputs), 1, "{outputs:?}");
        assert!(
            !outputs
                .iter()
                .any(|o| matches!(o, Output::Kill(_) | Output::Spawn(_)))
        );
        now = due;
    }
    assert!(pauses[0] <= Duration::from_millis(50), "{pauses:?}");
    assert!(pauses[11] >= Duration::from_secs(30), "{pauses:?}");
}

#[test]
fn a_link_that_broke_because_its_peer_died_is_left_to_the_successor() {
    let mut machine = running();
    let broken = || Input::Broken {
        plugin: id("a/x"),
        peer: id("b/x"),
    };
    machine.handle(broken(), NOW);
    machine.handle(Input::Exited(1, "signal 9".into()), NOW);
    let due = machine.next_due().unwrap();
    // The fresh process gets its two links, and no third.
    let outputs = machine.handle(Input::Tick, due + Duration::from_secs(1));
    assert_eq!(rewired(&outputs), 2, "{outputs:?}");
    let unknown = Input::Broken {
        plugin: id("a/x"),
        peer: id("c/x"),
    };
    assert!(
        machine
            .handle(unknown, due + Duration::from_secs(1))
            .is_empty()
    );
}

prop_compose! {
    fn lives()(rows in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 6), 6))
        (refusals in proptest::collection::vec(0u32..3, 6), rows in Just(rows)) -> Live {
        Live::new(specs_of(&rows), &refusals)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_of_troubles_exactly_the_dependants_suffer_and_all_are_ready_in_the_end(mut live in lives(), troubles in proptest::collection::vec((0u8..10, 0usize..100), 0..120)) {
        live.feed(Input::Begin);
        for (kind, choice) in troubles {
            live.disturb(kind, choice);
        }
        live.settle();
        for process in &live.processes {
            prop_assert_eq!(process.life, 1 + process.failures);
        }
    }
}
