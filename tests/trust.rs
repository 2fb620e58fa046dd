//! Who may speak, whom they may claim to be, and where they may be sent.

mod support;

use std::fmt::Write;

use support::header::{self, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, OTHER_BALANCER, PROXY, VISITED};
use support::streams::{assert_carries, assert_closed, assert_turned_away, send};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

#[test]
fn the_subnets_file_takes_prefixes_addresses_and_comments() {
    let directory = TempDir::new();
    let file = directory.file(
        "subnets",
        "# load balancers\n\n  192.0.2.6   # the second one\n2001:db8::6#the same\n\t198.51.100.0/24\n2001:db8:1::/48\r\n",
    );
    let stage = Stage::new(&["-l", "[::]:2222", "-allowed-subnets", &file]);
    for (from, to, client) in [
        // An IPv4 rule counts for a peer that a dual-stack listener shows in IPv6 form.
        (OTHER_BALANCER, PROXY, CLIENT),
        ("[2001:db8::6]:0", "[2001:db8::10]:2222", CLIENT6),
    ] {
        let near = stage.balancer.dial_from(from, to);
        stage.introduce(&near, client);
    }
    assert_turned_away(stage.balancer.try_dial(Some("192.0.2.5:0"), PROXY));
    assert_turned_away(
        stage
            .balancer
            .try_dial(Some("[2001:db8::5]:0"), "[2001:db8::10]:2222"),
    );
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
}

#[test]
fn a_bad_line_in_the_subnets_file_is_named() {
    let directory = TempDir::new();
    for bad in [
        "192.0.2.0/33",
        "2001:db8::/129",
        "192.0.2",
        "192.0.2.1 192.0.2.2",
        "load-balancer",
        "192.0.2.0/",
    ] {
        let file = directory.file(
            "subnets",
            &format!("# first\n192.0.2.0/24\n{bad}\n192.0.3.0/24\n"),
        );
        let ended = Program::Realpeer.run(&Host::new("host"), &["-allowed-subnets", &file]);
        assert_eq!(ended.code, 1, "{bad}");
        let said = &ended.stderr;
        assert!(said.contains(&file), "{said}");
        assert!(said.contains(":3") || said.contains("line 3"), "{said}");
    }
}

#[test]
fn a_subnets_file_that_names_nobody_is_refused() {
    let directory = TempDir::new();
    for (name, content) in [("empty", ""), ("comments", "# nobody yet\n\n   \n#\n")] {
        let file = directory.file(name, content);
        let ended = Program::Realpeer.run(&Host::new("host"), &["-allowed-subnets", &file]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(&file), "{}", ended.stderr);
    }
}

#[test]
fn an_unreadable_subnets_file_is_refused() {
    for path in ["/no/such/file", "/proc/self/mem", "/tmp"] {
        let ended = Program::Realpeer.run(&Host::new("host"), &["-allowed-subnets", path]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(path), "{}", ended.stderr);
    }
}

#[test]
fn without_a_subnets_file_one_warning_is_given() {
    let warnings = |stage: &Stage| {
        stage.proxy.wait_for_line("\"msg\":\"listening\"");
        stage.session(CLIENT);
        let lines = stage.proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("\"level\":\"WARN\""))
            .cloned()
            .collect::<Vec<_>>()
    };
    let loud = warnings(&Stage::new(&[]));
    assert_eq!(loud.len(), 1, "{loud:?}");
    assert!(loud[0].contains("-allowed-subnets"), "{loud:?}");

    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.0/24\n");
    let quiet = warnings(&Stage::new(&["-allowed-subnets", &file]));
    assert_eq!(quiet, Vec::<String>::new());
}

#[test]
fn thousands_of_subnets_are_looked_up_rightly() {
    let directory = TempDir::new();
    let mut rules = String::new();
    for number in 0..60_000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        // 192.0.2.0/24, which holds the load balancer, is not among 11.x.y.0/24; 192.0.2.6 is added.
        writeln!(rules, "11.{high}.{low}.0/24").expect("write to a string");
    }
    rules.push_str("192.0.2.6\n");
    let file = directory.file("subnets", &rules);
    let stage = Stage::new(&["-allowed-subnets", &file]);
    let near = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
    stage.introduce(&near, CLIENT);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
}

