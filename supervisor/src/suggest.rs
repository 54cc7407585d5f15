//! "Did you mean": the known word that is nearest to a mistyped one.

/// Finds the known word nearest to `word`, if one is near enough to be meant.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the word may be wrong; below that, guesses surprise more than they help.
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Prints `; did you mean "x"` when something is near, else the known words.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(candidate) = closest(word, known.clone()) {
        return format!("; did you mean {candidate:?}");
    }
    let known: Vec<_> = known.into_iter().collect();
    match known.is_empty() {
        true => String::new(),
        false => format!("; known: {}", known.join(", ")),
    }
}

/// Counts the insertions, deletions and replacements between two words. Source: Levenshtein, 1966.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, &b) in right.iter().enumerate() {
            let replace = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        assert_eq!(closest("lissten", ["listen", "token"]), Some("listen"));
        assert_eq!(
            closest("content/locl", ["content/local", "gc/local"]),
            Some("content/local")
        );
        assert_eq!(closest("abcdef", ["listen", "token"]), None);
        assert_eq!(closest("", ["listen"]), None);
    }

    #[test]
    fn distances_are_symmetric_and_zero_for_equal_words() {
        for (a, b, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("ä", "a", 1),
        ] {
            assert_eq!(distance(a, b), expected);
            assert_eq!(distance(b, a), expected);
        }
    }
}
