//! The configuration file (`-config`): TOML, whose keys are flags. Every mistake in it is told, with
//! its line and column.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Config;
use super::check::{Mistake, check_listeners, loops_of, whole};
use super::choice::{Choice, Protocol};
use super::draft::{CrowdsecDraft, ListenerDraft, ProcessDraft};
use super::keys::{Kind, fits, flag_of, key, keys_of, kind};
use super::value::name;
use crate::networks::{self, NetworkList, Networks};
use crate::sandbox;
use crate::suggest;

/// The bytes of the file that something stands in.
type Span = Range<usize>;

/// The table of a listener.
const LISTENER: &str = "listener";

/// The table of the CrowdSec engine.
const CROWDSEC: &str = "crowdsec";

/// Why a file is no configuration: its mistakes, one a line, in their order.
#[derive(Debug, thiserror::Error)]
pub struct BadFile {
    path: PathBuf,
    /// Line, column and what is wrong.
    mistakes: Vec<(usize, usize, String)>,
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (line, column, message)) in self.mistakes.iter().enumerate() {
            let end = if number == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{line}:{column}: {message}", self.path.display())?;
        }
        Ok(())
    }
}

/// Something wrong in the file.
#[derive(Debug)]
struct Fault {
    span: Span,
    message: String,
    /// It depends on the table that it stands in, which a syntax error may have taken away.
    by_table: bool,
}

/// Reads a file. `over` are flags of the process (`--workers=2`) that count more than its keys.
pub fn load(path: &Path, over: &[String]) -> Result<Config, BadFile> {
    let bytes = read(path).map_err(|message| BadFile {
        path: path.to_owned(),
        mistakes: vec![(1, 1, message)],
    })?;
    understand(path, &bytes, over)
}

/// As `load`, for what is to be in the file.
pub fn understand(path: &Path, bytes: &[u8], over: &[String]) -> Result<Config, BadFile> {
    let bad = |mistakes| BadFile {
        path: path.to_owned(),
        mistakes,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let (line, column) = position(&good, good.len());
        let byte = bytes[error.valid_up_to()];
        let message = format!("found the byte 0x{byte:02x}, which is not UTF-8");
        bad(vec![(line, column, message)])
    })?;
    parse(text, over).map_err(|mut faults| {
        faults.sort_by_key(|fault| fault.span.start);
        let place = |fault: Fault| {
            let (line, column) = position(text, fault.span.start);
            (line, column, fault.message)
        };
        bad(faults.into_iter().map(place).collect())
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: io::Error| {
        format!(
            "cannot read the configuration: {error}{}",
            sandbox::hint(path)
        )
    };
    let mut file = File::open(path).map_err(explain)?;
    let metadata = file.metadata().map_err(explain)?;
    // Whoever may write it decides where root's connections go.
    if !metadata.is_dir() && metadata.mode() & 0o002 != 0 {
        return Err("everybody may write this file: take that away by chmod o-w".into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(explain)?;
    Ok(bytes)
}

fn parse(text: &str, over: &[String]) -> Result<Config, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut process = Section::new(Table::Process, 0..0);
    let mut listeners = Vec::new();
    let mut crowdsec = None;
    let mut is_there = false;
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            (LISTENER, DeValue::Array(tables)) => {
                is_there = !tables.is_empty();
                listeners = tables.iter().map(listener).collect();
            }
            (LISTENER, _) => {
                is_there = true;
                let message = "write [[listener]], once for each listener";
                process.note_by_table(value.span(), message.into());
            }
            (CROWDSEC, _) => crowdsec = Some(engine(value)),
            _ => process.take(key, value),
        }
    }
    if !is_there {
        let message = "there is no [[listener]]: nothing would listen";
        process.note_by_table(0..0, message.into());
    }
    process.words.extend_from_slice(over);
    match errors.is_empty() {
        true => finish(process, crowdsec, listeners),
        false => {
            let others = crowdsec.into_iter().chain(listeners).collect();
            Err(beside(text, &errors, process, others))
        }
    }
}

/// The errors of syntax, and what is wrong whatever they are about.
fn beside(
    text: &str,
    errors: &[toml::de::Error],
    process: Section,
    others: Vec<Section>,
) -> Vec<Fault> {
    let line = |at| position(text, at).0;
    let mut faults: Vec<Fault> = errors.iter().map(|error| syntax(text, error)).collect();
    let broken: Vec<usize> = faults.iter().map(|fault| line(fault.span.start)).collect();
    let sections = std::iter::once(process).chain(others);
    let others = sections.flat_map(|section| section.faults);
    let is_sure = |fault: &Fault| {
        let lines = line(fault.span.start)..=line(fault.span.end);
        !fault.by_table && !broken.iter().any(|line| lines.contains(line))
    };
    faults.extend(others.filter(is_sure));
    faults
}

