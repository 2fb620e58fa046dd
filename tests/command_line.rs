//! The command line beyond go-mmproxy's own flags, which gommproxy_compat.rs has.

mod support;

use support::header::{v1, v2};
use support::stage::{CLIENT, CLIENT6, OTHER_BALANCER, PROXY, VISITED, VISITED6};
use support::streams::{assert_closed, assert_turned_away, send};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

#[test]
fn the_version_is_printed() {
    for spelling in ["-version", "--version", "-version=true", "version"] {
        let ended = Program::Realpeer.run(&Host::new("host"), &[spelling]);
        assert_eq!(ended.code, 0);
        assert_eq!(
            ended.stdout.trim(),
            concat!("realpeer ", env!("CARGO_PKG_VERSION"))
        );
    }
}

#[test]
fn help_has_our_own_flags_and_their_defaults() {
    let ended = Program::Realpeer.run(&Host::new("host"), &["-h"]);
    assert_eq!(ended.code, 0);
    for (flag, default) in [
        ("-header-timeout", "10s"),
        ("-connect-timeout", "5s"),
        ("-drain-timeout", "5s"),
        ("-idle-timeout", "0"),
        ("-keepalive", "15s"),
        ("-source-port", "keep"),
        ("-routing", "auto"),
        ("-l", "0.0.0.0:8443"),
        ("-4", "127.0.0.1:443"),
        ("-6", "[::1]:443"),
    ] {
        let (_, after) = ended
            .stdout
            .split_once(&format!("\n  {flag} "))
            .expect("the flag is listed");
        let this_one = after.split("\n  -").next().expect("the rest");
        assert!(
            this_one.contains(&format!("default {default}")),
            "{flag}: {this_one}"
        );
    }
    for flag in [
        "-max-connections",
        "-log-format",
        "-dynamic-destination",
        "-listen-transparent",
        "demo",
    ] {
        assert!(ended.stdout.contains(flag), "{flag} is missing");
    }
}

#[test]
fn a_bad_value_is_told_with_its_flag_in_the_last_line() {
    for (flag, value) in [
        ("-mark", "many"),
        ("-mark", "-1"),
        ("-mark", "4294967296"),
        ("-listeners", "0"),
        ("-listeners", "two"),
        ("-v", "3"),
        ("-p", "sctp"),
        ("-l", "nonsense"),
        ("-l", "127.0.0.1:65536"),
        ("-4", "127.0.0.1"),
        ("-4", "127.0.0.1:"),
        ("-4", "[::1]:22"),
        ("-6", "127.0.0.1:22"),
        ("-6", "::1"),
        ("-header-timeout", "soon"),
        ("-header-timeout", "-1s"),
        ("-header-timeout", "0"),
        ("-connect-timeout", "5 s"),
        ("-drain-timeout", "5parsecs"),
        ("-close-after", "1h1"),
        ("-idle-timeout", "-1s"),
        ("-idle-timeout", "never"),
        ("-keepalive", "1.5s"),
        ("-keepalive", "32768s"),
        ("-source-port", "some"),
        ("-routing", "maybe"),
        ("-log-format", "xml"),
        ("-max-connections", "0"),
        ("-max-connections", "1e3"),
    ] {
        for words in [
            vec![flag.to_owned(), value.to_owned()],
            vec![format!("-{flag}={value}")],
        ] {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert_refused(&words, &[flag, value]);
        }
    }
    assert_refused(
        &["-dynamic-destination=maybe"],
        &["-dynamic-destination", "maybe"],
    );
    assert_refused(&["-listen-transparent=2"], &["-listen-transparent", "2"]);
}

#[test]
fn unknown_flags_and_stray_words_are_told_in_the_last_line() {
    assert_refused(&["-no-such-flag"], &["-no-such-flag"]);
    assert_refused(&["--no-such-flag=5"], &["-no-such-flag"]);
    assert_refused(&["---l", "x"], &["---l"]);
    assert_refused(&["-=x"], &["-=x"]);
    assert_refused(&["-header-timeout"], &["-header-timeout"]);
    assert_refused(&["stray"], &["stray"]);
    assert_refused(&["-v", "1", "stray", "-mark", "5"], &["stray"]);
    assert_refused(&["--", "-v"], &["-v"]);
    assert_refused(&["-"], &["-"]);
    // A boolean takes no separate value.
    assert_refused(&["-dynamic-destination", "true"], &["true"]);
    assert_refused(&["demo", "stray"], &["stray"]);
    assert_refused(&["routing", "sideways"], &["sideways"]);
    assert_refused(&["routing"], &["up", "down", "show"]);
}

