//! The commands of the program with their actions and flags, from the definitions that it parses by.

use clap::{Arg, Args};
use realpeer::program::internals::{
    self, BOOLEAN, CrowdsecDraft, ListenerDraft, ProcessDraft, TOPICS,
};

pub struct Definitions(pub Vec<clap::Command>);

pub fn definitions() -> Definitions {
    Definitions(internals::definitions())
}

impl Definitions {
    pub fn command(&self, name: &str) -> &clap::Command {
        let found = self.0.iter().find(|command| command.get_name() == name);
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// The flags of a command; of `routing` and `doctor` only those that the proxy has not.
    pub fn flags_of(&self, name: &str) -> Vec<Arg> {
        let takes_all = matches!(name, "realpeer doctor" | "realpeer routing");
        let is_own = |arg: &&Arg| {
            let proxy = self.command("realpeer").get_arguments();
            !takes_all
                || !proxy
                    .into_iter()
                    .any(|other| other.get_id() == arg.get_id())
        };
        let all = self.command(name).get_arguments();
        all.filter(is_own).cloned().collect()
    }

    /// The flags that are keys of the configuration file.
    pub fn keys(&self) -> Vec<Arg> {
        [process(), listener(), crowdsec()].concat()
    }

    /// Every spelling of every flag.
    pub fn names(&self) -> Vec<String> {
        let all = self.0.iter().flat_map(clap::Command::get_arguments);
        all.flat_map(spellings).collect()
    }

    /// The commands, without the program's name, and what each is for.
    pub fn commands(&self) -> Vec<(String, String)> {
        let named = self.0.iter().filter_map(|command| {
            let word = command.get_name().strip_prefix("realpeer ")?;
            Some((word.to_owned(), about(command)))
        });
        let help = (
            "help".to_owned(),
            "Prints the help of a command, or explains a topic.".to_owned(),
        );
        named.chain([help]).collect()
    }

    /// The words that may follow a command, and what each is for.
    pub fn actions(&self, word: &str) -> Vec<(String, String)> {
        if word == "help" {
            let topics = TOPICS.map(|(name, text)| (name.to_owned(), title(text)));
            let mut all: Vec<_> = topics.into_iter().collect();
            all.extend(
                self.commands()
                    .into_iter()
                    .filter(|(word, _)| word != "help" && word != "routing"),
            );
            return all;
        }
        let command = self.command(&format!("realpeer {word}"));
        let usage = command.get_display_name().unwrap_or_default();
        match usage.split(' ').next_back() {
            Some(words) if words.contains('|') => words
                .split('|')
                .map(|word| (word.to_owned(), String::new()))
                .collect(),
            _ => listed(command),
        }
    }
}

/// What stands under "Actions:" in a command's help.
fn listed(command: &clap::Command) -> Vec<(String, String)> {
    let help = command
        .get_before_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let Some((_, actions)) = help.split_once("Actions:\n") else {
        return Vec::new();
    };
    let row = |line: &str| {
        let (usage, what) = line.trim().split_once("  ")?;
        Some((usage.split(' ').next()?.to_owned(), what.trim().to_owned()))
    };
    actions.lines().filter_map(row).collect()
}

pub fn process() -> Vec<Arg> {
    let command = ProcessDraft::augment_args(clap::Command::new("process"));
    command.get_arguments().cloned().collect()
}

pub fn listener() -> Vec<Arg> {
    let command = ListenerDraft::augment_args(clap::Command::new("listener"));
    command.get_arguments().cloned().collect()
}

pub fn crowdsec() -> Vec<Arg> {
    let command = CrowdsecDraft::augment_args(clap::Command::new("crowdsec"));
    command.get_arguments().cloned().collect()
}

fn about(command: &clap::Command) -> String {
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    about.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn title(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    first
        .split_once(": ")
        .map_or(first, |(_, title)| title)
        .to_owned()
}

/// The name of a flag, and its aliases.
pub fn spellings(flag: &Arg) -> Vec<String> {
    let aliases = flag.get_visible_aliases().unwrap_or_default();
    let all = flag.get_long().into_iter().chain(aliases);
    all.map(str::to_owned).collect()
}

/// The value's name, unless the flag needs none.
pub fn value(flag: &Arg) -> Option<String> {
    match flag.get_value_names() {
        Some([name]) if name.as_str() != BOOLEAN => Some(name.to_string()),
        _ => None,
    }
}

/// The words that a flag's value may be, if they are few: what refuses another lists them.
pub fn choices(flag: &Arg) -> Vec<String> {
    let name = flag.get_long().expect("a flag has a name");
    if value(flag).is_none() {
        return Vec::new();
    }
    let refused = clap::Command::new("x")
        .arg(flag.clone())
        .try_get_matches_from(["x".to_owned(), format!("--{name}=\u{1}")]);
    let reason = match refused {
        Err(error) => std::error::Error::source(&error).map(ToString::to_string),
        Ok(_) => None,
    };
    let reason = reason.unwrap_or_default();
    let Some(words) = reason.strip_prefix("write ") else {
        return Vec::new();
    };
    let words: Vec<&str> = words
        .split(", ")
        .flat_map(|part| part.split(" or "))
        .collect();
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    match words.len() > 1 && words.iter().all(is_word) {
        true => words.into_iter().map(str::to_owned).collect(),
        false => Vec::new(),
    }
}

/// The default that `-h` shows.
pub fn default(flag: &Arg) -> Option<String> {
    let shown = value(flag).is_some() && !flag.is_hide_default_value_set();
    let value = flag.get_default_values().first().filter(|_| shown)?;
    Some(value.to_string_lossy().into_owned())
}
