//! `-log-format journal`: log lines as entries of a real systemd journal, a field for each key.

mod support;

use std::fs;
use std::io::BufReader;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::ctl::ask_all;
use support::fail2ban::{Configuration, Fail2ban};
use support::header::{self, v1, v2};
use support::journald::{CONNECTED, DIRECTORY, Journald};
use support::stage::{ADDRESSES, CLIENT, VISITED, wire};
use support::streams::{assert_carries, assert_closed, assert_reset};
use support::{Backend, Ctl, Host, Journal, Program, Running, Stage, repository, wait_until};

/// A stage whose proxy logs into a journal.
struct Scene {
    stage: Stage,
    journald: Journald,
    ctl: Ctl,
}

impl Scene {
    #[track_caller]
    fn new(wrapper: &[&str], flags: &[&str]) -> Scene {
        let (balancer, server) = wire();
        let (journald, ctl) = (Journald::start(&server), Ctl::new());
        let backends = ["127.0.0.1:9000", "[::1]:9000"].map(|at| Backend::listen(&server, at));
        let control = ["-control", &ctl.path()];
        let flags = [&ADDRESSES, &control[..], flags].concat();
        let proxy = Program::Realpeer.spawn(wrapper, &server, &flags);
        journald.wait_for_message(&server, "listening");
        let [backend, backend6] = backends;
        Scene {
            stage: Stage {
                balancer,
                server,
                backend,
                backend6,
                proxy,
            },
            journald,
            ctl,
        }
    }

    #[track_caller]
    fn wait_for(&self, beginning: &str) -> Value {
        self.journald
            .wait_for_message(&self.stage.server, beginning)
    }
}

/// As under systemd, without a flag.
#[test]
fn under_systemd_each_key_is_a_field() {
    let scene = Scene::new(&CONNECTED, &["-v", "2", "-name", "ssh"]);
    let session = scene.stage.session(CLIENT);
    assert_carries(&session.near, &session.far);
    let peer = session.near.local_addr().expect("our address").to_string();
    drop(session);
    let entry = scene.wait_for("connection closed");
    for (field, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "realpeer"),
        ("_TRANSPORT", "journal"),
        ("CLIENT_ADDR", CLIENT),
        ("TARGET_ADDR", "127.0.0.1:9000"),
        ("FRONTEND_REMOTE_ADDR", &peer),
        ("END", "client closed"),
    ] {
        assert_eq!(entry[field], value, "{field} of {entry}");
    }
    for field in ["BYTES_UP", "BYTES_DOWN", "DURATION_MS"] {
        let number = entry[field].as_str().map(str::parse::<u64>);
        assert!(matches!(number, Some(Ok(_))), "{field} of {entry}");
    }
    // People and filters see the message alone.
    let message = entry["MESSAGE"].as_str().expect("text");
    assert!(
        message.contains("clientAddr=203.0.113.7:40000"),
        "{message}"
    );

    assert_closed(&scene.stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
    let refused = scene.wait_for("dropping connection");
    assert_eq!(refused["PRIORITY"], "4", "{refused}");
    assert!(refused["ERROR"].is_string(), "{refused}");
    // Nothing came by the stream that systemd gives.
    let entries = scene.journald.entries(&scene.stage.server);
    assert!(entries.iter().all(|entry| entry["_TRANSPORT"] == "journal"));
}

/// A file's listener is named in a field, and a start that fails says why there.
#[test]
fn the_listener_and_the_last_words_are_there() {
    let (_balancer, server) = wire();
    let journald = Journald::start(&server);
    let files = support::TempDir::new();
    let listener = support::site::listener("web", "0.0.0.0:2222", "127.0.0.1:9000", "");
    let file = files.file("realpeer.toml", &listener);
    let start = || {
        let mut words = CONNECTED.to_vec();
        let path = Program::Realpeer.path();
        words.extend([&path, "-config", &file, "-control", "off"]);
        server.spawn(&words)
    };
    let _first: Running = start();
    let entry = journald.wait_for_message(&server, "listening");
    assert_eq!(entry["LISTENER"], "web", "{entry}");
    assert_eq!(start().exit_code(), 1);
    let last = journald.wait_for(&server, "the reason", |entry| entry["PRIORITY"] == "3");
    let message = last["MESSAGE"].as_str().expect("text");
    assert!(message.contains("0.0.0.0:2222"), "{message}");
}

