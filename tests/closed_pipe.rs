//! Nobody reads what a command prints (`realpeer doctor -json | true`): it ends in silence, with
//! the exit code that it has otherwise.

mod support;

use std::io::pipe;
use std::process::{Output, Stdio};

use support::{Ctl, Host, Program, Stage};

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let ctl = Ctl::new();
    let path = ctl.path();
    let stage = Stage::new(&["-control", &path]);
    let control = ["-control", &path];
    for words in [
        &["-h"][..],
        &["-version"],
        &["routing", "-h"],
        &["routing", "show"],
        &["routing", "show", "-as", "commands"],
        &["routing", "up"],
        &["routing", "down"],
        &["doctor", "-h"],
        &["doctor", "-l", "0.0.0.0:2222"],
        &["doctor", "-json", "-l", "0.0.0.0:2222"],
        &["ctl", "-h"],
        &[&["ctl", "status"], &control[..]].concat(),
        &[&["ctl", "bans", "-json"], &control[..]].concat(),
        &[&["ctl", "connections"], &control[..]].concat(),
        &["ban-relay", "-h"],
        &["demo"],
    ] {
        let read = run(&stage.server, words, Stdio::piped());
        let (reader, writer) = pipe().expect("make a pipe");
        drop(reader);
        let unread = run(&stage.server, words, writer.into());
        assert!(
            !read.stdout.is_empty(),
            "{words:?} prints nothing: {read:?}"
        );
        assert_eq!(unread.status.code(), read.status.code(), "{words:?}");
        assert_eq!(text(&unread.stderr), "", "{words:?}");
    }
}

#[test]
fn errors_that_nobody_reads_change_no_exit_code() {
    let host = Host::new("server");
    for (words, code) in [
        (&["-no-such-flag"][..], 2),
        (&["ctl", "-control", "/no/such/socket", "status"], 3),
        (&["-control", "off", "-l", "192.0.2.99:2222"], 1),
    ] {
        let (reader, writer) = pipe().expect("make a pipe");
        drop(reader);
        let mut command = host.command(&Program::Realpeer.path());
        let both = writer.try_clone().expect("duplicate it");
        command.args(words).stdout(both).stderr(writer);
        let status = command.status().expect("run it");
        assert_eq!(status.code(), Some(code), "{words:?}");
    }
}

#[test]
fn what_is_not_printed_for_another_reason_is_an_error() {
    let host = Host::new("server");
    for words in [&["-h"][..], &["routing", "show"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let ended = run(&host, words, full.expect("open /dev/full").into());
        assert_eq!(ended.status.code(), Some(1), "{words:?}");
        let said = text(&ended.stderr);
        assert!(said.contains("No space left"), "{words:?}: {said}");
    }
}

fn run(host: &Host, words: &[&str], stdout: Stdio) -> Output {
    let mut command = host.command(&Program::Realpeer.path());
    command.args(words).stdout(stdout).stderr(Stdio::piped());
    let child = command.spawn().expect("start it");
    // The command holds the pipe's end as well.
    drop(command);
    child.wait_with_output().expect("run it")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
