//! Time-outs for the idle and the dead: `-idle-timeout`, `-keepalive`, and a backend that never reads.

mod support;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use support::stage::{ADDRESSES, CLIENT, wire};
use support::streams::{
    assert_carries, finish_sending, is_ready, read, receive, receive_all, receive_until_reset, send,
};
use support::{Backend, Ctl, Host, Program, Session, Stage, TempDir, vitals, wait_until};

const IDLE: &str = "idle for -idle-timeout";
const KIB: usize = 1 << 10;

#[test]
fn a_session_silent_both_ways_ends_in_order_and_is_counted() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-idle-timeout", "1s", "-v", "2", "-control", &ctl.path()]);
    let Session { near, far } = stage.session(CLIENT);
    let before_the_last_byte = Instant::now();
    assert_carries(&near, &far);
    assert_eq!(receive_all(&near), b"");
    assert!(before_the_last_byte.elapsed() >= Duration::from_secs(1));
    assert_eq!(receive_all(&far), b"");
    let line = stage.proxy.wait_for_line("connection closed");
    assert!(line.contains(&format!("\"end\":\"{IDLE}\"")), "{line}");
    assert_eq!(ctl.count("idle"), 1);
}

#[test]
fn without_the_flag_no_session_is_idle_too_long() {
    let stage = Stage::new(&["-v", "2"]);
    let timed = Stage::new(&["-idle-timeout", "500ms", "-v", "2"]);
    let Session { near, far } = stage.session(CLIENT);
    let _ended = timed.session(CLIENT);
    timed.proxy.wait_for_line(IDLE);
    assert_carries(&near, &far);
}

#[test]
fn traffic_one_way_keeps_a_session_and_a_half_closed_one() {
    let stage = Stage::new(&["-idle-timeout", "2s", "-v", "2"]);
    let up = stage.session("203.0.113.7:1");
    let down = stage.session("203.0.113.7:2");
    let half_closed = stage.session("203.0.113.7:3");
    finish_sending(&half_closed.near);
    let ways = [
        (&up.near, &up.far),
        (&down.far, &down.near),
        (&half_closed.far, &half_closed.near),
    ];
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        for (from, to) in ways {
            send(from, "x");
            assert_eq!(receive(to, 1), b"x");
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(stage.proxy.stdout().iter().all(|line| !line.contains(IDLE)));
    // Silent then, all of them end.
    for (_, to) in ways {
        assert_eq!(receive_all(to), b"");
    }
}

#[test]
fn a_half_closed_session_ends_when_its_other_half_is_silent() {
    let stage = Stage::new(&["-idle-timeout", "1s", "-v", "2"]);
    for (first, number) in [("near", 1), ("far", 2)] {
        let Session { near, far } = stage.session(&format!("203.0.113.7:{number}"));
        let (ends, stays) = match first {
            "near" => (near, far),
            _ => (far, near),
        };
        finish_sending(&ends);
        assert_eq!(receive_all(&stays), b"");
        assert_eq!(receive_all(&ends), b"");
    }
    wait_until("both were idle", || {
        let lines = stage.proxy.stdout();
        lines.iter().filter(|line| line.contains(IDLE)).count() == 2
    });
}

/// What the proxy has passed on waits in its kernel, and the backend takes it little by little.
#[test]
fn a_slow_reader_of_what_was_passed_on_long_before_is_not_idle() {
    const SIZE: usize = 600 * KIB;
    let stage = Stage::new(&["-idle-timeout", "2s", "-v", "2"]);
    stage.server.sysctl("ipv4/tcp_wmem", "4096 2097152 4194304");
    stage.server.sysctl("ipv4/tcp_rmem", "4096 65536 65536");
    let Session { near, far } = stage.session(CLIENT);
    send(&near, vec![b'x'; SIZE]);
    stage.wait_until_read(&near);
    let began = Instant::now();
    let (mut taken, mut buffer) = (0, vec![0; 8 * KIB]);
    loop {
        match read(&far, &mut buffer).expect("no reset") {
            0 => break,
            n => taken += n,
        }
        thread::sleep(Duration::from_millis(75));
    }
    assert_eq!(taken, SIZE);
    assert!(began.elapsed() > Duration::from_secs(4), "it is slow");
}

#[test]
fn a_backend_that_never_reads_is_given_up_with_a_reset() {
    let stage = small_buffers(Stage::new(&["-idle-timeout", "2s", "-v", "2"]));
    stage.assert_serves();
    wait_until("nothing is open", || {
        stage.server.established(2222) + stage.server.established(9000) == 0
    });
    let before = vitals::descriptors(&stage.proxy);
    let Session { mut near, far } = stage.session(CLIENT);
    let error = near
        .write_all(&vec![b'x'; 64 << 20])
        .expect_err("the backend takes less");
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "{error}"
    );
    receive_until_reset(&far);
    stage
        .proxy
        .wait_for_line(&format!("{IDLE}: one side did not take all bytes"));
    // Pipes are kept for others.
    wait_until("its descriptors are closed", || {
        vitals::descriptors(&stage.proxy) <= before + 2
    });
}

