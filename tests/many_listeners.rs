//! Several listeners of one process: each by its name, under load while the file changes.

mod support;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::datagrams::{every, open};
use support::header::v1;
use support::site::{AT_A, AT_B, NINE, NINE_TOO, OTHER, converse, listener, udp};
use support::stage::{CLIENT, VISITED};
use support::streams::{assert_carries, assert_reset, receive, send};
use support::{Backend, Ctl, Program, Site, Stage, wait_until};

const THIRD: &str = "203.0.113.9:40002";

/// Two of TCP and one of UDP.
fn three() -> String {
    listener("a", "0.0.0.0:2201", NINE, "listeners = 2")
        + &listener("b", "0.0.0.0:2202", NINE, "")
        + &udp("u", "0.0.0.0:2201", NINE, "listeners = 2")
}

#[track_caller]
fn assert_banned(site: &Site, at: &str, client: &str) {
    let near = site.balancer.dial(at);
    send(&near, v1(client, VISITED));
    assert_reset(&near);
}

#[test]
fn a_drained_listener_takes_nothing_new_until_it_is_resumed() {
    let site = Site::new(&three());
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    for round in ["", "again"] {
        site.ctl.ok("drain a");
        site.ctl.ok("drain u");
        // Twice is as once.
        site.ctl.ok("drain a");
        for _ in 0..20 {
            site.assert_refused(AT_A);
        }
        near.send(&every(OTHER, b"in vain")).expect("send");
        assert_carries(&session.near, &session.far);
        converse(&near, &udp_backend, CLIENT);
        let drained = site.listener("u")["counts"]["drained"].clone();
        assert_eq!(drained, if round.is_empty() { 1 } else { 3 }, "{round}");
        let table = site.ctl.ok("status");
        assert_eq!(table.matches("drained").count(), 3, "{table}");
        site.session(AT_B, &backend, OTHER);

        // A reload resumes nothing, also where it brings an address.
        let more = three().replace("\"0.0.0.0:2201\"", "[\"0.0.0.0:2201\", \"0.0.0.0:2203\"]");
        site.reload(&more);
        site.assert_refused(AT_A);
        site.assert_refused("192.0.2.10:2203");
        near.send(&every(OTHER, b"in vain")).expect("send");
        converse(&near, &udp_backend, CLIENT);
        assert_eq!(site.listener("a")["accepting"], false);

        site.ctl.ok("resume a");
        site.ctl.ok("resume u");
        site.ctl.ok("resume u");
        for n in 1..20 {
            site.session(AT_A, &backend, &format!("203.0.113.20:{n}"));
        }
        site.session("192.0.2.10:2203", &backend, THIRD);
        assert_eq!(site.listener("a")["accepting"], true);
        site.reload(&three());
    }
    converse(&near, &udp_backend, OTHER);
    assert_carries(&session.near, &session.far);
    site.ctl.refused("drain nobody", "there are: a, b, u");
    site.ctl.refused("resume nobody", "\"nobody\"");
    site.ctl
        .refused("drain", "name one of the listeners: a, b, u");
    let line = site.proxy.wait_for_line("drained: nothing new is accepted");
    assert!(line.contains(r#""listener":"a""#), "{line}");
}

/// By flags there is one, which may have no name.
#[test]
fn the_only_listener_needs_no_name() {
    for (flags, name) in [(&[][..], None), (&["-name", "ssh"], Some("ssh"))] {
        let ctl = Ctl::new();
        let stage = Stage::new(&[&["-control", &ctl.path()], flags].concat());
        let session = stage.session(CLIENT);
        ctl.ok("drain");
        let refused = stage
            .balancer
            .try_dial(None, AT)
            .expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(ctl.ok("status").contains("0.0.0.0:2222 tcp, drained"));
        assert_carries(&session.near, &session.far);
        ctl.ok("resume");
        stage.session(OTHER);
        let by_name = ctl.run("drain ssh").code;
        assert_eq!(by_name, if name.is_some() { 0 } else { 1 });
        let lines = stage.proxy.stdout().join("\n");
        assert!(!lines.contains(r#""listener":"#), "{lines}");
    }
}

const AT: &str = support::stage::PROXY;

#[test]
fn a_ban_of_one_listener_holds_there_and_outlives_a_restart() {
    let mut site = Site::new(&three());
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let (at_a, at_b) = (
        site.session(AT_A, &backend, CLIENT),
        site.session(AT_B, &backend, "203.0.113.7:1"),
    );
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    let said = site.ctl.ok("ban 203.0.113.7 -listener a");
    assert!(said.contains("1 connection ended"), "{said}");
    assert_reset(&at_a.near);
    assert_carries(&at_b.near, &at_b.far);
    converse(&near, &udp_backend, CLIENT);
    assert_banned(&site, AT_A, CLIENT);
    site.session(AT_B, &backend, "203.0.113.7:2");
    site.ctl
        .refused("ban 203.0.113.7 -listener nobody", "nobody");

    site.restart(&three());
    assert_banned(&site, AT_A, CLIENT);
    site.session(AT_B, &backend, "203.0.113.7:3");
    site.ctl.ok("ban 203.0.113.8 -listener u");
    site.session(AT_A, &backend, OTHER);
    near.send(&every(OTHER, b"in vain")).expect("send");
    wait_until("it is dropped", || {
        site.listener("u")["counts"]["banned"] == 1
    });
    let bans = site.ctl.ok("bans");
    assert!(bans.contains("203.0.113.7/32"), "{bans}");
    site.ctl.ok("unban 203.0.113.7 -listener a");
    site.session(AT_A, &backend, CLIENT);
}

#[test]
fn status_and_connections_go_by_listener() {
    let site = Site::new(&three());
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let sessions = [(AT_A, CLIENT), (AT_A, OTHER), (AT_B, THIRD)];
    let mut sessions = sessions.map(|(at, client)| Some(site.session(at, &backend, client)));
    // Bytes of TCP are counted when a session ends.
    drop(sessions[2].take());
    wait_until("it has ended", || site.listener("b")["open"] == 0);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    let scanner = site.balancer.dial(AT_B);
    send(&scanner, "GET / HTTP/1.0\r\n\r\n");
    wait_until("it is refused", || {
        site.listener("b")["counts"]["headerAbsent"] == 1
    });

    let table = site.ctl.ok("status");
    let row = |name: &str| {
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {table}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        row("LISTENER")[..4],
        ["LISTENER", "ADDRESS", "PROTOCOL", "STATE"]
    );
    assert_eq!(
        row("a")[..6],
        ["a", "0.0.0.0:2201", "tcp", "open", "2", "2"]
    );
    assert_eq!(
        row("b"),
        [
            "b",
            "0.0.0.0:2202",
            "tcp",
            "open",
            "0",
            "2",
            "5",
            "8",
            "headerAbsent=1"
        ]
    );
    assert_eq!(
        row("u"),
        ["u", "0.0.0.0:2201", "udp", "open", "1", "1", "5", "8", "-"]
    );
    assert!(table.contains("open now             3"), "{table}");
    let status = site.status();
    assert_eq!(status["counts"]["accepted"], 5);
    assert_eq!(
        status["listeners"][1]["refused"]["headerAbsent"]["peer"],
        "192.0.2.5"
    );

    let of = |words: &str| site.ctl.ok(words);
    let of_a = of("connections -listener a");
    assert_eq!(of_a.lines().count(), 3, "{of_a}");
    assert!(!of_a.contains(THIRD));
    assert!(of("connections -listener u").contains(CLIENT));
    assert_eq!(of("connections").lines().count(), 4);
    let json = of("-json connections -listener u");
    let line: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["connection"]["listener"], "u");
    assert!(of("connections -listener b").lines().count() == 1);
    site.ctl
        .refused("connections -listener nobody", "there are: a, b, u");
}

#[test]
fn log_lines_of_a_listener_say_its_name() {
    // One is called as the process is.
    let site = Site::new(&("verbosity = 2\nname = \"a\"\n".to_owned() + &three()));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_B, &backend, CLIENT);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    near.send(b"no header").expect("send");
    send(&site.balancer.dial(AT_A), "GET / HTTP/1.0\r\n\r\n");
    // The client's port is taken by the session of b.
    let _second = site.balancer.dial(AT_A);
    send(&_second, v1(CLIENT, VISITED));
    let (_far, from) = backend.accept();
    assert_ne!(from.port(), 40000);
    drop(session);
    site.ctl.ok("kill 203.0.113.7");
    for (text, name) in [
        (r#""msg":"listening""#, "a"),
        ("no -allowed-subnets", "a"),
        ("dropping connection", "a"),
        ("dropping datagram", "u"),
        ("the client's port is taken", "a"),
        ("flow closed", "u"),
        ("connection closed", "b"),
    ] {
        let wanted = format!(r#""listener":"{name}""#);
        site.proxy.wait_for(&format!("{text} of {name}"), |line| {
            line.contains(text) && line.contains(&wanted)
        });
    }
    for line in site.proxy.stdout() {
        for text in ["dropping", "closed", "port is taken", r#""listening""#] {
            assert!(
                !line.contains(text) || line.contains(r#""listener":"#),
                "{line}"
            );
        }
    }
}

#[test]
fn the_verbosity_changes_until_the_file_says_otherwise() {
    let mut site = Site::new(&("verbosity = 1\n".to_owned() + &three()));
    let backend = Backend::listen(&site.server, NINE);
    let closed = |site: &Site| {
        let lines = site.proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("connection closed"))
            .count()
    };
    let session = |site: &Site, client| {
        drop(site.session(AT_B, &backend, client));
        wait_until("it has ended", || site.status()["open"] == 0);
    };
    session(&site, CLIENT);
    site.ctl.ok("log 2");
    session(&site, OTHER);
    site.proxy.wait_for("end of the second", |line| {
        line.contains("connection closed") && line.contains(OTHER)
    });
    assert_eq!(closed(&site), 1);
    // A reload that says what it said before leaves it.
    site.ctl.ok("reload");
    session(&site, THIRD);
    wait_until("its end is told", || closed(&site) == 2);
    site.ctl.ok("log 0");
    session(&site, CLIENT);
    site.ctl.ok("log 1");
    assert_eq!(closed(&site), 2);
    assert_eq!(site.ctl.run("log 3").code, 2);
    site.ctl.ok("log 2");
    site.restart(&("verbosity = 1\n".to_owned() + &three()));
    session(&site, CLIENT);
    assert_eq!(closed(&site), 0);
}

#[test]
fn the_doctor_looks_at_every_listener() {
    let file = three().replacen(NINE, "127.0.0.1:9001", 1)
        + &listener("c", "192.0.2.10:2203", NINE, "")
        + &listener("d", "127.0.0.1:2203", NINE, "");
    let site = Site::new(&file);
    let _backends = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    for _ in 0..3 {
        send(
            &site.balancer.dial("192.0.2.10:2203"),
            "GET / HTTP/1.0\r\n\r\n",
        );
        send(
            &site.server.dial("127.0.0.1:2203"),
            v1("203.0.113.7:1", VISITED),
        );
    }
    wait_until("they are refused", || {
        site.listener("c")["counts"]["headerAbsent"] == 3
    });
    let doctor = |more: &[&str]| {
        let (file, path) = (site.file(), site.ctl.path());
        let words = [&["doctor", "-config", &file, "-control", &path][..], more].concat();
        Program::Realpeer.run(&site.server, &words)
    };
    let ended = doctor(&[]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let down: Vec<_> = ended
        .stdout
        .lines()
        .filter(|line| line.contains("backend-down"))
        .collect();
    assert!(
        down.iter()
            .any(|line| line.starts_with("failed") && line.contains("a: ")),
        "{}",
        ended.stdout
    );
    let of = |id: &str, name: &str| {
        let named = format!(" {name}: ");
        ended
            .stdout
            .lines()
            .any(|line| line.contains(id) && line.contains(&named))
    };
    for name in ["a", "b", "u", "c", "d"] {
        assert!(of("port-in-use", name), "{name}: {}", ended.stdout);
    }
    assert!(of("refused", "c"), "{}", ended.stdout);
    // What is true of all is told once, of none.
    let capability = ended.stdout.matches("no-capability").count();
    assert_eq!(capability, 1, "{}", ended.stdout);
    assert!(!of("no-capability", "a"), "{}", ended.stdout);
    let json: Value = serde_json::from_str(&doctor(&["-json"]).stdout).expect("JSON");
    let checks = json["checks"].as_array().expect("a list");
    let refused = |name: &str| {
        let mut of = checks
            .iter()
            .filter(|c| c["id"] == "refused" && c["listener"] == name);
        of.next()
            .unwrap_or_else(|| panic!("no refused of {name} in {json}"))
            .clone()
    };
    // The two on one port are told apart.
    assert_eq!(refused("c")["status"], "failed", "{json}");
    assert_eq!(refused("d")["status"], "ok", "{json}");
}

/// Each connection sends its number and must get it back; nothing may fail while the file is read
/// fifty times, in which others come and go and change.
#[test]
fn twelve_listeners_under_load_are_not_disturbed_by_fifty_reloads() {
    const STAY: usize = 12;
    let port = |number: usize| 2300 + number as u16;
    // What changes: the target and the list of each that stays, and who else there is.
    let file = |round: usize| {
        let mut text = String::new();
        for number in 0..STAY {
            let target = [NINE, NINE_TOO][(round + number) % 2];
            let denied = format!("denied-clients = [\"198.51.100.{}\"]", round % 200);
            let listen = format!("0.0.0.0:{}", port(number));
            text += &match number < 8 {
                true => listener(&format!("l{number}"), &listen, target, &denied),
                false => udp(&format!("l{number}"), &listen, target, &denied),
            };
        }
        for number in 0..round % 4 {
            let listen = format!("0.0.0.0:{}", 2400 + (round + number) % 7);
            text += &listener(&format!("passing{number}"), &listen, NINE, "");
        }
        text
    };
    let site = Site::new(&file(0));
    let _echoes = [NINE, NINE_TOO].map(|at| echo(&site, at));
    let udp_echoes = [NINE, NINE_TOO].map(|at| open(&site.server, at));
    for port in [9000, 9001] {
        site.server.wait_for_port(port);
    }
    let sockets = || -> Vec<_> { (0..STAY).map(|number| site.sockets(port(number))).collect() };
    let before = sockets();
    assert!(before.iter().all(|inodes| !inodes.is_empty()), "{before:?}");
    let (done, carried) = (AtomicBool::new(false), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|echoes| {
        for socket in &udp_echoes {
            echoes.spawn(|| echo_datagrams(socket, &over));
        }
        // They outlast the load.
        let _over = Done(&over);
        thread::scope(|scope| {
            for number in 0..8 {
                let (site, done, carried) = (&site, &done, &carried);
                scope.spawn(move || {
                    let at = format!("192.0.2.10:{}", port(number));
                    for n in (1..).take_while(|_| !done.load(Ordering::Relaxed)) {
                        let near = site.balancer.dial(&at);
                        let client = format!("203.0.113.{}:{}", number + 1, 1 + n % 60_000);
                        let line = format!("{number} {n}\n");
                        send(&near, [v1(&client, VISITED), line.clone().into()].concat());
                        assert_eq!(receive(&near, line.len()), line.as_bytes(), "{at}");
                        carried.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for number in 8..STAY {
                let (site, done) = (&site, &done);
                scope.spawn(move || {
                    let near = site.socket(&format!("192.0.2.10:{}", port(number)));
                    let client = format!("203.0.113.{}:40000", number + 1);
                    // One flow from the first to the last.
                    for n in (1..).take_while(|_| !done.load(Ordering::Relaxed)) {
                        let payload = format!("{number} {n}");
                        near.send(&every(&client, payload.as_bytes()))
                            .expect("send");
                        let (got, _) = support::datagrams::receive(&near);
                        assert_eq!(got, payload.as_bytes());
                    }
                });
            }
            let reloads = thread::Builder::new().spawn_scoped(scope, || {
                // However it ends, the others are to end.
                let _done = Done(&done);
                for round in 1..=50 {
                    let so_far = carried.load(Ordering::Relaxed);
                    site.reload(&file(round));
                    wait_until("the load goes on", || {
                        carried.load(Ordering::Relaxed) > so_far + 8
                    });
                }
            });
            reloads.expect("a thread").join().expect("fifty reloads");
        });
    });
    let after = sockets();
    assert_eq!(after, before);
    for number in 0..STAY {
        let of = site.listener(&format!("l{number}"));
        let counts = &of["counts"];
        assert_eq!(counts["accepted"], counts["served"], "{of}");
        if number >= 8 {
            assert_eq!(counts["accepted"], 1, "{of}");
        }
    }
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A server of TCP that sends back what it gets.
fn echo(site: &Site, at: &str) -> support::Running {
    let (ip, port) = at.split_once(':').expect("a port");
    let listen = format!("TCP4-LISTEN:{port},bind={ip},fork,reuseaddr,backlog=128");
    site.server.spawn(&["socat", &listen, "PIPE"])
}

/// As `echo`, of UDP, until it is done.
fn echo_datagrams(socket: &UdpSocket, done: &AtomicBool) {
    let patience = Some(Duration::from_millis(100));
    socket.set_read_timeout(patience).expect("set a timeout");
    let mut buffer = [0; 64];
    while !done.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).expect("answer");
        }
    }
}
