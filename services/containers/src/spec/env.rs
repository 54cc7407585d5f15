//! The environment: what everybody gets, then the image's, then the user's.

use super::error::{Result, SpecError};

/// Search path of a process whose image names none. Source: Docker's default for Linux.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Merges `K=V` lists; a later one overrides in place, so order stays as the image has it.
///
/// In `wanted`, `K` alone removes. Errors: a name that is empty, in `wanted`. What is no `K=V` in an image is dropped.
pub(super) fn merge(
    defaults: &[(&str, &str)],
    image: &[String],
    wanted: &[String],
) -> Result<Vec<String>> {
    let mut env: Vec<String> = Vec::new();
    for (key, value) in defaults {
        put(&mut env, key, &format!("{key}={value}"));
    }
    for pair in image {
        if let Some((key, _)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) {
            put(&mut env, key, pair);
        }
    }
    for pair in wanted {
        match pair.split_once('=') {
            None if !pair.is_empty() => env.retain(|have| key(have) != pair),
            Some((key, _)) if !key.is_empty() => put(&mut env, key, pair),
            _ => {
                return Err(SpecError::new(
                    "env",
                    pair,
                    "must be NAME=value, or NAME to remove it",
                ));
            }
        }
    }
    Ok(env)
}

fn key(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(key, _)| key)
}

fn put(env: &mut Vec<String>, name: &str, pair: &str) {
    match env.iter_mut().find(|have| key(have) == name) {
        Some(have) => have.replace_range(.., pair),
        None => env.push(pair.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn the_image_overrides_defaults_and_the_user_overrides_the_image() {
        let image = list(&["PATH=/image", "A=1", "B=2", "broken", "=x"]);
        let wanted = list(&["B=3=4", "C=", "A"]);
        let env = merge(&[("PATH", PATH), ("HOME", "/")], &image, &wanted).unwrap();
        assert_eq!(env, ["PATH=/image", "HOME=/", "B=3=4", "C="]);
    }

    #[test]
    fn a_pair_without_a_name_is_refused() {
        for bad in ["", "=x", "="] {
            let error = merge(&[], &[], &list(&[bad])).unwrap_err();
            assert_eq!(error.option, "env");
        }
    }

    proptest! {
        #[test]
        fn a_name_stands_at_most_once_and_the_last_word_wins(
            image in proptest::collection::vec("[A-D]=[a-z]{0,3}", 0..8),
            wanted in proptest::collection::vec("[A-D](=[a-z]{0,3})?", 0..8),
        ) {
            let env = merge(&[("A", "default")], &image, &wanted).unwrap();
            for name in ["A", "B", "C", "D"] {
                let have: Vec<_> = env.iter().filter(|pair| key(pair) == name).collect();
                prop_assert!(have.len() <= 1);
                if let Some(last) = wanted.iter().rfind(|pair| key(pair) == name) {
                    prop_assert_eq!(have.first().copied(), last.contains('=').then_some(last));
                }
            }
        }
    }
}
