//! The completions in the real shells.

use std::process::Command;

use crate::support::{TempDir, repository};

/// The words of a command line as a shell takes them, where only double quotes are special.
pub fn words(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    let parts = quoted.flat_map(|(number, part)| match number % 2 {
        1 => vec![part.to_owned()],
        _ => part.split_whitespace().map(str::to_owned).collect(),
    });
    parts.collect()
}

/// What stands on a line, and what the shell must and must not offer there.
const CASES: [(&str, &[&str], &[&str]); 9] = [
    ("realpeer ro", &["routing"], &["doctor"]),
    ("realpeer routing ", &["up", "down", "show"], &["status"]),
    ("realpeer ctl st", &["status"], &["connections"]),
    ("realpeer help cont", &["containers"], &["routing"]),
    (
        "realpeer -allowed-s",
        &["-allowed-subnets"],
        &["-allowed-clients"],
    ),
    (
        "realpeer -udp-header ",
        &["every", "first", "spp"],
        &["keep"],
    ),
    (
        "realpeer -l :1 -source-port ",
        &["keep", "any", "strict"],
        &["routing"],
    ),
    (
        "realpeer ban-relay -tok",
        &["-token-file"],
        &["-allowed-subnets"],
    ),
    ("realpeer doctor -probe", &["-probe-remote"], &["-json"]),
];

fn check(shell: &str, offers: impl Fn(&str) -> String) {
    for (line, wanted, unwanted) in CASES {
        let said = offers(line);
        let offered: Vec<&str> = said.split_whitespace().collect();
        for word in wanted {
            assert!(
                offered.contains(word),
                "{shell}: {line:?} offers no {word}: {said}"
            );
        }
        for word in unwanted {
            assert!(
                !offered.contains(word),
                "{shell}: {line:?} offers {word}: {said}"
            );
        }
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the shell is there");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn bash_completes() {
    let file = repository("packaging/completions/realpeer.bash");
    let offers = |line: &str| {
        let script = format!(
            "shopt -s extglob; . {}; line='{line}'; COMP_WORDS=($line); [[ $line == *' ' ]] && COMP_WORDS+=('')
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _realpeer; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        output(Command::new("bash").args(["--norc", "-uc", &script]))
    };
    check("bash", offers);
    let files = TempDir::new();
    let list = files.file("balancers", "");
    let start = list.strip_suffix("ers").expect("its name");
    for line in [
        format!("realpeer -a {start}"),
        format!("realpeer config check {start}"),
    ] {
        assert_eq!(offers(&line).trim(), list, "{line}");
    }
    assert!(offers("realpeer --allowed-s").contains("--allowed-subnets"));
}

#[test]
fn fish_completes() {
    let file = repository("packaging/completions/realpeer.fish");
    let home = TempDir::new();
    let offers = |line: &str| {
        let script = format!("source {}; complete -C '{line}'", file.display());
        let mut fish = Command::new("fish");
        let said = output(
            fish.args(["--no-config", "-c", &script])
                .env("HOME", home.path("")),
        );
        // A word, a tab and what it is for.
        let words = said.lines().filter_map(|line| line.split('\t').next());
        words.collect::<Vec<_>>().join("\n")
    };
    check("fish", offers);
    let list = home.file("balancers", "");
    let start = list.strip_suffix("ers").expect("its name");
    assert_eq!(offers(&format!("realpeer -a {start}")).trim(), list);
}

/// zsh completes at a terminal only: one is made by zpty, and what it shows after a Tab is read.
#[test]
fn zsh_completes() {
    let directory = repository("packaging/completions");
    let home = TempDir::new();
    let offers = |line: &str| {
        let script = ZSH
            .replace("LINE", line)
            .replace("DIRECTORY", &directory.display().to_string());
        let mut zsh = Command::new("zsh");
        output(
            zsh.args(["-f", "-c", &script])
                .env("HOME", home.path(""))
                .env("TERM", "dumb"),
        )
    };
    check("zsh", offers);
}

/// What compadd is given is printed in place of a menu.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1= PROMPT= ; fpath=(DIRECTORY $fpath); autoload -Uz compinit; compinit -u -D
compadd() {
    local -a found
    [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]] && { builtin compadd "$@"; return }
    builtin compadd -O found "$@"
    (( $#found )) && print -r -- "offered ${(j: :)found}"
    builtin compadd "$@"
}
done-with-it() { compstate[insert]=; compstate[list]=; print -r -- all-offered }
comppostfuncs=(done-with-it)
zle -C all complete-word _main_complete
bindkey "^I" all
zstyle ":completion:*" verbose no
print ready-"now"'
while zpty -r shell reply; do [[ $reply == *ready-now* ]] && break; done
zpty -n -w shell $'LINE\t'
while zpty -r shell reply; do
    [[ $reply == *all-offered* ]] && break
    [[ $reply == *'offered '* ]] && print -r -- ${${reply##*offered }%$'\r\n'}
done
zpty -d shell
"#;
