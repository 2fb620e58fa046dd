//! The rules of Go's `flag` package, translated to the one spelling that clap gets: `--name=value`.

use clap::Command;

use crate::config::BOOLEAN;
use crate::suggest;

/// What Go's rules make of the words.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    /// One `--name=value` per flag, names as clap knows them.
    pub flags: Vec<String>,
    /// Words that are not flags.
    pub rest: Vec<String>,
    /// `-h` or `-help` was among the flags.
    pub help: bool,
}

/// Splits `words` into flags and the rest by Go's rules: `-x v`, `-x=v`, `--x v` and `--x=v` are
/// the same, a boolean takes no separate value, `--` ends the flags. In proxy mode the first word
/// that is not a flag ends them too (`anywhere` false). The error is one line for the user.
pub fn split(command: &Command, words: &[String], anywhere: bool) -> Result<Words, String> {
    let mut out = Words {
        flags: Vec::new(),
        rest: Vec::new(),
        help: false,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix('-') {
            None | Some("") => {
                out.rest.push(word.clone());
                if anywhere {
                    continue;
                }
                break;
            }
            Some("-") => break,
            Some(name) => name.strip_prefix('-').unwrap_or(name),
        };
        if name.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {word}"));
        }
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let known = command
            .get_arguments()
            .find(|arg| names(arg).any(|known| known == name));
        let Some(arg) = known else {
            if matches!(name, "h" | "help") {
                out.help = true;
                continue;
            }
            let all = command.get_arguments().flat_map(names);
            let meant = suggest::did_you_mean(name, "-", all);
            return Err(format!("unknown flag: -{name}{meant}"));
        };
        let value = match value {
            Some(value) => value,
            None if is_boolean(arg) => "true".to_owned(),
            None => words
                .next()
                .cloned()
                .ok_or_else(|| format!("flag needs a value: -{name}"))?,
        };
        out.flags.push(format!("--{name}={value}"));
    }
    out.rest.extend(words.cloned());
    Ok(out)
}

/// Every spelling of a flag, without its dash.
fn names(arg: &clap::Arg) -> impl Iterator<Item = &str> {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    arg.get_long().into_iter().chain(aliases)
}

/// Whether a flag needs no value; its clap definition says so by its value name.
pub fn is_boolean(arg: &clap::Arg) -> bool {
    matches!(arg.get_value_names(), Some([name]) if name.as_str() == BOOLEAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn flags(words: &[&str], anywhere: bool) -> Result<Words, String> {
        let command = Command::new("x")
            .arg(Arg::new("l").long("l").alias("listen-addr"))
            .arg(Arg::new("mark").long("mark"))
            .arg(Arg::new("on").long("on").value_name(BOOLEAN));
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        split(&command, &words, anywhere)
    }

    #[test]
    fn one_and_two_dashes_equals_and_space_are_the_same() {
        for words in [
            &["-mark", "5"][..],
            &["--mark", "5"],
            &["-mark=5"],
            &["--mark=5"],
        ] {
            assert_eq!(flags(words, false).unwrap().flags, ["--mark=5"]);
        }
        assert_eq!(flags(&["-mark", "-5"], false).unwrap().flags, ["--mark=-5"]);
        assert_eq!(flags(&["-mark="], false).unwrap().flags, ["--mark="]);
        assert_eq!(
            flags(&["-listen-addr", "a=b"], false).unwrap().flags,
            ["--listen-addr=a=b"]
        );
    }

    #[test]
    fn a_boolean_takes_no_separate_value() {
        let words = flags(&["-on", "false"], false).unwrap();
        assert_eq!(words.flags, ["--on=true"]);
        assert_eq!(words.rest, ["false"]);
        assert_eq!(flags(&["-on=false"], false).unwrap().flags, ["--on=false"]);
    }

    #[test]
    fn the_first_stray_word_ends_the_flags_of_the_proxy_only() {
        let proxy = flags(&["up", "-on"], false).unwrap();
        assert_eq!((proxy.flags.len(), proxy.rest.len()), (0, 2));
        let sub = flags(&["up", "-on"], true).unwrap();
        assert_eq!((sub.flags.len(), sub.rest.len()), (1, 1));
        assert_eq!(flags(&["--", "-on"], true).unwrap().rest, ["-on"]);
        assert_eq!(flags(&["-"], false).unwrap().rest, ["-"]);
    }

    #[test]
    fn errors_name_the_flag() {
        assert_eq!(
            flags(&["-nope=1"], false).unwrap_err(),
            "unknown flag: -nope"
        );
        assert_eq!(
            flags(&["-marc=1"], false).unwrap_err(),
            "unknown flag: -marc (did you mean -mark?)"
        );
        assert_eq!(
            flags(&["-listen-adr"], false).unwrap_err(),
            "unknown flag: -listen-adr (did you mean -listen-addr?)"
        );
        assert_eq!(
            flags(&["-mark"], false).unwrap_err(),
            "flag needs a value: -mark"
        );
        assert_eq!(
            flags(&["---mark"], false).unwrap_err(),
            "bad flag syntax: ---mark"
        );
        assert_eq!(flags(&["-=1"], false).unwrap_err(), "bad flag syntax: -=1");
        assert!(flags(&["-help"], false).unwrap().help);
    }
}
