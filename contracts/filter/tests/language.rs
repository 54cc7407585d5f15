//! The language as a table: what is written, and which rows it wants.

use std::borrow::Cow;
use std::collections::BTreeMap;

use filter::{Fields, Filter, FilterError, Filters, label};

#[derive(Default)]
struct Row {
    name: &'static str,
    size: u64,
    labels: BTreeMap<String, String>,
}

impl Fields for Row {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] if !self.name.is_empty() => Some(Cow::Borrowed(self.name)),
            ["size"] => Some(Cow::Owned(self.size.to_string())),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

fn row(name: &'static str, size: u64, labels: &[(&str, &str)]) -> Row {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Row {
        name,
        size,
        labels: labels.collect(),
    }
}

fn rows() -> Vec<Row> {
    vec![
        row("alpine", 5, &[("tier", "web"), ("a.b", "dotted")]),
        row(
            "busybox",
            9,
            &[
                ("containerd.io/gc.root", "2024-01-01"),
                ("tier", "db,replica"),
            ],
        ),
        row("", 5, &[("with \"quote\" and \\", "x")]),
        row("café", 7, &[("empty", "")]),
    ]
}

/// Writes down the rows that a filter wants, as indices.
fn wanted(input: &str) -> Result<String, FilterError> {
    let filter = Filter::parse(input)?;
    let rows = rows();
    let found = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| filter.matches(*row));
    Ok(found.map(|(index, _)| index.to_string()).collect())
}

#[test]
fn a_filter_wants_the_rows_for_which_all_selectors_hold() {
    let table = [
        ("", "0123"),
        ("name", "013"),
        ("size", "0123"),
        ("labels.tier", "01"),
        ("labels.empty", "3"),
        ("unknown", ""),
        ("name==alpine", "0"),
        ("name!=alpine", "123"),
        ("name!=\"\"", "013"),
        ("unknown!=x", "0123"),
        ("unknown==\"\"", ""),
        ("labels.empty==\"\"", "3"),
        ("size==5,labels.tier==web", "0"),
        ("labels.a.b==dotted", "0"),
        ("labels.\"a.b\"==dotted", "0"),
        ("labels.a.\"b\"==dotted", "0"),
        ("labels.\"containerd.io/gc.root\"", "1"),
        ("labels.tier==\"db,replica\"", "1"),
        ("labels.\"with \\\"quote\\\" and \\\\\"==x", "2"),
        ("\"name\"==busybox", "1"),
    ];
    for (input, rows) in table {
        assert_eq!(wanted(input).as_deref(), Ok(rows), "{input}");
    }
}

#[test]
fn an_expression_is_searched_for_and_may_stand_in_slashes_or_bars() {
    let table = [
        ("name~=x", "1"),
        ("name~=^al", "0"),
        ("name~=.*", "0123"),
        ("name~=^$", "2"),
        ("name~=\"^(alpine|busybox)$\"", "01"),
        ("name~=/^.{6,7}$/", "01"),
        ("name~=|^alpine$|", "0"),
        ("labels.\"containerd.io/gc.root\"~=/^2024\\\\-/", "1"),
        ("labels.\"containerd.io/gc.root\"~=\\d{4}", "1"),
        ("name~=/a\\/b/", ""),
        ("name~=é$,size==7", "3"),
    ];
    for (input, rows) in table {
        assert_eq!(wanted(input).as_deref(), Ok(rows), "{input}");
    }
}

#[test]
fn go_escapes_are_read_as_go_reads_them() {
    let table = [
        ("name==\"caf\\u00e9\"", "3"),
        ("name==\"caf\\U000000e9\"", "3"),
        ("name==\"caf\\xc3\\xa9\"", "3"),
        ("name==\"caf\\303\\251\"", "3"),
        ("name==\"\\x61lpine\"", "0"),
        ("name==\"a\\a\\b\\f\\n\\r\\t\\v\"", ""),
        ("name==café", "3"),
    ];
    for (input, rows) in table {
        assert_eq!(wanted(input).as_deref(), Ok(rows), "{input}");
    }
}

