//! `realpeer demo`: shows what it promises, as any user, and touches nothing on the host.

mod support;

use std::process::Command;

use support::{Host, Program, TempDir};

const SEEN: [&str; 4] = [
    "with realpeer, PROXY v1    203.0.113.9:51234",
    "with realpeer, PROXY v2    203.0.113.9:51234",
    "with realpeer, PROXY v1    [2001:db8::9]:51234",
    "with realpeer, PROXY v2    [2001:db8::9]:51234",
];

#[test]
fn it_shows_the_clients_address_and_touches_nothing() {
    let host = Host::new("demo");
    let state =
        || ["rule", "-6 rule", "route show table all", "address"].map(|what| host.run(&ip(what)));
    let before = state();
    let ended = Program::Realpeer.run(&host, &["demo"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for line in SEEN {
        assert!(
            ended.stdout.contains(line),
            "{line:?} is missing in:\n{}",
            ended.stdout
        );
    }
    assert_eq!(ended.stdout.matches("without realpeer").count(), 2);
    assert!(
        ended
            .stdout
            .contains("without realpeer           127.0.0.1:")
    );
    assert_eq!(state(), before);
}

#[test]
fn it_runs_as_an_ordinary_user() {
    let dir = TempDir::new();
    let program = dir.path("realpeer");
    // By a program of its own: a descriptor open for writing here could be inherited by another
    // test's child, and the copy then not be run (ETXTBSY).
    let copied = Command::new("cp")
        .arg(Program::Realpeer.path())
        .arg(&program)
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "copy the program to where everybody may run it"
    );
    // Root becomes somebody else; an ordinary user, to whom tests/run gave capabilities, drops them.
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--ambient-caps=-all"]);
    if nix::unistd::getuid().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    let output = command
        .arg(program)
        .arg("demo")
        .output()
        .expect("setpriv is there");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(SEEN.iter().all(|line| stdout.contains(line)), "{stdout}");
}

#[test]
fn where_namespaces_are_forbidden_it_says_how_to_run_it() {
    // The limits hold for namespaces that are made below the one they are written in.
    let forbid =
        "for kind in user net; do echo 0 >/proc/sys/user/max_${kind}_namespaces || exit 9; done";
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            &format!("{forbid}; exec \"$0\" demo"),
        ])
        .arg(Program::Realpeer.path())
        .output()
        .expect("unshare is there");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("sudo realpeer demo"), "{stderr}");
}

fn ip(what: &str) -> Vec<&str> {
    std::iter::once("ip").chain(what.split(' ')).collect()
}