#[test]
fn backends_that_never_read_hold_bounded_memory() {
    const SESSIONS: usize = 80;
    let stage = small_buffers(Stage::new(&["-workers", "1"]));
    stage.assert_serves();
    let sessions: Vec<Session> = (1..=SESSIONS)
        .map(|number| stage.session(&format!("203.0.113.7:{number}")))
        .collect();
    let before = vitals::memory(&stage.proxy);
    fill(&sessions);
    let full = vitals::memory(&stage.proxy);
    // A buffer each at most, and what the allocator leaves between them.
    let grown = full.saturating_sub(before);
    assert!(grown < SESSIONS * 96 * KIB, "{grown} bytes");
    // Clients that go on trying change nothing.
    assert_eq!(fill(&sessions), 0);
    let later = vitals::memory(&stage.proxy);
    assert!(later <= full + 256 * KIB, "{full}, then {later}");
    stage.assert_serves();
}

/// Sends on all sessions until none has taken anything for a second. Returns how much they took.
fn fill(sessions: &[Session]) -> usize {
    let piece = vec![b'x'; 64 * KIB];
    let mut total = 0;
    loop {
        let mut taken = 0;
        for session in sessions {
            taken += send_what_fits(&session.near, &piece);
        }
        total += taken;
        assert!(
            total < sessions.len() * (8 << 20),
            "{total} bytes in flight"
        );
        let ready = |patience| is_ready(&sessions[0].near, PollFlags::POLLOUT, patience);
        if taken == 0 && !ready(Duration::from_secs(1)) {
            let more = sessions.iter().map(|s| send_what_fits(&s.near, &piece));
            match more.sum() {
                0 => return total,
                some => total += some,
            }
        }
    }
}

fn send_what_fits(mut stream: &TcpStream, piece: &[u8]) -> usize {
    stream.set_nonblocking(true).expect("make it non-blocking");
    match stream.write(piece) {
        Ok(count) => count,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => panic!("cannot send: {e}"),
    }
}

fn small_buffers(stage: Stage) -> Stage {
    for host in [&stage.balancer, &stage.server] {
        host.sysctl("ipv4/tcp_rmem", "4096 131072 262144");
        host.sysctl("ipv4/tcp_wmem", "4096 131072 262144");
    }
    stage
}

#[test]
fn keepalive_is_what_was_asked_for_on_both_sides() {
    let stage = Stage::new(&["-keepalive", "1000s"]);
    let session = stage.session(CLIENT);
    assert_carries(&session.near, &session.far);
    for filter in [NEAR, FAR] {
        assert_eq!(keepalive(&stage.server, filter), Some("16min".to_owned()));
    }
}

#[test]
fn keepalive_0_is_off() {
    let stage = Stage::new(&["-keepalive", "0"]);
    let session = stage.session(CLIENT);
    assert_carries(&session.near, &session.far);
    for filter in [NEAR, FAR] {
        assert_eq!(keepalive(&stage.server, filter), None);
    }
}

