//! `realpeer config`.

use std::path::PathBuf;

use clap::{Arg, CommandFactory, value_parser};

use super::UsageError;
use super::flags::{Command, Parsed, ProxyFlags, matches, refuse, source, typed_flags};
use crate::config::{self, Source};
use crate::suggest;

/// What `realpeer config` does.
#[derive(Debug)]
pub enum ConfigAction {
    /// Say whether a file is good.
    Check(PathBuf),
    /// Print what a file means, defaults too.
    Show(PathBuf),
    /// Print what a running proxy has in force.
    ShowRunning {
        /// Its control socket, if not the usual one.
        control: Option<PathBuf>,
        /// Its name, if it has one.
        name: Option<String>,
    },
    /// Print the file for a command line: its flags and their values, and what they ask for.
    FromFlags(Vec<(String, String)>, Source),
}

const ACTIONS: [&str; 3] = ["check", "show", "from-flags"];

/// The actions and flags of `realpeer config`.
pub fn definition() -> clap::Command {
    clap::Command::new("realpeer config")
        .display_name("realpeer config ACTION")
        .about("Checks, prints and writes configuration files (-config).")
        .before_help(
            "\nActions:\n  \
             check FILE          say whether it is good and where it would listen, or list its mistakes\n  \
             show [FILE]         print everything in force, defaults included; without FILE in the running proxy\n  \
             from-flags FLAGS    print the file for a command line of realpeer, go-mmproxy or mmproxy-rs",
        )
        .after_help("Exit code: 0 success; 1 the file has mistakes; 2 wrong command line; 3 no proxy answers.")
        .arg(
            Arg::new("control")
                .long("control")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("show: the running proxy's control socket (default: /run/realpeer/control.sock)"),
        )
        .arg(
            Arg::new("name")
                .long("name")
                .value_name("NAME")
                .value_parser(config::name)
                .help("show: the running proxy's -name, if it has one"),
        )
}

/// Reads what stands behind `realpeer config`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = definition();
    if let Some(("from-flags", flags)) = words
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return from_flags(flags);
    }
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(mut matches, rest) => {
            let words: Vec<&str> = rest.iter().map(String::as_str).collect();
            let action = match words[..] {
                ["check", file] => Ok(ConfigAction::Check(file.into())),
                ["show", file] => Ok(ConfigAction::Show(file.into())),
                ["show"] => Ok(ConfigAction::ShowRunning {
                    control: matches.remove_one("control"),
                    name: matches.remove_one("name"),
                }),
                ["check"] => Err("config check: name a file".into()),
                [] => Err(format!(
                    "config: the action is missing: {}",
                    ACTIONS.join(", ")
                )),
                [action, .., stray] if ACTIONS.contains(&action) => {
                    Err(format!("config {action}: stray word {stray:?}"))
                }
                [word, ..] => Err(format!(
                    "config: {}",
                    suggest::unknown("action", word, &ACTIONS)
                )),
            };
            let action = action.map_err(|message| refuse(&command, message))?;
            Ok(Command::Config(action))
        }
    }
}

/// A command line may begin with the program's name, as it stands in a unit.
fn from_flags(words: &[String]) -> Result<Command, UsageError> {
    let is_program = |word: &&String| !word.starts_with('-');
    let words = match words.first().filter(is_program) {
        Some(_) => &words[1..],
        None => words,
    };
    let command = ProxyFlags::command();
    match matches(&command, words, false)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) if !rest.is_empty() => Err(refuse(
            &command,
            format!("from-flags: stray word {:?}", rest[0]),
        )),
        Parsed::Flags(mut matches, _) => {
            let given = typed_flags(&command, &matches);
            match source(&command, &mut matches)? {
                source @ Source::Flags(_) => {
                    Ok(Command::Config(ConfigAction::FromFlags(given, source)))
                }
                Source::File { .. } => Err(refuse(
                    &command,
                    "from-flags: -config names a file already".into(),
                )),
            }
        }
    }
}
