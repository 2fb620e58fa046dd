//! Memory asked for by datagrams, counted: the proxy runs inside the test's own process, and neither
//! the load balancer nor the backend that the test plays allocates while it counts.

mod support;

use std::alloc::System;
use std::io::{self, BufReader};
use std::net::{SocketAddr, UdpSocket};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::ctl::ask;
use support::datagrams::{BACKEND, BACKEND_V6, PROXY, every, header, open, spp};
use support::header::{
    AWS, CRC32C, DGRAM, INET, LOCAL, PROXY as COMMAND, UNIQUE_ID, UNSPEC, V2, v2,
};
use support::program::start_here;
use support::stage::{CLIENT, CLIENT6, VISITED, wire};
use support::{Ctl, Host, TempDir, addr, wait_until};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Datagrams in a series.
const TIMES: usize = 300;

/// Those in flight at once in a burst.
const BURST: usize = 32;

const BANNED: &str = "203.0.113.66:40000";

// One test, because the count is the whole process's.
#[test]
fn a_datagram_allocates_nothing() {
    style_every();
    style_first();
    style_spp();
    limits_and_untrusted_peers();
    a_backend_at_the_listeners_port();
}

fn style_every() {
    let files = TempDir::new();
    let balancers = files.file("balancers", "192.0.2.5\n");
    let ctl = Ctl::new();
    let scene = Scene::new(&["-allowed-subnets", &balancers, "-control", &ctl.path()]);
    let near = scene.socket("192.0.2.5:0");
    let plain = every(CLIENT, b"payload");
    scene.count_passing("in style every", &near, &plain, b"payload");
    scene.count_passing("that is empty", &near, &every(CLIENT, b""), b"");
    let tlvs = header(CLIENT)
        .tlv(UNIQUE_ID, &[7; 16])
        .tlv(AWS, b"\x01vpce-08d2bf15fac5001c9")
        .checksum();
    let tlvs = [&tlvs.bytes(), &b"payload"[..]].concat();
    scene.count_passing("with TLVs", &near, &tlvs, b"payload");
    let check = V2::new(LOCAL, UNSPEC, Vec::new()).bytes();
    let check = [&check, &b"alive?"[..]].concat();
    scene.count_passing("of the load balancer itself", &near, &check, b"alive?");

    let cut = every(CLIENT, b"").len() - 1;
    let wrong = |command, family| V2::new(command, family, vec![0; 12]).bytes();
    for (what, bad) in [
        ("without a header", b"GET / HTTP/1.1".to_vec()),
        ("without anything", Vec::new()),
        ("with half a header", plain[..cut].to_vec()),
        ("of version 3", wrong(0x31, INET | DGRAM)),
        ("with an unknown command", wrong(0x22, INET | DGRAM)),
        ("of an unknown family", wrong(COMMAND, 0x40 | DGRAM)),
        ("of an unknown transport", wrong(COMMAND, INET | 3)),
        ("of TCP", v2(CLIENT, VISITED).bytes()),
        (
            "with a wrong checksum",
            header(CLIENT).tlv(CRC32C, &[1; 4]).bytes(),
        ),
        (
            "with a TLV that lies",
            header(CLIENT).raw(&[4, 0, 9]).bytes(),
        ),
        ("of a bogus client", every("127.0.0.1:1", b"trust me")),
        (
            "whose backend is down",
            every(CLIENT6, b"is anybody there?"),
        ),
    ] {
        scene.count_refused(what, &near, &bad, &near, &plain);
    }
    let stranger = scene.socket("192.0.2.6:0");
    scene.count_refused("of a stranger", &stranger, &plain, &near, &plain);
    let ban = r#"{"do":"ban","network":"203.0.113.66","reason":"because of a test"}"#;
    assert_eq!(ask(&mut BufReader::new(ctl.connect()), ban)["ok"], true);
    let banned = every(BANNED, b"let me in");
    scene.count_refused("of a banned client", &near, &banned, &near, &plain);
}

fn style_first() {
    let scene = Scene::new(&["-udp-header", "first"]);
    let near = scene.socket("192.0.2.5:0");
    scene.exchange(&near, &every(CLIENT, b"hello"), b"hello", 1);
    scene.count_passing("in style first", &near, b"payload", b"payload");
    scene.count_passing("that is empty, in style first", &near, b"", b"");
}

fn style_spp() {
    let scene = Scene::new(&["-udp-header", "spp"]);
    let near = scene.socket("192.0.2.5:0");
    let good = spp(CLIENT, VISITED, b"payload");
    scene.count_passing("in style spp", &near, &good, b"payload");
    let empty = spp(CLIENT, VISITED, b"");
    scene.count_passing("that is empty, in style spp", &near, &empty, b"");
    for (what, bad) in [
        ("with half an SPP header", &good[..37]),
        ("without SPP", b"?"),
    ] {
        scene.count_refused(what, &near, bad, &near, &good);
    }
}