#[test]
fn a_peer_that_is_not_allowed_is_closed_before_it_speaks() {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.6\n");
    let stage = Stage::new(&["-allowed-subnets", &file, "-header-timeout", "1h"]);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
}

#[test]
fn without_a_client_the_peer_alone_is_judged() {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.6\n");
    let stage = Stage::new(&["-allowed-subnets", &file]);
    // What a LOCAL header holds counts for nothing: no loopback client is claimed here.
    let block = header::addresses(addr("127.0.0.1:1"), addr("127.0.0.1:2"));
    let local = V2::new(header::LOCAL, header::INET | header::STREAM, block);
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), local.bytes()] {
        let near = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
        send(&near, &header);
        assert_eq!(
            stage.backend.accept().1,
            near.local_addr().expect("our own address")
        );
        assert_turned_away(stage.balancer.try_dial(None, PROXY));
    }
    stage.backend.assert_idle();
}

/// Addresses that no client on the Internet has, with the destination of the same family.
const BOGUS: [(&str, &str); 11] = [
    ("127.0.0.1:40000", VISITED),
    ("127.255.255.254:40000", VISITED),
    ("0.0.0.0:40000", VISITED),
    ("224.0.0.1:40000", VISITED),
    ("239.255.255.255:40000", VISITED),
    ("255.255.255.255:40000", VISITED),
    ("[::1]:40000", "[2001:db8:b::1]:22"),
    ("[::]:40000", "[2001:db8:b::1]:22"),
    ("[ff02::1]:40000", "[2001:db8:b::1]:22"),
    ("[::ffff:127.0.0.1]:40000", "[2001:db8:b::1]:22"),
    ("[::ffff:224.0.0.1]:40000", "[2001:db8:b::1]:22"),
];

#[test]
fn nobody_elsewhere_may_claim_an_address_that_no_client_has() {
    let stage = Stage::new(&["-v", "1"]);
    for (client, visited) in BOGUS {
        for header in [v1(client, visited), v2(client, visited).bytes()] {
            assert_closed(&stage.dial_and_send(header));
        }
        // The refusal says whom it was about, in whichever form of a mapped address.
        let shown = client.replace("[::ffff:", "").replace("]:", ":");
        stage
            .proxy
            .wait_for(&format!("refusal of {client}"), |line| {
                line.contains("\"level\":\"WARN\"")
                    && (line.contains(client) || line.contains(&shown))
            });
    }
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
}

#[test]
fn a_peer_on_this_host_may_claim_a_loopback_address() {
    let stage = Stage::new(&["-l", "[::]:2222"]);
    let near = stage.server.dial("127.0.0.1:2222");
    send(&near, v1("127.0.0.5:40000", VISITED));
    let (far, from) = stage.backend.accept();
    assert_eq!(from, addr("127.0.0.5:40000"));
    assert_carries(&near, &far);

    let near = stage.server.dial("[::1]:2222");
    send(&near, v1("[::1]:40000", "[2001:db8:b::1]:22"));
    assert_eq!(stage.backend6.accept().1, addr("[::1]:40000"));
}

#[test]
fn a_peer_on_this_host_that_uses_another_of_its_addresses_is_a_stranger() {
    let stage = Stage::new(&[]);
    let near = stage.server.dial(PROXY);
    send(&near, v1("127.0.0.5:40000", VISITED));
    assert_closed(&near);
    stage.backend.assert_idle();
}

#[test]
fn the_headers_destination_is_used_when_asked_for() {
    let stage = Stage::new(&["-dynamic-destination"]);
    let other = Backend::listen(&stage.server, "127.0.0.9:7000");
    let other6 = Backend::listen(&stage.server, "[::1]:7000");
    let near = stage.dial_and_send(v1(CLIENT, "127.0.0.9:7000"));
    let (far, from) = other.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
    let _near = stage.dial_and_send(v2(CLIENT6, "[::1]:7000").bytes());
    assert_eq!(other6.accept().1, addr(CLIENT6));
    stage.backend.assert_idle();
}

