//! `-max-connections-per-client` and `-connection-rate-per-client`: what one client may have, by its
//! claimed address.

mod support;

use std::fs;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};

use nix::sys::signal::Signal;
use support::datagrams::{Scene, assert_silent, every, open, receive, spp};
use support::header::{LOCAL, UNSPEC, V2, v1, v2};
use support::stage::{OTHER_BALANCER, PROXY, VISITED, VISITED6};
use support::streams::{
    assert_carries, assert_reset, assert_reset_at_once, finish_sending, receive_all, reset, send,
};
use support::vitals::memory;
use support::{Ctl, Host, Program, Session, Stage, TempDir, addr, wait_until};

/// A scene with a control socket, which counts.
struct Limited {
    stage: Stage,
    ctl: Ctl,
}

impl Limited {
    #[track_caller]
    fn new(flags: &[&str]) -> Limited {
        let ctl = Ctl::new();
        let control = ctl.path();
        let fixed = ["-l", "[::]:2222", "-v", "2", "-control", &control];
        let stage = Stage::new(&[&fixed, flags].concat());
        Limited { stage, ctl }
    }

    /// A connection of this client that is let in.
    #[track_caller]
    fn enter(&self, client: &str) -> Session {
        let session = self.stage.session(client);
        assert_carries(&session.near, &session.far);
        session
    }

    /// One that is not: it is reset, counted and named in the log, and the backend hears nothing.
    #[track_caller]
    fn assert_refused(&self, client: &str) {
        self.assert_refused_header(&v1(client, visited(client)), client);
    }

    #[track_caller]
    fn assert_refused_header(&self, header: &[u8], client: &str) {
        let before = self.refused();
        let lines = self.named(client);
        assert_reset(&self.stage.dial_and_send(header));
        assert_eq!(self.refused(), before + 1, "tooManyOfClient");
        wait_until("the log names the client", || self.named(client) > lines);
        self.stage.backend.assert_idle();
        self.stage.backend6.assert_idle();
    }

    fn refused(&self) -> u64 {
        self.ctl.count("tooManyOfClient")
    }

    /// Lines about a client that was refused for its number.
    fn named(&self, client: &str) -> usize {
        let lines = self.stage.proxy.stdout();
        let is = |line: &&String| {
            line.contains("dropping connection")
                && line.contains("-per-client")
                && line.contains(&format!("the client {client}"))
        };
        lines.iter().filter(is).count()
    }

    /// Waits until nothing is open.
    #[track_caller]
    fn wait_until_empty(&self) {
        wait_until("nothing is open", || {
            self.ctl.ok("connections").lines().count() <= 1
        });
    }
}

fn visited(client: &str) -> &'static str {
    match addr(client).is_ipv4() {
        true => VISITED,
        false => VISITED6,
    }
}

/// Ends a session from the client's side, and sees it end on both.
#[track_caller]
fn end(session: Session) {
    finish_sending(&session.near);
    receive_all(&session.far);
    drop(session.far);
    receive_all(&session.near);
}

#[test]
fn a_client_has_so_many_connections_and_others_have_theirs() {
    let limited = Limited::new(&["-max-connections-per-client", "2"]);
    let _open = [
        limited.enter("203.0.113.7:40000"),
        limited.enter("203.0.113.7:40001"),
    ];
    limited.assert_refused("203.0.113.7:40002");
    // By another load balancer, in the other version, and IPv4-mapped, it is the same client.
    let near = limited.stage.balancer.dial_from(OTHER_BALANCER, PROXY);
    send(&near, v2("203.0.113.7:40003", VISITED).bytes());
    assert_reset(&near);
    for header in [
        b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:198.51.100.1 40004 22\r\n".to_vec(),
        v2("[::ffff:203.0.113.7]:40004", "[::ffff:198.51.100.1]:22").bytes(),
    ] {
        limited.assert_refused_header(&header, "203.0.113.7:40004");
    }
    let _others = [
        limited.enter("203.0.113.8:40000"),
        limited.enter("203.0.113.8:40001"),
        limited.enter("[2001:db8:c::7]:40000"),
    ];
    limited.assert_refused("203.0.113.8:40002");
}

