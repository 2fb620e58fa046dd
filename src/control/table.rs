//! Answers for people.

use std::fmt::Write;

use serde_json::Value;

use super::protocol::{Connection, End, Line, Listener, Older, Status};
use crate::bans::{self, Ban};
use crate::cli::CtlAction;
use crate::events::Told;
use crate::stats::Count;

/// The answer to an action that went well.
pub fn answer(action: &CtlAction, lines: &[Line], end: &End) -> String {
    let killed = end.killed.unwrap_or(0);
    match action {
        CtlAction::Status => end.status.as_deref().map(status).unwrap_or_default(),
        CtlAction::Connections => {
            let rows = lines.iter().filter_map(|line| match line {
                Line::Connection { connection } => Some(connection_row(connection)),
                _ => None,
            });
            let mut head = vec!["ID", "CLIENT", "PEER", "TARGET", "AGE"];
            let older = lines.iter().any(is_older);
            head.extend(older.then_some("PROCESS"));
            let rows = rows.map(|mut row: Vec<String>| {
                row.truncate(head.len());
                row
            });
            table(&head, rows)
        }
        CtlAction::Bans => {
            let rows = lines.iter().filter_map(|line| match line {
                Line::Ban { ban, origin } => Some(ban_row(ban, origin.as_deref())),
                _ => None,
            });
            table(
                &["NETWORK", "LISTENER", "ORIGIN", "ENDS IN", "REASON"],
                rows,
            )
        }
        CtlAction::KillId(_) | CtlAction::KillClient(_) => {
            format!("{} ended\n", connections(killed))
        }
        CtlAction::Ban(network) => format!("{network} banned, {} ended\n", connections(killed)),
        CtlAction::Unban(network) => format!("{network} unbanned\n"),
        CtlAction::Drain(name) => format!("{} accepts nothing new\n", listener_word(name)),
        CtlAction::Resume(name) => format!("{} accepts connections again\n", listener_word(name)),
        CtlAction::Reload => "the configuration was read again\n".to_owned(),
        CtlAction::Upgrade => {
            let pid = end.pid.unwrap_or_default();
            format!("process {pid} has taken over\n")
        }
        CtlAction::Log(level) => format!("logging at {level} until the next start\n"),
        // They print for themselves.
        CtlAction::Watch | CtlAction::Top => String::new(),
    }
}

fn is_older(line: &Line) -> bool {
    matches!(line, Line::Connection { connection } if connection.pid.is_some())
}

/// A line that tells what happened, with the keys that it has in JSON.
pub fn event(told: &Told) -> String {
    let time = humantime::format_rfc3339_millis(told.time);
    // An event is an object, and nothing in it can fail to be JSON.
    let value = serde_json::to_value(&told.event).unwrap_or_default();
    let mut words = String::new();
    let mut fields: Vec<_> = value.as_object().into_iter().flatten().collect();
    fields.sort_by_key(|(key, _)| EVENT_KEYS.iter().position(|known| known == key));
    for (key, value) in fields {
        let _ = match value {
            Value::String(text) if key == "event" => write!(words, "{text:8}"),
            // Strangers' words: no control characters on a terminal.
            Value::String(text) if text.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                write!(words, " {key}=\"{}\"", text.escape_debug())
            }
            Value::String(text) => write!(words, " {key}={}", text.escape_debug()),
            Value::Number(age) if key == "age" => {
                write!(words, " {key}={:.3}s", age.as_f64().unwrap_or_default())
            }
            value => write!(words, " {key}={value}"),
        };
    }
    format!("{time} {}\n", words.trim_end())
}

/// In the order of a line.
const EVENT_KEYS: [&str; 16] = [
    "event",
    "id",
    "listener",
    "client",
    "peer",
    "target",
    "network",
    "bytesUp",
    "bytesDown",
    "age",
    "end",
    "reason",
    "until",
    "expired",
    "count",
    "error",
];

fn listener_word(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or("the listener")
}

fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".to_owned(),
        n => format!("{n} connections"),
    }
}

