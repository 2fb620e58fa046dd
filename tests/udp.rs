//! UDP: the backend sees each datagram's client, and answers find their way back.

mod support;

use std::collections::BTreeSet;
use std::net::UdpSocket;

use nix::sys::signal::Signal;
use support::datagrams::{
    BACKEND, PROXY, PROXY_TOO, PROXY_V6, Scene, assert_silent, every, header, header_to, open,
    receive, start,
};
use support::header::{DGRAM, INET, LOCAL, UNIQUE_ID, UNSPEC, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, VISITED};
use support::{TempDir, addr, vitals, wait_until};

const OTHER: &str = "203.0.113.8:40000";

#[test]
fn the_backend_sees_the_client_and_the_answer_comes_back() {
    let scene = Scene::new(&[]);
    for proxy in [PROXY, PROXY_V6] {
        let near = scene.socket_to(proxy);
        scene.converse(&near, CLIENT);
        scene.converse(&near, CLIENT6);
    }
}

#[test]
fn answers_come_from_the_address_that_the_load_balancer_sent_to() {
    let scene = Scene::new(&[]);
    // Connected sockets: an answer from another address would never arrive.
    scene.converse(&scene.socket_to(PROXY_TOO), CLIENT);
    scene.converse(&scene.socket_to(PROXY), CLIENT);
    let scene = Scene::new(&["-l", "0.0.0.0:2222"]);
    scene.converse(&scene.socket_to(PROXY_TOO), CLIENT);
    let scene = Scene::new(&["-l", PROXY_TOO]);
    scene.converse(&scene.socket_to(PROXY_TOO), CLIENT);
}

#[test]
fn clients_behind_one_socket_never_mix() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    let clients: Vec<String> = (0..200)
        .map(|i| format!("203.0.113.{}:{}", i % 50 + 1, 1024 + i))
        .collect();
    for round in 0..3 {
        for client in &clients {
            near.send(&every(client, format!("{round} {client}").as_bytes()))
                .unwrap();
        }
        let mut seen = BTreeSet::new();
        for _ in &clients {
            let (payload, from) = receive(&scene.backend);
            assert_eq!(payload, format!("{round} {from}").as_bytes());
            seen.insert(from.to_string());
            scene.backend.send_to(&payload, from).unwrap();
        }
        assert_eq!(seen, clients.iter().cloned().collect());
        let answers: BTreeSet<Vec<u8>> = clients.iter().map(|_| receive(&near).0).collect();
        assert_eq!(answers.len(), clients.len());
    }
}

#[test]
fn answers_go_to_the_socket_that_sent_the_newest_datagram() {
    let scene = Scene::new(&[]);
    let (old, new) = (scene.socket(), scene.socket_to(PROXY_TOO));
    scene.converse(&old, CLIENT);
    scene.pass(&new, CLIENT, b"I moved");
    scene
        .backend
        .send_to(b"to the new one", addr(CLIENT))
        .unwrap();
    assert_eq!(receive(&new).0, b"to the new one");
    scene.pass(&old, CLIENT, b"and back again");
    scene
        .backend
        .send_to(b"to the old one", addr(CLIENT))
        .unwrap();
    assert_eq!(receive(&old).0, b"to the old one");
    assert_silent(&new);
}

#[test]
fn one_client_at_two_destinations_is_two_flows() {
    let scene = Scene::new(&["-dynamic-destination", "-v", "2"]);
    let second = open(&scene.server, "127.0.0.1:9001");
    let (near, far) = (scene.socket(), scene.socket());
    near.send(&[&header_to(CLIENT, BACKEND).bytes(), &b"one"[..]].concat())
        .unwrap();
    far.send(&[&header_to(CLIENT, "127.0.0.1:9001").bytes(), &b"two"[..]].concat())
        .unwrap();
    assert_eq!(receive(&scene.backend), (b"one".to_vec(), addr(CLIENT)));
    assert_eq!(receive(&second), (b"two".to_vec(), addr(CLIENT)));
    second.send_to(b"from the second", addr(CLIENT)).unwrap();
    scene
        .backend
        .send_to(b"from the first", addr(CLIENT))
        .unwrap();
    assert_eq!(receive(&near).0, b"from the first");
    assert_eq!(receive(&far).0, b"from the second");
}

