//! The manual and the completions follow the definitions of the flags: what is generated of them is
//! checked in, and compared here. `REALPEER_BLESS=1 cargo test --test manual` writes it anew.

#[path = "../support/mod.rs"]
mod support;

mod completions;
mod definitions;
mod mdoc;
mod shells;

use std::fs;

use definitions::definitions;
use realpeer::program::internals::{self, Command, TOPICS};
use support::{Host, Program, repository};

const PAGES: [&str; 4] = [
    "realpeer.8",
    "realpeer.toml.5",
    "realpeer-ctl.1",
    "realpeer-ban-relay.8",
];

/// Compares a file of the repository with what it should be, or writes it.
fn compare(path: &str, wanted: &str) {
    let file = repository(path);
    if std::env::var_os("REALPEER_BLESS").is_some() {
        fs::write(&file, wanted).unwrap_or_else(|e| panic!("{path}: {e}"));
        return;
    }
    assert!(
        fs::read_to_string(&file).unwrap_or_default() == wanted,
        "{path} is not what the flags' definitions say: run REALPEER_BLESS=1 cargo test --test manual, \
         read the difference, and commit it"
    );
}

fn page(name: &str) -> String {
    let path = format!("packaging/man/{name}");
    fs::read_to_string(repository(&path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn the_lists_of_the_pages_follow_the_definitions() {
    for name in PAGES {
        let path = format!("packaging/man/{name}");
        compare(&path, &mdoc::fill(&page(name)));
    }
}

/// Each list is in a page, so that no flag and no key is without words there.
#[test]
fn every_list_of_flags_and_keys_is_in_a_page() {
    let all = PAGES.map(page).concat();
    for list in mdoc::LISTS {
        let begin = format!("{}{list}\n", mdoc::BEGIN);
        assert_eq!(all.matches(&begin).count(), 1, "{list}");
    }
    for (list, command) in [
        ("flags of realpeer", "realpeer"),
        ("flags of realpeer doctor", "realpeer doctor"),
        ("flags of realpeer setup", "realpeer setup"),
        ("flags of realpeer ctl", "realpeer ctl"),
        ("flags of realpeer ban-relay", "realpeer ban-relay"),
    ] {
        let text = mdoc::list(list);
        for flag in definitions().flags_of(command) {
            let name = flag.get_long().expect("each flag has a name");
            assert!(
                text.contains(&format!(".It Fl {name}")),
                "{command}: {name}"
            );
        }
    }
    for flag in definitions().keys() {
        let key = internals::key(flag.get_long().expect("a flag has a name"));
        let all = [
            mdoc::list("keys of the process"),
            mdoc::list("keys of a listener"),
            mdoc::list("keys of crowdsec"),
        ]
        .concat();
        assert!(all.contains(&format!(".It Li {key}\n")), "{key}");
    }
}

#[test]
fn every_flag_has_words() {
    for command in &definitions().0 {
        for flag in command.get_arguments() {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.len() > 5,
                "{} -{:?}",
                command.get_name(),
                flag.get_long()
            );
        }
    }
}

/// `mandoc -Tlint` finds missing arguments, unknown macros and sections out of order.
#[test]
fn the_pages_are_well_formed() {
    let host = Host::new("manual");
    for name in PAGES {
        let file = repository(&format!("packaging/man/{name}"));
        let mut lint = host.command("mandoc");
        let output = lint.args(["-Tlint", "-Wwarning"]).arg(file).output();
        let output = output.expect("mandoc is there");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

/// So that a flag that is renamed leaves no example behind.
#[test]
fn the_examples_of_the_pages_are_command_lines() {
    for name in ["realpeer.8", "realpeer-ctl.1", "realpeer-ban-relay.8"] {
        let page = page(name);
        let (_, examples) = page.split_once("\n.Sh EXAMPLES\n").expect("examples");
        let examples = examples
            .lines()
            .filter_map(|line| line.strip_prefix(".Dl realpeer "));
        let examples: Vec<&str> = examples.collect();
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            parses(example);
        }
    }
}

#[track_caller]
fn parses(line: &str) {
    let words = shells::words(line);
    let command = internals::parse(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(!matches!(command, Command::Print(_)), "{line}");
}

#[test]
fn the_example_of_the_page_about_the_file_is_good() {
    let page = page("realpeer.toml.5");
    let (_, example) = page.split_once(".Bd -literal").expect("an example");
    let (_, example) = example.split_once('\n').expect("its lines");
    let (example, _) = example.split_once(".Ed").expect("its end");
    let files = support::TempDir::new();
    let list = files.file("balancers", "192.0.2.5\n");
    let file = files.file(
        "realpeer.toml",
        &example.replace("/etc/realpeer/balancers", &list),
    );
    let check = Program::Realpeer.run(&Host::new("host"), &["config", "check", &file]);
    assert_eq!(check.code, 0, "{}", check.stderr);
}

#[test]
fn topics_are_printed_listed_and_suggested() {
    let host = Host::new("help");
    let run = |words: &[&str]| Program::Realpeer.run(&host, words);
    let all = run(&["help"]).stdout;
    let line = all
        .lines()
        .find(|line| line.contains("realpeer help TOPIC"));
    let line = line.expect("help lists the topics");
    assert_eq!(
        TOPICS.map(|(name, _)| name),
        ["routing", "headers", "containers", "migrate", "bans"]
    );
    for (topic, text) in TOPICS {
        assert!(line.contains(topic), "{line}");
        let ended = run(&["help", topic]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (0, text.trim_end()),
            "{topic}"
        );
        assert!(text.starts_with(&topic.to_uppercase()), "{topic}");
        assert!(text.lines().all(|line| line.len() <= 110), "{topic}");
    }
    let wrong = run(&["help", "contaners"]);
    assert_eq!(wrong.code, 2);
    assert!(
        wrong.stderr.contains("did you mean containers?"),
        "{}",
        wrong.stderr
    );
}

/// Commands and flags that a topic names exist.
#[test]
fn the_commands_in_the_topics_are_command_lines() {
    let mut examples = 0;
    for (topic, text) in TOPICS {
        for line in text.lines() {
            let Some(line) = line.strip_prefix("  realpeer ") else {
                continue;
            };
            // Behind it may stand what it does, or where its output goes.
            let line = line.split("   ").next().unwrap_or(line);
            let line = line.split(" > ").next().unwrap_or(line);
            parses(line.trim());
            examples += 1;
        }
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '-'));
        let flags =
            words.filter(|word| word.starts_with('-') && word.len() > 5 && !word.starts_with("--"));
        for flag in flags {
            let known = definitions().names().contains(&flag[1..].to_owned());
            assert!(known, "{topic}: {flag}");
        }
    }
    assert!(examples > 8, "{examples}");
}

#[test]
fn the_completions_follow_the_definitions() {
    compare("packaging/completions/realpeer.bash", &completions::bash());
    compare("packaging/completions/_realpeer", &completions::zsh());
    compare("packaging/completions/realpeer.fish", &completions::fish());
}
