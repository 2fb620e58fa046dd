//! The PROXY header on a TCP connection: any split, any length, nothing guessed, nothing let
//! through early.

mod support;

use std::net::TcpStream;

use support::header::{self, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{
    assert_carries, assert_closed, finish_sending, has_ended, receive, receive_all, send,
};
use support::{Session, Stage, addr, vitals, wait_until};

/// For headers that come slowly on a loaded machine, and to show that a close waited for nothing.
const PATIENT: [&str; 2] = ["-header-timeout", "1h"];

#[test]
fn a_v1_header_may_be_split_anywhere() {
    let stage = Stage::new(&PATIENT);
    split_everywhere(&stage, |port| v1(&format!("203.0.113.7:{port}"), VISITED));
}

#[test]
fn a_v2_header_may_be_split_anywhere() {
    let stage = Stage::new(&PATIENT);
    split_everywhere(&stage, |port| {
        v2(&format!("203.0.113.7:{port}"), VISITED)
            .tlv(header::AUTHORITY, b"example")
            .checksum()
            .bytes()
    });
}

/// Sends the header that `header` makes for a port in two pieces, cut before every byte.
#[track_caller]
fn split_everywhere(stage: &Stage, header: impl Fn(u16) -> Vec<u8>) {
    for cut in 1..header(40_000).len() {
        let port = 40_000 + cut as u16;
        let header = header(port);
        let near = stage.dial_and_send(&header[..cut]);
        stage.wait_until_read(&near);
        send(&near, &header[cut..]);
        assert_eq!(
            stage.backend.accept().1,
            addr(&format!("203.0.113.7:{port}")),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let stage = Stage::new(&PATIENT);
    for header in [v1(CLIENT, VISITED), v2(CLIENT6, VISITED6).bytes()] {
        let near = stage.dial();
        near.set_nodelay(true).expect("set TCP_NODELAY");
        for byte in &header {
            send(&near, [*byte]);
            stage.wait_until_read(&near);
        }
    }
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
    assert_eq!(stage.backend6.accept().1, addr(CLIENT6));
}

#[test]
fn bytes_behind_the_header_reach_the_backend_first_and_in_order() {
    let stage = Stage::new(&[]);
    let body: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    for (header, client) in [
        (v1(CLIENT, VISITED), CLIENT),
        (
            v2("203.0.113.8:40000", VISITED).checksum().bytes(),
            "203.0.113.8:40000",
        ),
    ] {
        // One write: the kernel may hand the proxy header and data in one piece.
        let whole = [header.as_slice(), &body].concat();
        let near = stage.dial();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&near, &whole);
                finish_sending(&near);
            });
            let (far, from) = stage.backend.accept();
            assert_eq!(from, addr(client));
            assert!(receive_all(&far) == body, "the bytes differ");
        });
    }
}

#[test]
fn the_longest_v2_header_is_read() {
    let stage = Stage::new(&[]);
    let header = v2(CLIENT, VISITED).fill_to(u16::MAX).bytes();
    assert_eq!(header.len(), 16 + 65_535);
    let near = stage.dial_and_send([&header, b"hello".as_slice()].concat());
    let (far, from) = stage.backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_eq!(receive(&far, 5), b"hello");
    assert_carries(&near, &far);
}