#[test]
fn the_word_that_was_probably_meant_is_named() {
    let commands = "routing, doctor, ctl, ban-relay, demo, help, version";
    let actions = "status, connections, kill, ban, unban, bans";
    for (line, told) in [
        ("-alowed-subnets x", "did you mean -allowed-subnets?"),
        ("--header-timout=5s", "did you mean -header-timeout?"),
        ("-listen-adr :2222", "did you mean -listen-addr?"),
        ("routing show -ass table", "did you mean -as?"),
        ("doctor -jsn", "did you mean -json?"),
        ("ban-relay -token x", "did you mean -token-file?"),
        ("routng show", "did you mean routing?"),
        ("help docter", "did you mean doctor?"),
        ("start", commands),
        ("routng", commands),
        ("help start", commands),
        ("routing dwon", "did you mean down?"),
        ("routing start", "up, down, show"),
        ("ctl statsu", "did you mean status?"),
        ("ctl stop", actions),
        ("ctl", actions),
        ("-v 1 routing", "'realpeer routing'"),
        ("help -dynamic-destination", "-dynamic-destination"),
        ("help ctl doctor", "doctor"),
        ("version now", "now"),
    ] {
        assert_refused(&line.split(' ').collect::<Vec<_>>(), &[told]);
    }
    // Nothing is near.
    let ended = Program::Realpeer.run(&Host::new("host"), &["-x"]);
    assert!(!ended.stderr.contains("did you mean"), "{}", ended.stderr);
}

#[test]
fn help_has_every_command_and_each_explains_itself() {
    let host = Host::new("host");
    let help = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let ended = Program::Realpeer.run(&host, &words);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{line}");
        ended.stdout
    };
    let all = help("-h");
    for line in ["help", "help -h", "help help"] {
        assert_eq!(help(line), all, "{line}");
    }
    for command in ["routing", "doctor", "ctl", "ban-relay", "demo", "version"] {
        assert!(all.contains(&format!("\n  realpeer {command} ")), "{all}");
        let own = help(&format!("{command} -h"));
        assert!(own.contains(&format!("\n  realpeer {command}")), "{own}");
        assert_eq!(help(&format!("{command} help")), own);
        // Routing is a topic as well, whose text names the command.
        let explained = help(&format!("help {command}"));
        match command {
            "routing" => assert!(explained.contains("'realpeer routing -h'")),
            _ => assert_eq!(explained, own),
        }
    }
}

