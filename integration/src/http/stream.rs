//! Reads `text/event-stream` and `application/x-ndjson` alike, record by record.
//!
//! Source: WHATWG HTML, "Server-sent events", 9.2.6 (interpreting an event stream).

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::Connection;
use crate::Outcome;

/// One record of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The `id:` line; empty in NDJSON.
    pub id: String,
    /// The `event:` line; empty in NDJSON.
    pub event: String,
    /// The JSON of the `data:` lines, or of the NDJSON line.
    pub data: Value,
}

/// An open stream of records. Dropping it closes the connection.
pub struct Records {
    body: Incoming,
    buffer: Vec<u8>,
    // The request ends when its sender is dropped.
    _connection: Connection,
}

impl Records {
    pub(super) fn new(body: Incoming, connection: Connection) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            _connection: connection,
        }
    }

    /// Returns the next record, or `None` when the server ended the stream.
    ///
    /// Errors: nothing arrived within the bound, the connection broke, or a record is not JSON.
    pub async fn next(&mut self, bound: Duration) -> Outcome<Option<Record>> {
        match tokio::time::timeout(bound, self.read()).await {
            Ok(record) => record,
            Err(_) => Err(format!("no record in {bound:?}").into()),
        }
    }

    /// Reads on until a record fits, and returns it. Errors: the stream ended before, or the bound passed.
    pub async fn find(
        &mut self,
        bound: Duration,
        fits: impl Fn(&Record) -> bool,
    ) -> Outcome<Record> {
        let mut seen = Vec::new();
        let search = async {
            while let Some(record) = self.read().await? {
                if fits(&record) {
                    return Outcome::Ok(Some(record));
                }
                seen.push(record);
            }
            Ok(None)
        };
        match tokio::time::timeout(bound, search).await {
            Ok(Ok(Some(record))) => Ok(record),
            Ok(Err(error)) => Err(error),
            _ => Err(format!("no such record in {bound:?}, only {seen:?}").into()),
        }
    }

    async fn read(&mut self) -> Outcome<Option<Record>> {
        let mut record = Record::default();
        let mut data = String::new();
        while let Some(line) = self.line().await? {
            if line.starts_with('{') {
                return Ok(Some(Record {
                    data: serde_json::from_str(&line)?,
                    ..record
                }));
            }
            if line.is_empty() && !data.is_empty() {
                return Ok(Some(Record {
                    data: serde_json::from_str(&data)?,
                    ..record
                }));
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => value.clone_into(&mut record.id),
                "event" => value.clone_into(&mut record.event),
                "data" => data.push_str(value),
                _ => {} // a comment, which is a heartbeat
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> Outcome<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?.trim_end().to_owned()));
            }
            match self.body.frame().await {
                Some(frame) => self
                    .buffer
                    .extend_from_slice(frame?.data_ref().map_or(&[], |data| data)),
                None => return Ok(None),
            }
        }
    }
}
