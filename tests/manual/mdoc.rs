//! The lists of flags and keys in the pages of the manual, in the language of mdoc(7).

use std::fmt::Write;

use clap::Arg;
use realpeer::program::internals::{Kind, Protocol, fits, key, kind};

use crate::definitions::{
    choices, crowdsec, default, definitions, listener, process, spellings, value,
};

/// Comments in a page around a list.
pub const BEGIN: &str = ".\\\" Generated (tests/manual): ";
const END: &str = ".\\\" End of what is generated.\n";

pub const LISTS: [&str; 9] = [
    "flags of realpeer",
    "flags of realpeer routing",
    "flags of realpeer doctor",
    "flags of realpeer setup",
    "flags of realpeer ctl",
    "flags of realpeer ban-relay",
    "keys of the process",
    "keys of a listener",
    "keys of crowdsec",
];

/// The page with its lists as they should be.
pub fn fill(page: &str) -> String {
    let mut parts = page.split(BEGIN);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('\n').expect("a list has a name");
        let (_, after) = rest
            .split_once(END)
            .unwrap_or_else(|| panic!("{name} has no end"));
        let _ = write!(out, "{BEGIN}{name}\n{}{END}{after}", list(name));
    }
    out
}

pub fn list(name: &str) -> String {
    let items: Vec<String> = match name {
        "keys of the process" => process().iter().map(key_item).collect(),
        "keys of a listener" => listener().iter().map(key_item).collect(),
        "keys of crowdsec" => crowdsec().iter().map(key_item).collect(),
        _ => {
            let command = name.strip_prefix("flags of ").expect("a list of flags");
            definitions()
                .flags_of(command)
                .iter()
                .map(flag_item)
                .collect()
        }
    };
    items.concat()
}

fn flag_item(flag: &Arg) -> String {
    let value = value(flag).map(|value| format!(" Ar {}", value.to_lowercase()));
    let value = value.unwrap_or_default();
    let names = spellings(flag);
    let heads: Vec<String> = names
        .iter()
        .map(|name| format!("Fl {name}{value}"))
        .collect();
    let mut out = format!(".It {}\n", heads.join(" , "));
    let (short, more) = words(flag);
    text(&mut out, &short, |name| format!("Fl {name}"));
    if let Some(default) = default(flag) {
        let _ = writeln!(out, "The default is {default}.");
    }
    text(&mut out, &more, |name| format!("Fl {name}"));
    out
}

fn key_item(flag: &Arg) -> String {
    let name = flag.get_long().expect("a flag has a name");
    let mut out = format!(".It Li {}\n", key(name));
    let choices = choices(flag);
    let allowed = match choices.is_empty() || kind(flag) == Kind::Words {
        true => kind(flag).words().to_owned(),
        false => choices
            .iter()
            .map(|word| format!("\"{word}\""))
            .collect::<Vec<_>>()
            .join(" or "),
    };
    let only = [(Protocol::Tcp, "UDP only: "), (Protocol::Udp, "TCP only: ")];
    let only = only
        .into_iter()
        .find(|(protocol, _)| !fits(name, *protocol));
    let only = only.map_or("", |(_, words)| words);
    let default = default(flag).map(|default| match kind(flag) {
        Kind::Integer | Kind::Boolean => default,
        _ => format!("\"{default}\""),
    });
    let default = default.map_or(String::new(), |default| format!("; {default} by default"));
    let value = format!("{only}{allowed}{default}.");
    // Macros take quotes for their own.
    let _ = writeln!(out, ".Em {}", value.replace('"', "\\(dq"));
    let keys = |name: &str| match listener()
        .iter()
        .chain(&process())
        .any(|flag| flag.get_long() == Some(name))
    {
        true => format!("Li {}", key(name)),
        false => format!("Fl {name}"),
    };
    let (short, more) = words(flag);
    text(&mut out, &short, keys);
    text(&mut out, &more, keys);
    out
}

/// All that is said about a flag: a sentence, then perhaps paragraphs.
fn words(flag: &Arg) -> (String, String) {
    let short = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let long = flag
        .get_long_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let more = long.split_once("\n\n").map_or("", |(_, more)| more);
    (format!("{}.", short.trim_end_matches('.')), more.to_owned())
}

/// Lines of text with the flags in it marked up.
fn text(out: &mut String, text: &str, flag: impl Fn(&str) -> String) {
    for (number, paragraph) in text.split("\n\n").enumerate() {
        if number > 0 {
            out.push_str(".Pp\n");
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            match flag_in(word) {
                Some((before, name, after)) => {
                    flush(out, &mut line);
                    let after: Vec<String> = after.chars().map(|c| format!(" {c}")).collect();
                    let macros = flag(name);
                    let (macro_name, name) = macros.split_once(' ').expect("a macro and a word");
                    let before = before.map_or(String::new(), |c| format!("{c} "));
                    let _ = writeln!(out, ".{macro_name} {before}{name}{}", after.concat());
                }
                None => {
                    if !line.is_empty() {
                        line.push(' ');
                    }
                    line.push_str(word);
                    if word.ends_with('.') {
                        flush(out, &mut line);
                    }
                }
            }
        }
        flush(out, &mut line);
    }
}

fn flush(out: &mut String, line: &mut String) {
    if !line.is_empty() {
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        let _ = writeln!(out, "{guard}{}", line.replace('\\', "\\e"));
        line.clear();
    }
}

/// `(-name),` in its parts, if there is such a flag.
fn flag_in(word: &str) -> Option<(Option<char>, &str, &str)> {
    let before = word.chars().next().filter(|c| *c == '(');
    let rest = word.strip_prefix('(').unwrap_or(word).strip_prefix('-')?;
    let name = rest.trim_end_matches(['.', ',', ';', ':', ')']);
    let known = definitions().names().iter().any(|known| known == name);
    known.then(|| (before, name, &rest[name.len()..]))
}
