//! `WWW-Authenticate`: what a registry wants to see. Source: RFC 9110, section 11.6.1.

/// One way in that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Lowercase: `basic`, `bearer`.
    pub scheme: String,
    /// Lowercase names with their values, in the order sent.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Shows the value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Parses one header value, which may hold several challenges. What cannot be read is left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = Cursor(header);
    while let Some(word) = rest.word() {
        match (rest.value(), challenges.last_mut()) {
            (Some(value), Some(current)) => {
                current.parameters.push((word.to_ascii_lowercase(), value));
            }
            (Some(_), None) => {}
            (None, _) => {
                let scheme = word.to_ascii_lowercase();
                challenges.push(Challenge {
                    scheme,
                    parameters: Vec::new(),
                });
            }
        }
    }
    challenges
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Takes the next token; what stands before it is a separator.
    fn word(&mut self) -> Option<&'a str> {
        let start = self.0.find(is_token)?;
        let rest = &self.0[start..];
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        self.0 = &rest[end..];
        Some(&rest[..end])
    }

    /// Takes `= value` if that is what follows.
    fn value(&mut self) -> Option<String> {
        let rest = self.0.trim_start().strip_prefix('=')?.trim_start();
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find([',', ' ', '\t']).unwrap_or(rest.len());
            self.0 = &rest[end..];
            return Some(rest[..end].to_owned());
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                other => value.push(other),
            }
        }
        self.0 = "";
        Some(value)
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_challenge_is_read_with_its_commas_and_escapes() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry \"one\"",scope="repository:a/b:pull,push""#;
        let [challenge] = parse(header).try_into().unwrap_or_else(|_| [empty()]);
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.example/token"));
        assert_eq!(challenge.get("service"), Some("registry \"one\""));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn several_challenges_in_one_header_are_kept_apart() {
        let challenges =
            parse(r#"Negotiate, BASIC Realm="a, b" , Bearer realm=plain, error = "invalid_token""#);
        let schemes: Vec<&str> = challenges.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(challenges[1].get("realm"), Some("a, b"));
        assert_eq!(challenges[2].get("realm"), Some("plain"));
        assert_eq!(challenges[2].get("error"), Some("invalid_token"));
    }

    #[test]
    fn nonsense_gives_no_challenge_and_does_not_hang() {
        for header in ["", ",,,", "=", "\"", "=\"x", "é=é"] {
            assert!(
                parse(header).iter().all(|c| c.parameters.is_empty()),
                "{header:?}"
            );
        }
        assert_eq!(
            parse("Basic realm=\"unclosed")[0].get("realm"),
            Some("unclosed")
        );
    }

    fn empty() -> Challenge {
        Challenge {
            scheme: String::new(),
            parameters: Vec::new(),
        }
    }
}