fn limits_and_untrusted_peers() {
    let files = TempDir::new();
    let balancers = files.file("balancers", "192.0.2.5\n");
    let trust = ["-allowed-subnets", &balancers, "-untrusted", "serve"];
    let limits = ["-max-connections-per-client", "1"];
    let rate = ["-connection-rate-per-client", "2/h"];
    let scene = Scene::new(&[&trust[..], &limits, &rate].concat());
    let near = scene.socket("192.0.2.5:0");
    let plain = every(CLIENT, b"payload");
    scene.count_passing("of a client with limits", &near, &plain, b"payload");
    let second = every("203.0.113.7:40001", b"too many");
    scene.count_refused("of a client at its limit", &near, &second, &near, &plain);
    let stranger = scene.socket("192.0.2.6:0");
    scene.count_passing("of a peer as itself", &stranger, &plain, &plain);
    let again = scene.socket("192.0.2.6:0");
    scene.count_refused("of a peer at its limit", &again, &plain, &near, &plain);
}

/// It could be the listener itself, if its address were this host's: that is looked up by asking
/// the kernel for all addresses, which must not happen for each datagram.
fn a_backend_at_the_listeners_port() {
    let scene = Scene::new(&["-l", "0.0.0.0:2222", "-4", "192.0.2.6:2222"]);
    let near = scene.socket("192.0.2.5:0");
    let far = open(&scene.balancer, "192.0.2.6:2222");
    // One way only: answers would need a route to the client.
    let client = every("192.0.2.77:40000", b"payload");
    count("to a backend at the listener's port", 1, || {
        near.send(&client).expect("send to the proxy");
        assert_eq!(receive(&far, b"payload"), addr("192.0.2.77:40000"));
    });
}

/// A load balancer and a server, whose proxy runs in this process.
struct Scene {
    balancer: Host,
    backend: UdpSocket,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let (balancer, server) = wire();
        let backend = open(&server, BACKEND);
        let fixed = [
            "-p", "udp", "-l", PROXY, "-4", BACKEND, "-6", BACKEND_V6, "-control", "off",
        ];
        server.enter(|| start_here(&[&fixed, flags].concat()));
        wait_until("the proxy listens", || {
            !server.run(&["ss", "-Huan", "sport = :2222"]).is_empty()
        });
        Scene { balancer, backend }
    }

    fn socket(&self, from: &str) -> UdpSocket {
        let socket = open(&self.balancer, from);
        socket.connect(addr(PROXY)).expect("connect a UDP socket");
        socket
    }

    /// Counts while datagrams pass both ways, one by one and in bursts.
    fn count_passing(&self, what: &str, near: &UdpSocket, datagram: &[u8], payload: &[u8]) {
        count(what, 1, || self.exchange(near, datagram, payload, 1));
        count(what, BURST, || {
            self.exchange(near, datagram, payload, BURST)
        });
    }

    /// Counts while datagrams come that are refused, each with a good one behind it, whose answer
    /// tells that the refused one was seen.
    fn count_refused(
        &self,
        what: &str,
        from: &UdpSocket,
        bad: &[u8],
        near: &UdpSocket,
        good: &[u8],
    ) {
        count(what, 1, || {
            from.send(bad).expect("send to the proxy");
            self.exchange(near, good, b"payload", 1);
        });
    }

    /// Some datagrams of one kind each way; the backend answers with what it got.
    fn exchange(&self, near: &UdpSocket, datagram: &[u8], payload: &[u8], times: usize) {
        let mut from = None;
        for _ in 0..times {
            near.send(datagram).expect("send to the proxy");
        }
        for _ in 0..times {
            from = Some(receive(&self.backend, payload));
        }
        let from = from.expect("it was once at least");
        for _ in 0..times {
            self.backend.send_to(payload, from).expect("answer");
        }
        for _ in 0..times {
            receive(near, payload);
        }
    }
}

/// Counts what is asked for while `one` lets some datagrams through, again and again.
fn count(what: &str, at_once: usize, mut one: impl FnMut()) {
    let mut series = || (0..TIMES.div_ceil(at_once)).for_each(|_| one());
    // The first ones may fetch what stays: a flow, room in tables.
    series();
    // What the proxy does besides (watching routes, a line of the log) may fall into one series,
    // but not into all of them, as what a datagram asks for would.
    let asked = (0..5).map(|_| {
        let region = Region::new(ALLOCATOR);
        series();
        let change = region.change();
        change.allocations + change.reallocations
    });
    let asked = asked.min().unwrap_or_default();
    assert_eq!(
        asked, 0,
        "allocations for {TIMES} datagrams {what}, {at_once} at once"
    );
}

/// Takes the next datagram, whose payload this must be, and tells who sent it.
fn receive(socket: &UdpSocket, payload: &[u8]) -> SocketAddr {
    let mut buffer = [0; 256];
    loop {
        match socket.recv_from(&mut buffer) {
            // As in `support::datagrams::receive`, which would allocate.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => panic!("no datagram came: {e}"),
            Ok((len, from)) => {
                assert!(buffer[..len].ends_with(payload), "another datagram came");
                return from;
            }
        }
    }
}