fn syntax(text: &str, error: &toml::de::Error) -> Fault {
    let span = error.span().unwrap_or(0..0);
    let found = text.get(span.clone()).unwrap_or_default();
    let message = match found.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => format!("{} (found {line:?})", error.message()),
        None => error.message().to_owned(),
    };
    Fault {
        span,
        message,
        by_table: false,
    }
}

/// Puts the sections together and checks the whole.
fn finish(
    mut process: Section,
    mut crowdsec: Option<Section>,
    mut listeners: Vec<Section>,
) -> Result<Config, Vec<Fault>> {
    let engine = crowdsec.as_ref().and_then(Section::draft::<CrowdsecDraft>);
    let drafts = listeners.iter_mut().filter_map(Section::listener);
    let (checked, mut mistakes) = check_listeners(drafts.collect());
    mistakes.extend(loops_of(&checked));
    let told = mistakes.into_iter().map(|mistake: Mistake| {
        let section = mistake
            .listener
            .map_or(&process, |number| &listeners[number]);
        Fault {
            span: section.place(mistake.flag),
            message: format!("{}: {}", key(mistake.flag), mistake.message),
            by_table: false,
        }
    });
    let mut faults: Vec<Fault> = told.collect();
    let sections = std::iter::once(&mut process).chain(&mut crowdsec);
    for section in sections.chain(&mut listeners) {
        faults.append(&mut section.faults);
    }
    match process.draft::<ProcessDraft>() {
        Some((draft, _)) if faults.is_empty() => {
            let crowdsec = engine.map(|(draft, _)| draft);
            Ok(whole(ProcessDraft { crowdsec, ..draft }, checked))
        }
        _ => Err(faults),
    }
}

/// The kinds of tables that a file has.
#[derive(Clone, Copy, PartialEq)]
enum Table {
    /// The top.
    Process,
    /// A `[[listener]]`.
    Listener,
    /// `[crowdsec]`.
    Crowdsec,
}

impl Table {
    /// The flags that are its keys.
    fn flags(self) -> Command {
        let bare = Command::new("file")
            .no_binary_name(true)
            .args_override_self(true);
        match self {
            Table::Process => ProcessDraft::augment_args(bare),
            Table::Listener => ListenerDraft::augment_args(bare),
            Table::Crowdsec => CrowdsecDraft::augment_args(bare),
        }
    }

    /// What are keys of it and no flags.
    fn own_keys(self) -> &'static [&'static str] {
        match self {
            Table::Process => &[LISTENER, CROWDSEC],
            Table::Listener => &["name"],
            Table::Crowdsec => &[],
        }
    }

    fn others(self) -> impl Iterator<Item = Table> {
        let all = [Table::Process, Table::Listener, Table::Crowdsec];
        all.into_iter().filter(move |other| *other != self)
    }

    /// Whose keys stand in it, and where that is.
    fn place(self) -> &'static str {
        match self {
            Table::Process => "the process: write it above the first [[listener]]",
            Table::Listener => "a listener: write it below a [[listener]]",
            Table::Crowdsec => "the CrowdSec engine: write it below [crowdsec]",
        }
    }

    /// The key that was meant by `word`, which may be spelt as a flag.
    fn meant(self, word: &str) -> Option<String> {
        let flags = self.flags();
        let spelt = |flag: &&Arg| {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            aliases.contains(&word) || flag.get_long() == Some(word)
        };
        let flag = flags.get_arguments().find(spelt).and_then(Arg::get_long);
        let known = || keys_of(&flags).chain(self.own_keys().iter().copied());
        let found = flag.map(key).or_else(|| suggest::nearest(word, known()));
        found.map(str::to_owned)
    }
}

fn listener(table: &Spanned<DeValue<'_>>) -> Section {
    let mut section = Section::new(Table::Listener, table.span());
    let DeValue::Table(keys) = table.get_ref() else {
        section.note_by_table(table.span(), "write [[listener]] and its keys below".into());
        return section;
    };
    for (key, value) in keys {
        if key.get_ref() == "name" {
            section.take_name(key, value);
        } else {
            section.take(key, value);
        }
    }
    if !section.has("name") {
        let message = "this listener has no name: add name = \"…\"";
        section.note_by_table(table.span(), message.into());
    }
    section.refuse_other_protocol();
    section
}

fn engine(table: &Spanned<DeValue<'_>>) -> Section {
    let mut section = Section::new(Table::Crowdsec, table.span());
    let DeValue::Table(keys) = table.get_ref() else {
        section.note_by_table(table.span(), "write [crowdsec] and its keys below".into());
        return section;
    };
    keys.iter()
        .for_each(|(key, value)| section.take(key, value));
    for (needed, example) in [("url", "http://127.0.0.1:8080"), ("api-key-file", "…")] {
        if !section.has(needed) {
            let message = format!("{needed} is missing: add {needed} = \"{example}\"");
            section.note_by_table(table.span(), message);
        }
    }
    section
}