#[test]
fn an_ipv6_client_is_its_64() {
    let limited = Limited::new(&["-max-connections-per-client", "2"]);
    let _open = [
        limited.enter("[2001:db8:c::7]:40000"),
        limited.enter("[2001:db8:c::ffff:1:2]:40000"),
    ];
    limited.assert_refused("[2001:db8:c:0:8000::9]:40000");
    let _other = limited.enter("[2001:db8:c:1::7]:40000");
}

#[test]
fn a_client_at_its_limit_gets_in_again_when_one_ends() {
    let limited = Limited::new(&["-max-connections-per-client", "1"]);
    let clients = [
        ("203.0.113.7", "203.0.113.7"),
        ("[2001:db8:c::7]", "2001:db8:c::/64"),
    ];
    let port = |ip: &str, port: u16| format!("{ip}:{port}");
    for (ip, network) in clients {
        let enter = |number| limited.enter(&port(ip, number));
        let full = |number| limited.assert_refused(&port(ip, number));
        let first = enter(40000);
        full(40001);
        end(first);
        limited.wait_until_empty();

        let second = enter(40002);
        full(40003);
        reset(second.near);
        assert_reset(&second.far);
        limited.wait_until_empty();

        // It may come again as soon as it learns that it was made to go.
        for number in 0..20 {
            let third = enter(41000 + 2 * number);
            full(41001 + 2 * number);
            limited.ctl.ok(&format!("kill {network}"));
            assert_reset(&third.near);
        }

        let fourth = enter(40006);
        limited.ctl.ok(&format!("ban {network}"));
        assert_reset(&fourth.near);
        limited.ctl.ok(&format!("unban {network}"));
        let _fifth = enter(40007);
        full(40008);
    }
}

/// The kernel tells a client of the end while the proxy is still about to close the socket, here for
/// a second: the client's next connection, on the other worker, finds the place free.
#[test]
fn who_is_made_to_go_may_come_again_at_once() {
    // From the first close of a connection on; those of the start are over.
    let inject = "inject=close:delay_exit=1000000";
    let limited = Limited::new(&["-max-connections-per-client", "1", "-workers", "2"]);
    let local = limited.stage.dial_and_send("PROXY UNKNOWN\r\n");
    let _other = (limited.stage.backend.accept(), local);
    let session = limited.enter("203.0.113.7:40000");
    let pid = limited.stage.proxy.pid().to_string();
    let words = [
        "strace",
        "-f",
        "-p",
        &pid,
        "-e",
        "trace=close",
        "-e",
        inject,
        "-o",
        "/dev/null",
    ];
    let strace = limited.stage.server.spawn(&words);
    strace.wait_for_error("attached");
    limited.ctl.ok("kill 203.0.113.7");
    assert_reset(&session.near);
    limited.enter("203.0.113.7:40001");
    assert_eq!(limited.refused(), 0);
}

#[test]
fn a_connection_that_never_was_does_not_count() {
    let silent = "192.0.2.99:9000";
    let limited = Limited::new(&[
        "-max-connections-per-client",
        "1",
        "-dynamic-destination",
        "-connect-timeout",
        "1h",
    ]);
    let stage = &limited.stage;
    // No backend: each is reset, and the next one is let as far again.
    for number in 0..5 {
        let client = format!("203.0.113.7:4000{number}");
        assert_reset(&stage.dial_and_send(v1(&client, "127.0.0.1:1")));
    }
    // No header, or half of one, claims nobody.
    for bytes in [&b""[..], b"PROXY TCP4 203.0.113.7 198.5"] {
        let near = stage.dial();
        send(&near, bytes);
        reset(near);
    }
    assert_eq!(limited.refused(), 0);
    // A backend that does not answer: the connection counts until it is given up.
    stage.server.run(&[
        "ip",
        "neighbour",
        "add",
        "192.0.2.99",
        "lladdr",
        "02:00:00:00:00:99",
        "dev",
        "to-balancer",
    ]);
    for number in 0..3 {
        let opening = stage.dial_and_send(v1(&format!("203.0.113.7:4100{number}"), silent));
        wait_until("its client is known", || {
            limited.ctl.ok("connections").contains("203.0.113.7:4100")
        });
        limited.assert_refused("203.0.113.7:42000");
        limited.ctl.ok("kill 203.0.113.7");
        assert_reset(&opening);
    }
    let near = stage.dial_and_send(v1("203.0.113.7:43000", "127.0.0.1:9000"));
    assert_carries(&near, &stage.backend.accept().0);
}

