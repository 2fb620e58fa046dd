//! A new process takes over from a running one: what goes on, and what everybody sees meanwhile.

mod support;

use std::collections::HashSet;
use std::io::{ErrorKind, Read};

use nix::sys::signal::Signal;
use support::datagrams::{every, open, receive};
use support::header::v1;
use support::lineage::{end, runs};
use support::site::{converse, listener, udp};
use support::stage::{CLIENT, VISITED};
use support::streams::{assert_carries, assert_reset, send};
use support::{Backend, Lineage, TempDir, addr, http, wait_until};

const OTHER: &str = "203.0.113.8:40001";
const THIRD: &str = "203.0.113.9:40002";
const AT_A: &str = "192.0.2.10:2201";
const NINE: &str = "127.0.0.1:9000";

/// TCP and UDP at the same port.
fn both() -> String {
    listener("a", "0.0.0.0:2201", NINE, "listeners = 2")
        + &udp("u", "0.0.0.0:2201", NINE, "listeners = 2")
}

#[test]
fn sessions_stay_flows_go_along_and_the_old_process_leaves_with_its_last_session() {
    let mut lineage = Lineage::new(&both());
    let (backend, udp_backend) = (
        Backend::listen(&lineage.server, NINE),
        open(&lineage.server, NINE),
    );
    let session = lineage.session(AT_A, &backend, CLIENT);
    let near = open(&lineage.balancer, "0.0.0.0:0");
    near.connect(addr(AT_A)).expect("connect");
    converse(&near, &udp_backend, CLIENT);
    let rules = lineage.rules();

    let old = lineage.first.pid();
    let new = lineage.upgrade();
    assert_ne!(old, new);
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backend, CLIENT);
    converse(&near, &udp_backend, OTHER);
    let second = lineage.session(AT_A, &backend, THIRD);
    assert_eq!(lineage.rules(), rules);
    let status = lineage.status();
    assert_eq!(status["older"][0]["pid"], old, "{status}");
    assert_eq!(
        status["older"][0]["open"], 1,
        "the flow has moved: {status}"
    );
    let connections = lineage.connections();
    assert_eq!(connections.len(), 4, "{connections:?}");
    let of_old = connections.iter().filter(|c| c["pid"] == old);
    assert_eq!(of_old.count(), 1);

    drop(session);
    wait_until("the old process leaves", || lineage.first.has_ended());
    assert!(runs(new));
    wait_until("nobody is older", || lineage.status()["older"].is_null());
    assert_carries(&second.near, &second.far);
    assert_eq!(lineage.rules(), rules);
    converse(&near, &udp_backend, CLIENT);
    lineage.session(AT_A, &backend, OTHER);
}

#[track_caller]
fn assert_banned(lineage: &Lineage, client: &str) {
    let near = lineage.balancer.dial(AT_A);
    send(&near, v1(client, VISITED));
    assert_reset(&near);
}

#[test]
fn bans_drains_and_the_log_level_hold_after_it() {
    for kept in [true, false] {
        let state = TempDir::new();
        let directory = state.path("state").display().to_string();
        let flags: &[&str] = if kept {
            &["-state-dir", &directory]
        } else {
            &[]
        };
        let text = both() + &listener("b", "0.0.0.0:2202", NINE, "");
        let lineage = Lineage::under(&[], &text, flags);
        let backend = Backend::listen(&lineage.server, NINE);
        lineage.ctl.ok("ban 203.0.113.7 -reason spam");
        lineage.ctl.ok("ban 203.0.113.8 -listener b");
        lineage.ctl.ok("drain b");
        lineage.ctl.ok("log 2");
        let bans = lineage.ctl.ok("-json bans");
        for round in 1..=2 {
            lineage.upgrade();
            assert_eq!(lineage.ctl.ok("-json bans"), bans, "kept: {kept}");
            assert_banned(&lineage, CLIENT);
            let refused = lineage.balancer.try_dial(None, "192.0.2.10:2202");
            assert_eq!(
                refused.expect_err("it is drained").kind(),
                ErrorKind::ConnectionRefused
            );
            // Said only at level 2.
            let closed = |line: &str| line.contains("connection closed");
            let before = lineage.first.stdout().iter().filter(|l| closed(l)).count();
            drop(lineage.session(AT_A, &backend, &format!("203.0.113.8:{round}")));
            wait_until("the end is told", || {
                lineage.first.stdout().iter().filter(|l| closed(l)).count() > before
            });
        }
        lineage.ctl.ok("resume b");
        lineage.session("192.0.2.10:2202", &backend, THIRD);
        assert_banned(&lineage, CLIENT);
        lineage.ctl.ok("unban 203.0.113.7");
        lineage.session(AT_A, &backend, "203.0.113.7:3");
    }
}

