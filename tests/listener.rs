//! The listening socket: how many, how deep, and what happens when too much comes in.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::header::v1;
use support::stage::{ADDRESSES, CLIENT, PROXY, VISITED};
use support::streams::{
    assert_carries, assert_closed, assert_turned_away, has_ended, receive, send,
};
use support::{Host, Program, Session, Stage, addr, vitals, wait_until};

#[test]
fn each_listener_is_a_socket_of_its_own() {
    let stage = Stage::new(&["-listeners", "4"]);
    wait_until("four sockets listen", || stage.server.listeners(2222) == 4);
    // SO_REUSEPORT: one more program of the same user may join only if all of them set it.
    let ended = Program::Realpeer.run(&stage.server, &["-l", PROXY]);
    assert_eq!(ended.code, 1, "one without SO_REUSEPORT may not");
    for port in 40_000..40_040 {
        let session = stage.session(&format!("203.0.113.7:{port}"));
        assert_carries(&session.near, &session.far);
    }
}

#[test]
fn thousands_may_wait_to_be_accepted() {
    let server = Host::new("server");
    server.sysctl("core/somaxconn", "10000");
    let _proxy = Program::Realpeer.start(&server, &["-l", "127.0.0.1:2222", "-listeners", "1"]);
    assert_eq!(backlog(&server), 4096);
}

#[test]
fn fewer_wait_where_the_system_allows_fewer() {
    let server = Host::new("server");
    server.sysctl("core/somaxconn", "100");
    let _proxy = Program::Realpeer.start(&server, &["-l", "127.0.0.1:2222", "-listeners", "2"]);
    assert_eq!(backlog(&server), 100);
}

/// What ss shows as the send queue of a listener is its backlog.
fn backlog(host: &Host) -> u32 {
    let listing = host.run(&["ss", "-Htln", "sport = :2222"]);
    let word = listing
        .split_whitespace()
        .nth(2)
        .expect("a listener is listed");
    word.parse().expect("a backlog is a number")
}

#[test]
fn a_foreign_address_can_be_listened_on() {
    let foreign = "198.51.100.50:2222";
    let ended = Program::Realpeer.run(&Host::new("server"), &["-l", foreign]);
    assert_eq!(ended.code, 1, "without the flag it is not this host's");

    let stage = Stage::new(&["-listen-transparent", "-l", foreign]);
    // What a router in front of it does: send that address here, and take it in.
    stage
        .balancer
        .run(&["ip", "route", "add", "198.51.100.50", "via", "192.0.2.10"]);
    stage.server.run(&[
        "ip",
        "route",
        "add",
        "local",
        "198.51.100.50",
        "dev",
        "lo",
        "table",
        "99",
    ]);
    stage
        .server
        .run(&["ip", "rule", "add", "to", "198.51.100.50", "lookup", "99"]);
    let near = stage.balancer.dial(foreign);
    let far = stage.introduce(&near, CLIENT);
    assert_carries(&near, &far);
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let stage = Stage::under(Program::Realpeer, &["prlimit", "--nofile=64:3000"], &[]);
    assert_eq!(vitals::file_limits(&stage.proxy), (3000, 3000));
    stage.assert_serves();
}

#[test]
fn nothing_that_stays_is_opened_after_the_listener() {
    let stage = Stage::new(&[]);
    let before = vitals::open_files(&stage.proxy);
    stage.assert_serves();
    wait_until("the session is over", || {
        vitals::descriptors(&stage.proxy) == before.len()
    });
    assert_eq!(vitals::open_files(&stage.proxy), before);
}

#[test]
fn running_out_of_descriptors_neither_kills_nor_spins() {
    let stage = Stage::new(&["-v", "1"]);
    let session = stage.session(CLIENT);
    vitals::forbid_descriptors(&stage.server, &stage.proxy);
    let waiting: Vec<TcpStream> = (0..5).map(|_| stage.dial()).collect();
    stage.proxy.wait_for_line("Too many open files");

    // A window in which spinning would show: it would take all of it, or half on a loaded machine.
    let window = Instant::now();
    let before = vitals::processor_time(&stage.proxy);
    wait_until("the window is over", || {
        window.elapsed() > Duration::from_secs(2)
    });
    let used = vitals::processor_time(&stage.proxy) - before;
    assert!(
        used < window.elapsed() / 10,
        "{used:?} of processor time while nothing can be done"
    );

    assert_carries(&session.near, &session.far);
    let lines = stage.proxy.stdout();
    let complaints = lines
        .iter()
        .filter(|line| line.contains("Too many open files"))
        .count();
    assert!(
        complaints as u64 <= window.elapsed().as_secs() + 2,
        "{complaints} lines about it"
    );

    vitals::set_soft_limit(&stage.server, &stage.proxy, 1000);
    for (number, near) in waiting.iter().enumerate() {
        let far = stage.introduce(near, &format!("203.0.113.8:{}", 40_000 + number));
        assert_carries(near, &far);
    }
}

