//! The connection to the backend: whose address it has, what is set on its socket, and what
//! happens when the address is taken or nobody answers.

mod support;

use std::fs;

use support::header::{v1, v2};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{assert_carries, assert_closed, finish_sending, receive_all};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

#[test]
fn a_claim_that_is_live_keeps_its_address_and_gets_a_free_port() {
    let stage = Stage::new(&["-v", "1"]);
    let first = stage.session(CLIENT);
    let near = stage.dial_and_send(v1(CLIENT, VISITED));
    let (far, from) = stage.backend.accept();
    assert_eq!(from.ip(), addr(CLIENT).ip());
    assert_ne!(from.port(), addr(CLIENT).port());
    assert_carries(&near, &far);
    assert_carries(&first.near, &first.far);
    stage.proxy.wait_for("line about the taken port", |line| {
        line.contains(CLIENT) && line.contains("taken")
    });
}

#[test]
fn a_live_ipv6_claim_keeps_its_address_and_gets_a_free_port() {
    let stage = Stage::new(&[]);
    let _first = stage.session(CLIENT6);
    let near = stage.dial_and_send(v2(CLIENT6, VISITED6).bytes());
    let (far, from) = stage.backend6.accept();
    assert_eq!(from.ip(), addr(CLIENT6).ip());
    assert_ne!(from.port(), addr(CLIENT6).port());
    assert_carries(&near, &far);
}

#[test]
fn a_claim_in_time_wait_keeps_its_address_and_gets_a_free_port() {
    let stage = Stage::new(&[]);
    leave_in_time_wait(&stage);
    let near = stage.dial_and_send(v1(CLIENT, VISITED));
    let (far, from) = stage.backend.accept();
    assert_eq!(from.ip(), addr(CLIENT).ip());
    assert_ne!(from.port(), addr(CLIENT).port());
    assert_carries(&near, &far);
}

#[test]
fn a_port_that_a_listener_of_this_host_has_is_taken_too() {
    let stage = Stage::new(&["-4", "127.0.0.1:9001"]);
    let everywhere = Backend::listen(&stage.server, "0.0.0.0:9001");
    let near = stage.dial_and_send(v1("203.0.113.7:9001", VISITED));
    let (far, from) = everywhere.accept();
    assert_eq!(from.ip(), addr(CLIENT).ip());
    assert_carries(&near, &far);
}

#[test]
fn strict_refuses_a_claim_that_is_taken() {
    let stage = Stage::new(&["-source-port", "strict", "-v", "1"]);
    let first = stage.session(CLIENT);
    assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.proxy.wait_for("line about the taken port", |line| {
        line.contains(CLIENT) && line.contains("taken")
    });
    stage.backend.assert_idle();
    assert_carries(&first.near, &first.far);
}

#[test]
fn strict_refuses_a_claim_in_time_wait() {
    let stage = Stage::new(&["-source-port", "strict"]);
    leave_in_time_wait(&stage);
    assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.backend.assert_idle();
}

#[test]
fn any_never_uses_the_claimed_port() {
    let stage = Stage::new(&["-source-port", "any"]);
    // 1023 is none that the kernel chooses.
    for header in [
        v1("203.0.113.7:1023", VISITED),
        v2("203.0.113.7:1023", VISITED).bytes(),
    ] {
        let near = stage.dial_and_send(header);
        let (far, from) = stage.backend.accept();
        assert_eq!(from.ip(), addr(CLIENT).ip());
        assert_ne!(from.port(), 1023);
        assert_carries(&near, &far);
    }
}

/// Ends a session so that its claim stays on this host in TIME_WAIT: the client finishes first.
fn leave_in_time_wait(stage: &Stage) {
    // With timestamps the kernel lets a socket that is bound to such a port have it again.
    stage.server.sysctl("ipv4/tcp_timestamps", "0");
    let session = stage.session(CLIENT);
    finish_sending(&session.near);
    assert_eq!(receive_all(&session.far), b"");
    drop(session.far);
    assert_eq!(receive_all(&session.near), b"");
    let waiting = || {
        stage
            .server
            .run(&["ss", "-Htn", "state", "time-wait", "src", CLIENT])
    };
    wait_until("the claim is in TIME_WAIT", || waiting().contains(CLIENT));
}