#[test]
fn a_header_without_a_destination_goes_to_the_flags_target() {
    let stage = Stage::new(&["-dynamic-destination"]);
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        V2::new(header::LOCAL, header::UNSPEC, vec![]).bytes(),
    ] {
        let near = stage.dial_and_send(header);
        assert_eq!(
            stage.backend.accept().1,
            near.local_addr().expect("our own address")
        );
    }
}

#[test]
fn the_flags_target_counts_when_the_headers_destination_is_not_asked_for() {
    let stage = Stage::new(&["-dynamic-destination=false"]);
    let other = Backend::listen(&stage.server, "127.0.0.9:7000");
    let _near = stage.dial_and_send(v1(CLIENT, "127.0.0.9:7000"));
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
    other.assert_idle();
}

#[test]
fn the_listener_itself_is_refused_as_a_dynamic_destination() {
    // A connection that loops is silent, and must not be closed for that.
    let flags = [
        "-l",
        "[::]:2222",
        "-dynamic-destination",
        "-v",
        "1",
        "-header-timeout",
        "1h",
    ];
    let stage = Stage::new(&flags);
    for (client, own) in [
        (CLIENT, PROXY),
        (CLIENT, "127.0.0.1:2222"),
        (CLIENT, "127.8.8.8:2222"),
        (CLIENT, "0.0.0.0:2222"),
        (CLIENT6, "[::1]:2222"),
        (CLIENT6, "[2001:db8::10]:2222"),
        (CLIENT6, "[::]:2222"),
        ("[::ffff:203.0.113.7]:40000", "[::ffff:127.0.0.1]:2222"),
    ] {
        for header in [v1(client, own), v2(client, own).bytes()] {
            assert_closed(&stage.dial_and_send(header));
            wait_until("no connection is left", || {
                stage.server.established(2222) == 0
            });
        }
    }
    // One that loops makes the proxy its own peer; no line may tell of such a one.
    let looped = |line: &String| line.contains("\"frontendRemoteAddr\":\"203.0.113.7");
    assert!(
        !stage.proxy.stdout().iter().any(looped),
        "{:?}",
        stage.proxy.stdout()
    );
    let _near = stage.dial_and_send(v1(CLIENT, "127.0.0.1:9000"));
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

#[test]
fn the_listener_itself_is_refused_as_the_flags_target() {
    for flags in [
        ["-l", "0.0.0.0:2222", "-4", "127.0.0.1:2222"],
        ["-l", "127.0.0.1:2222", "-4", "127.0.0.1:2222"],
        ["-l", "[::]:2222", "-4", "127.0.0.1:2222"],
        ["-l", "[::]:2222", "-6", "[::1]:2222"],
    ] {
        let ended = Program::Realpeer.run(&Host::new("host"), &flags);
        assert_eq!(ended.code, 1, "{flags:?}");
        assert!(ended.stderr.contains(flags[3]), "{}", ended.stderr);
    }
}

#[test]
fn the_listener_itself_is_refused_as_a_target_that_was_not_asked_for() {
    // -4 and -6 have defaults, which here are the listener: it may serve the other family.
    let server = Host::new("server");
    let backend = Backend::listen(&server, "[::1]:9000");
    // A connection that loops is silent, and must not be closed for that.
    let flags = [
        "-l",
        "0.0.0.0:443",
        "-6",
        "[::1]:9000",
        "-header-timeout",
        "1h",
    ];
    let _proxy = Program::Realpeer.start(&server, &flags);
    let near = server.dial("127.0.0.1:443");
    send(&near, v1(CLIENT, VISITED));
    assert_closed(&near);
    wait_until("no connection is left", || server.established(443) == 0);
    let near = server.dial("127.0.0.1:443");
    send(&near, v1(CLIENT6, "[2001:db8:b::1]:22"));
    assert_eq!(backend.accept().1, addr(CLIENT6));
}