#[test]
fn a_load_balancer_that_speaks_for_itself_has_no_limit() {
    let limited = Limited::new(&[
        "-max-connections-per-client",
        "1",
        "-connection-rate-per-client",
        "1/h",
    ]);
    let local = V2::new(LOCAL, UNSPEC, Vec::new()).bytes();
    let mut open = Vec::new();
    for header in [local, b"PROXY UNKNOWN\r\n".to_vec()] {
        for _ in 0..5 {
            let near = limited.stage.dial_and_send(&header);
            let (far, _) = limited.stage.backend.accept();
            assert_carries(&near, &far);
            open.push((near, far));
        }
    }
    // Nor did they use up what is a client's of that address.
    open.push({
        let Session { near, far } = limited.enter("192.0.2.5:40000");
        (near, far)
    });
    limited.assert_refused("192.0.2.5:40001");
}

#[test]
fn a_peer_that_is_served_as_itself_has_the_limits_of_a_client() {
    let files = TempDir::new();
    let list = files.file("balancers", "192.0.2.6\n");
    let limited = Limited::new(&[
        "-allowed-subnets",
        &list,
        "-untrusted",
        "serve",
        "-max-connections-per-client",
        "1",
    ]);
    let (stage, ctl) = (&limited.stage, &limited.ctl);
    for (from, to, backend) in [
        ("192.0.2.5:0", PROXY, &stage.backend),
        ("[2001:db8::5]:0", "[2001:db8::10]:2222", &stage.backend6),
    ] {
        let near = stage.balancer.dial_from(from, to);
        let (far, _) = backend.accept();
        // Whatever it says it is.
        for bytes in [v1("203.0.113.7:1", VISITED), b"PROXY UNKNOWN\r\n".to_vec()] {
            let before = ctl.count("tooManyOfClient");
            let second = stage.balancer.try_dial(Some(from), to);
            let said = |mut near: TcpStream| near.write_all(&bytes).map(|()| near);
            assert_reset_at_once(second.and_then(said));
            assert_eq!(ctl.count("tooManyOfClient"), before + 1);
        }
        assert_carries(&near, &far);
        end(Session { near, far });
        limited.wait_until_empty();
        let near = stage.balancer.dial_from(from, to);
        assert_carries(&near, &backend.accept().0);
        backend.assert_idle();
    }
}

#[test]
fn a_rate_is_a_bucket_of_that_size() {
    let limited = Limited::new(&["-connection-rate-per-client", "5/h"]);
    for client in ["203.0.113.7", "203.0.113.8", "[2001:db8:c::7]"] {
        for number in 0..5 {
            end(limited.enter(&format!("{client}:4000{number}")));
        }
        limited.assert_refused(&format!("{client}:40005"));
        limited.assert_refused(&format!("{client}:40006"));
    }
    limited.assert_refused("[2001:db8:c::8]:40000");
    limited.assert_refused_header(
        &v2("[::ffff:203.0.113.7]:40004", "[::ffff:198.51.100.1]:22").bytes(),
        "203.0.113.7:40004",
    );

    // A minute's 100 at once, and not one more; a second's ten come back in time.
    let limited = Limited::new(&["-connection-rate-per-client", "100/m"]);
    let opened = std::time::Instant::now();
    let served = (0..200).filter(|number| {
        let near = limited
            .stage
            .dial_and_send(v1(&format!("203.0.113.7:{}", 40000 + number), VISITED));
        let got = limited
            .stage
            .backend
            .accept_unless(|| support::streams::has_ended(&near));
        got.is_some()
    });
    let served = served.count() as u64;
    let refilled = opened.elapsed().as_millis() as u64 / 600;
    assert!((100..=100 + refilled).contains(&served), "{served} of 100");

    let limited = Limited::new(&["-connection-rate-per-client", "2/s"]);
    end(limited.enter("203.0.113.7:40000"));
    end(limited.enter("203.0.113.7:40001"));
    let mut port = 40_002;
    wait_until("the bucket has a token again", || {
        port += 1;
        let near = limited
            .stage
            .dial_and_send(v1(&format!("203.0.113.7:{port}"), VISITED));
        let ended = || support::streams::has_ended(&near);
        limited.stage.backend.accept_unless(ended).is_some()
    });
}

