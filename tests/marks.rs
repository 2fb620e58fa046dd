//! Marks belong to the whole host: other programs' marked connections live beside mark-accept, the
//! sysctl goes back to what it was, and VPNs' rules keep nobody from being served.

mod support;

use std::net::{SocketAddr, TcpListener};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use support::{Backend, Host, Program, Running, addr, header, stage, streams, wait_until};

const CLIENT: &str = "203.0.113.7:40000";
const CLIENT6: &str = "[2001:db8:c::7]:40000";
const VISITED: &str = "198.51.100.9:7000";
const VISITED6: &str = "[2001:db8:b::9]:7000";
const PROXY: &str = "192.0.2.10:2222";
const DYNAMIC: [&str; 3] = ["-l", "0.0.0.0:2222", "-dynamic-destination"];

fn sh(host: &Host, script: &str) -> String {
    host.run(&["bash", "-ec", script])
}

fn accepts_marks(host: &Host) -> bool {
    host.run(&["sysctl", "-n", "net.ipv4.tcp_fwmark_accept"])
        .trim()
        == "1"
}

fn is_guarded(host: &Host) -> bool {
    host.run(&["nft", "list", "ruleset"])
        .contains("realpeer_marks")
}

fn stop(mut proxy: Running) {
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
}

/// A client on a wire, whose way to everywhere leads through the server.
fn wire() -> (Host, Host) {
    let (client, server) = stage::wire();
    sh(
        &client,
        "ip route add default via 192.0.2.10; ip -6 route add default via 2001:db8::10",
    );
    wait_until("the addresses are settled", || {
        server
            .run(&["ip", "-6", "address", "show", "tentative"])
            .is_empty()
    });
    (client, server)
}

/// TPROXY as the kernel's documentation has it (networking/tproxy.rst), to a local port.
fn tproxy(server: &Host, port: u16) {
    sh(
        server,
        &format!(
            "nft 'table inet divert {{ chain prerouting {{ type filter hook prerouting priority mangle; \
             iif != lo tcp dport 7000 tproxy to :{port} meta mark set 1; }}; }}'
             for family in -4 -6; do
                 ip $family rule add fwmark 1 lookup 100
                 ip $family route add local default dev lo table 100
             done"
        ),
    );
}

/// A transparent proxy that is not realpeer.
struct Other([TcpListener; 2]);

impl Other {
    fn listen(server: &Host) -> Other {
        Other(["0.0.0.0:7001", "[::]:7001"].map(|at| server.enter(|| transparent(addr(at)))))
    }

    /// A connection that TPROXY brings here carries bytes both ways.
    #[track_caller]
    fn assert_serves(&self, client: &Host) {
        for (to, listener) in [VISITED, VISITED6].iter().zip(&self.0) {
            let near = client.dial(to);
            let (far, _) = listener.accept().expect("a connection");
            assert_eq!(far.local_addr().expect("an address"), addr(to));
            streams::assert_carries(&near, &streams::with_deadline(far));
        }
    }
}

fn transparent(at: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("socket");
    if at.is_ipv4() {
        socket.set_ip_transparent_v4(true).expect("IP_TRANSPARENT");
    } else {
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
        socket.set_ip_transparent_v6(true).expect("IP_TRANSPARENT");
    }
    socket.bind(&at.into()).expect("bind");
    socket.listen(8).expect("listen");
    socket.into()
}

/// Backends on the server's own addresses, which need mark-accept.
struct Own([(Backend, &'static str, &'static str); 2]);

impl Own {
    fn listen(server: &Host) -> Own {
        Own([
            ("192.0.2.10:9000", CLIENT),
            ("[2001:db8::10]:9000", CLIENT6),
        ]
        .map(|(at, client)| (Backend::listen(server, at), at, client)))
    }

    /// Headers that name the backends are served, and the backends see the clients.
    #[track_caller]
    fn assert_serves(&self, dialer: &Host, proxy: &str) {
        for (backend, at, client) in &self.0 {
            let near = dialer.dial(proxy);
            streams::send(&near, header::v1(client, at));
            let (far, from) = backend.accept();
            assert_eq!(from, addr(client), "the backend sees the client");
            streams::assert_carries(&near, &far);
        }
    }
}

