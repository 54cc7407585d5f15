//! What a container's processes wrote. A followed log goes on where it was when the tasks plugin is started again.

use crate::errors::Answer;
use crate::param::{self, Kind, Param};
use crate::request::{Accept, Request};
use crate::router::{Media, Route, get};
use crate::stream::{self, Local, Record, produce};
use actix_web::web::Bytes;
use bus::{Bus, Ctx};
use contracts::tasks::{LogLine, Logs};
use contracts::{Code, Error, Result, Timestamp};
use futures_util::StreamExt;
use serde::Serialize;
use std::time::Duration;

/// How long to wait before asking again a plugin that is not there.
const BREATH: Duration = Duration::from_millis(100);
/// How long to wait for the first lines before the headers go out without them.
const FIRST: Duration = Duration::from_millis(250);
/// Which process of a task.
pub(super) const EXEC: Param = param::text("exec", "An added process instead of the first");

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/tasks/{id}/logs", logs)
            .says("What the process wrote: bytes as written, or lines as JSON by Accept (application/x-ndjson, text/event-stream)")
            .query(&[
                EXEC,
                param::flag("follow", "Go on until the process ends"),
                param::of("since", Kind::Pattern(param::MOMENT), "Only what was written at or after this: RFC 3339, or how long ago (10m)"),
                param::of("until", Kind::Pattern(param::MOMENT), "Only what was written before this"),
                param::count("tail", "Only the last so many lines"),
                param::flag("timestamps", "Put the time in front of each line of text"),
                param::of("stream", Kind::Choice(&["stdout", "stderr"]), "stdout or stderr; both, interleaved, when absent"),
            ])
            .media(Media::Text),
    ]
}

/// Which lines are shown, and how.
#[derive(Clone, Copy)]
struct Shown {
    stderr: Option<bool>,
    timestamps: bool,
}

async fn logs(request: Request) -> Answer {
    let shown = Shown {
        stderr: match request.query("stream") {
            None | Some("") => None,
            Some("stdout") => Some(false),
            Some("stderr") => Some(true),
            Some(other) => {
                let wrong = format!("parameter stream={other}: must be stdout or stderr");
                return Err(Error::invalid(wrong).into());
            }
        },
        timestamps: request.flag("timestamps")?,
    };
    let wanted = Logs {
        id: request.part("id")?,
        exec: request
            .query("exec")
            .map(contracts::ExecId::new)
            .transpose()?,
        follow: request.flag("follow")?,
        since: request.moment("since")?,
        until: request.moment("until")?,
        tail: request.number("tail")?,
    };
    let waiting = request.edge.waits.enter()?;
    let follows = wanted.follow;
    let mut lines = lines(request.bus().clone(), request.long()?, wanted);
    if follows {
        lines = stream::until_ending(lines, request.edge.busy.clone());
    }
    let mut lines = lines.peekable();
    let first = std::pin::Pin::new(&mut lines).peek();
    if let Ok(Some(Err(error))) = tokio::time::timeout(FIRST, first).await {
        return Err(error.clone().into());
    }
    let lines = lines.filter(move |line| {
        let _ = &waiting;
        let wanted = |stderr| line.as_ref().is_ok_and(|line| line.stderr != stderr);
        std::future::ready(!shown.stderr.is_some_and(wanted))
    });
    match request.accept() {
        Accept::Sse | Accept::Ndjson => {
            let records = lines.map(record);
            Ok(stream::records(
                request.accept(),
                request.edge.heartbeat,
                records,
            ))
        }
        Accept::Json | Accept::Text => {
            let text = lines.map(move |line| line.map(|line| written(&line, shown.timestamps)));
            Ok(stream::streaming("text/plain; charset=utf-8", text))
        }
    }
}

/// Reads log lines. A stream that breaks is opened again at the last line that was read.
pub(super) fn lines(bus: Bus, ctx: Ctx, wanted: Logs) -> Local<Result<LogLine>> {
    produce(|feed| async move {
        let mut place = Place::default();
        loop {
            let mut batches = match bus.open(&ctx, place.after(&wanted)).await {
                Ok(batches) => batches,
                Err(error) => return feed.send(Err(error)).await,
            };
            place.again();
            loop {
                match batches.next().await {
                    None => return,
                    Some(Ok(batch)) => {
                        for line in batch.lines {
                            if place.is_new(line.time) {
                                feed.send(Ok(line)).await;
                            }
                        }
                    }
                    Some(Err(error)) if error.is(Code::Unavailable) => break,
                    Some(Err(error)) => return feed.send(Err(error)).await,
                }
            }
            tokio::time::sleep(BREATH).await;
        }
    })
}

