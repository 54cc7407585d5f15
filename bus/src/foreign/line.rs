//! What the lines between host and program say: pure, and strict, because a line that is half understood is lost.

use crate::client::Ctx;
use contracts::plugin::PluginBoot;
use contracts::{Code, Error, LeaseId, Namespace, OperationId, PluginId, Result};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Most bytes of a line of the program, without its end: what the bus carries at most.
pub(super) const LONGEST: usize = codec::LIMIT;
/// How much of a wrong line is shown.
const SHOWN: usize = 120;

/// What a program says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// It answers calls from now on.
    Ready,
    /// It needs so much longer until it is ready.
    Wait(Duration),
    /// It lives.
    Pong(u64),
    /// The answer to a call of the host.
    Answer(u64, Result<Value>),
    /// A call of its own.
    Call(Box<Own>),
    /// It does not want an answer any more.
    Cancel(u64),
}

/// A call that a program makes.
#[derive(Debug, PartialEq)]
pub(super) struct Own {
    pub(super) id: u64,
    pub(super) method: String,
    pub(super) request: Value,
    pub(super) namespace: Option<Namespace>,
    pub(super) lease: Option<LeaseId>,
    pub(super) operation: Option<OperationId>,
    pub(super) deadline: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ready: Option<bool>,
    wait: Option<u32>,
    pong: Option<u64>,
    cancel: Option<u64>,
    id: Option<u64>,
    /// `null` is an answer.
    #[serde(default, deserialize_with = "present")]
    answer: Option<Value>,
    error: Option<Problem>,
    call: Option<String>,
    request: Option<Value>,
    namespace: Option<Namespace>,
    lease: Option<LeaseId>,
    operation: Option<OperationId>,
    deadline_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Problem {
    code: Code,
    message: String,
    plugin: Option<PluginId>,
    #[serde(default)]
    chain: Vec<PluginId>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// Understands one line. Errors: what is wrong with it, and how it begins.
pub(super) fn understand(line: &[u8]) -> Result<Said, String> {
    let wrong = |why: String| format!("{why}: {}", shown(line));
    let parsed: Line = serde_json::from_slice(line).map_err(|e| {
        wrong(format!(
            "its stdout is for JSON lines of the protocol ({e})"
        ))
    })?;
    said(parsed).map_err(wrong)
}

fn said(line: Line) -> Result<Said, String> {
    match line {
        Line {
            ready: Some(true), ..
        } => Ok(Said::Ready),
        Line {
            wait: Some(seconds),
            ..
        } => Ok(Said::Wait(Duration::from_secs(seconds.into()))),
        Line {
            pong: Some(number), ..
        } => Ok(Said::Pong(number)),
        Line {
            cancel: Some(id), ..
        } => Ok(Said::Cancel(id)),
        Line { id: None, .. } => {
            Err("a line says one of ready, wait, pong, cancel, call, answer or error, the last three with an id".into())
        }
        Line {
            id: Some(id),
            answer: Some(answer),
            call: None,
            error: None,
            ..
        } => Ok(Said::Answer(id, Ok(answer))),
        Line {
            id: Some(id),
            error: Some(problem),
            call: None,
            answer: None,
            ..
        } => Ok(Said::Answer(id, Err(problem.into()))),
        Line {
            id: Some(id),
            call: Some(method),
            answer: None,
            error: None,
            request,
            namespace,
            lease,
            operation,
            deadline_ms,
            ..
        } => Ok(Said::Call(Box::new(Own {
            id,
            method,
            request: request.unwrap_or_else(|| json!({})),
            namespace,
            lease,
            operation,
            deadline: deadline_ms.map(Duration::from_millis),
        }))),
        _ => Err("a line with an id says one of call, answer or error".into()),
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self {
            code: problem.code,
            message: problem.message,
            plugin: problem.plugin,
            chain: problem.chain,
        }
    }
}

/// Shows how a line begins, on one line.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut beginning: String = text.chars().take(SHOWN).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    format!("{beginning:?}")
}

/// Reads the next line that is not blank, without its end; `None` at the end. A last line without an end was never said.
///
/// Errors: it is longer than [`LONGEST`], or cannot be read.
pub(super) async fn next(
    from: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<Vec<u8>>, String> {
    loop {
        let mut line = Vec::new();
        let most = LONGEST as u64 + 1;
        (&mut *from)
            .take(most)
            .read_until(b'\n', &mut line)
            .await
            .map_err(|e| format!("its stdout cannot be read: {e}"))?;
        match line.pop() {
            Some(b'\n') if line.trim_ascii().is_empty() => {}
            Some(b'\n') => return Ok(Some(line)),
            Some(_) if line.len() >= LONGEST => {
                let shown = shown(&line);
                return Err(format!("a line is longer than {LONGEST} bytes: {shown}"));
            }
            _ => return Ok(None),
        }
    }
}

/// First of all: who you are.
pub(super) fn start(boot: &PluginBoot, settings: &Value) -> String {
    line(&json!({"start": {
        "id": boot.id,
        "settings": settings,
        "root": boot.root,
        "state": boot.state,
    }}))
}

/// A call of somebody else.
pub(super) fn call(id: u64, method: &str, request: &Value, ctx: &Ctx, left: Duration) -> String {
    line(&json!({
        "id": id,
        "call": method,
        "request": request,
        "namespace": ctx.namespace,
        "lease": ctx.lease,
        "operation": ctx.operation,
        "deadline_ms": u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Nobody waits for the answer any more.
pub(super) fn cancel(id: u64) -> String {
    line(&json!({ "cancel": id }))
}

/// Say pong.
pub(super) fn ping(number: u64) -> String {
    line(&json!({ "ping": number }))
}

/// Finish, and exit.
pub(super) fn stop() -> String {
    line(&json!({ "stop": true }))
}

/// The answer to a call of the program. `answer` is JSON text.
pub(super) fn answer(id: u64, result: Result<String>) -> String {
    match result {
        Ok(text) => payload(id, "answer", text),
        Err(error) => line(&json!({ "id": id, "error": error })),
    }
}

/// One item of a stream that the program opened. `item` is JSON text.
pub(super) fn item(id: u64, item: String) -> String {
    payload(id, "item", item)
}

/// The end of a stream that the program opened.
pub(super) fn end(id: u64) -> String {
    line(&json!({ "id": id, "end": true }))
}

fn payload(id: u64, name: &str, text: String) -> String {
    // What a foreign neighbour sent may have line ends of its own, which mean nothing in JSON.
    match serde_json::from_str::<Value>(&text) {
        Ok(value) => line(&json!({ "id": id, name: value })),
        Err(e) => {
            let error = Error::internal(format!("the answer is not JSON: {e}"));
            line(&json!({ "id": id, "error": error }))
        }
    }
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_line_is_understood() {
        let understood = |text: &str| understand(text.as_bytes()).unwrap();
        assert_eq!(understood(r#"{"ready": true}"#), Said::Ready);
        assert_eq!(understood(r#"{"pong": 4}"#), Said::Pong(4));
        let minute = Said::Wait(Duration::from_secs(60));
        assert_eq!(understood(r#"{"wait": 60}"#), minute);
        assert_eq!(understood(r#"{"cancel": 4}"#), Said::Cancel(4));
        let null = Said::Answer(7, Ok(Value::Null));
        assert_eq!(understood(r#"{"id": 7, "answer": null}"#), null);
        let missing = Said::Answer(7, Err(Error::not_found("gone")));
        let text = r#"{"id": 7, "error": {"code": "NOT_FOUND", "message": "gone"}}"#;
        assert_eq!(understood(text), missing);
        let text = r#"{"id":3,"call":"images.list","namespace":"default","operation":"o","deadline_ms":5}"#;
        let Said::Call(own) = understood(text) else {
            panic!("{text}")
        };
        assert_eq!((own.id, own.method.as_str()), (3, "images.list"));
        assert_eq!(
            (own.request, own.deadline),
            (json!({}), Some(Duration::from_millis(5)))
        );
    }

    #[test]
    fn a_wrong_line_is_refused_with_the_reason_and_shown() {
        for (line, reason) in [
            ("Hello, world", "JSON lines of the protocol"),
            ("[]", "JSON lines of the protocol"),
            (r#"{"anser": 1, "id": 1}"#, "anser"),
            (r#"{"ready": false}"#, "one of ready, wait, pong"),
            (r#"{"id": 1}"#, "one of call, answer or error"),
            (
                r#"{"id": 1, "call": "a.b", "answer": 1}"#,
                "one of call, answer or error",
            ),
            (r#"{"answer": 1}"#, "with an id"),
            (
                r#"{"id": 1, "error": {"code": "SORRY", "message": ""}}"#,
                "SORRY",
            ),
            (
                r#"{"id": 1, "call": "a.b", "namespace": "no/name"}"#,
                "namespace",
            ),
        ] {
            let why = understand(line.as_bytes()).unwrap_err();
            let beginning = format!("{:?}", line.chars().take(9).collect::<String>());
            let beginning = beginning.trim_end_matches('"');
            assert!(why.contains(reason) && why.contains(beginning), "{why}");
        }
        let long = format!("x\n{}", "y".repeat(500));
        assert!(shown(long.as_bytes()).len() < 200 && !shown(long.as_bytes()).contains('\n'));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lines_are_bounded_and_a_last_one_that_was_cut_is_not_a_line() {
        let mut from: &[u8] = b"{\"a\":1}\n\n \r\n{\"b\":2}\n{\"cut";
        assert_eq!(next(&mut from).await.unwrap().unwrap(), b"{\"a\":1}");
        assert_eq!(next(&mut from).await.unwrap().unwrap(), b"{\"b\":2}");
        assert_eq!(next(&mut from).await, Ok(None));
        let longest = [vec![b'x'; LONGEST], vec![b'\n']].concat();
        assert_eq!(
            next(&mut longest.as_slice()).await.unwrap().unwrap().len(),
            LONGEST
        );
        let endless = vec![b'x'; LONGEST + 1];
        let why = next(&mut endless.as_slice()).await.unwrap_err();
        assert!(why.contains("longer than 4194304 bytes: \"xxx"), "{why}");
    }

    #[test]
    fn what_the_host_says_is_one_line_whatever_it_carries() {
        let text = answer(3, Ok("{\n \"a\":\n 1 }".into()));
        assert_eq!(text, "{\"answer\":{\"a\":1},\"id\":3}\n");
        assert!(answer(3, Ok("{".into())).contains("not JSON"));
        assert_eq!(item(3, "\"a\\nb\"".into()).matches('\n').count(), 1);
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange_to_be_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC*") {
            let _ = understand(&bytes);
            let _ = understand(text.as_bytes());
        }
    }
}
