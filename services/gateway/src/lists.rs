//! Lists, so that every one has the same habits, and where to go on from one: list, then watch.
//!
//! The `version` of a list is the number of the newest event when its owner had not been asked yet. Whatever happens
//! after what the list shows has a larger number, so `GET /v1/events?since=<version>` goes on exactly there. What
//! happened just before may be told again, which is harmless to a reader that applies events by name. Of several pages
//! the first one's version counts.

use crate::convert::PageView;
use crate::errors::Answer;
use crate::request::{Request, ok};
use contracts::events::{Events, Info};
use contracts::{Error, Page, Result};
use filter::{Fields, Filters};
use serde::Serialize;
use serde_json::Value;
use std::{borrow::Cow, time::Duration};

/// How long a list waits for the log. Without its answer the version is 0: who watches from there misses nothing either.
const LOG: Duration = Duration::from_secs(1);

/// Where a watch goes on that begins with a list which is read after this.
pub(crate) async fn version(request: &Request) -> u64 {
    // A log that is known to be stuck must not slow down lists of what is well.
    if !request.bus().is_ready::<Events>() {
        return 0;
    }
    let ctx = request.ctx.clone().with_deadline(LOG);
    let info = request.bus().call(&ctx, Info {}).await;
    info.map_or(0, |info| info.last)
}

/// Answers one page of a list.
pub(crate) async fn listed<T, F, R>(request: &Request, list: R) -> Answer
where
    T: From<F> + Serialize,
    R: contracts::Request<Reply = Page<F>>,
{
    let version = version(request).await;
    let page = PageView::<T>::of(request.call(list).await?);
    ok(PageView { version, ..page })
}

/// Answers the part of a whole list that the request asks for. Filter fields are the fields of the items.
pub(crate) fn part<T: Serialize>(request: &Request, items: Vec<T>) -> Answer {
    let paging = request.paging()?;
    ok(page(items, &paging)?)
}

fn page<T: Serialize>(items: Vec<T>, paging: &contracts::Paging) -> Result<PageView<Value>> {
    let filters = Filters::parse(&paging.filters).map_err(|e| Error::invalid(e.to_string()))?;
    let rows = items.iter().map(serde_json::to_value);
    let rows: Vec<Row> = rows
        .map(|row| row.map(Row))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::internal(format!("list: {e}")))?;
    let from = match paging.token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| {
            Error::invalid(format!("page_token {token:?}: is not one of this list"))
        })?,
    };
    let limit = match paging.limit {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let mut wanted = rows
        .into_iter()
        .filter(|row| filters.matches(row))
        .skip(from);
    let items: Vec<Value> = wanted.by_ref().take(limit).map(|row| row.0).collect();
    let next = wanted.next().map(|_| (from + items.len()).to_string());
    Ok(PageView {
        items,
        next_page_token: next.unwrap_or_default(),
        version: 0,
    })
}

/// An item as its own JSON.
struct Row(Value);

impl Fields for Row {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let found = path
            .iter()
            .try_fold(&self.0, |value, name| value.get(name))?;
        match found {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(_) | Value::Bool(_) => Some(Cow::Owned(found.to_string())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(filter: &str, limit: u32, token: &str) -> Result<(String, String)> {
        let items = ["a", "b", "c"].map(|id| serde_json::json!({"id": id, "of": {"size": 1}}));
        let paging = contracts::Paging {
            filters: vec![filter.into()],
            limit,
            token: token.into(),
        };
        let page = page(items.to_vec(), &paging)?;
        let ids = page.items.iter().filter_map(|item| item["id"].as_str());
        Ok((ids.collect(), page.next_page_token))
    }

    #[test]
    fn a_whole_list_is_filtered_and_cut() {
        assert_eq!(paged("", 0, "").unwrap(), ("abc".into(), "".into()));
        assert_eq!(paged("", 2, "").unwrap(), ("ab".into(), "2".into()));
        assert_eq!(paged("", 2, "2").unwrap(), ("c".into(), "".into()));
        assert_eq!(
            paged("id!=b,of.size==1", 0, "").unwrap(),
            ("ac".into(), "".into())
        );
        assert!(paged("id==", 0, "x").is_err());
    }
}