/// Strangers' bytes make up neither fields nor entries.
#[test]
fn line_breaks_forge_nothing() {
    let scene = Scene::new(&[], &["-v", "2", "-log-format", "journal"]);
    let reason = "x\nPRIORITY=0\nMESSAGE=forged\n\n_PID=1\x1b[31m";
    let mut control = BufReader::new(scene.ctl.connect());
    let ban = json!({"do": "ban", "network": "203.0.113.9", "reason": reason}).to_string();
    ask_all(&mut control, &[ban]);
    let entry = scene.wait_for("client banned");
    assert_eq!(entry["PRIORITY"], "6", "{entry}");
    assert_eq!(text(&entry["REASON"]), reason);
    let message = entry["MESSAGE"]
        .as_str()
        .expect("without control characters");
    assert!(
        message.contains(r"x\nPRIORITY=0\nMESSAGE=forged"),
        "{message}"
    );

    let unique = b"y\nPRIORITY=0\n\nMESSAGE=forged\n";
    let header = v2(CLIENT, VISITED).tlv(header::UNIQUE_ID, unique).bytes();
    let near = scene.stage.dial_and_send(header);
    let (far, _) = scene.stage.backend.accept();
    drop((near, far));
    let entry = scene.wait_for("connection closed");
    assert_eq!(entry["UNIQUE_ID"], r"y\nPRIORITY=0\n\nMESSAGE=forged\n");
    for entry in scene.journald.entries(&scene.stage.server) {
        assert_ne!(entry["MESSAGE"], "forged", "{entry}");
        assert_ne!(entry["PRIORITY"], "0", "{entry}");
    }
}

/// journalctl shows what a terminal must not get as numbers.
fn text(value: &Value) -> String {
    match value {
        Value::Array(bytes) => {
            let bytes = bytes
                .iter()
                .map(|byte| byte.as_u64().expect("a byte") as u8);
            String::from_utf8(bytes.collect()).expect("UTF-8")
        }
        value => value.as_str().expect("text").to_owned(),
    }
}

/// More than journald's socket and the queue hold.
const FLOOD: u16 = 5000;

/// journald stands still: nothing waits for it, and it learns how many lines it missed.
#[test]
fn a_journal_that_stalls_stops_nothing() {
    let scene = Scene::new(&[], &["-v", "2", "-log-format", "journal"]);
    let (stage, journald) = (&scene.stage, &scene.journald);
    journald.running.signal(Signal::SIGSTOP);
    let session = stage.session(CLIENT);
    let mut control = BufReader::new(scene.ctl.connect());
    let reason = "long ".repeat(100);
    let bans: Vec<String> = (0..FLOOD)
        .map(|n| json!({"do": "ban", "network": format!("10.0.{}.{}", n >> 8, n & 255), "reason": reason}).to_string())
        .collect();
    for some in bans.chunks(100) {
        ask_all(&mut control, some);
    }
    assert_carries(&session.near, &session.far);
    stage.session("203.0.113.8:1");
    journald.running.signal(Signal::SIGCONT);
    let lost = scene.wait_for("log lines were lost");
    let lost: usize = text(&lost["LOST"]).parse().expect("a number");
    let entries = journald.entries(&stage.server);
    let told = entries
        .iter()
        .filter(|entry| text(&entry["MESSAGE"]).starts_with("client banned"))
        .count();
    let missing = usize::from(FLOOD) - told;
    // The second session's end may be among them.
    assert!(
        (missing..=missing + 1).contains(&lost) && lost > 0,
        "{lost} of {missing}"
    );
}

/// It is restarted, with another socket, and gets the lines again.
#[test]
fn a_journal_that_restarts_gets_the_lines_again() {
    let Scene {
        stage, journald, ..
    } = Scene::new(&[], &["-v", "2", "-log-format", "journal"]);
    drop(journald);
    stage.session("203.0.113.8:1");
    stage.server.run(&["rm", "-r", "/run/systemd/journal"]);
    let journald = Journald::start(&stage.server);
    wait_until("a line arrives", || {
        stage.session("203.0.113.8:2");
        !journald
            .entries(&stage.server)
            .iter()
            .all(|entry| entry["CLIENT_ADDR"] != "203.0.113.8:2")
    });
}