fn status(status: &Status) -> String {
    let name = status.name.as_deref().unwrap_or("-");
    let mut rows = vec![
        ("version", status.version.clone()),
        ("name", name.to_owned()),
        ("pid", status.pid.to_string()),
        ("running for", duration(status.uptime)),
        ("open now", status.open.to_string()),
        ("bans", status.bans.to_string()),
    ];
    rows.extend(
        status
            .older
            .iter()
            .map(|older| ("older process", older_words(older))),
    );
    rows.extend(
        status
            .sandbox
            .iter()
            .map(|state| ("sandbox", state.to_string())),
    );
    if let Some(crowdsec) = &status.crowdsec {
        rows.push(("crowdsec", crowdsec.words.escape_debug().to_string()));
    }
    let single = match &status.listeners[..] {
        [only] => Some(only),
        _ => None,
    };
    if let Some(only) = single {
        let state = if only.accepting { "" } else { ", drained" };
        rows.insert(
            3,
            (
                "listening on",
                format!("{} {}{state}", addresses(only), only.protocol),
            ),
        );
        let counts = status.counts.iter().filter(|(_, count)| **count > 0);
        rows.extend(counts.map(|(name, count)| (name.as_str(), count.to_string())));
    }
    let mut out = rows.iter().fold(String::new(), |mut out, (key, value)| {
        let _ = writeln!(out, "{key:20} {value}");
        out
    });
    if single.is_none() {
        let head = [
            "LISTENER",
            "ADDRESS",
            "PROTOCOL",
            "STATE",
            "OPEN",
            "ACCEPTED",
            "BYTES UP",
            "BYTES DOWN",
            "REFUSED",
        ];
        let _ = write!(
            out,
            "\n{}",
            table(&head, status.listeners.iter().map(listener_row))
        );
    }
    out
}

/// What is told of an older process.
pub fn older_words(older: &Older) -> String {
    let open = match older.open {
        Some(open) => format!("{open} open"),
        None => "does not answer".to_owned(),
    };
    let since = duration(older.since);
    format!("{}, {open}, succeeded {since} ago", older.pid)
}

/// All its addresses, in one word.
pub fn addresses(listener: &Listener) -> String {
    let all: Vec<String> = listener.listen.iter().map(ToString::to_string).collect();
    all.join(",")
}

fn listener_row(listener: &Listener) -> Vec<String> {
    let count = |count: Count| listener.count(count);
    let refused = Count::REFUSALS.iter().filter(|kind| count(**kind) > 0);
    let refused: Vec<String> = refused
        .map(|kind| format!("{}={}", kind.name(), count(*kind)))
        .collect();
    vec![
        listener.name.clone().unwrap_or_else(|| "-".to_owned()),
        addresses(listener),
        listener.protocol.clone(),
        if listener.accepting {
            "open"
        } else {
            "drained"
        }
        .to_owned(),
        listener.open.to_string(),
        count(Count::Accepted).to_string(),
        count(Count::BytesUp).to_string(),
        count(Count::BytesDown).to_string(),
        if refused.is_empty() {
            "-".to_owned()
        } else {
            refused.join(" ")
        },
    ]
}

fn connection_row(connection: &Connection) -> Vec<String> {
    let or_header = |addr: Option<_>| match addr {
        Some(addr) => format!("{addr}"),
        None => "(reading its header)".to_owned(),
    };
    vec![
        connection.id.to_string(),
        or_header(connection.client),
        connection.peer.to_string(),
        connection.target.map_or("-".to_owned(), |t| t.to_string()),
        duration(connection.age),
        connection.pid.map_or(String::new(), |pid| pid.to_string()),
    ]
}

fn ban_row(ban: &Ban, origin: Option<&str>) -> Vec<String> {
    let left = |until: u64| duration(until.saturating_sub(bans::now()));
    vec![
        ban.network.to_string(),
        ban.listener.clone().unwrap_or_else(|| "all".to_owned()),
        // What the engine says is a stranger's words as well.
        origin.unwrap_or("local").escape_debug().to_string(),
        ban.until.map_or("never".to_owned(), left),
        // It may be a stranger's words: no control characters on a terminal.
        ban.reason.escape_debug().to_string(),
    ]
}

/// `1h2m3s`, without leading parts that are zero.
pub fn duration(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{s}s"),
        (h, m) => format!("{h}h{m}m{s}s"),
    }
}

/// Columns as wide as their widest cell.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_ages_are_readable() {
        let rows = [
            vec!["1".to_owned(), "x".to_owned()],
            vec!["1234".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["ID", "B"], rows.into_iter()),
            "ID    B\n1     x\n1234\n"
        );
        assert_eq!(
            [duration(5), duration(65), duration(3600)],
            ["5s", "1m5s", "1h0m0s"]
        );
    }
}