#[test]
fn nothing_reaches_the_backend_before_the_header_is_whole() {
    let stage = Stage::new(&PATIENT);
    let header = v2(CLIENT, VISITED).tlv(header::NOOP, b"padding").bytes();
    let (last, rest) = header.split_last().expect("a header has bytes");
    let near = stage.dial_and_send(rest);
    stage.wait_until_read(&near);
    // One who came later and is served shows that there was time to connect for the first.
    let _later = stage.session("203.0.113.8:40000");
    stage.backend.assert_idle();
    send(&near, [*last]);
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

#[test]
fn the_checksum_is_checked() {
    let stage = Stage::new(&[]);
    let good = v2(CLIENT, VISITED)
        .tlv(header::AUTHORITY, b"example")
        .checksum();
    for position in [16, 30, good.bytes().len() - 1] {
        let mut bad = good.bytes();
        bad[position] ^= 1;
        assert_closed(&stage.dial_and_send(bad));
    }
    stage.backend.assert_idle();
    // It covers what follows it, too.
    let _near = stage.dial_and_send(good.bytes());
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

#[test]
fn a_checksum_in_the_middle_covers_the_whole_header() {
    let stage = Stage::new(&[]);
    let head = v2(CLIENT, VISITED)
        .tlv(header::CRC32C, &[0; 4])
        .tlv(header::NOOP, b"behind it")
        .bytes();
    let mut good = head.clone();
    good[31..35].copy_from_slice(&crc32c::crc32c(&head).to_be_bytes());
    let mut bad = good.clone();
    *bad.last_mut().expect("a header has bytes") ^= 1;
    assert_closed(&stage.dial_and_send(bad));
    stage.backend.assert_idle();
    let _near = stage.dial_and_send(good);
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

#[test]
fn a_tlv_that_runs_past_the_header_ends_the_connection() {
    let stage = Stage::new(&PATIENT);
    for tail in [
        [header::NOOP, 0, 1].as_slice(),
        &[header::AUTHORITY, 0xFF, 0xFF, 1],
        &[0xEA, 0],
        &[0xEA],
    ] {
        assert_closed(&stage.dial_and_send(v2(CLIENT, VISITED).raw(tail).bytes()));
    }
    stage.backend.assert_idle();
}

#[test]
fn unknown_tlvs_are_skipped() {
    let stage = Stage::new(&[]);
    let header = v2(CLIENT, VISITED)
        .tlv(0x77, b"what")
        .tlv(0xF8, b"")
        .tlv(header::AWS, b"\x01vpce-1");
    let _near = stage.dial_and_send(header.bytes());
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

#[test]
fn a_header_without_a_client_gives_the_load_balancers_own_address() {
    let stage = Stage::new(&[]);
    let unix = [b"/run/client".as_slice(), &[0; 205], b"not a TLV"].concat();
    // In these the announced length is skipped; nothing in it is walked.
    let headers = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".to_vec(),
        b"PROXY UNKNOWN and more words than a header may have, none of them read\r\n".to_vec(),
        V2::new(header::LOCAL, header::UNSPEC, vec![]).bytes(),
        V2::new(header::LOCAL, header::INET | header::STREAM, vec![]).bytes(),
        V2::new(header::LOCAL, header::INET | header::STREAM, vec![0xFF; 12]).bytes(),
        V2::new(
            header::LOCAL,
            header::INET6 | header::DGRAM,
            b"not a TLV".to_vec(),
        )
        .bytes(),
        V2::new(header::LOCAL, 0x77, vec![0xFF; 60_000]).bytes(),
        V2::new(header::PROXY, header::UNSPEC, vec![]).bytes(),
        V2::new(
            header::PROXY,
            header::UNSPEC | header::STREAM,
            b"not a TLV".to_vec(),
        )
        .bytes(),
        V2::new(header::PROXY, header::UNIX | header::STREAM, vec![0; 216]).bytes(),
        V2::new(header::PROXY, header::UNIX | header::STREAM, unix).bytes(),
    ];
    for header in headers {
        let near = stage.dial_and_send([&header, b"hello".as_slice()].concat());
        let (far, from) = stage.backend.accept();
        assert_eq!(
            from,
            own(&near),
            "after {:?}",
            String::from_utf8_lossy(&header)
        );
        assert_eq!(receive(&far, 5), b"hello");
    }
}

#[test]
fn without_a_client_the_load_balancers_family_chooses_the_target() {
    let stage = Stage::new(&["-l", "[::]:2222"]);
    let near = stage.balancer.dial("[2001:db8::10]:2222");
    send(&near, "PROXY UNKNOWN\r\n");
    assert_eq!(stage.backend6.accept().1, own(&near));

    // Over IPv4 its address comes to the dual-stack listener in IPv6 form.
    let near = stage.dial_and_send("PROXY UNKNOWN\r\n");
    assert_eq!(stage.backend.accept().1, own(&near));
}

fn own(near: &TcpStream) -> std::net::SocketAddr {
    near.local_addr().expect("our own address")
}

#[test]
fn an_ipv4_client_in_ipv6_form_is_an_ipv4_client() {
    let stage = Stage::new(&[]);
    let mapped = "[::ffff:203.0.113.7]:40000";
    for header in [
        v1(mapped, "[::ffff:198.51.100.1]:22"),
        v2(mapped, "[::ffff:198.51.100.1]:22").bytes(),
    ] {
        let near = stage.dial_and_send(header);
        let (far, from) = stage.backend.accept();
        assert_eq!(from, addr(CLIENT));
        // The same claim comes again, so this one must have gone.
        drop(near);
        assert_eq!(receive_all(&far), b"");
        drop(far);
        wait_until("the connection is gone", || {
            stage.server.established(9000) == 0
        });
    }
}

#[test]
fn all_ports_are_legal() {
    let stage = Stage::new(&[]);
    for port in [1, 80, 65_535] {
        stage.session(&format!("203.0.113.7:{port}"));
    }
    // No port is known: the address counts, with whatever port is free.
    let _near = stage.dial_and_send(v1("203.0.113.7:0", "198.51.100.1:0"));
    assert_eq!(stage.backend.accept().1.ip(), addr(CLIENT).ip());
}

#[test]
fn a_bad_header_is_closed_at_once_without_waiting_for_more() {
    let stage = Stage::new(&PATIENT);
    let long = format!("PROXY UNKNOWN {}", "x".repeat(93));
    assert_eq!(long.len(), 107);
    let mut bad: Vec<Vec<u8>> = [
        "G",
        "\r\nP",
        "PROXX",
        "proxy",
        "PROXY UDP4",
        "PROXY  TCP4",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000 22\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000 22\rx",
        "PROXY TCP4  203.0.113.7 198.51.100.1 40000 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 040000 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 +40000 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 -1 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 65536 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000 22 \r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000 22 x\r\n",
        "PROXY TCP4 203.0.113.07 198.51.100.1 40000 22\r\n",
        "PROXY TCP4 2001:db8::7 198.51.100.1 40000 22\r\n",
        "PROXY TCP6 203.0.113.7 198.51.100.1 40000 22\r\n",
        "PROXY TCP4 localhost 198.51.100.1 40000 22\r\n",
        "PROXY TCP4 203.0.113.7 999.51.100.1 40000 22\r\n",
        "PROXY TCP4 203.0.113.7 198.51.100.1 40000 65536\r\n",
        "PROXY TCP6 fe80::7%lo 2001:db8::1 40000 22\r\n",
        "PROXY TCP6 2001:db8::7::1 2001:db8::1 40000 22\r\n",
        &long,
    ]
    .map(Vec::from)
    .to_vec();
    let addresses = || header::addresses(addr(CLIENT), addr(VISITED));
    // Version 1, a command beyond PROXY, a wrong transport, an unknown family.
    for (command, family) in [
        (0x11, 0x11),
        (0x22, 0x11),
        (0x21, 0x12),
        (0x21, 0x13),
        (0x21, 0x41),
    ] {
        bad.push(V2::new(command, family, addresses()).bytes());
    }
    // The version is wrong before the length is there.
    bad.push([header::SIGNATURE.as_slice(), &[0x31]].concat());
    // Addresses that do not fit into the announced length.
    bad.push(
        V2::new(header::PROXY, header::INET | header::STREAM, addresses())
            .announce(11)
            .bytes(),
    );
    bad.push(V2::new(header::PROXY, header::INET6 | header::STREAM, vec![0; 35]).bytes());
    bad.push(V2::new(header::PROXY, header::UNIX | header::STREAM, vec![0; 215]).bytes());

    for header in &bad {
        let near = stage.dial_and_send(header);
        let what = String::from_utf8_lossy(header).into_owned();
        wait_until(&format!("{what:?} is closed"), || has_ended(&near));
    }
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
}

#[test]
fn a_peer_that_closes_in_the_middle_of_its_header_reaches_nobody() {
    let stage = Stage::new(&[]);
    for piece in [
        b"".to_vec(),
        b"PROXY TCP4".to_vec(),
        v2(CLIENT, VISITED).bytes()[..20].to_vec(),
    ] {
        let near = stage.dial_and_send(&piece);
        finish_sending(&near);
        assert_closed(&near);
    }
    stage.backend.assert_idle();
}

#[test]
fn a_header_must_come_in_time() {
    let stage = Stage::new(&["-header-timeout", "300ms", "-v", "1"]);
    // Nothing at all, and half of one.
    assert_closed(&stage.dial());
    assert_closed(&stage.dial_and_send("PROXY TCP4 203.0.113.7"));
    stage.backend.assert_idle();
}

#[test]
fn thousands_of_silent_peers_cost_little_memory() {
    const PEERS: usize = 2_000;
    // A page each; the kernel's share of a connection is not counted.
    const MOST: usize = PEERS * 4096;
    vitals::allow_many_descriptors();
    let stage = Stage::new(&PATIENT);
    stage.assert_serves();
    let before = vitals::memory(&stage.proxy);
    let half_a_header = &v2(CLIENT, VISITED).fill_to(1_000).bytes()[..500];
    let mut peers = Vec::new();
    for number in 0..PEERS {
        let near = stage.dial();
        if number % 2 == 0 {
            send(&near, half_a_header);
        }
        peers.push(near);
    }
    wait_until("all are taken", || {
        vitals::descriptors(&stage.proxy) >= PEERS
    });
    stage.wait_until_read(peers.last().expect("there are peers"));
    stage.assert_serves();
    let grown = vitals::memory(&stage.proxy).saturating_sub(before);
    assert!(grown < MOST, "{PEERS} silent peers cost {grown} bytes");
}

#[test]
fn a_session_outlives_the_header_timeout() {
    let stage = Stage::new(&["-header-timeout", "2s"]);
    let Session { near, far } = stage.session(CLIENT);
    // A peer that comes later is closed for its silence; by then the session's time has run too.
    assert_closed(&stage.dial());
    assert_carries(&near, &far);
}
