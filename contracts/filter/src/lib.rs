//! containerd's filter language: which rows of a list does the caller want?
//!
//! ```text
//! filter    := "" | selector ("," selector)*          all selectors must hold; "" holds for everything
//! selector  := path (operator value)?                 without an operator: is the field present?
//! path      := field ("." field)*
//! field     := quoted | [A-Za-z0-9_-]+
//! operator  := "==" | "!=" | "~="                     ~= searches for a regular expression
//! value     := quoted | [^ ,]+
//! quoted    := a Go interpreted string literal; a ~= value may also stand between / / or | |
//! ```
//!
//! Several filters are alternatives: a row is wanted when any of them holds, and no filter at all
//! wants every row. Spaces between the parts are skipped.
//!
//! ```
//! # use std::borrow::Cow;
//! struct Row { name: &'static str }
//! impl filter::Fields for Row {
//!     fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
//!         (path == ["name"]).then_some(Cow::Borrowed(self.name))
//!     }
//! }
//! let wanted = filter::Filters::parse(&["name~=/^bus/".to_owned()])?;
//! assert!(wanted.matches(&Row { name: "busybox" }));
//! # Ok::<(), filter::FilterError>(())
//! ```
//!
//! Absent fields behave as in containerd: `==` is false, `!=` compares with the empty string, `~=`
//! searches the empty string. Where containerd is silent we are stricter or kinder on purpose: a
//! regular expression that does not compile is an error (containerd logs it and matches nothing),
//! a value may begin with a dot, and spaces may stand before a comma and at the end.
//!
//! Owns no state and does no I/O. Source: containerd, package `pkg/filters`.

mod parse;
mod quote;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use regex_lite::Regex;

/// Something whose fields can be asked for by path.
///
/// `labels."containerd.io/gc.root"` arrives as `["labels", "containerd.io/gc.root"]`; an unquoted
/// `labels.a.b` arrives as `["labels", "a", "b"]` and means the label `a.b`, see [`label`].
pub trait Fields {
    /// Returns the value of a field, or `None` when this object has no such field or it is empty.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// Looks up the label that the part of a path behind `labels` names.
///
/// Fields of the path are joined with dots again, so quoted and unquoted keys mean the same.
pub fn label<'a>(labels: &'a BTreeMap<String, String>, path: &[&str]) -> Option<Cow<'a, str>> {
    let key = path.join(".");
    labels.get(&key).map(|value| Cow::Borrowed(value.as_str()))
}

/// One filter: selectors that must all hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    selectors: Vec<Selector>,
}

impl Filter {
    /// Reads a filter. The empty string is the filter that holds for everything.
    ///
    /// Errors: [`FilterError`] with the byte offset of what could not be read.
    pub fn parse(input: &str) -> Result<Self, FilterError> {
        let selectors = parse::selectors(input)?;
        Ok(Self { selectors })
    }

    /// Tells whether every selector holds for this object.
    pub fn matches(&self, object: &impl Fields) -> bool {
        self.selectors.iter().all(|one| one.matches(object))
    }
}

/// The filters of one list request: alternatives, of which one must hold.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    any: Vec<Filter>,
}

impl Filters {
    /// Reads every filter. No filter at all holds for everything.
    ///
    /// Errors: [`FilterError`] of the first filter that could not be read.
    pub fn parse(inputs: &[String]) -> Result<Self, FilterError> {
        let any = inputs.iter().map(|one| Filter::parse(one));
        Ok(Self {
            any: any.collect::<Result<_, _>>()?,
        })
    }

    /// Tells whether any of the filters holds for this object, or there is none.
    pub fn matches(&self, object: &impl Fields) -> bool {
        self.any.is_empty() || self.any.iter().any(|one| one.matches(object))
    }

    /// Tells whether every object is wanted, so that a list need not look at fields.
    pub fn is_everything(&self) -> bool {
        self.any.is_empty() || self.any.iter().any(|one| one.selectors.is_empty())
    }
}

/// One condition on one field.
#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Selector {
    fn matches(&self, object: &impl Fields) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let found = object.field(&path);
        let text = found.as_deref();
        match &self.test {
            Test::Present => text.is_some(),
            Test::Equal(value) => text == Some(value.as_str()),
            Test::NotEqual(value) => text.unwrap_or_default() != value,
            Test::Matches(regex) => regex.is_match(text.unwrap_or_default()),
        }
    }
}

/// Why a filter could not be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// The filter as it was given.
    pub input: String,
    /// Offset into `input`, in bytes, of what could not be read.
    pub position: usize,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, rest) = self
            .input
            .split_at_checked(self.position)
            .unwrap_or((&self.input, ""));
        let mut after = rest.chars();
        match after.next() {
            Some(here) => write!(f, "filter {before}>{here}<{}", after.as_str())?,
            None => write!(f, "filter {before}><")?,
        }
        write!(f, ": at offset {}: {}", self.position, self.message)
    }
}

impl std::error::Error for FilterError {}
