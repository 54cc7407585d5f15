//! The grammar, read from left to right with one character of look-ahead.

use regex_lite::{Regex, RegexBuilder};

use crate::quote::unquote;
use crate::{FilterError, Selector, Test};

/// A compiled expression may take this many bytes; a filter comes from outside.
const REGEX_BYTES: usize = 256 * 1024;

pub(crate) fn selectors(input: &str) -> Result<Vec<Selector>, FilterError> {
    let mut parser = Parser { input, at: 0 };
    let mut found = Vec::new();
    if input.is_empty() {
        return Ok(found);
    }
    loop {
        found.push(parser.selector()?);
        match parser.peek() {
            None => return Ok(found),
            Some(',') => parser.at += 1,
            Some(_) => {
                return Err(parser.error("unexpected input; selectors are parted by a comma"));
            }
        }
    }
}

struct Parser<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.input.get(self.at..).unwrap_or_default()
    }

    /// Skips spaces and shows the character behind them.
    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.rest().chars().next()
    }

    /// Takes the run of characters that belong to one word; it may be empty.
    fn take(&mut self, belongs: fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let path = self.path()?;
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => self.test()?,
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<String, FilterError> {
        match self.peek() {
            Some('"') => self.quoted(),
            Some(c) if in_field(c) => Ok(self.take(in_field).to_owned()),
            _ => Err(self.error("expected a field name or a quoted one")),
        }
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        let start = self.at;
        match self.take(in_operator) {
            "==" => Ok(Test::Equal(self.value()?)),
            "!=" => Ok(Test::NotEqual(self.value()?)),
            "~=" => Ok(Test::Matches(self.regex()?)),
            _ => Err(self.error_at(start, "expected an operator (==, != or ~=); a name with other characters stands in double quotes")),
        }
    }

    fn value(&mut self) -> Result<String, FilterError> {
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') => {
                Err(self.error("only a ~= value may stand in / or |; use double quotes"))
            }
            Some(c) if in_value(c) => Ok(self.take(in_value).to_owned()),
            _ => Err(self.error("expected a value or a quoted one")),
        }
    }

    fn regex(&mut self) -> Result<Regex, FilterError> {
        let pattern = match self.peek() {
            Some('/' | '|') => (self.at, self.quoted()?),
            _ => (self.at, self.value()?),
        };
        RegexBuilder::new(&pattern.1)
            .size_limit(REGEX_BYTES)
            .build()
            .map_err(|error| self.error_at(pattern.0, &format!("regular expression: {error}")))
    }

    fn quoted(&mut self) -> Result<String, FilterError> {
        let (value, length) = unquote(self.rest())
            .map_err(|(behind, message)| self.error_at(self.at + behind, message))?;
        self.at += length;
        Ok(value)
    }

    fn error(&self, message: &str) -> FilterError {
        self.error_at(self.at, message)
    }

    fn error_at(&self, position: usize, message: &str) -> FilterError {
        FilterError {
            input: self.input.to_owned(),
            position,
            message: message.to_owned(),
        }
    }
}

fn in_field(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn in_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

fn in_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
