//! What `-h` prints, and the short usage below an error.

use std::fmt::Write;

use clap::{Arg, Command};

use super::go;

/// Every flag with its help, from clap's own definitions.
pub fn help(command: &Command) -> String {
    let mut out = String::new();
    if let Some(about) = command.get_about() {
        let _ = writeln!(out, "{about}\n");
    }
    let _ = writeln!(out, "Usage:\n  {} [FLAGS]", command.get_name());
    if let Some(more) = command.get_before_help() {
        let _ = writeln!(out, "{more}");
    }
    let _ = writeln!(
        out,
        "\nFlags (one dash or two, -flag VALUE or -flag=VALUE):"
    );
    for arg in command.get_arguments() {
        let _ = write!(out, "  {}", spelling(arg));
        for alias in arg.get_visible_aliases().unwrap_or_default() {
            let _ = write!(out, ", -{alias}");
        }
        let _ = writeln!(out);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines() {
            let _ = writeln!(out, "        {line}");
        }
        if let Some(default) = arg
            .get_default_values()
            .first()
            .filter(|_| !go::is_boolean(arg) && !arg.is_hide_default_value_set())
        {
            let _ = writeln!(out, "        (default {})", default.to_string_lossy());
        }
    }
    if let Some(more) = command.get_after_help() {
        let _ = writeln!(out, "\n{more}");
    }
    out
}

/// The flags alone, and where the rest stands.
pub fn short(command: &Command) -> String {
    let mut out = String::new();
    let mut line = format!("usage: {}", command.get_name());
    for arg in command.get_arguments() {
        let word = format!(" [{}]", spelling(arg));
        if line.len() + word.len() > 96 {
            let _ = writeln!(out, "{line}");
            line = "      ".to_owned();
        }
        line += &word;
    }
    let _ = write!(out, "{line}\n'{} -h' explains them", command.get_name());
    out
}

/// `-l ADDR`, or `-flag` for a boolean.
fn spelling(arg: &Arg) -> String {
    let name = arg.get_long().unwrap_or_default();
    match arg.get_value_names() {
        Some([value]) if !go::is_boolean(arg) => format!("-{name} {value}"),
        _ => format!("-{name}"),
    }
}