/// Exit 2, with one line of usage that points to -h, then one that has these words.
#[track_caller]
fn assert_refused(words: &[&str], told: &[&str]) {
    let ended = Program::Realpeer.run(&Host::new("host"), words);
    assert_eq!(ended.code, 2, "{words:?}: {}", ended.stderr);
    let (usage, error) = ended.stderr.split_once('\n').expect("usage and the error");
    assert!(usage.starts_with("usage: realpeer"), "{usage}");
    assert!(usage.contains(" -h'"), "{usage}");
    assert!(error.starts_with("realpeer: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in told {
        assert!(
            error.contains(word),
            "{words:?}: {word:?} is not in {error:?}"
        );
    }
    assert_eq!(ended.stdout, "");
}

#[test]
fn booleans_are_spelt_as_in_go() {
    for yes in ["", "=true", "=1", "=t", "=T", "=TRUE", "=True"] {
        let stage = Stage::new(&[&format!("-dynamic-destination{yes}")]);
        let there = Backend::listen(&stage.server, "127.0.0.9:7000");
        let _near = stage.dial_and_send(v1(CLIENT, "127.0.0.9:7000"));
        assert_eq!(there.accept().1, addr(CLIENT));
    }
    for no in ["=false", "=0", "=f", "=F", "=FALSE", "=False"] {
        let stage = Stage::new(&[
            "-dynamic-destination",
            &format!("--dynamic-destination{no}"),
        ]);
        let _near = stage.dial_and_send(v1(CLIENT, "127.0.0.9:7000"));
        assert_eq!(stage.backend.accept().1, addr(CLIENT));
    }
}

#[test]
fn numbers_are_spelt_as_in_go() {
    for ten in ["10", "0xA", "0xa", "012", "0o12", "0b1010", "1_0"] {
        let ended = Program::Realpeer.run(&Host::new("host"), &["-mark", ten, "-version"]);
        assert_eq!(ended.code, 0, "{ten}: {}", ended.stderr);
    }
}

#[test]
fn durations_are_spelt_as_in_go_and_bare_numbers_are_seconds() {
    for time in [
        "10s",
        "1m30s",
        "500ms",
        "1.5s",
        "1h",
        "90",
        "2us",
        "300000000ns",
        "1h15m30.918s",
    ] {
        let ended =
            Program::Realpeer.run(&Host::new("host"), &["-header-timeout", time, "-version"]);
        assert_eq!(ended.code, 0, "{time}: {}", ended.stderr);
    }
    let stage = Stage::new(&["-header-timeout", "1"]);
    assert_closed(&stage.dial());
    stage.proxy.wait_for_line("no header within 1s");
}

#[test]
fn host_names_are_looked_up() {
    let server = Host::new("server");
    let backend = Backend::listen(&server, "127.0.0.1:9000");
    // localhost is ::1, too; -4 takes what is IPv4.
    let flags = ["-l", "localhost:2222", "-4", "localhost:9000"];
    let _proxy = Program::Realpeer.start_on(2222, &server, &flags);
    let (v4, v6) = ("127.0.0.1:2222", "[::1]:2222");
    let near = server
        .try_dial(None, v4)
        .or_else(|_| server.try_dial(None, v6));
    send(&near.expect("it listens on localhost"), v1(CLIENT, VISITED));
    assert_eq!(backend.accept().1, addr(CLIENT));
}

#[test]
fn a_host_name_that_does_not_exist_is_told() {
    for flag in ["-4", "-6", "-l"] {
        let ended = Program::Realpeer.run(&Host::new("host"), &[flag, "no-such-host.invalid:22"]);
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("no-such-host.invalid"),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(flag), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn mmproxy_rs_flags_are_understood() {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.6/32\n");
    let stage = Stage::new(&[
        "--listen-addr",
        "[::]:2222",
        "--ipv4",
        "127.0.0.1:9000",
        "--ipv6",
        "[::1]:9000",
        "--protocol",
        "tcp",
        "-a",
        &file,
        "-c",
        "30",
        "-m",
        "5",
        "--listeners",
        "2",
    ]);
    wait_until("two sockets listen", || stage.server.listeners(2222) == 2);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    for (client, visited, backend) in [
        (CLIENT, VISITED, &stage.backend),
        (CLIENT6, VISITED6, &stage.backend6),
    ] {
        let near = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
        send(&near, v2(client, visited).bytes());
        assert_eq!(backend.accept().1, addr(client));
    }
}

#[test]
fn cloudflares_flag_for_the_subnets_file_is_understood() {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.6/32\n");
    let stage = Stage::new(&["--allowed-networks", &file]);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
}

#[test]
fn an_ipv6_listener_on_every_address_takes_ipv4_too() {
    let stage = Stage::new(&["-l", "[::]:2222"]);
    for (to, client) in [(PROXY, CLIENT), ("[2001:db8::10]:2222", CLIENT6)] {
        let near = stage.balancer.dial(to);
        stage.introduce(&near, client);
    }
}

#[test]
fn in_a_subcommand_flags_may_stand_anywhere() {
    for words in [
        ["routing", "show", "-4", "127.0.0.1:22"],
        ["routing", "-4", "127.0.0.1:22", "show"],
        ["routing", "-4=127.0.0.1:22", "show", "-v=1"],
    ] {
        let ended = Program::Realpeer.run(&Host::new("host"), &words);
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
    }
}

#[test]
fn a_failure_at_run_time_is_one_line_and_exit_1() {
    for words in [
        ["-l", "192.0.2.99:2222"].as_slice(),
        &["-allowed-subnets", "/no/such/file"],
        &["-l", "127.0.0.1:2222", "-4", "127.0.0.1:2222"],
    ] {
        let ended = Program::Realpeer.run(&Host::new("host"), words);
        assert_eq!(ended.code, 1, "{words:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        // As every line of the log.
        assert!(
            ended.stderr.contains(r#""level":"ERROR","msg":"#),
            "{}",
            ended.stderr
        );
    }
}
