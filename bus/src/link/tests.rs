//! A link against peers that die, stall, flood or lie.

use super::*;
use crate::{Ctx, framing};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::{collections::VecDeque, io::Write, time::Duration};

/// Bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(10);

/// The other end of a link, played by hand.
struct Peer {
    stream: UnixStream,
    reader: Reader,
}

impl Peer {
    fn of(link: &Rc<Link>) -> Self {
        let (near, stream) = UnixStream::pair().unwrap();
        link.attach(near);
        Self {
            stream,
            reader: Reader::default(),
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        let packet = tokio::time::timeout(SOON, self.reader.next(&self.stream)).await;
        packet
            .unwrap()
            .unwrap()
            .map(|packet| unpack(packet).unwrap())
    }

    async fn call(&mut self) -> CallFrame {
        match self.next().await {
            Some(Frame::Call(call)) => call,
            other => panic!("{other:?} is no call"),
        }
    }

    async fn say(&self, frame: &Frame) {
        let mut packets = VecDeque::from([pack(frame).unwrap()]);
        framing::write(&self.stream, &mut packets).await.unwrap();
    }

    async fn answer(&self, id: u64) {
        let result = Ok(Body(vec![7]));
        self.say(&Frame::Reply { id, result }).await;
    }
}

fn link() -> Rc<Link> {
    Link::new(PluginId::new("content/local").unwrap())
}

fn request(size: usize) -> CallFrame {
    let ctx = Ctx::new(None);
    let operation = ctx.operation.clone();
    frame("content.stat", &ctx, operation, vec![1; size])
}

fn within(left: Duration) -> Instant {
    Instant::now() + left
}

fn calls(link: &Rc<Link>, many: usize, size: usize, left: Duration) -> Vec<Task> {
    let call = || {
        let link = link.clone();
        let call = async move { link.call(request(size), Vec::new(), within(left)).await };
        actix::spawn(call)
    };
    (0..many).map(|_| call()).collect()
}

type Task = tokio::task::JoinHandle<Result<Encoded>>;

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

#[actix::test]
async fn a_deadline_holds_though_the_peer_never_reads() {
    let link = link();
    let _peer = Peer::of(&link);
    for call in calls(&link, 200, 64 << 10, Duration::from_millis(100)) {
        let answer = tokio::time::timeout(SOON, call).await;
        let error = answer.expect("hangs").unwrap().unwrap_err();
        assert_eq!(error.code, contracts::Code::DeadlineExceeded, "{error}");
    }
    assert!(link.pending.borrow().is_empty());
    assert_eq!(link.room.available_permits(), WINDOW);
}

#[actix::test]
async fn callers_of_a_peer_that_never_reads_wait_with_little_in_memory() {
    let link = link();
    let _peer = Peer::of(&link);
    let waiting = calls(&link, 2 * WINDOW, 4000, SOON);
    until("all calls wait", || link.room.available_permits() == 0).await;
    let count = |which: fn(&Pending) -> bool| {
        let pending = link.pending.borrow();
        pending.values().filter(|call| which(call)).count()
    };
    assert_eq!(count(|_| true), WINDOW);
    let sent = count(|call| call.sent.is_some());
    assert!(sent < WINDOW, "the queue is bounded, {sent} are in it");
    waiting.iter().for_each(Task::abort);
    until("all turns are free", || {
        link.room.available_permits() == WINDOW
    })
    .await;
}

#[actix::test]
async fn a_peer_that_has_failed_is_told_at_once_to_those_who_wait_in_its_full_queue() {
    let link = link();
    let _peer = Peer::of(&link);
    let waiting = calls(&link, 2 * WINDOW, 10, SOON);
    until("all calls wait", || link.room.available_permits() == 0).await;
    link.stands(State::Failed, "exit code 7".into(), Vec::new());
    for call in waiting {
        let answer = tokio::time::timeout(Duration::from_secs(5), call).await;
        let error = answer.expect("hangs").unwrap().unwrap_err();
        assert!(error.message.contains("exit code 7"), "{error}");
    }
}

#[actix::test]
async fn a_call_that_was_never_sent_is_not_cancelled() {
    let link = link();
    let early = calls(&link, 1, 10, SOON);
    until("it waits", || link.pending.borrow().len() == 1).await;
    let mut peer = Peer::of(&link);
    let late = {
        let first = peer.call().await;
        early[0].abort();
        until("it is withdrawn", || link.pending.borrow().is_empty()).await;
        let late = calls(&link, 1, 10, SOON);
        match peer.next().await {
            Some(Frame::Cancel { id }) => assert_eq!(id, first.id),
            other => panic!("{other:?}: what was sent is taken back"),
        }
        late
    };
    let second = peer.call().await;
    peer.answer(second.id).await;
    for call in late {
        assert_eq!(call.await.unwrap().unwrap().0, [7]);
    }
    link.detach();
    let waiting = calls(&link, 1, 10, SOON);
    until("it waits", || link.pending.borrow().len() == 1).await;
    waiting[0].abort();
    until("it is withdrawn", || link.pending.borrow().is_empty()).await;
    let mut peer = Peer::of(&link);
    let next = calls(&link, 1, 10, SOON);
    peer.call().await;
    drop(next);
}

#[actix::test]
async fn two_successors_in_a_row_get_each_call_once() {
    let link = link();
    let waiting = calls(&link, 300, 100, SOON);
    until("all calls wait", || link.pending.borrow().len() == 300).await;
    let _first = Peer::of(&link);
    let mut second = Peer::of(&link);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..300 {
        let call = second.call().await;
        assert!(seen.insert(call.id), "call {} came twice", call.id);
        second.answer(call.id).await;
    }
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
}

#[actix::test]
async fn no_call_is_lost_or_doubled_while_peers_come_and_go() {
    let link = link();
    let waiting = calls(&link, 500, 2000, SOON);
    let mut answered = 0;
    let mut round = 0;
    while answered < 500 {
        let mut peer = Peer::of(&link);
        let mut seen = std::collections::HashSet::new();
        round += 1;
        for _ in 0..(round * 20).min(500 - answered) {
            let call = peer.call().await;
            assert!(seen.insert(call.id), "call {} came twice", call.id);
            peer.answer(call.id).await;
        }
        // What it was told is on its way; the rest is for its successor.
        let left = 500 - answered - seen.len();
        until("its answers arrive", || link.pending.borrow().len() == left).await;
        answered += seen.len();
    }
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
}

#[actix::test]
async fn a_stream_opened_before_its_peer_waits_for_it() {
    let link = link();
    let opened = link.open(request(10), Vec::new(), within(SOON)).await;
    let mut items = opened.unwrap();
    let mut peer = Peer::of(&link);
    let id = peer.call().await.id;
    let body = Body(vec![1]);
    peer.say(&Frame::Item { id, body }).await;
    assert_eq!(items.next().await.unwrap().unwrap().0, [1]);
    let _successor = Peer::of(&link);
    let broken = items.next().await.unwrap().unwrap_err();
    assert!(broken.is(contracts::Code::Unavailable), "{broken}");
    assert!(items.next().await.is_none());
}

#[actix::test]
async fn a_stream_whose_peer_never_comes_ends_at_the_deadline() {
    let link = link();
    let soon = within(Duration::from_millis(50));
    let mut items = link.open(request(10), Vec::new(), soon).await.unwrap();
    let end = tokio::time::timeout(SOON, items.next()).await.unwrap();
    let error = end.unwrap().unwrap_err();
    assert!(error.is(contracts::Code::Unavailable), "{error}");
    assert!(items.next().await.is_none());
    assert_eq!(link.room.available_permits(), WINDOW);
}

#[actix::test]
async fn a_peer_that_floods_a_stream_is_cut_off() {
    let link = link();
    let opened = link.open(request(10), Vec::new(), within(SOON)).await;
    let mut items = opened.unwrap();
    let mut peer = Peer::of(&link);
    let id = peer.call().await.id;
    for _ in 0..100 {
        let body = Body(vec![1]);
        peer.say(&Frame::Item { id, body }).await;
    }
    assert!(matches!(peer.next().await, Some(Frame::Cancel { .. })));
    for _ in 0..FIRST_CREDIT {
        assert!(items.next().await.unwrap().is_ok());
    }
    let error = items.next().await.unwrap().unwrap_err();
    assert!(error.message.contains("more than it was asked"), "{error}");
    assert!(items.next().await.is_none());
}

#[actix::test]
async fn too_many_descriptors_are_an_error_that_hurts_no_other_call() {
    let link = link();
    let mut peer = Peer::of(&link);
    let null = std::fs::File::open("/dev/null").unwrap();
    let null = Fd::from(std::os::fd::OwnedFd::from(null));
    let call = link.call(request(10), vec![null; 17], within(SOON)).await;
    let error = call.unwrap_err();
    assert!(error.message.contains("content.stat"), "{error}");
    assert_eq!(error.code, contracts::Code::ResourceExhausted);
    let waiting = calls(&link, 1, 10, SOON);
    let id = peer.call().await.id;
    peer.answer(id).await;
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
}

#[actix::test]
async fn a_request_that_fills_its_frame_too_far_names_its_method() {
    let link = link();
    let _peer = Peer::of(&link);
    let size = codec::LIMIT - 8;
    let error = link.call(request(size), Vec::new(), within(SOON)).await;
    let error = error.unwrap_err();
    assert!(error.message.contains("content.stat"), "{error}");
    assert_eq!(error.code, contracts::Code::ResourceExhausted);
}

#[test]
fn no_bytes_from_a_peer_panic_or_hang_a_link() {
    let system = actix_rt::System::new();
    let raw = proptest::collection::vec(any::<u8>(), 0..300);
    let framed = proptest::collection::vec(any::<u8>(), 0..100);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    };
    let ran = TestRunner::new(config).run(&(raw, framed, any::<bool>()), |(raw, bytes, wrap)| {
        system.block_on(async {
            let link = link();
            let waiting = calls(&link, 2, 10, SOON);
            let (near, far) = UnixStream::pair().unwrap();
            link.attach(near);
            if wrap {
                let fds = Vec::new();
                let mut packets = VecDeque::from([Packet { bytes, fds }]);
                framing::write(&far, &mut packets).await.unwrap();
            }
            let mut far = far.into_std().unwrap();
            far.write_all(&raw).unwrap();
            drop(far);
            until("the link lets go", || link.number().is_none()).await;
            waiting.iter().for_each(Task::abort);
        });
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn descriptors_that_belong_to_no_message_end_the_connection() {
    let system = actix_rt::System::new();
    system.block_on(async {
        let link = link();
        let peer = Peer::of(&link);
        let null = std::fs::File::open("/dev/null").unwrap();
        let null = Fd::from(std::os::fd::OwnedFd::from(null));
        let unread = Frame::Cancel { id: 1 };
        // Each claims one descriptor and brings two.
        for _ in 0..200 {
            let packet = Packet {
                bytes: pack(&unread).unwrap().bytes,
                fds: vec![null.clone()],
            };
            let mut bytes = Vec::new();
            packet.fragments(&mut bytes);
            let fds = [null.clone(), null.clone()];
            if framing::send(&peer.stream, &bytes, &fds).await.is_err() {
                break;
            }
        }
        until("the link lets go", || link.number().is_none()).await;
    });
}

/// A link to a peer that stands as ready, and what it reports.
fn reporting() -> (Rc<Link>, mpsc::UnboundedReceiver<String>) {
    let (link, (tell, told)) = (link(), mpsc::unbounded_channel());
    link.report_to(move |why| drop(tell.send(why)));
    link.stands(State::Ready, String::new(), Vec::new());
    (link, told)
}

async fn report(told: &mut mpsc::UnboundedReceiver<String>) -> String {
    let told = tokio::time::timeout(SOON, told.recv()).await;
    told.expect("nothing is reported").unwrap()
}

#[actix::test]
async fn a_frame_that_only_callers_send_is_reported_and_the_next_connection_gets_what_is_pending() {
    let (link, mut told) = reporting();
    let mut peer = Peer::of(&link);
    let waiting = calls(&link, 1, 10, SOON);
    let first = peer.call().await;
    peer.say(&Frame::Cancel { id: first.id }).await;
    assert_eq!(report(&mut told).await, "a frame that only callers send");
    let mut next = Peer::of(&link);
    let again = next.call().await;
    assert_eq!((again.id, &again.operation), (first.id, &first.operation));
    next.answer(again.id).await;
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
    assert!(told.try_recv().is_err(), "reported once");
}

#[actix::test]
async fn bytes_that_are_no_frame_are_reported_and_named_to_callers_whose_time_is_over() {
    let (link, mut told) = reporting();
    let peer = Peer::of(&link);
    let call = calls(&link, 1, 10, Duration::from_millis(300)).remove(0);
    let mut stream = peer.stream.into_std().unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    let why = report(&mut told).await;
    assert!(why.contains("fragment of"), "{why}");
    let error = call.await.unwrap().unwrap_err();
    assert!(
        error.message.contains("the link to it broke: fragment"),
        "{error}"
    );
    assert_eq!(error.plugin, Some(link.peer.clone()));
}

#[actix::test]
async fn a_link_that_stays_closed_is_reported_only_while_its_peer_lives() {
    let (link, mut told) = reporting();
    drop(Peer::of(&link));
    assert_eq!(report(&mut told).await, "it was closed");
    let (dead, mut silence) = reporting();
    let peer = Peer::of(&dead);
    dead.stands(State::Backoff, "it ended".into(), Vec::new());
    drop(peer);
    until("the link lets go", || dead.number().is_none()).await;
    // The first link is closed again, after the second: by the time that is reported, both were looked at.
    drop(Peer::of(&link));
    report(&mut told).await;
    assert!(silence.try_recv().is_err());
}

#[actix::test]
async fn at_the_deadline_of_a_stuck_peer_its_plugin_cause_and_chain_are_named() {
    let link = link();
    let _peer = Peer::of(&link);
    let stuck = PluginId::new("events/log").unwrap();
    let chain = vec![link.peer.clone(), stuck.clone()];
    let cause = "events/log is degraded: it does not answer since noon";
    assert!(!link.is_ready(), "not before it is told");
    link.stands(State::Ready, String::new(), Vec::new());
    assert!(link.is_ready());
    link.stands(State::Degraded, cause.into(), chain.clone());
    let call = link.call(request(10), Vec::new(), within(Duration::from_millis(20)));
    let error = call.await.unwrap_err();
    assert_eq!(
        error.message,
        format!("content.stat: content/local did not answer in time: {cause}")
    );
    assert_eq!((error.plugin, error.chain), (Some(stuck), chain));
}

#[actix::test]
async fn an_error_about_another_plugin_gets_the_peer_in_front_of_its_chain() {
    let link = link();
    let mut peer = Peer::of(&link);
    let stuck = PluginId::new("events/log").unwrap();
    let call = calls(&link, 1, 10, SOON).remove(0);
    let id = peer.call().await.id;
    let error = Error::unavailable("gone").caused_by(stuck.clone(), vec![stuck.clone()]);
    let result = Err(error);
    peer.say(&Frame::Reply { id, result }).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.chain, [link.peer.clone(), stuck]);
}

/// A life of a peer that dies of call number `poison`, if it gets it, and answers all others. Says which it got.
async fn life(link: &Rc<Link>, poison: u64, crash: &str) -> Vec<u64> {
    let mut peer = Peer::of(link);
    link.stands(State::Ready, String::new(), Vec::new());
    let mut got = Vec::new();
    while !link.pending.borrow().is_empty() {
        let call = peer.call().await;
        got.push(call.id);
        if call.id == poison {
            break;
        }
        peer.answer(call.id).await;
        let is_answered = || !link.pending.borrow().contains_key(&call.id);
        until("the answer arrives", is_answered).await;
    }
    drop(peer);
    until("the link lets go", || link.number().is_none()).await;
    link.stands(State::Backoff, crash.into(), Vec::new());
    got
}

#[actix::test]
async fn a_call_that_ends_its_peer_each_time_is_refused_by_name_and_the_others_are_answered() {
    let link = link();
    let mut waiting = calls(&link, 40, 10, SOON);
    until("all calls wait", || link.pending.borrow().len() == 40).await;
    let poison = link.pending.borrow().keys().nth(2).copied().unwrap();
    let crash = "it ended: panicked at src/x.rs:1:2: oh";
    let mut lives = Vec::new();
    while link.pending.borrow().contains_key(&poison) {
        let got = life(&link, poison, crash).await;
        lives.push(got.iter().filter(|id| **id == poison).count());
    }
    assert_eq!(lives, [1; 4], "how often each life got it");
    let error = waiting.remove(2).await.unwrap().unwrap_err();
    assert_eq!(error.code, contracts::Code::Internal);
    for part in [
        "content.stat: plugin content/local crashed 4 times in a row",
        crash,
        "GET /v1/plugins/content/local",
    ] {
        assert!(error.message.contains(part), "{error}");
    }
    assert_eq!(error.plugin, Some(link.peer.clone()));
    let late = calls(&link, 1, 10, SOON);
    until("it waits", || !link.pending.borrow().is_empty()).await;
    life(&link, poison, crash).await;
    for call in waiting.into_iter().chain(late) {
        assert_eq!(call.await.unwrap().unwrap().0, [7]);
    }
}

#[actix::test]
async fn who_waits_for_a_suspect_goes_on_when_the_suspect_is_given_up() {
    let link = link();
    let suspect = calls(&link, 1, 10, SOON);
    until("it waits", || link.pending.borrow().len() == 1).await;
    let id = link.pending.borrow().keys().next().copied().unwrap();
    for _ in 0..2 {
        life(&link, id, "it ended: exit code 1").await;
    }
    let waiting = calls(&link, 3, 10, SOON);
    until("all calls wait", || link.pending.borrow().len() == 4).await;
    let mut peer = Peer::of(&link);
    link.stands(State::Ready, String::new(), Vec::new());
    assert_eq!(peer.call().await.id, id, "alone");
    suspect[0].abort();
    assert!(matches!(peer.next().await, Some(Frame::Cancel { .. })));
    for _ in 0..3 {
        let next = peer.call().await;
        peer.answer(next.id).await;
    }
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
}

#[actix::test]
async fn a_peer_that_is_killed_over_and_over_gets_every_call_until_one_life_answers() {
    let link = link();
    let waiting = calls(&link, 1, 10, SOON);
    until("it waits", || link.pending.borrow().len() == 1).await;
    let id = link.pending.borrow().keys().next().copied().unwrap();
    for _ in 0..30 {
        assert_eq!(life(&link, id, "it ended: signal 9 (SIGKILL)").await, [id]);
    }
    life(&link, 0, "").await;
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
}