#[test]
fn empty_datagrams_pass_both_ways() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    scene.pass(&near, CLIENT, b"");
    scene.pass(&near, CLIENT, b"");
    scene.backend.send_to(b"", addr(CLIENT)).unwrap();
    scene.backend.send_to(b"not empty", addr(CLIENT)).unwrap();
    assert_eq!(receive(&near).0, b"");
    assert_eq!(receive(&near).0, b"not empty");
    scene.converse(&near, CLIENT);
}

#[test]
fn the_largest_datagrams_pass_both_ways() {
    let scene = Scene::new(&[]);
    for (client, proxy, most) in [(CLIENT, PROXY, 65_507), (CLIENT6, PROXY_V6, 65_527)] {
        let near = scene.socket_to(proxy);
        let largest = vec![b'x'; most - header(client).bytes().len()];
        scene.pass(&near, client, &largest);
        scene.pass(&near, client, &largest[1..]);
        let backend = if most == 65_507 {
            &scene.backend
        } else {
            &scene.backend6
        };
        for len in [most, most - 1, 1473, 1472] {
            backend.send_to(&vec![b'y'; len], addr(client)).unwrap();
            assert_eq!(receive(&near).0, vec![b'y'; len]);
        }
    }
}

#[test]
fn what_is_no_header_for_udp_is_dropped_and_never_fatal() {
    let scene = Scene::new(&["-v", "1"]);
    let near = scene.socket();
    let whole = every(CLIENT, b"");
    let good = |v2: V2| [&v2.bytes()[..], b"payload"].concat();
    let mut bad = vec![
        [&v1(CLIENT, VISITED)[..], b"payload"].concat(),
        good(v2(CLIENT, VISITED)), // STREAM
        good(header(CLIENT).raw(&[4, 0, 9])),
        good(header(CLIENT).announce(65_535)),
        good(V2::new(0x22, INET | DGRAM, vec![0; 12])),
        good(V2::new(0x31, INET | DGRAM, vec![0; 12])),
        good(header(CLIENT).tlv(support::header::CRC32C, &[1, 2, 3, 4])),
        b"payload".to_vec(),
        b"".to_vec(),
        vec![0xff; 65_507],
    ];
    bad.extend((1..whole.len()).map(|cut| whole[..cut].to_vec()));
    for datagram in bad {
        near.send(&datagram).unwrap();
    }
    scene.converse(&near, CLIENT);
    assert_silent(&scene.backend);
    scene.proxy.wait_for_line("dropping datagram");
    scene.proxy.wait_for_line("no PROXY header");
    scene.proxy.wait_for_line("bad PROXY header");
    scene.proxy.signal(Signal::SIGTERM);
    scene
        .proxy
        .wait_for_line(r#""accepted":1,"served":1,"bytesUp":5,"#);
}

#[test]
fn tlvs_and_checksums_are_read() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    let long = header(CLIENT)
        .tlv(UNIQUE_ID, b"abc")
        .fill_to(1000)
        .checksum();
    near.send(&[&long.bytes(), &b"payload"[..]].concat())
        .unwrap();
    assert_eq!(scene.expect(CLIENT, b"payload"), addr(CLIENT));
}

#[test]
fn local_datagrams_come_from_the_load_balancer() {
    let scene = Scene::new(&[]);
    for (proxy, backend) in [(PROXY, &scene.backend), (PROXY_V6, &scene.backend6)] {
        for family in [UNSPEC, INET | DGRAM] {
            let near = scene.socket_to(proxy);
            let check = V2::new(LOCAL, family, vec![0; 5]).bytes();
            near.send(&[&check, &b"alive?"[..]].concat()).unwrap();
            let (payload, from) = receive(backend);
            assert_eq!(payload, b"alive?");
            assert_eq!(from, near.local_addr().unwrap());
            backend.send_to(b"alive", from).unwrap();
            assert_eq!(receive(&near).0, b"alive");
        }
    }
}

