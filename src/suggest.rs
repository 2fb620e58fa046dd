//! The word that was probably meant.

/// What to add to an error about an unknown word: ` (did you mean WORD?)`, or nothing if no known
/// word is near. `dash` goes before the known word.
pub fn did_you_mean<'a>(
    typed: &str,
    dash: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    nearest(typed, known)
        .map(|word| format!(" (did you mean {dash}{word}?)"))
        .unwrap_or_default()
}

/// An error about an unknown command or action, with all that there are.
pub fn unknown(kind: &str, typed: &str, known: &[&str]) -> String {
    let meant = did_you_mean(typed, "", known.iter().copied());
    format!(
        "unknown {kind} {typed:?}{meant}; {kind}s: {}",
        known.join(", ")
    )
}

/// The known word with the fewest typing errors, at most one in three letters, or one that begins
/// as typed.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = typed.chars().count() / 3;
    known
        .into_iter()
        .map(|word| (strsim::osa_distance(typed, word), word))
        .filter(|(errors, word)| *errors <= most || (most > 0 && word.starts_with(typed)))
        .min_by_key(|(errors, _)| *errors)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_forgiven_and_other_words_are_not() {
        let known = ["routing", "ctl", "connections", "max-connections", "l", "v"];
        for (typed, meant) in [
            ("routng", Some("routing")),
            ("clt", Some("ctl")),
            ("conn", Some("connections")),
            ("max-conections", Some("max-connections")),
            ("x", None),
            ("start", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
    }
}