#[test]
fn what_a_client_has_open_counts_over_a_reload() {
    let files = TempDir::new();
    let list = files.file("denied", "203.0.113.99\n");
    let limited = Limited::new(&["-max-connections-per-client", "1", "-denied-clients", &list]);
    let first = limited.enter("203.0.113.7:40000");
    limited.stage.proxy.signal(Signal::SIGHUP);
    limited.stage.proxy.wait_for_line("were read again");
    limited.assert_refused("203.0.113.7:40001");
    assert_carries(&first.near, &first.far);
    end(first);
    limited.wait_until_empty();
    let _second = limited.enter("203.0.113.7:40002");
    limited.assert_refused("203.0.113.7:40003");
}

#[test]
fn a_reload_brings_other_limits() {
    let files = TempDir::new();
    let text = |limits: &str| {
        format!(
            "[[listener]]\nname = \"ssh\"\nlisten = \"0.0.0.0:2222\"\nipv4 = \"127.0.0.1:9000\"\n{limits}\n"
        )
    };
    let file = files.file("realpeer.toml", &text("max-connections-per-client = 3"));
    let (balancer, server) = support::stage::wire();
    let backend = support::Backend::listen(&server, "127.0.0.1:9000");
    let proxy = Program::Realpeer.start_on(2222, &server, &["-config", &file]);
    let reloads = || {
        let lines = proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("was read again"))
            .count()
    };
    let reload = |limits: &str| {
        let before = reloads();
        fs::write(&file, text(limits)).expect("write the file");
        proxy.signal(Signal::SIGHUP);
        wait_until("the file is read again", || reloads() > before);
    };
    let mut port = 40_000;
    let mut dial = || {
        port += 1;
        let near = balancer.dial(PROXY);
        send(&near, v1(&format!("203.0.113.7:{port}"), VISITED));
        near
    };
    let mut open: Vec<TcpStream> = Vec::new();
    for _ in 0..2 {
        let near = dial();
        open.extend([backend.accept().0, near]);
    }
    // Fewer than are open: they stay, and no more come in.
    reload("max-connections-per-client = 1");
    assert_reset(&dial());
    assert_carries(&open[1], &open[0]);
    reload("max-connections-per-client = 3");
    let near = dial();
    open.extend([backend.accept().0, near]);
    assert_reset(&dial());

    // Who has used up its hour under the old rate has what the new one gives.
    reload("connection-rate-per-client = \"1/h\"");
    let near = dial();
    open.extend([backend.accept().0, near]);
    assert_reset(&dial());
    reload("connection-rate-per-client = \"10/s\"");
    wait_until("the new rate lets one in", || {
        let near = dial();
        let ended = || support::streams::has_ended(&near);
        backend.accept_unless(ended).is_some()
    });
    backend.assert_idle();
}

/// UDP: one backend each family; a datagram of a flow that is let in comes there.
struct Flows {
    scene: Scene,
    ctl: Ctl,
    near: UdpSocket,
}

