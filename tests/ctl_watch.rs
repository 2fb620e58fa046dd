//! `realpeer ctl watch`: what happens is told as it happens, and whoever is slow holds nothing up.

mod support;

use std::io::{BufRead, BufReader, Read, Write};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::ctl::ask;
use support::datagrams::open;
use support::header::v1;
use support::site::{AT_A, AT_B, NINE, OTHER, converse, listener, udp};
use support::stage::{CLIENT, VISITED};
use support::streams::{
    assert_carries, assert_closed, assert_reset, finish_sending, receive, receive_all, send,
};
use support::{Backend, Ctl, Running, Site, Stage, wait_until};

/// A watcher that hears everything from now on.
#[track_caller]
fn watch(ctl: &Ctl, words: &str) -> Running {
    let running = ctl.spawn(words);
    running.wait_for_line("watching");
    running
}

fn events(running: &Running) -> Vec<Value> {
    let lines = running.stdout();
    let event = |line: &String| serde_json::from_str(line).expect("JSON");
    lines.iter().map(event).collect()
}

#[track_caller]
fn wait_for_event(running: &Running, kind: &str) -> Value {
    let line = running.wait_for_line(&format!("\"event\":\"{kind}\""));
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn on_a_terminal_each_event_is_a_line_until_it_is_interrupted() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path(), "-name", "ssh"]);
    let terminal = ctl.terminal(200, 40);
    terminal.command(&ctl.line("watch"));
    terminal.wait_for("watching");
    let session = stage.session(CLIENT);
    let opened = terminal.wait_for("opened");
    let line = opened.lines().find(|line| line.contains("opened"));
    for part in [
        "listener=ssh",
        "client=203.0.113.7:40000",
        "target=127.0.0.1:9000",
    ] {
        assert!(line.is_some_and(|line| line.contains(part)), "{opened}");
    }
    assert_closed(&stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
    terminal.wait_for("reason=headerAbsent");
    ctl.ok("ban 203.0.113.7 -for 2s -reason \x1b[31mx");
    assert_reset(&session.near);
    for part in [
        "ban      network=203.0.113.7/32",
        r#"reason="\u{1b}[31mx""#,
        "end=\"client banned\"",
        "expired=true",
    ] {
        terminal.wait_for(part);
    }
    terminal.key("C-c");
    terminal.command("echo code=$?");
    terminal.wait_for("code=0");
}