/// A table of the file, on its way to a draft.
struct Section {
    table: Table,
    /// The flags that are its keys.
    flags: Command,
    /// Where it begins.
    span: Span,
    /// `--flag=value`, each checked.
    words: Vec<String>,
    /// Flags with the spans of their keys and values.
    places: Vec<(String, Span, Span)>,
    lists: Vec<(String, Vec<IpNet>)>,
    name: Option<String>,
    faults: Vec<Fault>,
}

impl Section {
    fn new(table: Table, span: Span) -> Section {
        Section {
            table,
            flags: table.flags(),
            span,
            words: Vec::new(),
            places: Vec::new(),
            lists: Vec::new(),
            name: None,
            faults: Vec::new(),
        }
    }

    fn note(&mut self, span: Span, message: String) {
        self.faults.push(Fault {
            span,
            message,
            by_table: false,
        });
    }

    fn note_by_table(&mut self, span: Span, message: String) {
        self.faults.push(Fault {
            span,
            message,
            by_table: true,
        });
    }

    /// Where a flag's value stands, or else where the table does.
    fn place(&self, flag: &str) -> Span {
        let mut places = self.places.iter();
        let found = places.find(|(name, _, _)| name == flag);
        found.map_or(self.span.clone(), |(_, _, value)| value.clone())
    }

    fn has(&self, flag: &str) -> bool {
        self.places.iter().any(|(name, _, _)| name == flag)
    }

    /// Whether a flag's key is there, and its value is none.
    fn failed(&self, flag: &str) -> bool {
        let start = format!("--{flag}=");
        self.has(flag) && !self.words.iter().any(|word| word.starts_with(&start))
    }

    fn take_name(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let span = value.span();
        self.places.push(("name".into(), key.span(), span.clone()));
        let found = shown(value.get_ref());
        match value.get_ref().as_str().map(name) {
            Some(Ok(name)) => self.name = Some(name),
            Some(Err(message)) => self.note(span, format!("name: found {found}; {message}")),
            None => self.note(span, format!("name: found {found}; allowed is a string")),
        }
    }

    fn take(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let name = key.get_ref().as_ref();
        let Some(flag) = flag_of(&self.flags, name) else {
            return self.unknown(name, key.span());
        };
        let (flag, kind) = (flag.get_long().unwrap_or_default().to_owned(), kind(flag));
        self.places.push((flag.clone(), key.span(), value.span()));
        let is_list = value.get_ref().is_array();
        let mut texts = Vec::new();
        for item in items(value, kind) {
            match self.item(&flag, kind, is_list, item.get_ref()) {
                Ok(text) => texts.push(text),
                Err(message) => {
                    let found = shown(item.get_ref());
                    self.note(item.span(), format!("{name}: found {found}; {message}"));
                }
            }
        }
        let is_empty = matches!(value.get_ref(), DeValue::Array(list) if list.is_empty());
        if kind == Kind::Networks {
            self.take_networks(flag, value, is_empty, &texts);
        } else if !texts.is_empty() {
            self.words.push(format!("--{flag}={}", texts.join(",")));
        } else if is_empty && matches!(kind, Kind::Addresses | Kind::Words) {
            self.note(
                value.span(),
                format!("{name}: found an empty list; allowed is {}", kind.words()),
            );
        }
    }

    /// A value, or an entry of a list, as the flag would be typed.
    fn item(
        &self,
        flag: &str,
        kind: Kind,
        in_list: bool,
        item: &DeValue<'_>,
    ) -> Result<String, String> {
        let text = text(item, kind).ok_or_else(|| format!("allowed is {}", kind.words()))?;
        if kind == Kind::Networks && in_list {
            let known = networks::parse(&text).is_some();
            return known
                .then_some(text)
                .ok_or("write an address or a network such as 10.0.0.0/8".into());
        }
        match self.refused(flag, &text) {
            None => Ok(text),
            Some(message) => Err(message),
        }
    }

    fn take_networks(
        &mut self,
        flag: String,
        value: &Spanned<DeValue<'_>>,
        is_empty: bool,
        texts: &[String],
    ) {
        let may_be_empty = flag == "denied-clients";
        if let (DeValue::String(_), [path]) = (value.get_ref(), texts) {
            let read = match may_be_empty {
                true => Networks::load_any(Path::new(path)),
                false => Networks::load(Path::new(path)),
            };
            if let Err(error) = read {
                self.note(value.span(), format!("{flag}: {error:#}"));
            }
            self.words.push(format!("--{flag}={path}"));
            return;
        }
        if is_empty && !may_be_empty {
            self.note(
                value.span(),
                format!("{flag}: found an empty list, so nobody could connect; leave it out to let everybody"),
            );
        }
        let list = texts.iter().filter_map(|text| networks::parse(text));
        self.lists.push((flag, list.collect()));
    }