#[test]
fn a_taken_port_is_replaced_or_refused_as_source_port_says() {
    // The client is a socket of this very host, as a load balancer's health check can be.
    let client = "192.0.2.10:40000";
    let files = TempDir::new();
    let balancers = files.file("balancers", "192.0.2.5\n");
    for (flags, replaced) in [
        (&[][..], Some(true)),
        (&["-source-port", "any"], Some(true)),
        (&["-source-port", "strict", "-v", "1"], None),
    ] {
        let scene = Scene::new(&[flags, &["-allowed-subnets", &balancers]].concat());
        let _holder = open(&scene.server, client);
        let near = scene.socket();
        near.send(&every(client, b"whose port?")).unwrap();
        match replaced {
            Some(_) => {
                let from = scene.expect(client, b"whose port?");
                assert_ne!(from.port(), addr(client).port());
                scene.backend.send_to(b"yours", from).unwrap();
                assert_eq!(receive(&near).0, b"yours");
                // The flow keeps its port.
                assert_eq!(scene.pass(&near, client, b"again"), from);
            }
            None => {
                scene.proxy.wait_for_line("is taken on this host");
                scene.converse(&near, CLIENT);
                assert_silent(&scene.backend);
            }
        }
    }
}

#[test]
fn any_port_is_never_the_clients() {
    let scene = Scene::new(&["-source-port", "any"]);
    let near = scene.socket();
    let from = scene.pass(&near, CLIENT, b"1");
    assert_ne!(from, addr(CLIENT));
    assert_eq!(scene.pass(&near, CLIENT, b"2"), from);
}