impl Flows {
    #[track_caller]
    fn new(flags: &[&str]) -> Flows {
        let ctl = Ctl::new();
        let control = ctl.path();
        let fixed = ["-v", "2", "-control", &control];
        let scene = Scene::new(&[&fixed, flags].concat());
        let near = scene.socket();
        Flows { scene, ctl, near }
    }

    #[track_caller]
    fn assert_refused(&self, client: &str) {
        self.assert_refused_datagram(&every(client, b"no"));
    }

    #[track_caller]
    fn assert_refused_datagram(&self, datagram: &[u8]) {
        let before = self.refused();
        self.near.send(datagram).unwrap();
        wait_until("the datagram is refused", || self.refused() > before);
        assert_silent(&self.scene.backend);
        assert_silent(&self.scene.backend6);
    }

    fn refused(&self) -> u64 {
        self.ctl.count("tooManyOfClient")
    }

    #[track_caller]
    fn enter(&self, client: &str) {
        self.scene.converse(&self.near, client);
    }
}

#[test]
fn a_client_has_so_many_flows() {
    let flows = Flows::new(&["-max-connections-per-client", "2", "-listeners", "3"]);
    for (ip, other, network) in [
        ("203.0.113.7", "203.0.113.8", "203.0.113.7"),
        ("[2001:db8:c::7]", "[2001:db8:c:1::7]", "2001:db8:c::/64"),
    ] {
        let port = |port: u16| format!("{ip}:{port}");
        flows.enter(&port(1000));
        flows.enter(&port(1001));
        flows.assert_refused(&port(1002));
        let line = flows
            .scene
            .proxy
            .wait_for_line("-max-connections-per-client");
        assert!(line.contains("the client 203.0.113.7:1002"), "{line}");
        // Those that are open go on, and others have theirs.
        flows.enter(&port(1000));
        flows.enter(&format!("{other}:1000"));
        flows.ctl.ok(&format!("kill {network}"));
        wait_until("the flows have ended", || {
            !flows.ctl.ok("connections").contains(&port(100))
        });
        flows.enter(&port(1003));
        flows.enter(&port(1004));
        flows.assert_refused(&port(1005));
        flows.ctl.ok(&format!("ban {network}"));
        flows.ctl.ok(&format!("unban {network}"));
        wait_until("the flows have ended", || {
            !flows.ctl.ok("connections").contains(&port(100))
        });
        flows.enter(&port(1006));
        flows.enter(&port(1007));
        flows.assert_refused(&port(1008));
    }
    flows.assert_refused("[2001:db8:c::9]:1000");
    flows.assert_refused_datagram(&every("[::ffff:203.0.113.7]:1009", b"no"));
}

#[test]
fn silence_and_eviction_let_a_client_in_again() {
    let flows = Flows::new(&["-max-connections-per-client", "1", "-close-after", "1s"]);
    flows.enter("203.0.113.7:1000");
    flows.assert_refused("203.0.113.7:1001");
    flows.scene.proxy.wait_for_line("silent for -close-after");
    flows.enter("203.0.113.7:1002");

    let flows = Flows::new(&["-max-connections-per-client", "1", "-max-flows", "2"]);
    flows.enter("203.0.113.7:1000");
    flows.enter("203.0.113.8:1000");
    // A client at its limit makes nobody go.
    flows.assert_refused("203.0.113.8:1001");
    assert_eq!(flows.ctl.count("flowEvicted"), 0);
    flows.enter("203.0.113.9:1000");
    flows.enter("203.0.113.7:1001");
    assert_eq!(flows.ctl.count("flowEvicted"), 2);
    flows.assert_refused("203.0.113.7:1002");
}