    /// What the flag itself has against a value.
    fn refused(&self, flag: &str, text: &str) -> Option<String> {
        let word = format!("--{flag}={text}");
        let error = self.flags.clone().try_get_matches_from([word]).err()?;
        let source = std::error::Error::source(&error).map(ToString::to_string);
        Some(source.unwrap_or_else(|| "a value is missing".into()))
    }

    /// A key that this table does not have: where it belongs, or what was probably meant.
    fn unknown(&mut self, word: &str, span: Span) {
        let here = self.table;
        let belongs = |there: &Table| flag_of(&there.flags(), word).is_some();
        if let Some(there) = here.others().find(belongs) {
            return self.note_by_table(span, format!("{word} belongs to {}", there.place()));
        }
        let word = word.escape_debug();
        let near = std::iter::once(here)
            .chain(here.others())
            .find_map(|table| {
                let meant = table.meant(&word.to_string())?;
                Some((meant, table))
            });
        let message = match near {
            Some((key, table)) if table == here => format!("did you mean {key}?"),
            Some((key, table)) => format!("did you mean {key}? It belongs to {}", table.place()),
            None => {
                let keys: Vec<&str> = keys_of(&self.flags)
                    .chain(here.own_keys().iter().copied())
                    .collect();
                format!("allowed here are {}", keys.join(", "))
            }
        };
        self.note(span, format!("unknown key {word}; {message}"));
    }

    fn refuse_other_protocol(&mut self) {
        // Which protocol was meant, nobody can know then.
        if self.failed("p") {
            return;
        }
        let (protocol, other) = match self.words.iter().any(|word| word == "--p=udp") {
            true => (Protocol::Udp, Protocol::Tcp),
            false => (Protocol::Tcp, Protocol::Udp),
        };
        let places = self.places.iter();
        let strange = places.filter(|(flag, _, _)| !fits(flag, protocol));
        let strange: Vec<_> = strange.cloned().collect();
        for (flag, span, _) in strange {
            let (key, here, there) = (key(&flag), protocol.word(), other.word());
            let message = format!(
                "{key} has no meaning for a listener of {here}; it is for protocol = \"{there}\""
            );
            self.note_by_table(span, message);
        }
    }

    fn draft<D: Args>(&self) -> Option<(D, ArgMatches)> {
        let mut matches = self.flags.clone().try_get_matches_from(&self.words).ok()?;
        let told = matches.clone();
        Some((D::from_arg_matches_mut(&mut matches).ok()?, told))
    }

    fn listener(&mut self) -> Option<ListenerDraft> {
        let (mut draft, matches) = self.draft::<ListenerDraft>()?;
        let given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        (draft.v4_given, draft.v6_given) = (given("target_v4"), given("target_v6"));
        (draft.name, draft.label) = (self.name.clone(), self.name.clone());
        // The default must not be told to be in the way of others.
        if self.failed("l") || self.failed("p") {
            draft.listen.0.clear();
        }
        for (flag, list) in self.lists.drain(..) {
            let place = match flag.as_str() {
                "allowed-subnets" => &mut draft.allowed_subnets,
                "denied-clients" => &mut draft.denied_clients,
                _ => &mut draft.allowed_clients,
            };
            *place = Some(NetworkList::Here(list));
        }
        Some(draft)
    }
}

/// The entries of a list, where a list may stand; the value itself otherwise.
fn items<'a, 'i>(value: &'a Spanned<DeValue<'i>>, kind: Kind) -> Vec<&'a Spanned<DeValue<'i>>> {
    match (value.get_ref(), kind) {
        (DeValue::Array(list), Kind::Addresses | Kind::Claims | Kind::Networks | Kind::Words) => {
            list.iter().collect()
        }
        _ => vec![value],
    }
}

/// A value as its flag would be typed; `None` if its type is not allowed.
fn text(value: &DeValue<'_>, kind: Kind) -> Option<String> {
    match (value, kind) {
        (DeValue::Boolean(value), Kind::Boolean) => Some(value.to_string()),
        (DeValue::Integer(number), Kind::Integer | Kind::Time) => Some(number.to_string()),
        (
            DeValue::String(text),
            Kind::Time | Kind::Text | Kind::Addresses | Kind::Claims | Kind::Networks | Kind::Words,
        ) => Some(text.to_string()),
        _ => None,
    }
}

/// What was found, for a message: on one line.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// Line and column, both from 1; a column is a character.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (line, before[start..].chars().count() + 1)
}
