//! Answering callers that flood, lie, or have gone.

use super::*;
use crate::actor::Answer;
use crate::control::pack;
use contracts::OperationId;
use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::Cell;

/// Bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(10);

/// Answers by the method's name, and counts who is inside.
#[derive(Default)]
struct Plugin {
    inside: Rc<Cell<usize>>,
}

struct Inside(Rc<Cell<usize>>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Dispatch for Plugin {
    fn dispatch(&self, call: Incoming) -> Answer {
        self.inside.set(self.inside.get() + 1);
        let inside = Inside(self.inside.clone());
        let hang = async move {
            let _inside = inside;
            futures_util::future::pending().await
        };
        let endless = futures_util::stream::repeat_with(|| Ok((vec![1], Vec::new())));
        let huge = || Ok((vec![1; codec::LIMIT - 4], Vec::new()));
        let null = || std::fs::File::open("/dev/null").map(std::os::fd::OwnedFd::from);
        let many = vec![Fd::from(null().unwrap()); 17];
        Answer(match call.method.as_str() {
            "read" => Response::One(Kind::Read, hang.boxed_local()),
            "write" => Response::One(Kind::Write, hang.boxed_local()),
            "stream" => Response::Many(async move { Ok(endless.boxed()) }.boxed_local()),
            "huge" => Response::One(Kind::Read, async move { huge() }.boxed_local()),
            "huge items" => Response::Many(
                async move { Ok(futures_util::stream::repeat_with(huge).boxed()) }.boxed_local(),
            ),
            "descriptors" => {
                Response::One(Kind::Read, async move { Ok((vec![1], many)) }.boxed_local())
            }
            _ => Response::One(
                Kind::Read,
                async { Ok((vec![7], Vec::new())) }.boxed_local(),
            ),
        })
    }
}

/// A caller, played by hand.
struct Caller {
    stream: UnixStream,
    reader: Reader,
    inside: Rc<Cell<usize>>,
    busy: Rc<Busy>,
    serving: tokio::task::JoinHandle<std::result::Result<(), String>>,
}

impl Caller {
    fn new() -> Self {
        let plugin = Plugin::default();
        let inside = plugin.inside.clone();
        let busy = Rc::<Busy>::default();
        let (stream, far) = UnixStream::pair().unwrap();
        let serving = actix::spawn(serve(far, Rc::new(plugin), busy.clone()));
        Self {
            stream,
            reader: Reader::default(),
            inside,
            busy,
            serving,
        }
    }

    async fn say(&self, frame: &Frame) {
        let mut packets = VecDeque::from([pack(frame).unwrap()]);
        framing::write(&self.stream, &mut packets).await.unwrap();
    }

    async fn call(&self, id: u64, method: &str) {
        self.call_within(id, method, SOON).await;
    }

    async fn call_within(&self, id: u64, method: &str, left: Duration) {
        self.say(&Frame::Call(request(id, method, left))).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        let next = tokio::time::timeout(SOON, self.reader.next(&self.stream)).await;
        let packet = next.expect("nothing comes").unwrap()?;
        Some(unpack(packet).unwrap())
    }

    async fn until(&self, inside: usize) {
        until(|| self.inside.get() == inside).await;
    }
}

fn request(id: u64, method: &str, left: Duration) -> CallFrame {
    CallFrame {
        id,
        method: method.into(),
        namespace: None,
        lease: None,
        left: left.as_micros() as u64,
        operation: OperationId::new("once").unwrap(),
        body: Body(vec![1, 2, 3]),
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap();
}

#[actix::test]
async fn a_read_goes_with_its_caller_and_a_write_stays() {
    let mut caller = Caller::new();
    caller.call(1, "read").await;
    caller.call(2, "write").await;
    caller.until(2).await;
    caller.say(&Frame::Cancel { id: 1 }).await;
    caller.say(&Frame::Cancel { id: 2 }).await;
    caller.until(1).await;
    caller.call(3, "quick").await;
    assert!(matches!(
        caller.next().await,
        Some(Frame::Reply { id: 3, .. })
    ));
    assert_eq!(caller.inside.get(), 1, "the write goes on");
    let Caller {
        stream,
        serving,
        inside,
        ..
    } = caller;
    drop(stream);
    assert_eq!(serving.await.unwrap(), Ok(()));
    assert_eq!(inside.get(), 1, "also after the connection ended");
}

#[actix::test]
async fn a_read_goes_when_its_deadline_has_passed() {
    let caller = Caller::new();
    caller
        .call_within(1, "read", Duration::from_millis(30))
        .await;
    caller.call(2, "read").await;
    caller.until(2).await;
    caller.until(1).await;
}

#[actix::test]
async fn any_number_of_hanging_reads_can_be_taken_back() {
    let mut caller = Caller::new();
    for round in 0..8 {
        let ids = round * 1000..(round + 1) * 1000;
        for id in ids.clone() {
            caller.call(id, "read").await;
        }
        for id in ids {
            caller.say(&Frame::Cancel { id }).await;
        }
    }
    caller.until(0).await;
    caller.call(9999, "quick").await;
    assert!(matches!(
        caller.next().await,
        Some(Frame::Reply { id: 9999, .. })
    ));
}

#[actix::test]
async fn a_drain_waits_for_writes_alone() {
    let mut caller = Caller::new();
    caller.call(1, "read").await;
    caller.call(2, "stream").await;
    assert!(matches!(caller.next().await, Some(Frame::Item { .. })));
    caller.until(1).await;
    let idle = tokio::time::timeout(SOON, caller.busy.idle()).await;
    assert!(idle.is_ok(), "reads and streams do not count");
    caller.call(3, "write").await;
    caller.until(2).await;
    assert!(caller.busy.idle().now_or_never().is_none());
}

#[actix::test]
async fn a_stream_is_no_further_ahead_than_its_reader_allows() {
    let mut caller = Caller::new();
    caller.call(1, "stream").await;
    for _ in 0..FIRST_CREDIT {
        assert!(matches!(caller.next().await, Some(Frame::Item { .. })));
    }
    // Whatever it had produced too much would come before this answer.
    for id in 2..10 {
        caller.call(id, "quick").await;
        match caller.next().await {
            Some(Frame::Reply { id: answered, .. }) => assert_eq!(answered, id),
            other => panic!("{other:?} was not asked for"),
        }
    }
    caller.say(&Frame::Credit { id: 1, items: 2 }).await;
    caller.next().await;
    caller.next().await;
    caller.call(10, "quick").await;
    assert!(matches!(
        caller.next().await,
        Some(Frame::Reply { id: 10, .. })
    ));
}

#[actix::test]
async fn an_answer_that_fits_no_frame_names_its_method() {
    let mut caller = Caller::new();
    for (id, method) in [(1, "huge"), (2, "descriptors")] {
        caller.call(id, method).await;
        match caller.next().await {
            Some(Frame::Reply { result: Err(e), .. }) => {
                assert!(e.message.contains(method), "{e}");
                assert_eq!(e.code, contracts::Code::ResourceExhausted);
            }
            other => panic!("{other:?} is no error"),
        }
    }
    caller.call(3, "huge items").await;
    match caller.next().await {
        Some(Frame::End { result: Err(e), .. }) => assert!(e.message.contains("huge items"), "{e}"),
        other => panic!("{other:?}: a stream ends with its error"),
    }
}

#[actix::test]
async fn an_id_that_is_used_twice_ends_the_connection() {
    let mut caller = Caller::new();
    caller.call(1, "read").await;
    caller.call(1, "read").await;
    assert!(caller.next().await.is_none());
    caller.until(0).await;
}

#[actix::test]
async fn a_caller_that_never_reads_is_read_no_further() {
    let caller = Caller::new();
    let flood = async {
        for id in 0.. {
            caller.call(id, "quick").await;
        }
    };
    // It must get stuck: were it read for ever, the answers would fill the memory.
    let stuck = tokio::time::timeout(Duration::from_millis(500), flood).await;
    assert!(stuck.is_err());
    let Caller {
        stream, serving, ..
    } = caller;
    drop(stream);
    let ended = tokio::time::timeout(SOON, serving).await;
    assert_eq!(ended.unwrap().unwrap(), Ok(()));
}

#[test]
fn no_bytes_from_a_caller_panic_or_hang_a_server() {
    let system = actix_rt::System::new();
    let raw = proptest::collection::vec(any::<u8>(), 0..300);
    let at = any::<prop::sample::Index>();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(300)
    };
    let input = (raw, at, any::<u8>(), 0..3);
    let ran = TestRunner::new(config).run(&input, |(raw, at, flip, shape)| {
        system.block_on(async {
            let caller = Caller::new();
            let mut bytes = pack(&Frame::Call(request(1, "quick", SOON))).unwrap().bytes;
            let at = at.index(bytes.len());
            match shape {
                0 => bytes.clone_from(&raw),
                1 => bytes[at] ^= flip,
                _ => bytes.truncate(at),
            }
            let fds = Vec::new();
            let mut packets = VecDeque::from([Packet { bytes, fds }]);
            framing::write(&caller.stream, &mut packets).await.unwrap();
            let mut stream = caller.stream.into_std().unwrap();
            // The server may have hung up already.
            let _ = std::io::Write::write_all(&mut stream, &raw);
            drop(stream);
            let ended = tokio::time::timeout(SOON, caller.serving).await;
            let ended = ended.expect("hangs").unwrap();
            prop_assert!(ended.is_ok() || ended.is_err_and(|why| !why.is_empty()));
            Ok(())
        })
    });
    ran.unwrap();
}

#[actix::test]
async fn what_no_caller_sends_ends_the_link_and_is_told() {
    let reply = Frame::Reply {
        id: 1,
        result: Ok(Body(Vec::new())),
    };
    let twice = Frame::Call(request(1, "read", SOON));
    let shapes: [(&str, Vec<Frame>); 2] = [
        ("a frame that only those who answer send", vec![reply]),
        (
            "read: its caller gave two calls one id",
            vec![twice, Frame::Call(request(1, "read", SOON))],
        ),
    ];
    for (expected, frames) in shapes {
        let caller = Caller::new();
        for frame in &frames {
            caller.say(frame).await;
        }
        let ended = tokio::time::timeout(SOON, caller.serving).await;
        assert_eq!(ended.unwrap().unwrap(), Err(expected.into()));
    }
    let caller = Caller::new();
    let fds = Vec::new();
    let bytes = vec![0xff; 20];
    let mut packets = VecDeque::from([Packet { bytes, fds }]);
    framing::write(&caller.stream, &mut packets).await.unwrap();
    let ended = tokio::time::timeout(SOON, caller.serving).await;
    assert!(ended.unwrap().unwrap().is_err());
}