#[test]
fn tproxy_of_another_program_lives_beside_mark_accept() {
    // The last with the very mark of TPROXY.
    for (before, mark) in [(true, None), (false, None), (true, Some("1"))] {
        let (client, server) = wire();
        let (other, own) = (Other::listen(&server), Own::listen(&server));
        if before {
            tproxy(&server, 7001);
            other.assert_serves(&client);
        }
        let mark = mark.map(|mark| ["-mark", mark]);
        let flags = [&DYNAMIC[..], mark.as_ref().map_or(&[], |mark| &mark[..])].concat();
        let proxy = Program::Realpeer.start(&server, &flags);
        assert!(accepts_marks(&server));
        assert_eq!(
            is_guarded(&server),
            before,
            "only where rules look at marks"
        );
        if !before {
            tproxy(&server, 7001);
            wait_until("the guard is there", || is_guarded(&server));
        }
        other.assert_serves(&client);
        own.assert_serves(&client, PROXY);

        // What a firewall's reload takes away is put back.
        server.run(&["nft", "delete", "table", "inet", "realpeer_marks"]);
        wait_until("the guard is back", || is_guarded(&server));
        other.assert_serves(&client);

        // With the other program gone there is nothing to guard.
        for family in ["-4", "-6"] {
            server.run(&["ip", family, "rule", "del", "fwmark", "1", "lookup", "100"]);
        }
        wait_until("the guard is gone", || !is_guarded(&server));
        for family in ["-4", "-6"] {
            server.run(&["ip", family, "rule", "add", "fwmark", "1", "lookup", "100"]);
        }
        wait_until("the guard is back", || is_guarded(&server));

        stop(proxy);
        assert!(!accepts_marks(&server) && !is_guarded(&server));
        other.assert_serves(&client);
    }
}

#[test]
fn realpeer_itself_may_stand_behind_tproxy() {
    for before in [true, false] {
        let (client, server) = wire();
        let own = Own::listen(&server);
        if before {
            tproxy(&server, 2222);
        }
        let flags = [&DYNAMIC[..], &["-l", "[::]:2222", "-listen-transparent"]].concat();
        let proxy = Program::Realpeer.start(&server, &flags);
        if !before {
            tproxy(&server, 2222);
            wait_until("the guard is there", || is_guarded(&server));
        }
        own.assert_serves(&client, VISITED);
        own.assert_serves(&client, VISITED6);
        stop(proxy);
        assert!(!accepts_marks(&server));
    }
}

fn start(server: &Host, port: u16, target: &str) -> Running {
    let listen = format!("127.0.0.1:{port}");
    Program::Realpeer.start(server, &["-l", &listen, "-4", target])
}

const NEEDS_IT: &str = "192.0.2.10:9000";
const NEEDS_IT_NOT: &str = "127.0.0.1:9000";

#[test]
fn the_last_who_needs_the_sysctl_puts_it_back() {
    let (_client, server) = wire();
    let unneeded = start(&server, 2220, NEEDS_IT_NOT);
    assert!(!accepts_marks(&server), "nobody needs it");
    let (first, second) = (
        start(&server, 2221, NEEDS_IT),
        start(&server, 2222, NEEDS_IT),
    );
    stop(first);
    assert!(accepts_marks(&server), "the second needs it");
    stop(second);
    assert!(!accepts_marks(&server));

    let up = ["routing", "up", "-4", NEEDS_IT];
    let first = start(&server, 2221, NEEDS_IT);
    assert_eq!(Program::Realpeer.run(&server, &up).code, 0);
    stop(first);
    assert!(accepts_marks(&server), "routing up needs it");
    stop(start(&server, 2221, NEEDS_IT));
    assert!(accepts_marks(&server), "routing up needs it");
    Program::Realpeer.run(&server, &["routing", "down"]);
    assert!(!accepts_marks(&server));
    stop(unneeded);
}

#[test]
fn a_sysctl_that_was_on_stays_on() {
    let (_client, server) = wire();
    server.sysctl("ipv4/tcp_fwmark_accept", "1");
    let (first, second) = (
        start(&server, 2221, NEEDS_IT),
        start(&server, 2222, NEEDS_IT),
    );
    stop(first);
    stop(second);
    Program::Realpeer.run(&server, &["routing", "up", "-4", NEEDS_IT]);
    Program::Realpeer.run(&server, &["routing", "down"]);
    assert!(accepts_marks(&server));
}

