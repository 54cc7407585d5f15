//! What filters may ask of an event: `topic`, `namespace`, `event.<field>…`.

use contracts::events::Entry;
use filter::Fields;
use std::{borrow::Cow, cell::OnceCell};

/// An event as a filter sees it. Its payload is parsed once, and only when a filter asks for it.
pub(crate) struct Row<'a> {
    entry: &'a Entry,
    payload: OnceCell<serde_json::Value>,
}

impl<'a> Row<'a> {
    pub(crate) fn new(entry: &'a Entry) -> Self {
        Self {
            entry,
            payload: OnceCell::new(),
        }
    }

    fn payload(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let mut value = self
            .payload
            .get_or_init(|| serde_json::from_str(&self.entry.event).unwrap_or_default());
        for step in path {
            value = value.get(step)?;
        }
        match value {
            serde_json::Value::String(text) => Some(Cow::Borrowed(text)),
            serde_json::Value::Number(number) => Some(Cow::Owned(number.to_string())),
            serde_json::Value::Bool(truth) => Some(Cow::Owned(truth.to_string())),
            _ => None,
        }
    }
}

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let found = match path {
            ["topic"] => Some(Cow::Borrowed(self.entry.topic.as_str())),
            ["namespace"] => self
                .entry
                .namespace
                .as_ref()
                .map(|ns| Cow::Borrowed(ns.as_str())),
            ["event", rest @ ..] if !rest.is_empty() => self.payload(rest),
            _ => None,
        };
        found.filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{Namespace, Timestamp};
    use filter::Filters;

    fn wanted(filter: &str) -> bool {
        let entry = Entry {
            time: Timestamp(0),
            namespace: Some(Namespace::new("k8s.io").unwrap()),
            topic: "/tasks/exit".into(),
            event: r#"{"id":"web","exit_code":137,"oom":true,"of":{"image":"a/b"}}"#.into(),
        };
        Filters::parse(&[filter.to_owned()])
            .unwrap()
            .matches(&Row::new(&entry))
    }

    #[test]
    fn topic_namespace_and_payload_can_be_asked_for() {
        for yes in [
            r#"topic=="/tasks/exit""#,
            "topic~=|^/tasks/|",
            "namespace==k8s.io",
            "event.id==web,event.exit_code==137",
            "event.of.image==a/b",
            "event.oom==true",
        ] {
            assert!(wanted(yes), "{yes}");
        }
        for no in [
            r#"topic=="/tasks/start""#,
            "namespace==default",
            "event.id==db",
            "event.of",
            "event",
            "nothing",
        ] {
            assert!(!wanted(no), "{no}");
        }
    }
}
