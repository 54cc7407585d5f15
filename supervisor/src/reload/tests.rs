use super::*;
use crate::{
    lifecycle::{Condition, Halt},
    options::{Options, Overrides},
    samples::{id, spec},
    upgrade::View,
};
use std::time::Duration;

fn options(config: &str, manifest: &str) -> (tempfile::TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("g.toml");
    std::fs::write(&file, format!("version = 1\n{config}")).unwrap();
    let mut gc = spec("gc/x", &["collect"]);
    gc.defaults = r#"{"every":60,"keep":[]}"#.into();
    let mut content = spec("content/x", &[]);
    content.serves.push("collect".into());
    let mut leases = spec("leases/x", &[]);
    leases.serves.push("collect".into());
    let options = Options {
        specs: vec![gc, content, leases],
        manifests: vec![("default".into(), manifest.into())],
        config: Some(file),
        overrides: Overrides::default(),
        exe: "/x".into(),
        version: "0".into(),
    };
    (folder, options)
}

const TWO: &str = "plugins = ['gc/x', 'content/x']";
const THREE: &str = "plugins = ['gc/x', 'content/x', 'leases/x']";
const SHARED: &str = "plugins = ['gc/x']\n[[process]]\nplugins = ['content/x', 'leases/x']";

fn rows(old: (&str, &str), new: (&str, &str)) -> Vec<String> {
    let (_old, old) = options(old.0, old.1);
    let (_new, new) = options(new.0, new.1);
    let changes = changes(&old.plan().unwrap(), &new.plan().unwrap()).unwrap();
    let row = |c: Change| format!("{} {}: {}", c.action, c.plugin, c.why);
    changes.into_iter().map(row).collect()
}