#[test]
fn the_sockets_have_the_options_that_go_mmproxy_sets() {
    let directory = TempDir::new();
    let trace = directory.path("trace");
    let trace_text = trace.to_str().expect("temporary paths are UTF-8");
    // -D: strace stands aside, so that the program stays our child.
    let strace = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-yy",
        "-e",
        "trace=setsockopt,connect",
        "-o",
        trace_text,
    ];
    let stage = Stage::under(Program::Realpeer, &strace, &["-mark", "5"]);
    let _session = stage.session(CLIENT);
    let _session6 = stage.session(CLIENT6);

    let calls = || fs::read_to_string(&trace).unwrap_or_default();
    wait_until("both connections are traced", || {
        calls().matches("connect(").count() >= 2
    });
    let calls = calls();
    for (option, at_least) in [
        ("SOL_IP, IP_TRANSPARENT, [1]", 1),
        ("SOL_IPV6, IPV6_TRANSPARENT, [1]", 1),
        ("SOL_SOCKET, SO_MARK, [5]", 2),
        ("SOL_TCP, TCP_SYNCNT, [2]", 2),
    ] {
        let set = calls
            .lines()
            .filter(|line| line.contains(option) && line.ends_with("= 0"));
        assert!(set.count() >= at_least, "{option} is not set:\n{calls}");
    }
}

#[test]
fn both_sides_have_nodelay_and_keep_alive() {
    let stage = Stage::new(&[]);
    let session = stage.session(CLIENT);
    assert_carries(&session.near, &session.far);
    for (filter, whose) in [
        ("sport = :2222", "the load balancer's"),
        ("dport = :9000", "the backend's"),
    ] {
        let sockets = || {
            stage
                .server
                .run(&["ss", "-Htno", "state", "established", filter])
        };
        // "timer:(keepalive,14sec,0)" stands there once nothing waits to be acknowledged.
        wait_until(
            &format!("{whose} connection has a keep-alive timer"),
            || sockets().contains("timer:(keepalive,"),
        );
        let shown = sockets();
        let (_, timer) = shown.split_once("timer:(keepalive,").expect("just seen");
        let (left, _) = timer.split_once(',').expect("a time and a count");
        // From a minute on it would say minutes: more than the 15 seconds asked for.
        let seconds: f64 = match (left.strip_suffix("sec"), left.strip_suffix("ms")) {
            (Some(seconds), _) => seconds.trim_end_matches('.').parse().expect("seconds"),
            (None, Some(_)) => 0.0,
            (None, None) => panic!("{left} is more than 15 seconds"),
        };
        assert!(seconds <= 15.0, "{shown}");
    }
}

#[test]
fn small_writes_are_not_held_back() {
    let directory = TempDir::new();
    let trace = directory.path("trace");
    let trace_text = trace.to_str().expect("temporary paths are UTF-8");
    let strace = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-e",
        "trace=setsockopt,accept4,listen",
        "-o",
        trace_text,
    ];
    let stage = Stage::under(Program::Realpeer, &strace, &[]);
    let _session = stage.session(CLIENT);
    let calls = || fs::read_to_string(&trace).unwrap_or_default();
    let nodelay = || calls().matches("TCP_NODELAY, [1]").count();
    // Set on the listener it holds for every accepted connection; and on the backend's.
    wait_until("TCP_NODELAY is set on both sides", || nodelay() >= 2);
    assert!(nodelay() >= 2, "{}", calls());
}

#[test]
fn a_backend_that_does_not_answer_is_given_up_in_time() {
    let stage = Stage::new(&["-connect-timeout", "200ms", "-v", "1"]);
    drop_what_goes_to(&stage.server, 9000);
    assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));
    // The second SYN goes out after a second: by then we had given up.
    assert_eq!(dropped(&stage.server), 1);
    stage
        .proxy
        .wait_for("line about the silent backend", |line| {
            line.contains("127.0.0.1:9000") && line.contains("200ms")
        });
    stage.server.run(&["nft", "delete table inet watch"]);
    stage.assert_serves();
}

fn drop_what_goes_to(host: &Host, port: u16) {
    for rule in [
        "add table inet watch",
        "add chain inet watch in { type filter hook input priority 0; }",
        &format!("add rule inet watch in tcp dport {port} counter drop"),
    ] {
        host.run(&["nft", rule]);
    }
}

fn dropped(host: &Host) -> u32 {
    let rules = host.run(&["nft", "list table inet watch"]);
    let mut words = rules.split_whitespace();
    words
        .find(|word| *word == "packets")
        .expect("the rule counts");
    words
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number of packets")
}

#[test]
fn a_backend_that_refuses_ends_the_connection_with_a_line_that_says_so() {
    let stage = Stage::new(&["-4", "127.0.0.1:9999", "-v", "1"]);
    assert_closed(&stage.dial_and_send([v1(CLIENT, VISITED), b"hello".to_vec()].concat()));
    stage.proxy.wait_for("line about the refusal", |line| {
        line.contains("127.0.0.1:9999") && line.contains("refused")
    });
}