/// Bans on disk are those that hold, also when the new process fails after it had the file.
#[test]
fn the_file_of_the_bans_outlives_a_hand_over_that_fails() {
    let state = TempDir::new();
    let directory = state.path("state").display().to_string();
    let lineage = Lineage::under(&[], &both(), &["-state-dir", &directory]);
    lineage.ctl.ok("ban 203.0.113.7");
    // Before it says that it is ready: it has the file by then.
    lineage.replace("exec strace -D -f -o /dev/null -e trace=sendmsg -e inject=sendmsg:error=EIO:signal=SIGKILL:when=2 $REAL \"$@\"");
    lineage.fail();
    let ended = lineage.ctl.run("ban 203.0.113.8");
    assert_eq!((ended.code, &ended.stderr[..]), (0, ""), "it is on disk");
    let file = std::fs::read_to_string(state.path("state/realpeer.bans")).expect("the file");
    assert!(file.contains("203.0.113.7") && file.contains("203.0.113.8"));
    lineage.restore();
    lineage.upgrade();
    assert_eq!(lineage.ctl.ok("bans").lines().count(), 3);
}

#[test]
fn kills_and_bans_reach_the_sessions_of_every_older_process() {
    let lineage = Lineage::new(&both());
    let backend = Backend::listen(&lineage.server, NINE);
    let first = lineage.session(AT_A, &backend, CLIENT);
    let waiting = lineage.balancer.dial(AT_A);
    wait_until("it is accepted", || lineage.connections().len() == 2);
    lineage.upgrade();
    let second = lineage.session(AT_A, &backend, OTHER);
    lineage.upgrade();
    let third = lineage.session(AT_A, &backend, THIRD);
    let ids = |of: &str| {
        let all = lineage.connections();
        let mut ids = all.iter().filter(|c| c["client"] == of);
        ids.next().map(|c| c["id"].as_u64().expect("an id"))
    };
    let all: HashSet<_> = [CLIENT, OTHER, THIRD].map(ids).into();
    assert_eq!(all.len(), 3, "ids are unique: {all:?}");
    let status = lineage.status();
    assert_eq!(
        status["older"].as_array().map(Vec::len),
        Some(2),
        "{status}"
    );
    assert!(lineage.ctl.ok("status").contains("older process"));
    assert!(lineage.ctl.ok("connections").contains("PROCESS"));

    let id = ids(OTHER).expect("it is listed");
    assert!(
        lineage
            .ctl
            .ok(&format!("kill {id}"))
            .contains("1 connection ended")
    );
    assert_reset(&second.near);
    let killed = lineage.ctl.ok("ban 203.0.113.7");
    assert!(killed.contains("1 connection ended"), "{killed}");
    assert_reset(&first.near);
    // Accepted by the first, and its header comes after the ban.
    send(&waiting, v1("203.0.113.7:9", VISITED));
    assert_reset(&waiting);
    assert_carries(&third.near, &third.far);
    lineage
        .ctl
        .refused("kill 203.0.113.8", "no such connection");
    wait_until("only the last is left", || lineage.processes().len() == 1);
}

#[test]
fn an_old_process_that_hangs_holds_up_nobody() {
    let lineage = Lineage::new(&both());
    let backend = Backend::listen(&lineage.server, NINE);
    let session = lineage.session(AT_A, &backend, CLIENT);
    lineage.upgrade();
    lineage.first.signal(Signal::SIGSTOP);
    let status = lineage.status();
    assert!(status["older"][0]["open"].is_null(), "{status}");
    for words in [
        "status",
        "connections",
        "ban 203.0.113.200",
        "unban 203.0.113.200",
    ] {
        let ended = lineage.ctl.run(words);
        assert_eq!(ended.code, 0, "{words}");
        assert!(
            ended.stderr.contains("no answer from older process"),
            "{words}: {}",
            ended.stderr
        );
    }
    lineage.upgrade();
    lineage.first.signal(Signal::SIGCONT);
    wait_until("it answers the third process", || {
        lineage.status()["older"][0]["open"] == 1
    });
    assert_carries(&session.near, &session.far);
    lineage.ctl.ok("kill 203.0.113.7");
    assert_reset(&session.near);
}

