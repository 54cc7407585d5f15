//! A reader of all events that comes back whenever its stream breaks.

use std::time::{Duration, Instant};

use hyper::Method;

use super::Bell;
use crate::Outcome;
use crate::http::{Client, Records};

/// How long a stream may say nothing: heartbeats are no records.
const QUIET: Duration = Duration::from_secs(1);
/// How long the node may be away.
const AWAY: Duration = Duration::from_secs(60);

/// Reads the log by SSE and resumes by `Last-Event-ID`.
pub(super) struct Reader {
    client: Client,
    seen: Vec<u64>,
}

/// What a reader has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The numbers, in the order in which they came.
    pub numbers: Vec<u64>,
    /// How often it had to come back.
    pub resumed: u64,
}

impl Reader {
    /// Begins at the beginning.
    pub(super) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            seen: Vec::new(),
        }
    }

    /// Reads until the bell has rung and one more event came. Errors: the node does not answer for a minute.
    pub(super) async fn read(mut self, bell: Bell) -> Outcome<Seen> {
        let mut resumed = 0;
        loop {
            let last = self.seen.last().copied().unwrap_or(0).to_string();
            let client = self.client.clone().with_header("last-event-id", &last)?;
            let mut stream = opened(&client).await?;
            loop {
                match stream.next(QUIET).await {
                    Ok(Some(record)) => {
                        // A record without a number is a gap or an error: it shows as a hole.
                        self.seen.extend(record.id.parse::<u64>().ok());
                        if bell.rung() && record.event == "/chaos/end" {
                            return Ok(Seen {
                                numbers: self.seen,
                                resumed,
                            });
                        }
                    }
                    Err(error) if error.to_string().starts_with("no record in") => {}
                    _ => break,
                }
            }
            resumed += 1;
        }
    }
}

/// Opens the stream as soon as somebody answers.
async fn opened(client: &Client) -> Outcome<Records> {
    let begun = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    loop {
        pause.tick().await;
        let stream = client.stream(Method::GET, "/v1/events", "text/event-stream", ());
        match stream.await {
            Err(error) if begun.elapsed() > AWAY => return Err(error),
            Err(_) => {}
            opened => return opened,
        }
    }
}

impl Seen {
    /// Describes what is missing, doubled or out of order.
    pub(super) fn problems(&self) -> Vec<String> {
        let pairs = self.numbers.windows(2);
        let odd = pairs.filter(|pair| pair[1] != pair[0] + 1);
        odd.map(|pair| format!("the reader got event {} after {}", pair[1], pair[0]))
            .collect()
    }
}
