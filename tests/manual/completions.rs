//! Completions for bash, zsh and fish. clap_complete knows long flags with two dashes only; users of
//! go-mmproxy type one.

use std::fmt::Write;

use clap::Arg;

use crate::definitions::{Definitions, choices, definitions, spellings, value};

const HEAD: &str = "# Generated from the definitions of the flags by tests/manual.\n";

/// What may stand behind a flag.
enum Values {
    Words(Vec<String>),
    Files,
    Directories,
    Anything,
    None,
}

fn values(flag: &Arg) -> Values {
    let words = choices(flag);
    match value(flag).as_deref() {
        None => Values::None,
        Some(_) if !words.is_empty() => Values::Words(words),
        Some("FILE" | "PATH") => Values::Files,
        Some("DIR") => Values::Directories,
        Some(_) => Values::Anything,
    }
}

/// The flags that may stand behind a command: its own and those of the proxy, where it takes them.
fn flags(definitions: &Definitions, word: &str) -> Vec<Arg> {
    match word {
        "help" => Vec::new(),
        "" => definitions.flags_of("realpeer"),
        _ => {
            let command = definitions.command(&format!("realpeer {word}"));
            command.get_arguments().cloned().collect()
        }
    }
}

/// The proxy, as "", and every command.
fn commands(definitions: &Definitions) -> Vec<String> {
    let named = definitions.commands().into_iter().map(|(word, _)| word);
    [String::new()].into_iter().chain(named).collect()
}

