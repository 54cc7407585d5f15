//! Parameters as the description shows them: what they do, and which values handlers take.

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    pub(crate) kind: Kind,
}

/// Which values are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Yes or no.
    Flag,
    /// A whole number.
    Count,
    /// Any text without control characters, at most so many bytes.
    Name(usize),
    /// One of these.
    Choice(&'static [&'static str]),
    /// Text of this shape.
    Pattern(&'static str),
}

/// Source: containerd, identifiers package; its length limit is 76.
const IDENTIFIER: &str = "^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$";
/// Source: OCI image-spec, descriptor.md "Digests".
pub(crate) const DIGEST: &str = "^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$";
/// Longest name, ref or key.
const NAME: usize = 1024;
/// `30`, `1.5s`, `200ms`, `5m`, `1h`.
pub(crate) const DURATION: &str = r"^[0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h)?$";
/// RFC 3339, or how long ago.
pub(crate) const MOMENT: &str = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h)?|[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z)$";

/// A parameter that takes any text.
pub(crate) const fn text(name: &'static str, text: &'static str) -> Param {
    of(name, Kind::Text, text)
}

/// A parameter that is yes or no.
pub(crate) const fn flag(name: &'static str, text: &'static str) -> Param {
    of(name, Kind::Flag, text)
}

/// A parameter that is a whole number.
pub(crate) const fn count(name: &'static str, text: &'static str) -> Param {
    of(name, Kind::Count, text)
}

/// A parameter of a certain kind.
pub(crate) const fn of(name: &'static str, kind: Kind, text: &'static str) -> Param {
    Param { name, text, kind }
}

impl Param {
    /// The parameter of a path that has this name in its pattern.
    pub(crate) fn in_path(part: &'static str) -> Self {
        let name = part.trim_end_matches('*');
        let kind = match part {
            "ns" | "id" | "exec" => Kind::Pattern(IDENTIFIER),
            "digest" => Kind::Pattern(DIGEST),
            _ => Kind::Name(NAME),
        };
        let text = match name.len() == part.len() {
            true => "One part of the path",
            false => "May have slashes, raw or encoded",
        };
        of(name, kind, text)
    }

    /// Its values as a schema.
    pub(crate) fn schema(&self) -> Schema {
        let object = ObjectBuilder::new();
        let object = match self.kind {
            Kind::Text => object.schema_type(Type::String),
            Kind::Flag => object.schema_type(Type::Boolean),
            Kind::Count => object
                .schema_type(Type::Integer)
                .minimum(Some(0))
                .maximum(Some(u32::MAX)),
            Kind::Name(length) => object
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(length))
                .pattern(Some("^[^\\x00-\\x1f\\x7f-\\x9f]+$")),
            Kind::Choice(values) => object
                .schema_type(Type::String)
                .enum_values(Some(values.iter().copied())),
            Kind::Pattern(pattern) => object.schema_type(Type::String).pattern(Some(pattern)),
        };
        let object = match self.kind {
            Kind::Pattern(IDENTIFIER) => object.max_length(Some(76)),
            _ => object,
        };
        object.into()
    }
}
