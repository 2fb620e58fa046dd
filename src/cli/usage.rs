//! What `-h` prints, and the line of usage above an error.

use std::fmt::Write;

use clap::{Arg, Command};

use super::go;

/// Every flag with its help, from clap's own definitions.
pub fn help(command: &Command) -> String {
    let mut out = String::new();
    if let Some(about) = command.get_about() {
        let _ = writeln!(out, "{about}\n");
    }
    let _ = writeln!(out, "Usage:\n  {}", invocation(command));
    if let Some(more) = command.get_before_help() {
        let _ = writeln!(out, "{more}");
    }
    if has_flags(command) {
        let _ = writeln!(
            out,
            "\nFlags (one dash or two, -flag VALUE or -flag=VALUE):"
        );
    }
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

/// One line that says where the rest is explained.
pub fn short(command: &Command) -> String {
    format!(
        "usage: {} ('{} -h' explains it)",
        invocation(command),
        command.get_name()
    )
}

fn invocation(command: &Command) -> String {
    let words = command.get_display_name().unwrap_or(command.get_name());
    let flags = if has_flags(command) { " [FLAGS]" } else { "" };
    format!("{words}{flags}")
}

fn has_flags(command: &Command) -> bool {
    command.get_arguments().next().is_some()
}

/// `-l ADDR`, or `-flag` for a boolean.
fn spelling(arg: &Arg) -> String {
    let name = arg.get_long().unwrap_or_default();
    match arg.get_value_names() {
        Some([value]) if !go::is_boolean(arg) => format!("-{name} {value}"),
        _ => format!("-{name}"),
    }
}