#[test]
fn events_of_tcp_and_udp_are_objects_with_what_is_known() {
    let file = listener("a", "0.0.0.0:2201", NINE, "")
        + &udp("u", "0.0.0.0:2202", NINE, "close-after = \"1s\"");
    let site = Site::new(&file);
    let backend = Backend::listen(&site.server, NINE);
    let udp_backend = open(&site.server, NINE);
    let watcher = watch(&site.ctl, "-json watch");
    let near = site.balancer.dial(AT_A);
    send(&near, v1(CLIENT, VISITED));
    let (far, _) = backend.accept();
    send(&near, b"12345");
    receive(&far, 5);
    send(&far, b"1234567");
    receive(&near, 7);
    let opened = wait_for_event(&watcher, "opened");
    let listed = site.ctl.ok("-json connections");
    let listed: Value = serde_json::from_str(listed.lines().next().expect("one")).expect("JSON");
    for key in ["id", "listener", "client", "peer", "target"] {
        assert_eq!(opened[key], listed["connection"][key], "{opened}");
    }
    finish_sending(&near);
    assert_eq!(receive_all(&far), b"");
    drop(far);
    let closed = wait_for_event(&watcher, "closed");
    for key in ["id", "listener", "client", "peer", "target"] {
        assert_eq!(closed[key], opened[key], "{closed}");
    }
    assert_eq!(
        (&closed["bytesUp"], &closed["bytesDown"]),
        (&5.into(), &7.into())
    );
    assert_eq!(closed["end"], "client closed", "{closed}");
    assert!(
        closed["age"].as_f64().is_some_and(|age| age > 0.0),
        "{closed}"
    );
    let time = closed["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");

    let socket = site.socket(AT_B);
    converse(&socket, &udp_backend, CLIENT);
    socket.send(b"no header").expect("send");
    watcher.wait_for("the flow's end", |line| {
        line.contains("silent for -close-after")
    });
    let of = |kind: &str| {
        let mut events = events(&watcher).into_iter();
        let found = events.find(|event| event["listener"] == "u" && event["event"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} of u"))
    };
    let (opened, closed, refused) = (of("opened"), of("closed"), of("refused"));
    assert_eq!(
        (&opened["client"], &opened["id"]),
        (&CLIENT.into(), &closed["id"])
    );
    assert_eq!(
        (&closed["bytesUp"], &closed["bytesDown"]),
        (&5.into(), &8.into())
    );
    assert_eq!(refused["reason"], "headerAbsent", "{refused}");
    site.ctl.ok("ban 198.51.100.0/24 -reason x -listener a");
    let ban = wait_for_event(&watcher, "ban");
    assert_eq!(
        (&ban["network"], &ban["reason"], &ban["listener"]),
        (&"198.51.100.0/24".into(), &"x".into(), &"a".into())
    );
    site.ctl.ok("unban 198.51.100.0/24 -listener a");
    assert_eq!(wait_for_event(&watcher, "unban")["expired"], false);
}

#[test]
fn one_listener_may_be_watched() {
    let file = listener("a", "0.0.0.0:2201", NINE, "") + &listener("b", "0.0.0.0:2202", NINE, "");
    let site = Site::new(&file);
    let backend = Backend::listen(&site.server, NINE);
    let watcher = watch(&site.ctl, "-json watch -listener b");
    drop(site.session(AT_A, &backend, CLIENT));
    site.ctl.ok("ban 198.51.100.1 -listener a");
    site.ctl.ok("ban 198.51.100.2");
    drop(site.session(AT_B, &backend, OTHER));
    wait_for_event(&watcher, "closed");
    let seen = events(&watcher);
    let kinds: Vec<&str> = seen
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert_eq!(kinds, ["watching", "ban", "opened", "closed"], "{seen:?}");
    assert_eq!(seen[1]["network"], "198.51.100.2/32");
    site.ctl.refused("watch -listener c", "there are: a, b");
}

/// More than wait for a watcher, and than its socket holds.
const FLOOD: u64 = 40_000;

#[test]
fn a_watcher_that_stands_still_learns_how_much_it_missed_and_stops_nothing() {
    let file = listener("a", "0.0.0.0:2201", NINE, "") + &udp("u", "0.0.0.0:2202", NINE, "");
    let site = Site::new(&file);
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let watcher = watch(&site.ctl, "-json watch -listener u");
    watcher.signal(Signal::SIGSTOP);
    let socket = site.socket(AT_B);
    let refused = || {
        let count = &site.listener("u")["counts"]["headerAbsent"];
        count.as_u64().expect("a number")
    };
    while refused() < FLOOD {
        for _ in 0..1_000 {
            socket.send(b"no header").expect("send");
        }
        assert_carries(&session.near, &session.far);
    }
    // Others come, are served and are banned.
    site.session(AT_A, &backend, OTHER);
    converse(&socket, &udp_backend, OTHER);
    site.ctl.ok("ban 203.0.113.8");
    let mut all = 0;
    wait_until("no datagram is on its way", || {
        std::mem::replace(&mut all, refused()) == all
    });
    watcher.signal(Signal::SIGCONT);
    wait_for_event(&watcher, "ban");
    let seen = events(&watcher);
    let lost: u64 = seen
        .iter()
        .filter_map(|event| event["count"].as_u64())
        .sum();
    let told = seen.iter().filter(|event| event["event"] == "refused");
    let missing = all - told.count() as u64;
    // Besides, a session of the other listener and a flow were opened.
    assert!(lost > 0);
    assert!(
        (missing..=missing + 2).contains(&lost),
        "{lost} lost, {missing} of {all} missing"
    );
}

#[test]
fn it_ends_with_the_proxy_and_with_who_reads_it() {
    let ctl = Ctl::new();
    let mut stage = Stage::new(&["-control", &ctl.path()]);
    let mut reader = ctl.shell(&format!("{} | sed -u 2q", ctl.line("watch")), "watching");
    let mut watcher = watch(&ctl, "watch");
    let mut interrupted = watch(&ctl, "watch");
    drop(stage.session(CLIENT));
    watcher.wait_for_line("closed");
    // Whose reader is gone ends at the next line.
    wait_until("it notices that its reader is gone", || {
        drop(stage.session(CLIENT));
        reader.has_ended()
    });
    assert_eq!(reader.exit_code(), 0);
    interrupted.signal(Signal::SIGINT);
    assert_eq!(interrupted.exit_code(), 0);
    stage.proxy.signal(Signal::SIGTERM);
    stage.proxy.wait_for_exit();
    assert_eq!(watcher.exit_code(), 3);
    assert!(
        watcher.stderr().concat().contains("broke off"),
        "{:?}",
        watcher.stderr()
    );
    assert_eq!(ctl.run("watch").code, 3);
}

/// Those who watch are four at most, may be silent for longer than others, and leave the places of
/// others free.
#[test]
fn watchers_have_seats_of_their_own() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let mut watchers: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = BufReader::new(ctl.connect());
            send_line(&mut stream, r#"{"do":"watch"}"#);
            assert!(read_line(&mut stream).contains("watching"));
            stream
        })
        .collect();
    let others: Vec<_> = (0..7).map(|_| ctl.connect()).collect();
    ctl.refused("watch", "too many watch");
    ctl.ok("status");
    // The others are cut off for their silence; who watches is not.
    for mut other in others {
        assert_eq!(other.read(&mut [0]).expect("an orderly end"), 0);
    }
    drop(stage.session(CLIENT));
    for watcher in &mut watchers {
        assert!(read_line(watcher).contains("opened"));
    }
    // A seat is free when one leaves.
    watchers.pop();
    wait_until("there is a seat", || {
        let mut stream = BufReader::new(ctl.connect());
        send_line(&mut stream, r#"{"do":"watch"}"#);
        read_line(&mut stream).contains("watching")
    });
    // Requests that came before are answered first.
    let mut stream = BufReader::new(ctl.connect());
    assert_eq!(ask(&mut stream, r#"{"do":"bans"}"#)["count"], 0);
}

fn send_line(stream: &mut BufReader<std::os::unix::net::UnixStream>, text: &str) {
    let bytes = format!("{text}\n");
    stream.get_mut().write_all(bytes.as_bytes()).expect("send");
}

fn read_line(stream: &mut BufReader<std::os::unix::net::UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line");
    line
}