fn help(flag: &Arg) -> String {
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn dashed(flag: &Arg) -> Vec<String> {
    spellings(flag)
        .iter()
        .map(|name| format!("-{name}"))
        .collect()
}

/// All flags, each once, by what may stand behind them. A name means the same in every command.
fn flags_once(definitions: &Definitions) -> Vec<Arg> {
    let mut all: Vec<Arg> = Vec::new();
    for flag in commands(definitions)
        .iter()
        .flat_map(|word| flags(definitions, word))
    {
        if !all.iter().any(|other| other.get_long() == flag.get_long()) {
            all.push(flag);
        }
    }
    all
}

fn words_of(rows: Vec<(String, String)>) -> String {
    let words: Vec<String> = rows.into_iter().map(|(word, _)| word).collect();
    words.join(" ")
}

pub fn bash() -> String {
    let definitions = definitions();
    let dashed_all = |flags: &[Arg]| flags.iter().flat_map(dashed).collect::<Vec<_>>();
    let mut out = format!("# bash completion for realpeer\n{HEAD}");
    out.push_str(
        "_realpeer() {\n    \
         local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words=\n    \
         # Values of flags.\n    \
         case ${previous/#--/-} in\n",
    );
    let (mut files, mut directories, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for flag in flags_once(&definitions) {
        match values(&flag) {
            Values::None => {}
            Values::Files => files.push(flag),
            Values::Directories => directories.push(flag),
            Values::Anything => others.push(flag),
            Values::Words(words) => {
                let names = dashed(&flag).join(" | ");
                let _ = writeln!(out, "    {names}) words='{}' ;;", words.join(" "));
            }
        }
    }
    for (flags, then) in [
        (
            files,
            "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n        return",
        ),
        (
            directories,
            "mapfile -t COMPREPLY < <(compgen -d -- \"$current\")\n        return",
        ),
        (others, "return"),
    ] {
        let names = dashed_all(&flags).join(" | ");
        let _ = writeln!(out, "    {names})\n        {then}\n        ;;");
    }
    out.push_str("    esac\n    # A command stands first, and its action right behind it.\n    if [ -z \"$words\" ]; then\n        case ${COMP_WORDS[1]} in\n");
    for (word, _) in definitions.commands() {
        let flags = dashed_all(&flags(&definitions, &word)).join(" ");
        let actions = words_of(definitions.actions(&word));
        let _ = writeln!(out, "        {word})\n            words='{flags}'");
        if !actions.is_empty() {
            let _ = writeln!(
                out,
                "            ((COMP_CWORD == 2)) && words+=' {actions}'"
            );
        }
        out.push_str("            ;;\n");
    }
    let flags = dashed_all(&flags(&definitions, "")).join(" ");
    let _ = writeln!(out, "        *) words='{flags}' ;;\n        esac");
    let _ = writeln!(
        out,
        "        ((COMP_CWORD == 1)) && words+=' {}'",
        words_of(definitions.commands())
    );
    out.push_str(
        "    fi\n    \
         if [[ ${COMP_WORDS[1]} == config && $previous == @(check|show) && $current != -* ]]; then\n        \
         mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n        \
         return\n    \
         fi\n    \
         # Two dashes mean the same as one.\n    \
         [[ $current == --* ]] && words=\" $words\" && words=${words// -/ --}\n    \
         mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n\
         }\n\
         complete -o filenames -F _realpeer realpeer\n",
    );
    out
}

pub fn zsh() -> String {
    let definitions = definitions();
    let mut out = format!("#compdef realpeer\n{HEAD}\nlocal -a commands actions flags\n");
    zsh_words(&mut out, "commands", &definitions.commands());
    out.push_str("\ncase ${words[2]} in\n");
    for (word, _) in definitions.commands() {
        let _ = writeln!(out, "{word})");
        zsh_words(&mut out, "actions", &definitions.actions(&word));
        zsh_flags(&mut out, &flags(&definitions, &word));
        out.push_str("    ;;\n");
    }
    out.push_str("*)\n");
    zsh_flags(&mut out, &flags(&definitions, ""));
    out.push_str(
        "    ;;\nesac\n\n\
         # A command stands first, and its action right behind it.\n\
         if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then\n    \
         _describe -t commands command commands\n    \
         return\n\
         fi\n\
         if (( CURRENT == 3 && $#actions )) && [[ $PREFIX != -* ]]; then\n    \
         _describe -t actions action actions\n    \
         return\n\
         fi\n\
         if (( CURRENT > 2 )) && [[ ${words[2]} != -* ]]; then\n    \
         shift words\n    \
         (( CURRENT -= 1 ))\n\
         fi\n\
         _arguments $flags '*:file:_files'\n",
    );
    out
}

fn zsh_words(out: &mut String, name: &str, rows: &[(String, String)]) {
    let _ = writeln!(out, "{name}=(");
    for (word, what) in rows {
        let row = match what.is_empty() {
            true => word.clone(),
            false => format!("{word}:{what}"),
        };
        let _ = writeln!(out, "    {}", quoted(&row));
    }
    out.push_str(")\n");
}

fn zsh_flags(out: &mut String, flags: &[Arg]) {
    out.push_str("    flags=(\n");
    for flag in flags {
        let what = match values(flag) {
            Values::None => String::new(),
            Values::Words(words) => format!(":value:({})", words.join(" ")),
            Values::Files => ":file:_files".to_owned(),
            Values::Directories => ":directory:_files -/".to_owned(),
            Values::Anything => ":value: ".to_owned(),
        };
        // In a description these end it or begin the next part.
        let help = help(flag)
            .replace('\\', "\\\\")
            .replace('[', "\\[")
            .replace(']', "\\]");
        let help = help.replace(':', "\\:");
        for name in dashed(flag) {
            for name in [name.clone(), format!("-{name}")] {
                let _ = writeln!(out, "        {}", quoted(&format!("{name}[{help}]{what}")));
            }
        }
    }
    out.push_str("    )\n");
}

pub fn fish() -> String {
    let definitions = definitions();
    let mut out = format!("# fish completion for realpeer\n{HEAD}complete -c realpeer -f\n");
    let all = words_of(definitions.commands());
    out.push_str(
        "\n# A command stands first, and its action right behind it.\n\
         function __realpeer_words\n    \
         set -l words (commandline -opc)\n    \
         test (count $words) -eq $argv[1]; and begin\n        \
         not set -q argv[2]; or test $words[2] = $argv[2]\n    \
         end\n\
         end\n\n\
         function __realpeer_command\n    \
         set -l words (commandline -opc)\n    \
         test \"$words[2]\" = $argv[1]\n\
         end\n\n\
         function __realpeer_proxy\n    \
         set -l words (commandline -opc)\n    \
         not contains -- \"$words[2]\" ",
    );
    let _ = writeln!(out, "{all}\nend\n");
    for (word, what) in definitions.commands() {
        let _ = writeln!(
            out,
            "complete -c realpeer -n '__realpeer_words 1' -a {word} -d {}",
            fish_quoted(&what)
        );
        for (action, what) in definitions.actions(&word) {
            let _ = writeln!(
                out,
                "complete -c realpeer -n '__realpeer_words 2 {word}' -a {action} -d {}",
                fish_quoted(&what)
            );
        }
    }
    out.push_str("complete -c realpeer -n '__realpeer_command config' -F\n");
    for word in commands(&definitions) {
        let when = match word.is_empty() {
            true => "__realpeer_proxy".to_owned(),
            false => format!("__realpeer_command {word}"),
        };
        for flag in flags(&definitions, &word) {
            fish_flag(&mut out, &when, &flag);
        }
    }
    out
}

fn fish_flag(out: &mut String, when: &str, flag: &Arg) {
    let what = match values(flag) {
        Values::None => String::new(),
        Values::Words(words) => format!(" -x -a '{}'", words.join(" ")),
        Values::Files => " -r -F".to_owned(),
        Values::Directories => " -x -a '(__fish_complete_directories)'".to_owned(),
        Values::Anything => " -x".to_owned(),
    };
    let help = fish_quoted(&help(flag));
    for name in spellings(flag) {
        let _ = writeln!(
            out,
            "complete -c realpeer -n '{when}' -o {name}{what} -d {help}"
        );
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
