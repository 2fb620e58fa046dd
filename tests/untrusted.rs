//! `-untrusted serve`: a peer outside `-allowed-subnets` is its own client. It is served from its own
//! address, and every byte of it is the backend's.

mod support;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use support::datagrams::{
    self, PROXY_V6, Scene, assert_silent, every, header, open, receive as receive_datagram, spp,
};
use support::header::{LOCAL, UNSPEC, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, PROXY, VISITED, VISITED6, wire};
use support::streams::{
    assert_carries, assert_closed, assert_reset, assert_reset_at_once, assert_turned_away,
    finish_sending, has_ended, receive, receive_all, send,
};
use support::{Backend, Ctl, Host, Program, Stage, TempDir, addr, wait_until};

/// Of the office: 192.0.2.5 and 2001:db8::5.
const OFFICE6: &str = "[2001:db8::5]:0";
/// The load balancers.
const LIST: &str = "192.0.2.6\n2001:db8::6\n";
const BALANCER: &str = "192.0.2.6:0";
const BALANCER6: &str = "[2001:db8::6]:0";

/// The usual scene; on one socket for both families, so that IPv4 peers come IPv4-mapped.
struct Office {
    stage: Stage,
    ctl: Ctl,
    files: TempDir,
}

impl Office {
    #[track_caller]
    fn new(flags: &[&str]) -> Office {
        let (ctl, files) = (Ctl::new(), TempDir::new());
        let (list, control) = (files.file("balancers", LIST), ctl.path());
        let fixed = [
            "-l",
            "[::]:2222",
            "-allowed-subnets",
            &list,
            "-untrusted",
            "serve",
            "-control",
            &control,
            "-v",
            "2",
        ];
        let stage = Stage::new(&[&fixed, flags].concat());
        Office { stage, ctl, files }
    }

    /// A connection of the office that has sent nothing, and the backend's end of it.
    #[track_caller]
    fn connect(&self, from: &str) -> (TcpStream, TcpStream) {
        let (to, backend) = match addr(from) {
            SocketAddr::V4(_) => (PROXY, &self.stage.backend),
            SocketAddr::V6(_) => (PROXY_V6, &self.stage.backend6),
        };
        let near = self.stage.balancer.dial_from(from, to);
        let (far, seen) = backend.accept();
        assert_eq!(seen, own(&near), "whom the backend sees");
        (near, far)
    }
}

fn own(near: &TcpStream) -> SocketAddr {
    near.local_addr().expect("our own address")
}