#[test]
fn after_sigkill_the_next_start_puts_the_sysctl_back() {
    let (client, server) = wire();
    tproxy(&server, 7001);
    let kill = |mut proxy: Running| {
        proxy.signal(Signal::SIGKILL);
        proxy.wait_for_exit();
    };
    let other = Other::listen(&server);
    kill(start(&server, 2221, NEEDS_IT));
    assert!(accepts_marks(&server), "left behind");
    other.assert_serves(&client);
    let unneeded = start(&server, 2220, NEEDS_IT_NOT);
    unneeded.wait_for_line("left behind by a killed instance");
    assert!(!accepts_marks(&server) && !is_guarded(&server));
    stop(unneeded);

    // Cleaning up after one takes nothing from another.
    let (killed, living) = (
        start(&server, 2221, NEEDS_IT),
        start(&server, 2222, NEEDS_IT),
    );
    kill(killed);
    let unneeded = start(&server, 2220, NEEDS_IT_NOT);
    unneeded.wait_for_line("left behind by a killed instance");
    assert!(accepts_marks(&server) && is_guarded(&server));
    other.assert_serves(&client);
    stop(living);
    assert!(!accepts_marks(&server) && !is_guarded(&server));
    stop(unneeded);
}

#[test]
fn routing_up_and_its_commands_guard_other_programs_marks() {
    let (client, server) = wire();
    tproxy(&server, 7001);
    let (other, own) = (Other::listen(&server), Own::listen(&server));
    let routing = |words: &[&str]| {
        let words = [&["routing"], words, &["-dynamic-destination"]].concat();
        let ended = Program::Realpeer.run(&server, &words);
        assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
        ended.stdout
    };
    let serves = || {
        let flags = [&DYNAMIC[..], &["-routing", "off"]].concat();
        let proxy = Program::Realpeer.start(&server, &flags);
        assert!(accepts_marks(&server) && is_guarded(&server));
        other.assert_serves(&client);
        own.assert_serves(&client, PROXY);
        stop(proxy);
        assert!(routing(&["show"]).contains("ok  nft 'table inet realpeer_marks"));
        routing(&["down"]);
        assert!(!accepts_marks(&server) && !is_guarded(&server));
    };
    routing(&["up"]);
    serves();
    let script = routing(&["show", "-as", "commands"]);
    sh(&server, &script);
    serves();
}

#[test]
fn the_doctor_knows_marks_that_lead_astray() {
    let (client, server) = wire();
    tproxy(&server, 7001);
    let other = Other::listen(&server);
    let _backend = Backend::listen(&server, NEEDS_IT_NOT);
    let doctor = || {
        let ended = Program::Realpeer.run(&server, &["doctor", "-json", "-4", NEEDS_IT_NOT]);
        let answer: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let checks = answer["checks"].as_array().expect("checks").clone();
        checks
            .into_iter()
            .find(|check| check["id"] == "mark-accept")
    };
    assert_eq!(doctor(), None);
    // By somebody who is not realpeer.
    server.sysctl("ipv4/tcp_fwmark_accept", "1");
    let check = doctor().expect("a check");
    assert_eq!(check["status"], "warning", "{check}");
    let found = check["found"].as_str().expect("text");
    assert!(found.contains("fwmark 0x1 lookup 100"), "{found}");
    sh(&server, check["run"].as_str().expect("text"));
    other.assert_serves(&client);
    assert_eq!(doctor().expect("a check")["status"], "ok");

    // realpeer's own is guarded from the start.
    server.run(&["nft", "delete", "table", "inet", "realpeer_marks"]);
    server.sysctl("ipv4/tcp_fwmark_accept", "0");
    let proxy = start(&server, 2221, NEEDS_IT);
    assert_eq!(doctor().expect("a check")["status"], "ok");
    assert!(!proxy.stdout().iter().any(|l| l.contains("mark-accept")));
}

