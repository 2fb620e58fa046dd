//! Log lines: their shape, how many there are, and that strangers cannot write them.

mod support;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::datagrams;
use support::header::{self, CRC32C, INET, STREAM, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{
    assert_carries, assert_closed, assert_reset, finish_sending, receive, receive_all, reset, send,
};
use support::{Host, Program, Running, Session, Stage, TempDir};

#[test]
fn every_line_is_json_with_the_forks_keys() {
    let mut stage = Stage::new(&["-v", "2"]);
    stage.assert_serves();
    assert_closed(&stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);

    let lines = stage.proxy.stdout();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in lines {
        let event = parse(&line);
        assert!(line.starts_with("{\"time\":\""), "{line}");
        for key in ["time", "level", "msg"] {
            assert!(event[key].is_string(), "{key} is missing in {line}");
        }
        assert!(
            ["DEBUG", "INFO", "WARN", "ERROR"].contains(&event["level"].as_str().expect("text"))
        );
        // RFC 3339, like Go's slog: 2026-01-02T03:04:05.678Z
        let time = event["time"].as_str().expect("text");
        let (date, clock) = time.split_once('T').expect("date and time");
        assert_eq!((date.len(), clock.ends_with('Z')), (10, true), "{time}");
    }
}

#[test]
fn on_a_terminal_lines_are_text() {
    let (_balancer, server, proxy) = on_a_terminal(&[]);
    server.wait_for_port(2222);
    let line = proxy.wait_for_line("listening");
    assert!(
        serde_json::from_str::<Value>(line.trim()).is_err(),
        "{line}"
    );
    assert!(
        line.contains("INFO") && line.contains("listenAdr=0.0.0.0:2222"),
        "{line}"
    );
}

#[test]
fn on_a_terminal_json_may_be_asked_for() {
    let (_balancer, _server, proxy) = on_a_terminal(&["-log-format", "json"]);
    parse(proxy.wait_for_line("listening").trim());
}

#[test]
fn into_a_pipe_text_may_be_asked_for() {
    let stage = Stage::new(&["-log-format", "text"]);
    let line = stage.proxy.wait_for_line("listening");
    assert!(serde_json::from_str::<Value>(&line).is_err(), "{line}");
}

/// The proxy with a terminal for its standard output, whose lines are collected.
fn on_a_terminal(flags: &[&str]) -> (Host, Host, Running) {
    let (balancer, server) = wire();
    // script leaves its child behind when it is killed, so the kernel is told to end it too.
    let guarded = "exec setpriv --pdeathsig KILL";
    let program = Program::Realpeer.path();
    let words = [&[guarded, &program, "-l", "0.0.0.0:2222"], flags]
        .concat()
        .join(" ");
    // script's own record of the session goes the same way as what it shows.
    let directory = TempDir::new();
    let record = directory.path("typescript").display().to_string();
    let proxy = server.spawn(&["script", "-qefc", &words, &record]);
    proxy.wait_for_line("listening");
    (balancer, server, proxy)
}

#[test]
fn the_end_of_a_connection_is_told_in_one_line() {
    let stage = Stage::new(&["-v", "2"]);
    let header = v2(CLIENT, VISITED)
        .tlv(header::UNIQUE_ID, b"request-4711")
        .bytes();
    let near = stage.dial_and_send(header);
    let (far, _) = stage.backend.accept();
    send(&near, [b'u'; 1234]);
    assert_eq!(receive(&far, 1234).len(), 1234);
    send(&far, [b'd'; 5678]);
    assert_eq!(receive(&near, 5678).len(), 5678);
    let peer = near.local_addr().expect("our own address").to_string();
    finish_sending(&near);
    assert_eq!(receive_all(&far), b"");
    drop(far);

    let event = parse(&stage.proxy.wait_for_line("request-4711"));
    let values: Vec<&Value> = event.as_object().expect("an object").values().collect();
    let has = |wanted: &Value| values.contains(&wanted);
    for wanted in [CLIENT, &peer, "127.0.0.1:9000", "request-4711"] {
        assert!(has(&Value::from(wanted)), "{wanted} is missing in {event}");
    }
    for wanted in [1234, 5678] {
        assert!(
            has(&Value::from(wanted)),
            "{wanted} bytes are missing in {event}"
        );
    }
    assert!(event["durationMs"].is_u64(), "{event}");
    let ended = event["end"].as_str().expect("why it ended");
    assert!(ended.contains("client"), "{event}");
    let about_it = |line: &&String| line.contains("request-4711") || line.contains(&peer);
    assert_eq!(stage.proxy.stdout().iter().filter(about_it).count(), 1);
}

#[test]
fn bytes_behind_the_header_are_counted() {
    let stage = Stage::new(&["-v", "2"]);
    let near = stage.dial_and_send([v1(CLIENT, VISITED), b"hello".to_vec()].concat());
    let (far, _) = stage.backend.accept();
    finish_sending(&near);
    assert_eq!(receive_all(&far), b"hello");
    drop(far);
    let event = parse(&stage.proxy.wait_for_line("connection closed"));
    assert_eq!(
        (&event["bytesUp"], &event["bytesDown"]),
        (&Value::from(5), &Value::from(0))
    );
}

#[test]
fn the_end_line_says_who_ended_it_and_how() {
    let stage = Stage::new(&["-v", "2"]);
    let end = |client: &str, finish: &dyn Fn(Session)| {
        let session = stage.session(client);
        assert_carries(&session.near, &session.far);
        finish(session);
        let line = stage.proxy.wait_for(&format!("end of {client}"), |line| {
            line.contains(&format!("\"clientAddr\":\"{client}\""))
                && line.contains("connection closed")
        });
        parse(&line)["end"]
            .as_str()
            .expect("why it ended")
            .to_owned()
    };
    let client_closed = end("203.0.113.7:1", &|session| {
        finish_sending(&session.near);
        assert_eq!(receive_all(&session.far), b"");
    });
    let backend_closed = end("203.0.113.7:2", &|session| {
        finish_sending(&session.far);
        assert_eq!(receive_all(&session.near), b"");
    });
    let client_reset = end("203.0.113.7:3", &|session| reset(session.near));
    let backend_reset = end("203.0.113.7:4", &|session| reset(session.far));
    assert!(client_closed.contains("client closed"), "{client_closed}");
    assert!(
        backend_closed.contains("backend closed"),
        "{backend_closed}"
    );
    assert!(client_reset.contains("client reset"), "{client_reset}");
    assert!(backend_reset.contains("backend reset"), "{backend_reset}");
}

#[test]
fn served_connections_are_silent_below_v_2() {
    for verbosity in ["0", "1"] {
        let stage = Stage::new(&["-v", verbosity]);
        stage.proxy.wait_for_line("listening");
        let before = stage.proxy.stdout();
        stage.assert_serves();
        // One that is refused comes later, and its line must be the next.
        assert_closed(&stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
        stage.proxy.wait_for_line("no PROXY header");
        assert_eq!(
            stage.proxy.stdout().len(),
            before.len() + 1,
            "{:?}",
            stage.proxy.stdout()
        );
    }
}

#[test]
fn at_v_0_a_refusal_is_told_once_however_often_it_happens() {
    let stage = Stage::new(&[]);
    for _ in 0..30 {
        assert_closed(&stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
    }
    // Another reason has a line of its own, which here marks the end of the first ones.
    assert_closed(&stage.dial_and_send(v1("127.0.0.1:1", VISITED)));
    stage.proxy.wait_for_line("127.0.0.1:1");
    assert_eq!(
        count(&stage.proxy, "no PROXY header"),
        1,
        "{:?}",
        stage.proxy.stdout()
    );
}

#[test]
fn at_v_0_one_target_does_not_hide_another() {
    let stage = Stage::new(&["-4", "127.0.0.1:9", "-6", "[::1]:9"]);
    for _ in 0..3 {
        for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
            assert_reset(&stage.dial_and_send(v1(client, visited)));
        }
    }
    for target in ["127.0.0.1:9", "[::1]:9"] {
        let line = format!("the backend {target} refused the connection");
        stage.proxy.wait_for_line(&line);
        assert_eq!(count(&stage.proxy, &line), 1, "{:?}", stage.proxy.stdout());
    }
}

#[test]
fn at_v_0_one_target_of_datagrams_does_not_hide_another() {
    let scene = datagrams::Scene::new(&["-4", "127.0.0.1:9", "-6", "[::1]:9"]);
    let near = scene.socket();
    for client in [CLIENT, CLIENT6] {
        near.send(&datagrams::every(client, b"anybody?"))
            .expect("send to the proxy");
    }
    for target in ["127.0.0.1:9", "[::1]:9"] {
        let line = format!("the backend {target} refused the connection");
        let line = parse(&scene.proxy.wait_for_line(&line));
        assert_eq!(line["targetAddr"], target);
    }
}

/// Both are counted as `headerBad`.
#[test]
fn at_v_0_one_reason_does_not_hide_another() {
    let stage = Stage::new(&[]);
    for _ in 0..3 {
        assert_closed(&stage.dial_and_send(V2::new(0x22, INET | STREAM, vec![0; 12]).bytes()));
        assert_closed(&stage.dial_and_send(v2(CLIENT, VISITED).tlv(CRC32C, &[1; 4]).bytes()));
    }
    for reason in ["command 2", "CRC32C is wrong"] {
        stage.proxy.wait_for_line(reason);
        assert_eq!(count(&stage.proxy, reason), 1, "{:?}", stage.proxy.stdout());
    }
}

#[test]
fn at_v_1_every_refusal_is_told() {
    let stage = Stage::new(&["-v", "1"]);
    for _ in 0..30 {
        assert_closed(&stage.dial_and_send("GET / HTTP/1.1\r\n\r\n"));
    }
    assert_closed(&stage.dial_and_send(v1("127.0.0.1:1", VISITED)));
    stage.proxy.wait_for_line("127.0.0.1:1");
    assert_eq!(
        count(&stage.proxy, "no PROXY header"),
        30,
        "{:?}",
        stage.proxy.stdout()
    );
}

fn count(proxy: &Running, text: &str) -> usize {
    proxy
        .stdout()
        .iter()
        .filter(|line| line.contains(text))
        .count()
}

#[test]
fn a_missing_header_is_explained() {
    let stage = Stage::new(&[]);
    let near = stage.dial_and_send("SSH-2.0-OpenSSH_9.2\r\n");
    assert_closed(&near);
    let line = stage.proxy.wait_for_line("no PROXY header");
    assert!(
        line.contains("no PROXY header: the peer connected directly, or send-proxy is off"),
        "{line}"
    );
    let peer = near.local_addr().expect("our own address").to_string();
    assert!(line.contains(&peer), "it does not say who: {line}");
}

#[test]
fn a_header_that_does_not_come_is_explained() {
    let stage = Stage::new(&["-header-timeout", "200ms"]);
    assert_closed(&stage.dial());
    let line = stage.proxy.wait_for_line("no header within 200ms");
    assert!(line.contains("AWS NLB"), "{line}");
}

/// What a stranger may send in the hope that it ends up in the log: a line of its own, colours, a
/// backspace, the end of the JSON text, bytes that are no text, control characters beyond ASCII.
const SPITEFUL: [&[u8]; 6] = [
    b"x\nAccepted password for root from 203.0.113.66 port 1 ssh2\n",
    b"PROXY TCP4 \x1b[31mred\x1b[0m\x08\x08 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 \"},{\"level\":\"ERROR\",\"msg\":\"forged 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 \xff\xfe\x80 198.51.100.1 40000 22\r\n",
    "PROXY TCP4 \u{9b}31m\u{2028}\u{202e}evil 198.51.100.1 40000 22\r\n".as_bytes(),
    b"\r\nAccepted password for root from 203.0.113.66 port 1 ssh2\r\n",
];

#[test]
fn what_strangers_send_is_escaped() {
    for format in ["json", "text"] {
        let stage = Stage::new(&["-v", "2", "-log-format", format]);
        for bytes in SPITEFUL {
            assert_closed(&stage.dial_and_send(bytes));
        }
        for bytes in SPITEFUL {
            let near =
                stage.dial_and_send(v2(CLIENT, VISITED).tlv(header::UNIQUE_ID, bytes).bytes());
            let (far, _) = stage.backend.accept();
            assert_carries(&near, &far);
            drop((near, far));
        }
        let session = stage.session("203.0.113.200:1");
        drop(session);
        stage.proxy.wait_for("end of the last", |line| {
            line.contains("203.0.113.200:1") && line.contains("connection closed")
        });
        for line in stage.proxy.stdout() {
            let raw = |c: char| c.is_control() || ['\u{2028}', '\u{202e}', '\u{fffd}'].contains(&c);
            assert!(!line.contains(raw), "{line:?}");
            assert!(!line.starts_with("Accepted"), "{line:?}");
            if format == "json" {
                let event = parse(&line);
                assert_ne!(event["level"], "ERROR", "{line:?}");
            }
        }
    }
}

#[test]
fn a_good_run_says_nothing_on_standard_error() {
    let mut stage = Stage::new(&["-v", "2"]);
    stage.assert_serves();
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert_eq!(stage.proxy.stderr(), Vec::<String>::new());
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"))
}