/// What a peer may begin with; a proxy that guesses from bytes would take some of it for a header.
fn beginnings() -> Vec<Vec<u8>> {
    vec![
        v1(CLIENT, VISITED),
        v1(CLIENT6, VISITED6),
        v2(CLIENT, VISITED).bytes(),
        v2(CLIENT6, VISITED6).bytes(),
        v2("127.0.0.1:1", VISITED).bytes(),
        V2::new(LOCAL, UNSPEC, Vec::new()).bytes(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROX".to_vec(),
        b"\r\n\r\n\0\r".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    ]
}

#[test]
fn a_forged_header_reaches_the_backend_as_bytes_of_the_peer_that_sent_it() {
    let office = Office::new(&[]);
    for from in ["192.0.2.5:0", OFFICE6] {
        for bytes in beginnings() {
            let (near, far) = office.connect(from);
            send(&near, &bytes);
            assert_eq!(receive(&far, bytes.len()), bytes);
            assert_carries(&near, &far);
        }
    }
    // The bytes may be there before the proxy has taken the connection.
    for bytes in beginnings() {
        office.stage.proxy.signal(Signal::SIGSTOP);
        let near = office.stage.dial_and_send(&bytes);
        finish_sending(&near);
        office.stage.proxy.signal(Signal::SIGCONT);
        let (far, seen) = office.stage.backend.accept();
        assert_eq!(seen, own(&near));
        assert_eq!(receive_all(&far), bytes);
        send(&far, "answer");
        drop(far);
        assert_eq!(receive_all(&near), b"answer");
    }
    office.stage.backend.assert_idle();
    office.stage.backend6.assert_idle();
    assert_eq!(office.ctl.count("peerNotAllowed"), 0);
}

#[test]
fn the_backend_may_speak_first_and_either_side_may_finish_first() {
    // No header is waited for, however short the patience.
    let office = Office::new(&["-header-timeout", "1s"]);
    for from in ["192.0.2.5:0", OFFICE6] {
        let (near, far) = office.connect(from);
        send(&far, "220 ready");
        assert_eq!(receive(&near, 9), b"220 ready");
        finish_sending(&near);
        assert_eq!(receive_all(&far), b"");
        send(&far, "221 bye");
        drop(far);
        assert_eq!(receive_all(&near), b"221 bye");

        let (near, far) = office.connect(from);
        finish_sending(&far);
        assert_eq!(receive_all(&near), b"");
        send(&near, "still here");
        finish_sending(&near);
        assert_eq!(receive_all(&far), b"still here");
    }
    assert_eq!(office.ctl.count("headerTimeout"), 0);
}

#[test]
fn a_peer_in_the_list_still_needs_a_header() {
    let office = Office::new(&[]);
    let stage = &office.stage;
    for (from, to, client) in [(BALANCER, PROXY, CLIENT), (BALANCER6, PROXY_V6, CLIENT6)] {
        let near = stage.balancer.dial_from(from, to);
        send(&near, "SSH-2.0-OpenSSH_9.2\r\n");
        assert_closed(&near);
        let near = stage.balancer.dial_from(from, to);
        let far = stage.introduce(&near, client);
        assert_carries(&near, &far);
    }
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
    assert_eq!(office.ctl.count("headerAbsent"), 2);
}

#[test]
fn without_serve_the_others_are_refused_and_serve_needs_a_list() {
    let files = TempDir::new();
    let list = files.file("balancers", LIST);
    let stage = Stage::new(&["-allowed-subnets", &list, "-untrusted", "refuse"]);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    stage.backend.assert_idle();

    let ended = Program::Realpeer.run(&Host::new("server"), &["-untrusted", "serve"]);
    assert_eq!(ended.code, 1);
    for word in ["-untrusted", "allowed-subnets"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[test]
fn bans_and_lists_of_clients_hold_for_them() {
    let files = TempDir::new();
    let denied = files.file("denied", "192.0.2.5\n");
    let allowed = files.file("allowed", "203.0.113.0/24\n2001:db8:c::/48\n");
    for (flag, file, count) in [
        ("-denied-clients", &denied, "clientDenied"),
        ("-allowed-clients", &allowed, "clientNotAllowed"),
    ] {
        let office = Office::new(&[flag, file]);
        let stage = &office.stage;
        // A header that names somebody else does not help.
        for bytes in [v1(CLIENT, VISITED), b"hello".to_vec()] {
            let dialled = stage.balancer.try_dial(None, PROXY);
            assert_reset_at_once(
                dialled.and_then(|mut near| near.write_all(&bytes).map(|()| near)),
            );
        }
        let near = stage.balancer.dial_from(BALANCER, PROXY);
        assert_carries(&near, &stage.introduce(&near, CLIENT));
        stage.backend.assert_idle();
        assert_eq!(office.ctl.count(count), 2);
    }

    let office = Office::new(&[]);
    for (from, network) in [("192.0.2.5:0", "192.0.2.5"), (OFFICE6, "2001:db8::5/128")] {
        let (near, far) = office.connect(from);
        assert_carries(&near, &far);
        office.ctl.ok(&format!("ban {network} -force"));
        assert_reset(&near);
        let to = if addr(from).is_ipv4() {
            PROXY
        } else {
            PROXY_V6
        };
        assert_reset_at_once(office.stage.balancer.try_dial(Some(from), to));
        office.ctl.ok(&format!("unban {network}"));
        office.connect(from);
    }
    assert_eq!(office.ctl.count("banned"), 2);
}

#[test]
fn a_header_of_theirs_chooses_no_destination() {
    let office = Office::new(&["-dynamic-destination"]);
    let other = Backend::listen(&office.stage.server, "127.0.0.9:7000");
    let forged = v1(CLIENT, "127.0.0.9:7000");
    let (near, far) = office.connect("192.0.2.5:0");
    send(&near, &forged);
    assert_eq!(receive(&far, forged.len()), forged);
    other.assert_idle();
    let near = office.stage.balancer.dial_from(BALANCER, PROXY);
    send(&near, &forged);
    assert_eq!(other.accept().1, addr(CLIENT));
}

#[test]
fn a_backend_at_the_address_that_they_connected_to_answers_them() {
    let (balancer, server) = wire();
    let files = TempDir::new();
    let list = files.file("balancers", LIST);
    let (v4, v6) = ("192.0.2.10:9000", "[2001:db8::10]:9000");
    let backends = [v4, v6].map(|at| Backend::listen(&server, at));
    let _proxy = Program::Realpeer.start(
        &server,
        &[
            "-4",
            v4,
            "-6",
            v6,
            "-allowed-subnets",
            &list,
            "-untrusted",
            "serve",
            "-l",
            "[::]:2222",
        ],
    );
    let office = [("192.0.2.5:0", PROXY), (OFFICE6, PROXY_V6)];
    for ((from, to), backend) in office.into_iter().zip(&backends) {
        let near = balancer.dial_from(from, to);
        let (far, seen) = backend.accept();
        assert_eq!(seen, own(&near));
        assert_carries(&near, &far);
    }
}

#[test]
fn a_listener_on_foreign_addresses_serves_them_too() {
    let foreign = "198.51.100.50:2222";
    let office = Office::new(&["-listen-transparent", "-l", foreign]);
    let stage = &office.stage;
    // What a router in front of it does: send that address here, and take it in.
    for (host, words) in [
        (&stage.balancer, "ip route add 198.51.100.50 via 192.0.2.10"),
        (
            &stage.server,
            "ip route add local 198.51.100.50 dev lo table 99",
        ),
        (&stage.server, "ip rule add to 198.51.100.50 lookup 99"),
    ] {
        host.run(&words.split(' ').collect::<Vec<_>>());
    }
    let near = stage.balancer.dial_from("192.0.2.5:0", foreign);
    let (far, seen) = stage.backend.accept();
    assert_eq!(seen, own(&near));
    assert_carries(&near, &far);
    let near = stage.balancer.dial_from(BALANCER, foreign);
    assert_carries(&near, &stage.introduce(&near, CLIENT));
}

#[test]
fn a_reload_of_the_list_changes_who_needs_a_header() {
    let office = Office::new(&[]);
    let (near, far) = office.connect("192.0.2.5:0");
    fs::write(office.files.path("balancers"), "192.0.2.5\n").expect("write the list");
    office.stage.proxy.signal(Signal::SIGHUP);
    office.stage.proxy.wait_for_line("were read again");
    // What is open goes on; what is new is judged by the new list.
    assert_carries(&near, &far);
    assert_closed(&office.stage.dial_and_send("SSH-2.0-OpenSSH_9.2\r\n"));
    office.stage.session(CLIENT);
    office.connect("192.0.2.6:0");
    office.stage.backend.assert_idle();
}

/// The second listener judges the peer by its own list, and takes no header from who is not in it.
#[test]
fn behind_one_listener_another_judges_them_again() {
    let (balancer, server) = wire();
    let backend = Backend::listen(&server, "127.0.0.1:9000");
    let files = TempDir::new();
    let listeners = |untrusted| {
        format!(
            "[[listener]]\nname = \"front\"\nlisten = \"0.0.0.0:2222\"\nipv4 = \"127.0.0.1:2223\"\n\
             allowed-subnets = [\"192.0.2.6\"]\nuntrusted = \"serve\"\n\
             [[listener]]\nname = \"back\"\nlisten = \"127.0.0.1:2223\"\nipv4 = \"127.0.0.1:9000\"\n\
             allowed-subnets = [\"192.0.2.6\"]\nuntrusted = \"{untrusted}\"\n"
        )
    };
    let file = files.file("realpeer.toml", &listeners("refuse"));
    let proxy = Program::Realpeer.start_on(2222, &server, &["-config", &file, "-v", "2"]);
    assert_turned_away(balancer.try_dial(None, PROXY));
    backend.assert_idle();
    fs::write(&file, listeners("serve")).expect("write the file");
    proxy.signal(Signal::SIGHUP);
    proxy.wait_for_line("was read again");
    let near = balancer.dial(PROXY);
    send(&near, v1(CLIENT, VISITED));
    let (far, seen) = backend.accept();
    assert_eq!(seen.ip(), own(&near).ip());
    assert_eq!(receive(&far, 5), b"PROXY");
    assert!(!has_ended(&near));
}

fn scene(files: &TempDir, flags: &[&str]) -> Scene {
    let list = files.file("balancers", LIST);
    let fixed = ["-allowed-subnets", &list, "-untrusted", "serve", "-v", "2"];
    Scene::new(&[&fixed, flags].concat())
}

/// What a peer may send in one datagram, whatever the header style.
fn datagrams() -> Vec<Vec<u8>> {
    vec![
        every(CLIENT, b"forged"),
        every(CLIENT6, b"forged"),
        spp(CLIENT, VISITED, b"forged"),
        header(CLIENT).bytes(),
        V2::new(LOCAL, UNSPEC, Vec::new()).bytes(),
        b"plain".to_vec(),
        Vec::new(),
    ]
}

#[test]
fn datagrams_of_theirs_pass_as_they_are_in_every_style() {
    for style in ["every", "first", "spp"] {
        let files = TempDir::new();
        let scene = scene(&files, &["-udp-header", style]);
        for (from, proxy, backend) in [
            ("192.0.2.5:0", datagrams::PROXY, &scene.backend),
            (OFFICE6, PROXY_V6, &scene.backend6),
        ] {
            let near = open(&scene.balancer, from);
            near.connect(addr(proxy)).unwrap();
            for datagram in datagrams() {
                near.send(&datagram).unwrap();
                let (got, seen) = receive_datagram(backend);
                assert_eq!(got, datagram, "{style}");
                assert_eq!(seen, near.local_addr().unwrap(), "{style}");
                backend.send_to(b"answer", seen).unwrap();
                assert_eq!(receive_datagram(&near).0, b"answer", "{style}");
            }
        }
        // The load balancer beside them.
        let near = open(&scene.balancer, BALANCER);
        near.connect(addr(datagrams::PROXY)).unwrap();
        near.send(b"no header").unwrap();
        let whole = match style {
            "spp" => spp(CLIENT, VISITED, b"named"),
            _ => every(CLIENT, b"named"),
        };
        near.send(&whole).unwrap();
        assert_eq!(scene.expect(CLIENT, b"named"), addr(CLIENT));
        assert_silent(&scene.backend);
    }
}

#[test]
fn their_datagrams_choose_no_destination_and_keep_to_bans() {
    let (files, ctl) = (TempDir::new(), Ctl::new());
    let control = ctl.path();
    let scene = scene(&files, &["-dynamic-destination", "-control", &control]);
    let other = open(&scene.server, "127.0.0.9:7000");
    let near = scene.socket();
    let forged = [
        &datagrams::header_to(CLIENT, "127.0.0.9:7000").bytes()[..],
        b"forged",
    ]
    .concat();
    near.send(&forged).unwrap();
    let (got, seen) = receive_datagram(&scene.backend);
    assert_eq!((got, seen.ip()), (forged.clone(), addr("192.0.2.5:0").ip()));
    assert_silent(&other);
    ctl.ok("ban 192.0.2.5 -force");
    scene.proxy.wait_for_line("client banned");
    near.send(&forged).unwrap();
    wait_until("the datagram is refused", || ctl.count("banned") == 1);
    assert_silent(&scene.backend);
    ctl.ok("unban 192.0.2.5");
    near.send(b"again").unwrap();
    assert_eq!(receive_datagram(&scene.backend), (b"again".to_vec(), seen));
}

/// The kernel chooses among several sockets by the claimed client; these claim nobody, and the
/// backend must see them by one port.
#[test]
fn a_peer_is_one_flow_whatever_it_sends_to_several_sockets() {
    for style in ["every", "spp"] {
        let files = TempDir::new();
        let flags = ["-udp-header", style, "-listeners", "4", "-workers", "2"];
        let scene = scene(&files, &flags);
        for _ in 0..8 {
            let near = scene.socket();
            let mut sent = datagrams();
            sent.extend((0..16).map(|n| every(&format!("203.0.113.{n}:4{n:03}"), b"forged")));
            sent.extend((0..16).map(|n| spp(&format!("203.0.113.{n}:4{n:03}"), VISITED, b"x")));
            for datagram in sent {
                near.send(&datagram).unwrap();
                let (got, seen) = receive_datagram(&scene.backend);
                assert_eq!(got, datagram, "{style}");
                assert_eq!(seen, near.local_addr().unwrap(), "{style}");
            }
        }
    }
}

/// A listener that a reload makes serve them keeps its sockets.
#[test]
fn a_reload_makes_them_one_flow_too() {
    let (balancer, server) = wire();
    let backend = open(&server, "127.0.0.1:9000");
    let files = TempDir::new();
    let listener = |untrusted| {
        format!(
            "workers = 2\n[[listener]]\nname = \"dns\"\nlisten = \"0.0.0.0:2222\"\nprotocol = \"udp\"\n\
             ipv4 = \"127.0.0.1:9000\"\nlisteners = 4\nallowed-subnets = [\"192.0.2.6\"]\n\
             untrusted = \"{untrusted}\"\n"
        )
    };
    let file = files.file("realpeer.toml", &listener("refuse"));
    let proxy = Program::Realpeer.spawn(&[], &server, &["-config", &file]);
    proxy.wait_for_line("listening");
    fs::write(&file, listener("serve")).expect("write the file");
    proxy.signal(Signal::SIGHUP);
    proxy.wait_for_line("was read again");
    for _ in 0..8 {
        let near = open(&balancer, "192.0.2.5:0");
        near.connect(addr(datagrams::PROXY)).unwrap();
        for datagram in datagrams() {
            near.send(&datagram).unwrap();
            assert_eq!(
                receive_datagram(&backend),
                (datagram, near.local_addr().unwrap())
            );
        }
    }
}

/// As for TCP: the address that a peer has is no claim, however odd it is as one.
#[test]
fn a_peer_has_the_address_that_it_has() {
    let files = TempDir::new();
    let scene = scene(&files, &[]);
    scene.balancer.add_address("240.0.0.5/24", "to-server");
    scene.server.add_address("240.0.0.10/24", "to-balancer");
    let near = open(&scene.balancer, "240.0.0.5:0");
    near.connect(addr("240.0.0.10:2222")).unwrap();
    near.send(b"hello").unwrap();
    assert_eq!(
        receive_datagram(&scene.backend),
        (b"hello".to_vec(), near.local_addr().unwrap())
    );
}