#[test]
fn who_stops_the_new_process_stops_the_old_ones() {
    let text = format!("drain-timeout = \"1h\"\n{}", both());
    let mut lineage = Lineage::new(&text);
    let backend = Backend::listen(&lineage.server, NINE);
    let session = lineage.session(AT_A, &backend, CLIENT);
    let new = lineage.upgrade();
    end(new, Signal::SIGTERM);
    lineage.first.wait_for_line("\"by\":\"the new process\"");
    assert_carries(&session.near, &session.far);
    assert!(
        runs(new),
        "it waits for the old one, whose sessions need the routing"
    );
    assert!(lineage.rules().contains("iif lo"));
    drop(session);
    wait_until("both are gone", || !runs(new) && lineage.first.has_ended());
    assert!(!lineage.rules().contains("8193"), "{}", lineage.rules());
}

#[test]
fn the_old_process_leaves_after_upgrade_drain() {
    let text = format!("upgrade-drain = \"300ms\"\n{}", both());
    let mut lineage = Lineage::new(&text);
    let backend = Backend::listen(&lineage.server, NINE);
    let session = lineage.session(AT_A, &backend, CLIENT);
    lineage.upgrade();
    assert_reset_or_end(&session.near);
    wait_until("it is gone", || lineage.first.has_ended());
    let shown = lineage.server.run(&[
        &support::Program::Realpeer.path(),
        "config",
        "show",
        "-control",
        &lineage.ctl.path(),
    ]);
    assert!(shown.contains("upgrade-drain = \"300ms\""), "{shown}");
}