#[test]
fn without_a_journal_asking_for_it_is_an_error_and_its_name_alone_is_not() {
    let host = Host::new("server");
    let flags = ["-l", "127.0.0.1:2222", "-log-format", "journal"];
    let ended = Program::Realpeer.run(&host, &flags);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("-log-format journal"),
        "{}",
        ended.stderr
    );

    // JOURNAL_STREAM of another process, as a shell in a service inherits it.
    let wrapper = ["env", "JOURNAL_STREAM=9:1"];
    let proxy = Program::Realpeer.start_under(&wrapper, &host, &["-l", "127.0.0.1:2222"]);
    let line = proxy.wait_for_line("listening");
    assert!(line.starts_with("{\"time\":"), "{line}");
}

/// Whoever runs into the limits again and again, read by the shipped filter from a real journal.
#[test]
fn fail2ban_reads_it() {
    let limits = ["-v", "1", "-connection-rate-per-client", "1/h"];
    let scene = Scene::new(&CONNECTED, &limits);
    let (stage, ctl) = (&scene.stage, &scene.ctl);
    let jails = format!(
        "[DEFAULT]
realpeer_action = realpeer[options=\"-control {}\", realpeer={}]
[realpeer-limits]
enabled = true
backend = systemd[journalpath={DIRECTORY}]
# There is no unit here.
journalmatch = _COMM=realpeer
maxretry = 3
",
        ctl.path(),
        Program::Realpeer.path(),
    );
    let fail2ban = Fail2ban::start(&stage.server, &jails);
    // One that stays within them, and what is refused for another reason.
    let innocent = stage.session(CLIENT);
    for n in 0..5 {
        assert_closed(&stage.dial_and_send("PROXY TCP4 203.0.113.7 rubbish\r\n"));
        let client = format!("203.0.113.9:{}", 40000 + n);
        let near = stage.dial_and_send(v1(&client, VISITED));
        if n > 0 {
            assert_reset(&near);
        }
    }
    fail2ban.wait_for_ban("203.0.113.9");
    wait_until("it is carried out", || {
        ctl.ok("bans").contains("fail2ban: realpeer-limits")
    });
    assert_eq!(ctl.ok("bans").lines().count(), 2, "{}", ctl.ok("bans"));
    assert_carries(&innocent.near, &innocent.far);
}

/// In each format, from the unit that is shipped; others' entries do not count.
#[test]
fn the_shipped_jail_matches_the_units_lines() {
    let jails = fs::read_to_string(repository("packaging/fail2ban/jail.d/realpeer.conf"));
    let jails = jails.expect("the jails");
    let (_, jail) = jails.split_once("[realpeer-limits]").expect("the jail");
    let matched = jail
        .lines()
        .find_map(|line| line.strip_prefix("journalmatch = "));
    let (host, configuration) = (Host::new("admin"), Configuration::new(""));
    let mut journal = Journal::new(&host);
    let source = "SYSLOG_IDENTIFIER=realpeer\n_COMM=realpeer\n";
    for format in ["json", "text"] {
        let stage = Stage::new(&[
            "-v",
            "1",
            "-log-format",
            format,
            "-max-connections-per-client",
            "1",
        ]);
        for client in ["203.0.113.5:1", "[2001:db8::6]:1"] {
            let _open = stage.session(client);
            let more = client.replace("]:1", "]:2").replace("5:1", "5:2");
            let visited = if client.starts_with('[') {
                support::stage::VISITED6
            } else {
                VISITED
            };
            assert_reset(&stage.dial_and_send(v1(&more, visited)));
        }
        stage.proxy.wait_for_line("2001:db8::6");
        for line in stage.proxy.stdout() {
            journal.add(&format!("{source}_SYSTEMD_UNIT=realpeer.service"), &line);
            journal.add(&format!("{source}_SYSTEMD_UNIT=user@1000.service"), &line);
        }
    }
    let journal = journal.finish();
    let found = configuration.find_in_journal(
        &host,
        &journal,
        matched.expect("what it matches"),
        "realpeer-limits",
    );
    assert_eq!(
        found,
        ["203.0.113.5", "2001:db8::6", "203.0.113.5", "2001:db8::6"]
    );
}