/// Probes are as far apart as the first of them from the last byte: 1 s and nine more.
#[test]
fn a_client_that_vanished_is_noticed_by_keepalive() {
    let stage = Stage::new(&["-keepalive", "1s", "-v", "2"]);
    let Session { near, far } = stage.session(CLIENT);
    assert_carries(&near, &far);
    keepalive(&stage.server, NEAR);
    let filter =
        "table inet gone { chain in { type filter hook input priority 0; policy drop; }; }";
    stage.balancer.run(&["nft", filter]);
    receive_until_reset(&far);
    stage
        .proxy
        .wait_for_line("client gone: no answer to keep-alive");
}

#[test]
fn a_reload_changes_both_for_new_connections() {
    let (balancer, server) = wire();
    let files = TempDir::new();
    let text = |more: &str| {
        format!(
            "verbosity = 2\n[[listener]]\nname = \"a\"\nlisten = \"{}\"\nipv4 = \"{}\"\n{more}\n",
            ADDRESSES[1], ADDRESSES[3]
        )
    };
    let file = files.file("realpeer.toml", &text("keepalive = \"1000s\""));
    let backend = Backend::listen(&server, ADDRESSES[3]);
    let backend6 = Backend::listen(&server, ADDRESSES[5]);
    let proxy = Program::Realpeer.start_on(2222, &server, &["-config", &file]);
    let stage = Stage {
        balancer,
        server,
        backend,
        backend6,
        proxy,
    };
    let old = stage.session("203.0.113.7:1");
    assert_carries(&old.near, &old.far);

    files.file(
        "realpeer.toml",
        &text("keepalive = \"2000s\"\nidle-timeout = \"3s\""),
    );
    stage.proxy.signal(Signal::SIGHUP);
    stage
        .proxy
        .wait_for_line("the configuration was read again");
    let new = stage.session("203.0.113.7:2");
    assert_carries(&new.near, &new.far);
    let port = new.near.local_addr().expect("our own address").port();
    for filter in [&format!("dport = :{port}"), "sport = :2"] {
        assert_eq!(keepalive(&stage.server, filter), Some("33min".to_owned()));
    }
    assert_eq!(
        keepalive(&stage.server, "sport = :1"),
        Some("16min".to_owned())
    );
    assert_eq!(receive_all(&new.near), b"");
    stage.proxy.wait_for_line(IDLE);
    assert_carries(&old.near, &old.far);
}

#[test]
fn both_are_for_tcp_only() {
    let files = TempDir::new();
    for line in ["idle-timeout = \"1m\"", "keepalive = 15"] {
        let check = |protocol: &str| {
            let text = format!("[[listener]]\nname = \"a\"\nprotocol = \"{protocol}\"\n{line}\n");
            let file = files.file("realpeer.toml", &text);
            Program::Realpeer.run(&Host::new("host"), &["config", "check", &file])
        };
        assert_eq!(check("tcp").code, 0);
        let ended = check("udp");
        assert_ne!(ended.code, 0);
        let key = line.split(' ').next().expect("a key");
        let said = format!("{key} has no meaning for a listener of udp");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    }
}

const NEAR: &str = "sport = :2222";
const FAR: &str = "sport = :40000";

/// The time that is left until a connection is probed, as `ss` shows it (minutes if it is that
/// long), once nothing waits to be acknowledged; `None` if it is not probed.
#[track_caller]
fn keepalive(host: &Host, filter: &str) -> Option<String> {
    let mut shown = String::new();
    wait_until("one connection has all acknowledged", || {
        shown = host.run(&["ss", "-Htno", "state", "established", filter]);
        shown.lines().count() == 1 && !shown.contains("timer:(on")
    });
    let (_, timer) = shown.split_once("timer:(keepalive,")?;
    let (left, _) = timer.split_once("min").unwrap_or((timer, ""));
    Some(format!("{left}min"))
}