#[test]
fn flows_have_a_rate_in_every_style() {
    for style in ["every", "first", "spp"] {
        let flows = Flows::new(&["-udp-header", style, "-connection-rate-per-client", "3/h"]);
        let datagram = |client: &str, payload: &[u8]| match style {
            "spp" => spp(client, VISITED, payload),
            _ => every(client, payload),
        };
        for (number, client) in ["203.0.113.7", "203.0.113.8"].into_iter().enumerate() {
            for flow in 0..3 {
                let near = flows.scene.socket();
                let client = format!("{client}:{}", 1000 + flow);
                near.send(&datagram(&client, b"hello")).unwrap();
                assert_eq!(flows.scene.expect(&client, b"hello"), addr(&client));
            }
            let fourth = datagram(&format!("{client}:1009"), b"no");
            let near = flows.scene.socket();
            near.send(&fourth).unwrap();
            wait_until("the fourth is refused", || flows.refused() > number as u64);
        }
        assert_silent(&flows.scene.backend);
    }
}

#[test]
fn health_checks_by_datagram_have_no_limit_and_peers_served_as_themselves_have() {
    let files = TempDir::new();
    let list = files.file("balancers", "192.0.2.5\n");
    let limits = [
        "-max-connections-per-client",
        "1",
        "-connection-rate-per-client",
        "2/h",
    ];
    let trust = ["-allowed-subnets", &list, "-untrusted", "serve"];
    let flows = Flows::new(&[&limits[..], &trust].concat());
    let check = [&V2::new(LOCAL, UNSPEC, Vec::new()).bytes()[..], b"alive?"].concat();
    for _ in 0..5 {
        let near = flows.scene.socket();
        near.send(&check).unwrap();
        assert_eq!(
            receive(&flows.scene.backend),
            (b"alive?".to_vec(), near.local_addr().unwrap())
        );
    }
    let sockets = [(); 2].map(|()| {
        let near = open(&flows.scene.balancer, "192.0.2.6:0");
        near.connect(addr(support::datagrams::PROXY)).unwrap();
        near
    });
    sockets[0].send(b"hello").unwrap();
    assert_eq!(receive(&flows.scene.backend).0, b"hello");
    sockets[1].send(&every("203.0.113.7:1", b"hello")).unwrap();
    wait_until("the second is refused", || flows.refused() == 1);
    sockets[0].send(b"again").unwrap();
    assert_eq!(receive(&flows.scene.backend).0, b"again");
    assert_silent(&flows.scene.backend);
}

/// Distinct clients, all with both limits, in two parts: the first fills every table, the second
/// must find room in what is there.
#[test]
fn a_hundred_thousand_clients_leave_memory_flat() {
    const CLIENTS: u32 = 100_000;
    const FIRST: u32 = 50_000;
    let flags = [
        "-max-connections-per-client",
        "5",
        "-connection-rate-per-client",
        "1/h",
        "-max-flows",
        "64",
        "-v",
        "0",
    ];
    let flows = Flows::new(&flags);
    let pass = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let client = match number % 2 {
            0 => format!("11.{a}.{b}.{c}:1000"),
            _ => format!("[2001:db8:{a:x}:{b:02x}{c:02x}::1]:1000"),
        };
        flows.scene.pass(&flows.near, &client, b"hello");
    };
    (0..FIRST).for_each(pass);
    let before = memory(&flows.scene.proxy);
    (FIRST..CLIENTS).for_each(pass);
    let after = memory(&flows.scene.proxy);
    println!("memory after {FIRST} clients {before} B, after {CLIENTS} {after} B");
    assert!(after < before + (256 << 10), "{before} B grew to {after} B");
    assert_eq!(flows.ctl.count("served"), u64::from(CLIENTS));
    // They are counted: one that comes again at once is refused.
    flows.assert_refused("[2001:db8:1:869f::2]:1001");
}

#[test]
fn limits_are_positive_numbers_and_rates() {
    for (flag, value) in [
        ("-max-connections-per-client", "0"),
        ("-max-connections-per-client", "-1"),
        ("-connection-rate-per-client", "0/s"),
        ("-connection-rate-per-client", "10"),
        ("-connection-rate-per-client", "10/d"),
    ] {
        let ended = Program::Realpeer.run(&Host::new("server"), &[flag, value]);
        assert!(
            ended.code != 0 && ended.stderr.contains(flag),
            "{flag} {value}: {}",
            ended.stderr
        );
    }
}