#[test]
fn running_out_of_descriptors_between_the_two_of_a_connection_is_survived() {
    let stage = Stage::new(&[]);
    // Room for the client's side of a connection, not for the backend's.
    let room = vitals::first_free(&stage.proxy) + 1;
    vitals::set_soft_limit(&stage.server, &stage.proxy, room);
    for _ in 0..3 {
        assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));
    }
    vitals::set_soft_limit(&stage.server, &stage.proxy, 1000);
    stage.assert_serves();
}

#[test]
fn more_than_max_connections_are_turned_away() {
    let stage = Stage::new(&["-max-connections", "3"]);
    let began = Instant::now();
    let mut sessions: Vec<Session> = (0..3)
        .map(|number| stage.session(&format!("203.0.113.7:{}", 40_000 + number)))
        .collect();
    for _ in 0..50 {
        assert_turned_away(stage.balancer.try_dial(None, PROXY));
    }
    stage.backend.assert_idle();
    for session in &sessions {
        assert_carries(&session.near, &session.far);
    }
    // Logged, and at most once a second.
    stage.proxy.wait_for_line("max-connections");
    let lines = stage.proxy.stdout();
    let lines = lines.iter().filter(|line| line.contains("max-connections"));
    assert!(
        lines.count() as u64 <= began.elapsed().as_secs() + 1,
        "{:?}",
        stage.proxy.stdout()
    );

    // Where one ends another finds a place.
    sessions.pop();
    wait_until("there is a place again", || {
        try_session(&stage, "203.0.113.8:40000").is_some()
    });
}

#[test]
fn without_a_number_the_open_file_limit_says_how_many() {
    const PEERS: usize = 150;
    let stage = Stage::under(
        Program::Realpeer,
        &["prlimit", "--nofile=200:200"],
        &["-v", "1"],
    );
    let client = |number| format!("203.0.113.7:{}", 40_000 + number);
    let sessions: Vec<Session> = (0..PEERS)
        .filter_map(|number| try_session(&stage, &client(number)))
        .collect();
    assert!(
        sessions.len() < PEERS,
        "200 descriptors do not carry {PEERS} connections"
    );
    assert!(
        sessions.len() > 30,
        "only {} connections were carried",
        sessions.len()
    );
    // All that were let in have what they need, bulk too.
    let bulk = vec![7; 256 << 10];
    std::thread::scope(|scope| {
        for Session { near, far } in &sessions {
            scope.spawn(|| {
                std::thread::scope(|scope| {
                    scope.spawn(|| send(near, &bulk));
                    assert!(receive(far, bulk.len()) == bulk);
                });
            });
        }
    });
    let lines = stage.proxy.stdout();
    assert!(
        !lines
            .iter()
            .any(|line| line.contains("Too many open files")),
        "{lines:?}"
    );
}

/// A session of this client, or none if the proxy turns the connection away.
fn try_session(stage: &Stage, client: &str) -> Option<Session> {
    let near = stage.balancer.try_dial(None, PROXY).ok()?;
    // What is sent to one that is turned away may fail, too.
    (&near).write_all(&v1(client, VISITED)).ok()?;
    let (far, from) = stage.backend.accept_unless(|| has_ended(&near))?;
    assert_eq!(from, addr(client));
    Some(Session { near, far })
}

#[test]
fn a_taken_port_is_a_failure_that_is_told() {
    let stage = Stage::new(&[]);
    let ended = Program::Realpeer.run(&stage.server, &["-l", PROXY]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(PROXY), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("Address already in use"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_restart_does_not_wait_for_old_connections() {
    let mut stage = Stage::new(&["-drain-timeout", "0"]);
    let session = stage.session(CLIENT);
    stage.proxy.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    drop(session);
    stage.proxy = Program::Realpeer.start(&stage.server, &ADDRESSES);
    stage.assert_serves();
}

#[test]
fn the_fork_names_of_log_keys_stand_in_the_listening_line() {
    let stage = Stage::new(&["-listeners", "2"]);
    for number in 0..2 {
        let line = stage
            .proxy
            .wait_for_line(&format!("\"listenerNum\":{number}"));
        assert!(line.contains("\"msg\":\"listening\""), "{line}");
        assert!(line.contains("\"protocol\":\"tcp\""), "{line}");
        assert!(line.contains("\"listenAdr\":\"0.0.0.0:2222\""), "{line}");
    }
}
