//! Peers that live and die, played with a clock of our own.

use super::*;

const CRASH: &str = "it ended: panicked at src/x.rs:1:2: why";
const KILLED: &str = "it ended: signal 9 (SIGKILL)";

/// The machine, and what a link would know.
struct Play {
    suspects: Suspects,
    now: Instant,
    pending: BTreeSet<u64>,
    convicted: Vec<Convicted>,
}

impl Play {
    fn with(pending: impl IntoIterator<Item = u64>) -> Self {
        Self {
            suspects: Suspects::new(7),
            now: Instant::now(),
            pending: pending.into_iter().collect(),
            convicted: Vec::new(),
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    /// Sends what may be sent, and says what that was.
    fn send(&mut self) -> Vec<u64> {
        let (now, suspects) = (self.now, &mut self.suspects);
        let may = self.pending.iter().copied();
        let sent: Vec<u64> = may.filter(|id| !suspects.holds(*id)).collect();
        sent.iter().for_each(|id| suspects.delivered(*id, now));
        sent
    }

    /// A successor comes, is wired and gets ready.
    fn rise(&mut self) -> Vec<u64> {
        self.pass(50);
        self.suspects.opened();
        let sent = self.send();
        self.pass(500);
        self.suspects.ready(self.now);
        sent
    }

    fn die(&mut self, cause: &str) {
        let closed = self.suspects.closed(self.now);
        self.pass(1);
        let fell = self.suspects.fell(cause, self.now);
        for guilty in closed.into_iter().chain(fell) {
            self.pending.remove(&guilty.id);
            self.suspects.forget(guilty.id);
            self.convicted.push(guilty);
        }
    }

    fn trial(&mut self) -> Option<Trial> {
        match self.suspects.turn() {
            Turn::One(trial) => {
                self.pass(trial.pause.as_millis() as u64);
                assert!(self.suspects.begin(trial));
                assert_eq!(self.send(), [trial.id], "it is alone");
                Some(trial)
            }
            Turn::Wait | Turn::All => None,
        }
    }

    fn answer(&mut self, id: u64) {
        self.pending.remove(&id);
        self.suspects.forget(id);
    }

    /// One life of a peer that answers everything in a moment but is ended by `guilty`, whatever else is in its hands.
    fn live(&mut self, guilty: u64) {
        let sent = self.rise();
        self.pass(2);
        if sent.contains(&guilty) {
            return self.die(CRASH);
        }
        while let Some(trial) = self.trial() {
            self.pass(2);
            match trial.id == guilty {
                true => return self.die(CRASH),
                false => self.answer(trial.id),
            }
        }
    }
}

#[test]
fn the_guilty_one_is_found_among_many_and_nobody_else_is_refused() {
    for guilty in [1, 500, 1000] {
        let mut play = Play::with(1..=1000);
        let mut lives = 0;
        while play.convicted.is_empty() {
            play.live(guilty);
            lives += 1;
            assert!(lives <= LIMIT, "{} are left", play.pending.len());
        }
        let convicted = Convicted {
            id: guilty,
            crashes: LIMIT,
        };
        assert_eq!((play.convicted, lives), (vec![convicted], LIMIT));
        // Those who were out with it twice went before it came again.
        assert!(play.pending.is_empty(), "{} left", play.pending.len());
    }
}

#[test]
fn two_guilty_ones_are_both_found_and_the_others_are_answered() {
    let mut play = Play::with(1..=20);
    let mut lives = 0;
    while play.convicted.len() < 2 {
        let sent = play.rise();
        lives += 1;
        assert!(lives < 10, "its plugin has failed: {:?}", play.convicted);
        if sent.iter().any(|id| [3, 4].contains(id)) {
            play.die(CRASH);
            continue;
        }
        while let Some(trial) = play.trial() {
            if [3, 4].contains(&trial.id) {
                play.die(CRASH);
                break;
            }
            play.answer(trial.id);
        }
    }
    let mut found: Vec<u64> = play.convicted.iter().map(|guilty| guilty.id).collect();
    found.sort_unstable();
    assert_eq!((found, play.pending.len()), (vec![3, 4], 0));
}

#[test]
fn what_was_held_back_goes_when_the_guilty_one_is_refused() {
    let mut play = Play::with([1]);
    play.live(1);
    play.live(1);
    play.pending.insert(2);
    assert_eq!(play.rise(), [] as [u64; 0], "both must wait");
    assert_eq!(play.trial().map(|trial| trial.id), Some(1));
    play.die(CRASH);
    play.live(1);
    assert_eq!(play.convicted.len(), 1);
    play.suspects.opened();
    assert_eq!(play.suspects.turn(), Turn::All);
    assert_eq!(play.send(), [2]);
}

#[test]
fn kills_from_outside_are_laid_to_nobody_however_quick() {
    let mut play = Play::with([1, 2]);
    for _ in 0..50 {
        assert_eq!(play.rise(), [1, 2]);
        play.die(KILLED);
    }
    assert_eq!(play.convicted, []);
}

#[test]
fn a_peer_that_never_gets_ready_accuses_nobody() {
    let mut play = Play::with([1]);
    for _ in 0..50 {
        play.suspects.opened();
        assert_eq!(play.send(), [1]);
        assert_eq!(play.suspects.closed(play.now), []);
    }
}

#[test]
fn a_restart_that_was_asked_for_accuses_nobody() {
    let mut play = Play::with([1]);
    for _ in 0..50 {
        assert_eq!(play.rise(), [1]);
        play.suspects.left();
        assert_eq!(play.suspects.closed(play.now), []);
    }
}

#[test]
fn a_call_that_was_with_a_living_peer_for_long_is_no_suspect_when_it_crashes() {
    let mut play = Play::with([1]);
    for _ in 0..50 {
        assert_eq!(play.rise(), [1]);
        play.pass(251);
        play.die(CRASH);
    }
    assert_eq!(play.convicted, []);
}

#[test]
fn a_suspect_that_a_peer_survives_lets_the_next_go_and_is_forgiven() {
    let mut play = Play::with([1, 2]);
    for _ in 0..2 {
        assert_eq!(play.rise(), [1, 2]);
        play.die(CRASH);
    }
    assert_eq!(play.rise(), [] as [u64; 0]);
    let first = play.trial().unwrap();
    assert_eq!((first.id, play.suspects.turn()), (1, Turn::Wait));
    play.pass(251);
    play.suspects.survived(first);
    let second = play.suspects.turn();
    assert!(
        matches!(second, Turn::One(Trial { id: 2, .. })),
        "{second:?}"
    );
    play.die(CRASH);
    assert_eq!(play.suspects.suspects, BTreeSet::from([2]));
}

#[test]
fn the_order_in_which_death_and_the_end_of_the_link_are_seen_does_not_matter() {
    let mut play = Play::with([1]);
    for told_first in [true, false, true, false] {
        play.rise();
        play.trial();
        play.convicted = match told_first {
            true => {
                assert_eq!(play.suspects.fell(CRASH, play.now), []);
                play.pass(400);
                play.suspects.closed(play.now)
            }
            false => {
                assert_eq!(play.suspects.closed(play.now), []);
                play.pass(400);
                play.suspects.fell(CRASH, play.now)
            }
        };
    }
    let crashes = LIMIT;
    assert_eq!(play.convicted, [Convicted { id: 1, crashes }]);
}

#[test]
fn a_link_that_breaks_though_its_peer_lives_accuses_nobody() {
    let mut play = Play::with([1]);
    play.suspects.ready(play.now);
    for _ in 0..50 {
        play.suspects.opened();
        assert_eq!(play.send(), [1]);
        assert_eq!(play.suspects.closed(play.now), []);
    }
}

#[test]
fn only_the_first_suspect_of_a_life_pauses_and_two_callers_seldom_for_equally_long() {
    let pauses = |seed| {
        let mut suspects = Suspects::new(seed);
        let mut pause = |_| {
            suspects.trials += 1;
            suspects.pause()
        };
        (0..100).map(&mut pause).collect::<Vec<_>>()
    };
    let (one, other) = (pauses(1), pauses(2));
    let longest = SLOT * SLOTS as u32;
    assert!(one.iter().all(|pause| *pause < longest));
    let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
    assert!(same < 30, "{same} of 100");
    let mut play = Play::with([1, 2]);
    for _ in 0..2 {
        play.rise();
        play.die(CRASH);
    }
    play.rise();
    play.trial();
    play.answer(1);
    assert_eq!(play.trial().map(|trial| trial.pause), Some(Duration::ZERO));
}
