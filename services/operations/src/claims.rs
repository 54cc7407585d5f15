//! Keys of clients: which request each is bound to, and what that was answered.
//!
//! ```text
//! claims    namespace NUL key → what it is bound to
//! claimed   moment (oldest first) NUL namespace NUL key
//! ```

use crate::store::Store;
use contracts::operations::{Answer, Claim, Claimed, Settle};
use contracts::{Error, Namespace, OperationId, Result, Timestamp};
use ledger::{Fault, Table, Tx};
use serde::{Deserialize, Serialize};

const CLAIMS: Table<Bound> = Table::new("claims");
const CLAIMED: Table<()> = Table::new("claimed");
/// For how long a key is bound, in seconds. Source: API.md, `Idempotency-Key`.
const KEPT: i64 = 24 * 3600;
/// Old keys forgotten by one write, so that forgetting never makes it slow.
const FORGET: usize = 32;

/// What a key is bound to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bound {
    place: String,
    print: OperationId,
    since: Timestamp,
    answer: Option<Answer>,
}

impl Store {
    /// Binds a key to a request, unless it is bound to another. Errors: `FailedPrecondition`.
    pub(crate) async fn claim(&self, ns: Option<Namespace>, claim: Claim) -> Result<Claimed> {
        let row = row(ns.as_ref(), &claim.key);
        let bind = move |tx: &mut Tx<'_>| {
            let oldest = tx.now.plus_seconds(-KEPT);
            if let Some(bound) = tx.get(&CLAIMS, &row)?.filter(|bound| bound.since >= oldest) {
                return same(&claim, bound);
            }
            let bound = Bound {
                place: claim.place.clone(),
                print: claim.print.clone(),
                since: tx.now,
                answer: None,
            };
            tx.put(&CLAIMS, &row, &bound)?;
            tx.put(&CLAIMED, &moment(bound.since, &row), &())?;
            forget(tx, oldest)?;
            Ok(Claimed::default())
        };
        self.ledger().write(None, bind).await
    }

    /// Keeps the answer to a claimed request, or frees its key.
    pub(crate) async fn settle(&self, ns: Option<Namespace>, settle: Settle) -> Result<()> {
        let row = row(ns.as_ref(), &settle.key);
        let keep = move |tx: &mut Tx<'_>| {
            let Some(mut bound) = tx.get(&CLAIMS, &row)? else {
                return Ok(());
            };
            if bound.answer.is_some() {
                return Ok(());
            }
            bound.answer.clone_from(&settle.answer);
            match bound.answer {
                Some(_) => tx.put(&CLAIMS, &row, &bound)?,
                None => release(tx, &row, bound.since)?,
            }
            Ok(())
        };
        self.ledger().write(None, keep).await
    }
}

fn row(ns: Option<&Namespace>, key: &OperationId) -> String {
    format!("{}\0{key}", ns.map_or("", Namespace::as_str))
}

fn moment(since: Timestamp, row: &str) -> String {
    format!("{:020}\0{row}", since.0.unsigned_abs())
}

fn same(claim: &Claim, bound: Bound) -> Result<Claimed> {
    if bound.print == claim.print {
        return Ok(Claimed {
            answer: bound.answer,
        });
    }
    let (key, place) = (&claim.key, &bound.place);
    let what = match bound.place == claim.place {
        true => format!("{place} with another body or other parameters"),
        false => place.clone(),
    };
    Err(Error::precondition(format!(
        "Idempotency-Key {key}: stands for {what}, take a fresh one"
    )))
}

fn release(tx: &mut Tx<'_>, row: &str, since: Timestamp) -> Result<(), Fault> {
    tx.remove(&CLAIMS, row)?;
    tx.remove(&CLAIMED, &moment(since, row)).map(drop)
}

fn forget(tx: &mut Tx<'_>, oldest: Timestamp) -> Result<(), Fault> {
    let mut old = Vec::new();
    tx.scan(&CLAIMED, "", None, |key, ()| {
        let (since, row) = key.split_once('\0').unwrap_or_default();
        let passed = since
            .parse()
            .is_ok_and(|since: u64| since < oldest.0.unsigned_abs());
        if passed {
            old.push((key.to_owned(), row.to_owned()));
        }
        passed && old.len() < FORGET
    })?;
    for (moment, row) in old {
        tx.remove(&CLAIMED, &moment)?;
        // It may have been bound anew since.
        if tx
            .get(&CLAIMS, &row)?
            .is_some_and(|bound| bound.since < oldest)
        {
            tx.remove(&CLAIMS, &row)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::Code;

    fn claim(key: &str, body: &str) -> Claim {
        Claim {
            key: OperationId::new(key).unwrap(),
            place: "POST /v1/things".into(),
            print: OperationId::new(body).unwrap(),
        }
    }

    fn settle(key: &str, answer: Option<&str>) -> Settle {
        let answer = answer.map(|body| Answer {
            status: 201,
            headers: Vec::new(),
            body: body.into(),
        });
        Settle {
            key: OperationId::new(key).unwrap(),
            answer,
        }
    }

    #[tokio::test]
    async fn a_key_stands_for_one_request_and_its_first_answer() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ns = || Some(Namespace::new("test").unwrap());
        let first = store.claim(ns(), claim("k", "a")).await.unwrap();
        assert_eq!(first, Claimed::default());
        let running = store.claim(ns(), claim("k", "a")).await.unwrap();
        assert_eq!(running, Claimed::default());
        store.settle(ns(), settle("k", Some("one"))).await.unwrap();
        store.settle(ns(), settle("k", Some("two"))).await.unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let again = store.claim(ns(), claim("k", "a")).await.unwrap();
        assert_eq!(again.answer.unwrap().body, "one");
        let other = store.claim(ns(), claim("k", "b")).await.unwrap_err();
        assert!(other.is(Code::FailedPrecondition), "{other}");
        assert!(other.message.contains("another body"), "{other}");
        assert!(store.claim(None, claim("k", "b")).await.is_ok());
    }

    #[tokio::test]
    async fn a_refused_request_frees_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim(None, claim("k", "typo")).await.unwrap();
        store.settle(None, settle("k", None)).await.unwrap();
        let mended = store.claim(None, claim("k", "mended")).await.unwrap();
        assert_eq!(mended, Claimed::default());
    }
}