#[test]
fn silence_ends_a_flow_and_its_end_is_told() {
    let scene = Scene::new(&["-v", "2", "-close-after", "1s"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    let line = scene.proxy.wait_for_line("flow closed");
    for field in [
        r#""clientAddr":"203.0.113.7:40000""#,
        r#""frontendRemoteAddr":"192.0.2.5:"#,
        r#""targetAddr":"127.0.0.1:9000""#,
        r#""bytesUp":5,"bytesDown":8"#,
        r#""durationMs":"#,
        r#""end":"silent for -close-after""#,
    ] {
        assert!(line.contains(field), "{line} lacks {field}");
    }
    wait_until("its socket is closed", || {
        scene
            .server
            .run(&["ss", "-Huna", "sport = :40000"])
            .is_empty()
    });
    scene.converse(&near, CLIENT);
}

#[test]
fn a_flow_holds_one_descriptor() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    let before = vitals::descriptors(&scene.proxy);
    for i in 0..100 {
        scene.converse(&near, &format!("203.0.113.{i}:5000"));
    }
    // The watch over the routing opens one of its own now and then.
    wait_until("each flow holds one descriptor", || {
        vitals::descriptors(&scene.proxy) <= before + 100
    });
}

#[test]
fn close_after_0_lets_flows_live() {
    let scene = Scene::new(&["-v", "2", "-close-after", "0"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    scene.converse(&near, OTHER);
    scene.proxy.signal(Signal::SIGTERM);
    scene.proxy.wait_for_line("realpeer stops");
    assert!(
        !scene
            .proxy
            .stdout()
            .iter()
            .any(|line| line.contains("silent for"))
    );
}

#[test]
fn a_stop_tells_each_flow_and_exits_0() {
    let mut scene = Scene::new(&["-v", "2"]);
    scene.converse(&scene.socket(), CLIENT);
    scene.proxy.signal(Signal::SIGTERM);
    assert_eq!(scene.proxy.exit_code(), 0);
    let line = scene.proxy.wait_for_line("flow closed");
    assert!(line.contains("realpeer stops"), "{line}");
}

#[test]
fn a_backend_that_was_down_loses_only_what_was_sent_meanwhile() {
    let mut scene = Scene::new(&["-v", "1"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    for round in 0..5_u8 {
        // Its port answers with ICMP until it is back.
        drop(std::mem::replace(
            &mut scene.backend,
            open(&scene.server, "127.0.0.1:0"),
        ));
        for lost in 0..round {
            near.send(&every(CLIENT, &[lost])).unwrap();
        }
        // A datagram of another client that goes where somebody answers tells that all were sent.
        scene.converse(&near, CLIENT6);
        scene.backend = open(&scene.server, BACKEND);
        for kept in 10..20 {
            near.send(&every(CLIENT, &[kept])).unwrap();
        }
        for kept in 10..20 {
            assert_eq!(scene.expect(CLIENT, &[kept]), addr(CLIENT));
        }
        scene.backend.send_to(b"back", addr(CLIENT)).unwrap();
        assert_eq!(receive(&near).0, b"back");
    }
    scene.proxy.wait_for_line("refused");
}

#[test]
fn other_icmp_errors_leave_the_flow_usable() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    for kind in [
        "host-unreachable",
        "net-unreachable",
        "prot-unreachable",
        "admin-prohibited",
    ] {
        for hook in ["input", "output"] {
            let chain = format!("type filter hook {hook} priority 0;");
            let rule = format!("ip daddr 127.0.0.1 udp dport 9000 reject with icmp {kind}");
            scene.server.run(&["nft", "add table inet broken"]);
            let chain = format!("add chain inet broken c {{ {chain} }}");
            scene.server.run(&["nft", &chain]);
            let rule = format!("add rule inet broken c {rule}");
            scene.server.run(&["nft", &rule]);
            for _ in 0..3 {
                near.send(&every(CLIENT, b"lost")).unwrap();
                // A datagram that goes elsewhere tells that the one before was sent.
                scene.converse(&near, CLIENT6);
            }
            scene.server.run(&["nft", "delete table inet broken"]);
            scene.converse(&near, CLIENT);
        }
    }
}

#[test]
fn an_error_of_an_earlier_datagram_costs_no_later_one() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    // As if the backend were down for datagrams of less than 100 bytes only.
    scene.server.run(&["nft", "add table inet broken"]);
    let chain = "add chain inet broken c { type filter hook input priority 0; }";
    scene.server.run(&["nft", chain]);
    let rule = "add rule inet broken c udp dport 9000 udp length < 108 reject";
    scene.server.run(&["nft", rule]);
    // Many wait at once, so that the proxy sends a batch while the errors of the one before wait.
    // Each is longer than the one before, so that few leave together.
    scene.proxy.signal(Signal::SIGSTOP);
    let large = |len: usize| len >= 100;
    let sizes = (0..320).map(|number| match number % 64 {
        place @ 0..2 => 200 + place,
        place => 10 + place,
    });
    for (number, len) in sizes.clone().enumerate() {
        near.send(&every(CLIENT, &vec![number as u8; len])).unwrap();
    }
    scene.proxy.signal(Signal::SIGCONT);
    for (number, len) in sizes.enumerate().filter(|(_, len)| large(*len)) {
        let next = std::iter::repeat_with(|| receive(&scene.backend).0).find(|p| large(p.len()));
        assert_eq!(next.unwrap(), vec![number as u8; len]);
    }
}

#[test]
fn a_backend_on_all_addresses_is_served() {
    for (all, client) in [("0.0.0.0:9100", CLIENT), ("[::]:9100", CLIENT6)] {
        let (balancer, server) = support::stage::wire();
        let backend = open(&server, all);
        let targets = ["-4", "127.0.0.1:9100", "-6", "[::1]:9100"];
        let proxy = start(&server, &targets);
        let near = open(&balancer, "0.0.0.0:0");
        near.send_to(&every(client, b"there"), addr(PROXY)).unwrap();
        assert_eq!(receive(&backend), (b"there".to_vec(), addr(client)));
        backend.send_to(b"and back", addr(client)).unwrap();
        assert_eq!(receive(&near), (b"and back".to_vec(), addr(PROXY)));
        drop(proxy);
    }
}

#[test]
fn the_flow_idle_for_longest_makes_room() {
    let scene = Scene::new(&["-v", "2", "-max-flows", "3"]);
    let near = scene.socket();
    let client = |i: usize| format!("203.0.113.{i}:40000");
    for i in [1, 2, 3, 1] {
        scene.converse(&near, &client(i));
    }
    let evicted = || {
        let lines = scene.proxy.stdout().into_iter();
        let lines = lines.filter(|line| line.contains("made room for a new flow"));
        let client = |line: &String| {
            line.split('"')
                .skip_while(|w| *w != "clientAddr")
                .nth(2)
                .unwrap()
                .to_owned()
        };
        lines.map(|line| client(&line)).collect::<Vec<_>>()
    };
    scene.converse(&near, &client(4));
    wait_until("the oldest has made room", || evicted() == [client(2)]);
    // An answer counts as use, too.
    scene
        .backend
        .send_to(b"still there", addr(&client(3)))
        .unwrap();
    assert_eq!(receive(&near).0, b"still there");
    scene.converse(&near, &client(5));
    wait_until("the next has made room", || {
        evicted() == [client(2), client(1)]
    });
    scene.proxy.wait_for_line("see -max-flows");
    // More clients than flows in one burst: what belongs to one never reaches another.
    for i in 0..60 {
        near.send(&every(&client(i + 1), client(i + 1).as_bytes()))
            .unwrap();
    }
    for _ in 0..60 {
        let (payload, from) = receive(&scene.backend);
        assert_eq!(payload, from.to_string().as_bytes());
    }
}

#[test]
fn a_lack_of_descriptors_makes_room_as_well() {
    let scene = Scene::new(&["-v", "1"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    // Numbers that were used at start and are free again would hide the lack, or outlast it.
    let holes = || vitals::first_free(&scene.proxy) != vitals::descriptors(&scene.proxy) as u64;
    for i in (0..).take_while(|_| holes()) {
        scene.converse(&near, &format!("203.0.113.50:{}", 1024 + i));
    }
    vitals::forbid_descriptors(&scene.server, &scene.proxy);
    scene.converse(&near, OTHER);
    scene.converse(&near, CLIENT);
}

#[test]
fn only_listed_load_balancers_may_speak() {
    let directory = TempDir::new();
    let list = directory.file("subnets", "192.0.2.5\n");
    let scene = Scene::new(&["-v", "1", "-allowed-subnets", &list]);
    let near = scene.socket();
    let stranger = open(&scene.balancer, "192.0.2.6:0");
    stranger
        .send_to(&every(OTHER, b"let me in"), addr(PROXY))
        .unwrap();
    scene.converse(&near, CLIENT);
    assert_silent(&scene.backend);
    let line = scene.proxy.wait_for_line("not in the allowed-subnets file");
    assert!(line.contains("192.0.2.6"), "{line}");
}

#[test]
fn no_client_is_a_loopback_address_unless_its_peer_is() {
    let scene = Scene::new(&["-v", "1"]);
    let near = scene.socket();
    for bogus in [
        "127.0.0.1:1",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::1]:1",
        "[ff02::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        near.send(&every(bogus, b"trust me")).unwrap();
    }
    scene.converse(&near, CLIENT);
    scene.converse(&near, CLIENT6);
    assert_silent(&scene.backend);
    assert_silent(&scene.backend6);
    scene
        .proxy
        .wait_for_line("which only a local peer may claim");
    let local = open(&scene.server, "127.0.0.1:0");
    local.connect("127.0.0.1:2222").unwrap();
    scene.converse(&local, "127.0.0.9:7777");
}

#[test]
fn the_listener_is_no_target() {
    let scene = Scene::new(&["-v", "1", "-dynamic-destination"]);
    let near = scene.socket();
    for own in [PROXY, PROXY_TOO, "127.0.0.1:2222"] {
        near.send(&[&header_to(CLIENT, own).bytes(), &b"round and round"[..]].concat())
            .unwrap();
    }
    scene.proxy.wait_for_line("realpeer's own listener");
    near.send(&[&header_to(CLIENT, BACKEND).bytes(), &b"straight"[..]].concat())
        .unwrap();
    scene.expect(CLIENT, b"straight");
}

#[test]
fn a_client_has_one_flow_however_many_sockets_and_listeners_there_are() {
    let scene = Scene::new(&["-listeners", "4", "-workers", "2"]);
    for client in [CLIENT, CLIENT6, "203.0.113.200:53", "[2001:db8:c::99]:1"] {
        let sockets: Vec<UdpSocket> = (0..16).map(|_| scene.socket()).collect();
        for near in &sockets {
            // Its own port each time: a second flow would have to take another one.
            scene.converse(near, client);
        }
        let backend = if addr(client).is_ipv4() {
            &scene.backend
        } else {
            &scene.backend6
        };
        scene.pass(&sockets[5], client, b"newest");
        backend.send_to(b"to the newest", addr(client)).unwrap();
        assert_eq!(receive(&sockets[5]).0, b"to the newest");
    }
}

#[test]
fn several_listeners_share_the_clients() {
    // Each listener may hold two flows, so that the open ones tell how many listeners work.
    let scene = Scene::new(&["-listeners", "4", "-workers", "2", "-max-flows", "8"]);
    let near = scene.socket();
    for i in 0..64 {
        scene.converse(&near, &format!("203.0.113.{i}:{}", 5000 + i));
    }
    scene.proxy.signal(Signal::SIGTERM);
    let line = scene.proxy.wait_for_line("stopping");
    assert!(line.contains(r#""open":8"#), "{line}");
}

#[test]
fn runs_keep_their_order_and_their_boundaries() {
    let scene = Scene::new(&[]);
    let near = scene.socket();
    let sizes = [
        100, 100, 100, 40, 100, 0, 0, 100, 1400, 1400, 1400, 3000, 3000, 1, 1, 1, 2, 1,
    ];
    let payload = |i: usize| vec![i as u8; sizes[i]];
    for i in 0..sizes.len() {
        near.send(&every(CLIENT, &payload(i))).unwrap();
    }
    for i in 0..sizes.len() {
        scene.expect(CLIENT, &payload(i));
    }
    for i in 0..sizes.len() {
        scene.backend.send_to(&payload(i), addr(CLIENT)).unwrap();
    }
    for i in 0..sizes.len() {
        assert_eq!(receive(&near).0, payload(i));
    }
}

#[test]
fn glued_datagrams_are_taken_apart() {
    for flags in [&[][..], &["-listeners", "2"]] {
        let scene = Scene::new(flags);
        let near = scene.socket();
        // One sendmsg, which the kernel cuts on this wire's far side: three clients' datagrams.
        let clients = [CLIENT, OTHER, "203.0.113.9:40000"];
        let whole: Vec<u8> = (0..30)
            .flat_map(|i| every(clients[i % 3], &[i as u8; 100]))
            .collect();
        let size = every(CLIENT, &[0; 100]).len();
        nix::sys::socket::setsockopt(
            &near,
            nix::sys::socket::sockopt::UdpGsoSegment,
            &(size as i32),
        )
        .unwrap();
        near.send(&whole).unwrap();
        let mut seen: Vec<(u8, String)> = (0..30)
            .map(|_| {
                let (payload, from) = receive(&scene.backend);
                assert_eq!(payload.len(), 100);
                (payload[0], from.ip().to_string())
            })
            .collect();
        seen.sort();
        let expected: Vec<(u8, String)> = (0..30)
            .map(|i| (i as u8, addr(clients[i % 3]).ip().to_string()))
            .collect();
        assert_eq!(seen, expected);
        // A backend that sends runs is read in runs.
        nix::sys::socket::setsockopt(
            &scene.backend,
            nix::sys::socket::sockopt::UdpGsoSegment,
            &50,
        )
        .unwrap();
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::UdpGsoSegment, &0).unwrap();
        let from = scene.pass(&near, "203.0.113.77:7", b"please");
        let run: Vec<u8> = (0..20).flat_map(|i| [i; 50]).collect();
        scene.backend.send_to(&run[..20 * 50 - 9], from).unwrap();
        for i in 0..20_u8 {
            let len = if i == 19 { 41 } else { 50 };
            assert_eq!(receive(&near).0, vec![i; len]);
        }
    }
}

#[test]
fn a_listener_that_cannot_be_bound_is_told() {
    let scene = Scene::new(&[]);
    let mut second =
        support::Program::Realpeer.spawn(&[], &scene.server, &["-p", "udp", "-l", "0.0.0.0:2222"]);
    assert_eq!(second.exit_code(), 1);
    second.wait_for_error("cannot listen on 0.0.0.0:2222");
    drop(start(&scene.server, &["-l", "0.0.0.0:2223"]));
}