#[test]
fn spaces_between_the_parts_do_not_matter() {
    for input in [
        "name == alpine",
        "  name==alpine  ",
        "name==alpine , size == 5",
        "labels . tier == web",
    ] {
        assert_eq!(wanted(input).as_deref(), Ok("0"), "{input}");
    }
}

#[test]
fn an_error_names_the_position_of_what_could_not_be_read() {
    let table = [
        (" ", 1, "expected a field name"),
        (",", 0, "expected a field name"),
        ("name==alpine,", 13, "expected a field name"),
        ("name,,size", 5, "expected a field name"),
        ("labels.", 7, "expected a field name"),
        (".name", 0, "expected a field name"),
        ("labels.|tier|", 7, "expected a field name"),
        ("labels.'tier'", 7, "expected a field name"),
        ("café", 3, "expected an operator"),
        ("name\0", 4, "expected an operator"),
        ("name=alpine", 4, "expected an operator"),
        ("name===alpine", 4, "expected an operator"),
        ("name~alpine", 4, "expected an operator"),
        ("name alpine", 5, "expected an operator"),
        ("labels.ns/key==x", 9, "expected an operator"),
        ("name==", 6, "expected a value"),
        ("name==,size", 6, "expected a value"),
        ("name==\0", 6, "expected a value"),
        ("name==/alpine/", 6, "only a ~= value"),
        ("name!=|alpine|", 6, "only a ~= value"),
        ("name==al pine", 9, "unexpected input"),
        ("name==\"al\"pine", 10, "unexpected input"),
        ("name==\"alpine", 6, "not terminated"),
        ("name==\"al\npine\"", 6, "not terminated"),
        ("name==\"al\\", 6, "not terminated"),
        ("name~=/alpine", 6, "not terminated"),
        ("name==\"al\\g\"", 9, "illegal escape"),
        ("name==\"al\\'\"", 9, "illegal escape"),
        ("name==\"\\xaz\"", 7, "illegal numeric escape"),
        ("name==\"\\400\"", 7, "illegal numeric escape"),
        ("name==\"\\18\"", 7, "illegal numeric escape"),
        ("name==\"\\ud800\"", 7, "no Unicode character"),
        ("name==\"\\Uffffffff\"", 7, "no Unicode character"),
        ("name==\"\\xff\"", 6, "not UTF-8"),
        ("name~=[", 6, "regular expression"),
        ("size==5,name~=\"(\"", 14, "regular expression"),
        ("name~=/(a{1000}){1000}/", 6, "regular expression"),
    ];
    for (input, position, message) in table {
        let error = wanted(input).expect_err(input);
        assert_eq!(error.position, position, "{input:?}: {error}");
        assert!(
            error.message.starts_with(message) || error.message.contains(message),
            "{input:?}: {error}"
        );
    }
}

#[test]
fn an_error_shows_the_place_in_the_filter() {
    let middle = wanted("labels.ns/key==x").expect_err("the slash is not quoted");
    assert!(
        middle
            .to_string()
            .starts_with("filter labels.ns>/<key==x: at offset 9: "),
        "{middle}"
    );
    let end = wanted("name==").expect_err("the value is missing");
    assert!(
        end.to_string()
            .starts_with("filter name==><: at offset 6: "),
        "{end}"
    );
}

#[test]
fn several_filters_are_alternatives_and_none_wants_everything() {
    let all = rows();
    let count = |inputs: &[&str]| {
        let inputs: Vec<String> = inputs.iter().map(|one| (*one).to_owned()).collect();
        let filters = Filters::parse(&inputs).expect("a valid filter");
        (
            all.iter().filter(|row| filters.matches(*row)).count(),
            filters.is_everything(),
        )
    };
    assert_eq!(count(&[]), (4, true));
    assert_eq!(count(&["name==alpine", "name==busybox"]), (2, false));
    assert_eq!(count(&["name==alpine", ""]), (4, true));
    assert_eq!(count(&["name==nobody"]), (0, false));
}

#[test]
fn one_bad_filter_refuses_the_whole_request() {
    let inputs = ["name".to_owned(), "name==".to_owned()];
    assert_eq!(
        Filters::parse(&inputs)
            .expect_err("the second is bad")
            .input,
        "name=="
    );
}