#[test]
fn a_plugin_restarts_when_what_it_is_told_at_its_start_has_changed() {
    assert_eq!(rows(("", TWO), ("", TWO)), [""; 0]);
    let set = "[plugins.'gc/x']\nevery = 5\nkeep = ['a']";
    assert_eq!(
        rows(("", TWO), (set, TWO)),
        [r#"restart gc/x: every: 60 → 5; keep: [] → ["a"]"#]
    );
    let limited = rows(("", TWO), ("[limits.'gc/x']\nmemory = '64MiB'", TWO));
    assert!(
        limited[0].starts_with("restart gc/x: limits: "),
        "{limited:?}"
    );
}

#[test]
fn who_comes_or_goes_restarts_its_callers_and_nobody_else() {
    assert_eq!(
        rows(("", TWO), ("", THREE)),
        [
            "restart gc/x: calls leases/x",
            "add leases/x: the manifest names it"
        ]
    );
    assert_eq!(
        rows(("", THREE), ("", TWO)),
        [
            "restart gc/x: no longer calls leases/x",
            "remove leases/x: the manifest does not name it any more"
        ]
    );
}

#[test]
fn another_company_restarts_those_that_move() {
    assert_eq!(
        rows(("", THREE), ("", SHARED)),
        [
            "restart content/x: shares a process with leases/x",
            "restart leases/x: shares a process with content/x"
        ]
    );
}

#[test]
fn figures_of_the_node_count_at_once_and_folders_never() {
    assert_eq!(
        rows(("", TWO), ("[restart]\nfailures = 3", TWO)),
        ["apply supervisor/local: restart.failures: 10 → 3"]
    );
    let (_old, old) = options("", TWO);
    let (_new, new) = options("root = '/r'\nuid_base = 7", TWO);
    let error = changes(&old.plan().unwrap(), &new.plan().unwrap()).unwrap_err();
    assert_eq!(error.code, contracts::Code::FailedPrecondition);
    assert!(
        error
            .message
            .contains("root: /var/lib/gantry → /r; uid_base: 700000 → 7: only a restart"),
        "{error}"
    );
}

#[test]
fn processes_keep_their_numbers_and_those_of_ended_ones_are_used_again() {
    let (a, b, c) = (vec![id("a/x")], vec![id("b/x")], vec![id("c/x")]);
    let none = Vec::new();
    let changed = BTreeSet::from([id("a/x")]);
    let placement = place(
        &[a.clone(), none, b.clone()],
        &[c.clone(), a.clone()],
        &changed,
    );
    assert_eq!(placement.processes, [a.clone(), c, Vec::new()]);
    assert_eq!(placement.hold, BTreeSet::from([0, 2]));
    assert_eq!(placement.release, BTreeSet::from([0, 1]));
    let both = vec![id("b/x"), id("a/x")];
    let placement = place(&[a, b], std::slice::from_ref(&both), &BTreeSet::new());
    assert_eq!(placement.processes, [Vec::new(), Vec::new(), both]);
    assert_eq!(placement.hold, BTreeSet::from([0, 1]));
    assert_eq!(placement.release, BTreeSet::from([2]));
}

/// Two processes that change; the second becomes what `fate` says when it is released under the new plan.
struct World {
    conditions: Vec<Condition>,
    fate: Condition,
    plan: Which,
    refuses_plan: bool,
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
    fn was_killed(&self, _: usize) -> bool {
        false
    }
}

impl World {
    fn run(&mut self) -> Turnover {
        let both = BTreeSet::from([0, 1]);
        let hold = both.iter().map(|&p| (p, Halt::Drain)).collect();
        let mut machine = Turnover::new(hold, both.clone(), both, Duration::from_secs(15));
        for _ in 0..1000 {
            let outputs = machine.advance(self, self.now);
            if machine.is_over() {
                return machine;
            }
            if outputs.is_empty() {
                self.now += Duration::from_millis(100);
            }
            self.obey(&mut machine, outputs);
        }
        panic!("never over: {machine:?}");
    }

    fn obey(&mut self, machine: &mut Turnover, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Hold(process, ..) => self.conditions[process] = Condition::Held,
                Output::Trust(_) => {}
                Output::Release(process) => {
                    let all_held = self.plan == Which::Old || process == 0;
                    self.conditions[process] = match all_held {
                        true => Condition::Up,
                        false => self.fate.clone(),
                    };
                }
                Output::Apply(Which::New) if self.refuses_plan => {
                    let outputs = machine.not_applied("folder: no".into(), self.now);
                    return self.obey(machine, outputs);
                }
                Output::Apply(which) => {
                    assert!(self.conditions.iter().all(|c| *c == Condition::Held));
                    self.plan = which;
                }
            }
        }
    }
}

fn world(fate: Condition) -> World {
    World {
        conditions: vec![Condition::Up; 2],
        fate,
        plan: Which::Old,
        refuses_plan: false,
        now: Duration::ZERO,
    }
}

#[test]
fn a_new_plan_counts_when_all_that_changed_come_up() {
    let mut world = world(Condition::Up);
    assert_eq!(world.run().cause(), None);
    assert_eq!(world.plan, Which::New);
}

#[test]
fn the_old_plan_comes_back_when_one_refuses_or_hangs() {
    for (fate, why) in [
        (Condition::Held, "plugin p1/x: it does not start: no"),
        (
            Condition::Other,
            "plugin p1/x: it did not become ready within 15 s",
        ),
    ] {
        let mut world = world(fate);
        let machine = world.run();
        assert!(machine.cause().unwrap().contains(why));
        assert_eq!(world.plan, Which::Old);
        assert_eq!(world.conditions, [Condition::Up, Condition::Up]);
    }
}

#[test]
fn a_plan_that_cannot_be_applied_leaves_the_old_one() {
    let mut world = world(Condition::Up);
    world.refuses_plan = true;
    assert_eq!(world.run().cause(), Some("folder: no"));
    assert_eq!(world.plan, Which::Old);
    assert_eq!(world.conditions, [Condition::Up, Condition::Up]);
}