#[track_caller]
fn assert_reset_or_end(near: &std::net::TcpStream) {
    let read = support::streams::read(near, &mut [0; 16]);
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

/// What the new file does not name any more ends with what is open there; what it names anew opens.
#[test]
fn the_new_process_has_the_new_file() {
    let text = |addresses: &str, target| listener("a", "0.0.0.0:2201", target, "") + addresses;
    let (gone, new) = (
        listener("b", "0.0.0.0:2202", NINE, "") + &udp("u", "0.0.0.0:2202", NINE, ""),
        listener("c", "0.0.0.0:2203", NINE, ""),
    );
    let lineage = Lineage::new(&text(&gone, NINE));
    let (backend, udp_backend) = (
        Backend::listen(&lineage.server, NINE),
        open(&lineage.server, NINE),
    );
    let other = Backend::listen(&lineage.server, "192.0.2.10:9001");
    let session = lineage.session("192.0.2.10:2202", &backend, CLIENT);
    let near = open(&lineage.balancer, "0.0.0.0:0");
    near.connect(addr("192.0.2.10:2202")).expect("connect");
    converse(&near, &udp_backend, CLIENT);
    lineage.write(&text(&new, "192.0.2.10:9001"));
    lineage.upgrade();
    lineage.session(AT_A, &other, OTHER);
    lineage.session("192.0.2.10:2203", &backend, OTHER);
    assert_carries(&session.near, &session.far);
    // The flow of a listener that is gone stays with the old process.
    converse(&near, &udp_backend, CLIENT);
    let refused = lineage.balancer.try_dial(None, "192.0.2.10:2202");
    assert_eq!(
        refused.expect_err("nobody listens").kind(),
        ErrorKind::ConnectionRefused
    );
    assert!(lineage.rules().contains("iif lo"), "old sessions need it");
}

/// In style `first` a flow's later datagrams name nobody; answers find their way, too.
#[test]
fn flows_of_every_style_go_on() {
    let lineage = Lineage::new(
        &(udp(
            "first",
            "0.0.0.0:2201",
            NINE,
            "udp-header = \"first\"\nmax-connections-per-client = 1",
        ) + &udp("spp", "0.0.0.0:2202", NINE, "udp-header = \"spp\"")),
    );
    let backend = open(&lineage.server, NINE);
    let socket = |at| {
        let near = open(&lineage.balancer, "0.0.0.0:0");
        near.connect(addr(at)).expect("connect");
        near
    };
    let (first, other, spp_near) = (socket(AT_A), socket(AT_A), socket("192.0.2.10:2202"));
    let spp_client = "203.0.113.9:5000";
    let spp = |payload| support::datagrams::spp(spp_client, "198.51.100.1:53", payload);
    first.send(&every(CLIENT, b"named")).expect("send");
    assert_eq!(receive(&backend), (b"named".to_vec(), addr(CLIENT)));
    spp_near.send(&spp(b"simple")).expect("send");
    assert_eq!(receive(&backend), (b"simple".to_vec(), addr(spp_client)));
    for _ in 0..2 {
        lineage.upgrade();
        // Before the client speaks again, the backend does.
        backend.send_to(b"answer", addr(CLIENT)).expect("send");
        assert_eq!(receive(&first).0, b"answer");
        first.send(b"bare").expect("send");
        assert_eq!(receive(&backend), (b"bare".to_vec(), addr(CLIENT)));
        backend.send_to(b"answer", addr(spp_client)).expect("send");
        assert_eq!(receive(&spp_near).0, spp(b"answer"));
        // What has moved counts among what the client may have.
        other
            .send(&every("203.0.113.7:1", b"one more"))
            .expect("send");
        wait_until("it is refused", || {
            lineage.status()["counts"]["tooManyOfClient"] == 1
        });
    }
    lineage.ctl.ok("kill 203.0.113.7");
    wait_until("the flow ends", || lineage.connections().len() == 1);
}

/// It holds nothing but its standard streams and its socket, and no signal ends it.
#[test]
fn the_starter_holds_nothing_and_goes_with_its_process() {
    let mut lineage = Lineage::new(&both());
    let starter = lineage.starters();
    let [starter] = starter[..] else {
        panic!("one starter: {starter:?}");
    };
    let open = std::fs::read_dir(format!("/proc/{starter}/fd")).expect("its files");
    assert_eq!(open.count(), 4);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGUSR2,
    ] {
        end(starter, signal);
    }
    let new = lineage.upgrade();
    assert!(!runs(starter), "the old process needs none");
    assert_eq!(lineage.starters().len(), 1);
    wait_until("the first is gone", || lineage.first.has_ended());
    end(new, Signal::SIGKILL);
    wait_until("all is gone", || lineage.starters().is_empty());
}

#[test]
fn an_old_process_that_has_ended_is_missed_by_nobody() {
    let lineage = Lineage::new(&both());
    for _ in 0..3 {
        lineage.upgrade();
        let ended = lineage.ctl.run("status");
        assert_eq!(ended.stderr, "");
        assert!(
            !ended.stdout.contains("does not answer"),
            "{}",
            ended.stdout
        );
    }
}

#[test]
fn a_watch_goes_on_with_the_new_process() {
    let lineage = Lineage::new(&both());
    let backend = Backend::listen(&lineage.server, NINE);
    let watcher = lineage.ctl.spawn("watch");
    watcher.wait_for_line("watching");
    lineage.upgrade();
    wait_until("it watches again", || {
        let lines = watcher.stdout();
        lines
            .iter()
            .filter(|line| line.contains("watching"))
            .count()
            == 2
    });
    let _session = lineage.session(AT_A, &backend, OTHER);
    watcher.wait_for_line(OTHER);
}

#[test]
fn who_asks_for_metrics_during_an_upgrade_is_answered() {
    let file = "metrics = \"127.0.0.1:9150\"\n".to_owned() + &both();
    let lineage = Lineage::new(&file);
    let mut asking = lineage.server.dial("127.0.0.1:9150");
    send(&asking, b"GET /healthz HTTP/1.1\r\n");
    // Who is asked later has taken both.
    let ready = http::get(&lineage.server, "127.0.0.1:9150", "/readyz");
    assert_eq!(ready.status, 200, "{ready:?}");
    lineage.upgrade();
    send(&asking, b"Host: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let after = http::get(&lineage.server, "127.0.0.1:9150", "/healthz");
    assert_eq!(after.status, 200);
}