/// How far a log was read: several lines may have the same time, so those are counted.
#[derive(Debug, Default)]
struct Place {
    last: Option<Timestamp>,
    /// Lines that had the time `last`.
    count: usize,
    /// Of them, those still to be skipped in the stream that is open now.
    skip: usize,
}

impl Place {
    /// The request that goes on from here.
    fn after(&self, wanted: &Logs) -> Logs {
        Logs {
            since: self.last.or(wanted.since),
            // What was the tail is read from its first line on; once that is known, the tail is not cut again.
            tail: wanted.tail.filter(|_| self.last.is_none()),
            ..wanted.clone()
        }
    }

    fn again(&mut self) {
        self.skip = self.count;
    }

    /// Counts a line; says whether it was not read before.
    fn is_new(&mut self, time: Timestamp) -> bool {
        if self.last != Some(time) {
            (self.last, self.count, self.skip) = (Some(time), 1, 0);
            return true;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.count += 1;
        true
    }
}

/// The bytes as they were written, with the time in front when asked for.
fn written(line: &LogLine, timestamps: bool) -> Bytes {
    let mut bytes = match timestamps {
        true => format!("{} ", line.time).into_bytes(),
        false => Vec::with_capacity(line.bytes.len() + 1),
    };
    if line.lost > 0 {
        let lost = line.lost;
        bytes.extend_from_slice(
            format!("[about {lost} bytes of this log are not kept]\n").as_bytes(),
        );
    }
    bytes.extend_from_slice(&line.bytes);
    if line.newline {
        bytes.push(b'\n');
    }
    bytes.into()
}

/// One line as JSON.
#[derive(Serialize)]
struct LineView {
    time: Timestamp,
    stream: &'static str,
    /// Bytes that are not UTF-8 are replaced.
    line: String,
    /// Whether the line goes on in the next record.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    /// No line but a gap: so many bytes of log, about, are not kept.
    #[serde(skip_serializing_if = "is_none")]
    lost: u64,
}

fn is_none(lost: &u64) -> bool {
    *lost == 0
}

fn record(line: Result<LogLine>) -> Record {
    let (event, data) = match line {
        Ok(line) => {
            let view = LineView {
                time: line.time,
                stream: if line.stderr { "stderr" } else { "stdout" },
                line: String::from_utf8_lossy(&line.bytes).into_owned(),
                partial: !line.newline && line.lost == 0,
                lost: line.lost,
            };
            (view.stream, serde_json::to_string(&view))
        }
        Err(error) => {
            let problem = crate::errors::Problem::from(error).view();
            let data = serde_json::json!({ "error": problem });
            ("error", serde_json::to_string(&data))
        }
    };
    Record {
        id: None,
        event: event.into(),
        data: data.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_same_time_are_read_once() {
        let mut place = Place::default();
        let read = |place: &mut Place, times: &[i64]| -> Vec<bool> {
            place.again();
            times
                .iter()
                .map(|time| place.is_new(Timestamp(*time)))
                .collect()
        };
        assert_eq!(read(&mut place, &[1, 2, 2]), [true; 3]);
        assert_eq!(read(&mut place, &[2, 2, 2, 3]), [false, false, true, true]);
        assert_eq!(read(&mut place, &[3, 3]), [false, true]);
    }

    #[test]
    fn text_is_exactly_what_was_written() {
        let line = LogLine {
            time: Timestamp(0),
            stderr: false,
            newline: false,
            bytes: vec![0xff, b'a'],
            lost: 0,
        };
        assert_eq!(written(&line, false), vec![0xff, b'a']);
        let ended = LogLine {
            newline: true,
            ..line
        };
        assert!(written(&ended, true).starts_with(b"1970-01-01T00:00:00"));
        assert!(written(&ended, true).ends_with(b"a\n"));
    }
}
