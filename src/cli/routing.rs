//! `realpeer routing`, and the flags for routing.

use clap::{Arg, CommandFactory};

use super::UsageError;
use super::flags::{Command, Parsed, ProxyFlags, matches, refuse, source};
use crate::suggest;

/// What `realpeer routing` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingAction {
    /// Add the rules.
    Up,
    /// Remove them.
    Down,
    /// Print what is needed and what is there.
    Show,
}

/// How `realpeer routing show` prints (`-as`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowAs {
    /// What is needed and what of it is in place.
    Table,
    /// `ip`, `nft` and `sysctl` commands to copy.
    Commands,
}

/// The flags of `realpeer routing`.
pub fn definition() -> clap::Command {
    ProxyFlags::command()
        .name("realpeer routing")
        .display_name("realpeer routing up|down|show")
        .about("Adds, removes or shows the policy routing that brings a backend's replies back.")
        .before_help(None::<&str>)
        .arg(
            Arg::new("as")
                .long("as")
                .value_name("FORM")
                .default_value("table")
                .value_parser(show_as)
                .help("show: print a table, or commands to copy"),
        )
}

/// Parses what follows `realpeer routing`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = definition();
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(mut matches, rest) => {
            let action = action(&rest).map_err(|message| refuse(&command, message))?;
            let form = matches.remove_one("as").unwrap_or(ShowAs::Table);
            let source = source(&command, &mut matches)?;
            Ok(Command::Routing(action, form, source))
        }
    }
}

fn show_as(text: &str) -> Result<ShowAs, String> {
    match text {
        "table" => Ok(ShowAs::Table),
        "commands" => Ok(ShowAs::Commands),
        _ => Err("write table or commands".into()),
    }
}

fn action(words: &[String]) -> Result<RoutingAction, String> {
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => Ok(RoutingAction::Up),
        ["down"] => Ok(RoutingAction::Down),
        ["show"] => Ok(RoutingAction::Show),
        [] => Err("routing: the action is missing: up, down or show".into()),
        ["up" | "down" | "show", word, ..] => Err(format!("routing: stray word {word:?}")),
        [word, ..] => {
            let error = suggest::unknown("action", word, &["up", "down", "show"]);
            Err(format!("routing: {error}"))
        }
    }
}