/// What VPNs and other programs put before everybody's rules; $F is -4, then -6.
const RULE_SETS: [(&str, &str); 20] = [
    ("none", "true"),
    (
        "wg-quick",
        "ip $F rule add not fwmark 51820 lookup 51820
         ip $F rule add lookup main suppress_prefixlength 0
         ip $F route add blackhole default table 51820",
    ),
    (
        "wg-quick the other way about",
        "ip $F route add blackhole default table 51820
         ip $F rule add lookup main suppress_prefixlength 0
         ip $F rule add not fwmark 51820 lookup 51820",
    ),
    (
        "two of wg-quick",
        "for n in 51820 51821; do
             ip $F route add blackhole default table $n
             ip $F rule add not fwmark $n lookup $n
             ip $F rule add lookup main suppress_prefixlength 0
         done",
    ),
    (
        "Tailscale",
        "ip $F rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
         ip $F rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
         ip $F rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
         ip $F rule add pref 5270 lookup 52",
    ),
    (
        "Tailscale with an exit node",
        "ip $F rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
         ip $F rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
         ip $F rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
         ip $F rule add pref 5270 lookup 52
         ip $F route add blackhole default table 52",
    ),
    (
        "a catch-all at pref 1",
        "ip $F rule add pref 1 lookup 77; ip $F route add blackhole default table 77",
    ),
    (
        "a catch-all at pref 1 without routes",
        "ip $F rule add pref 1 lookup 77",
    ),
    (
        "two catch-alls at pref 1 and 2",
        "for n in 1 2; do
             ip $F rule add pref $n lookup 77$n; ip $F route add blackhole default table 77$n
         done",
    ),
    ("unreachable at pref 1", "ip $F rule add pref 1 unreachable"),
    (
        "a catch-all by a default route",
        "ip $F rule add pref 100 lookup 77; ip $F route add default dev vpn table 77",
    ),
    (
        "a mark of another program",
        "ip $F rule add fwmark 7 lookup 77; ip $F route add blackhole default table 77",
    ),
    (
        "a masked mark",
        "ip $F rule add fwmark 0x2000/0x2000 lookup 77; ip $F route add blackhole default table 77",
    ),
    (
        "a masked mark at pref 1",
        "ip $F rule add pref 1 fwmark 0x2000/0xff00 lookup 77
         ip $F route add blackhole default table 77",
    ),
    (
        "no mark at all",
        "ip $F rule add fwmark 0/0xffff lookup 77; ip $F route add blackhole default table 77",
    ),
    (
        "TPROXY",
        "ip $F rule add fwmark 1 lookup 100; ip $F route add local default dev lo table 100",
    ),
    (
        "what comes from lo",
        "ip $F rule add pref 1 iif lo lookup 77; ip $F route add blackhole default table 77",
    ),
    (
        "local moved",
        "ip $F rule add pref 100 lookup local; ip $F rule del pref 0 lookup local",
    ),
    (
        "local moved behind a VPN",
        "ip $F rule add pref 32765 lookup local; ip $F rule del pref 0 lookup local
         ip $F rule add pref 500 fwmark 0x80000/0xff0000 lookup 77
         ip $F route add blackhole default table 77",
    ),
    (
        "l3mdev",
        "ip $F rule add pref 1000 l3mdev; ip $F rule add pref 1001 fwmark 0x10/0xf0 prohibit",
    ),
];

/// A host alone, with an address of each family besides the loopback ones, and a VPN's interface.
fn server() -> Host {
    let server = Host::new("server");
    sh(
        &server,
        "ip link add vpn type veth peer name far
         ip link set vpn up; ip link set far up",
    );
    server.add_address("192.0.2.10/32", "lo");
    server.add_address("2001:db8::10/128", "lo");
    server
}

#[test]
fn rules_of_vpns_keep_nobody_from_being_served() {
    for (name, rules) in RULE_SETS {
        for before in [true, false] {
            println!("{name}, before the start: {before}");
            let server = server();
            let loopback = Backend::listen(&server, "127.0.0.1:9001");
            let own = Own::listen(&server);
            let put_in = || sh(&server, &format!("for F in -4 -6; do {rules}\n done"));
            if before {
                put_in();
            }
            let flags = [&DYNAMIC[..], &["-4", "127.0.0.1:9001"]].concat();
            let _proxy = Program::Realpeer.start(&server, &flags);
            if !before {
                put_in();
                wait_until("the rules in front are overtaken", || is_home(&server));
            }
            own.assert_serves(&server, "127.0.0.1:2222");
            let near = server.dial("127.0.0.1:2222");
            streams::send(&near, header::v1(CLIENT, "127.0.0.1:9001"));
            let (far, from) = loopback.accept();
            assert_eq!(from, addr(CLIENT));
            streams::assert_carries(&near, &far);
        }
    }
}

/// The kernel delivers here what the backends answer.
fn is_home(server: &Host) -> bool {
    [
        "-4 route get 203.0.113.7 from 127.0.0.1",
        "-4 route get 203.0.113.7 from 192.0.2.10 mark 8193",
        "-6 route get 2001:db8:c::7 from 2001:db8::10 mark 8193",
    ]
    .iter()
    .all(|question| {
        let output = server.command("ip").args(question.split(' ')).output();
        output.is_ok_and(|output| output.stdout.starts_with(b"local"))
    })
}
