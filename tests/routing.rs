//! The policy routing: each way brings replies home, and nobody's rules but our own are touched.

mod support;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, geteuid, setfsuid};
use support::{
    Backend, DEADLINE, Host, Program, Running, Stage, TempDir, addr, datagrams, header, stage,
    streams, wait_until,
};

const CLIENT: &str = "203.0.113.7:40000";
const CLIENT6: &str = "[2001:db8:c::7]:40000";
const VISITED: &str = "198.51.100.1:22";
const VISITED6: &str = "[2001:db8:b::1]:22";

/// All that policy routing and nftables hold.
fn state(host: &Host) -> String {
    [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
    ]
    .map(|command| host.run(&command.split(' ').collect::<Vec<_>>()))
    .join("---\n")
}

/// A session through the proxy on `host` itself; the backend must see the client.
fn assert_serves(
    host: &Host,
    proxy: &str,
    backend: &Backend,
    client: &str,
) -> (std::net::TcpStream, std::net::TcpStream) {
    let near = host.dial(proxy);
    let visited = if addr(client).is_ipv4() {
        VISITED
    } else {
        VISITED6
    };
    streams::send(&near, header::v1(client, visited));
    let (far, from) = backend.accept();
    assert_eq!(from, addr(client), "the backend sees the client");
    streams::assert_carries(&near, &far);
    (near, far)
}

fn routing(host: &Host, words: &[&str]) -> String {
    let ended = Program::Realpeer.run(host, &[&["routing"], words].concat());
    assert_eq!(
        ended.code, 0,
        "routing {words:?}: {} {}",
        ended.stdout, ended.stderr
    );
    ended.stdout
}

fn stop(mut proxy: Running) {
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
}

/// A host with an address of each family besides the loopback ones.
fn server() -> (Host, Host) {
    let (neighbour, host) = stage::wire();
    // The kernel's own IPv6 routes come only when the link-local addresses are known to be unique.
    wait_until("the addresses are settled", || {
        host.run(&["ip", "-6", "address", "show", "tentative"])
            .is_empty()
    });
    (neighbour, host)
}

#[test]
fn loopback_targets_get_the_loopback_rule_until_the_exit() {
    let host = Host::new("server");
    let before = state(&host);
    let (backend, backend6) = (
        Backend::listen(&host, "127.0.0.1:9000"),
        Backend::listen(&host, "[::1]:9000"),
    );
    let proxy = Program::Realpeer.start(
        &host,
        &[
            "-l",
            "127.0.0.1:2222",
            "-4",
            "127.0.0.1:9000",
            "-6",
            "[::1]:9000",
        ],
    );
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    assert_serves(&host, "127.0.0.1:2222", &backend6, CLIENT6);
    assert!(state(&host).contains("from 127.0.0.0/8 iif lo lookup 8193 proto 84"));
    stop(proxy);
    assert_eq!(state(&host), before);
}

#[test]
fn other_addresses_of_the_host_get_mark_accept() {
    let (neighbour, host) = server();
    let before = state(&host);
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let backend6 = Backend::listen(&host, "[2001:db8::10]:9000");
    let targets = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "192.0.2.10:9000",
        "-6",
        "[2001:db8::10]:9000",
    ];
    let proxy = Program::Realpeer.start(&host, &targets);
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    assert_serves(&host, "127.0.0.1:2222", &backend6, CLIENT6);
    // Who does not come through the proxy is untouched.
    let near = neighbour.dial("192.0.2.10:9000");
    let (far, _) = backend.accept();
    streams::assert_carries(&near, &far);
    stop(proxy);
    assert_eq!(state(&host), before);
}

#[test]
fn the_users_mark_is_the_mark_of_mark_accept() {
    let (_neighbour, host) = server();
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let flags = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "192.0.2.10:9000",
        "-mark",
        "77",
    ];
    let _proxy = Program::Realpeer.start(&host, &flags);
    assert!(
        host.run(&["ip", "rule"])
            .contains("fwmark 0x4d lookup 8193")
    );
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
}

#[test]
fn targets_behind_the_host_get_the_socket_match() {
    // The neighbour is the container; its way to strangers leads through the host.
    let (container, host) = server();
    container.run(&["ip", "-4", "route", "add", "default", "via", "192.0.2.10"]);
    container.run(&["ip", "-6", "route", "add", "default", "via", "2001:db8::10"]);
    let before = state(&host);
    let backend = Backend::listen(&container, "192.0.2.5:9000");
    let backend6 = Backend::listen(&container, "[2001:db8::5]:9000");
    let targets = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "192.0.2.5:9000",
        "-6",
        "[2001:db8::5]:9000",
    ];
    for flags in [&targets[..], &[&targets[..], &["-mark", "8193"]].concat()] {
        let proxy = Program::Realpeer.start(&host, flags);
        assert!(
            host.run(&["nft", "list", "ruleset"])
                .contains("socket transparent 1")
        );
        assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
        assert_serves(&host, "127.0.0.1:2222", &backend6, CLIENT6);
        stop(proxy);
        assert_eq!(state(&host), before);
    }
}

#[test]
fn dynamic_destinations_on_this_host_are_served() {
    let (_neighbour, host) = server();
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let flags = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "127.0.0.1:1",
        "-dynamic-destination",
    ];
    let _proxy = Program::Realpeer.start(&host, &flags);
    let near = host.dial("127.0.0.1:2222");
    streams::send(&near, header::v1(CLIENT, "192.0.2.10:9000"));
    let (far, from) = backend.accept();
    assert_eq!(from, addr(CLIENT));
    streams::assert_carries(&near, &far);
}

#[test]
fn what_another_program_removes_is_back_within_a_second() {
    let stage = Stage::new(&[]);
    let session = stage.session(CLIENT);
    for family in ["-4", "-6"] {
        stage.server.run(&["ip", family, "rule", "flush"]);
        // systemd-networkd spares what the kernel itself made.
        for (priority, table) in [("0", "local"), ("32766", "main")] {
            let words = [
                "ip", family, "rule", "add", "priority", priority, "lookup", table, "protocol",
                "kernel",
            ];
            let _ = stage.server.command("ip").args(&words[1..]).output();
        }
        stage
            .server
            .run(&["ip", family, "route", "flush", "table", "8193"]);
    }
    let removed = Instant::now();
    wait_until("the rules are back", || {
        let rules = ["-4", "-6"].map(|family| stage.server.run(&["ip", family, "rule"]));
        rules.iter().all(|rules| rules.contains("lookup 8193"))
    });
    assert!(
        removed.elapsed() < Duration::from_secs(1),
        "{:?}",
        removed.elapsed()
    );
    streams::assert_carries(&session.near, &session.far);
    stage.assert_serves();
    stage.proxy.wait_for_line("another program removed");
    stage.proxy.signal(Signal::SIGTERM);
    let counted = stage.proxy.wait_for_line("routing was put back while");
    assert!(counted.contains(r#""restored":"#), "{counted}");
}

#[test]
fn an_address_that_comes_later_gets_its_way() {
    let (_neighbour, host) = server();
    host.add_address("192.0.2.77/32", "lo");
    let with_address = state(&host);
    host.run(&["ip", "address", "del", "192.0.2.77/32", "dev", "lo"]);
    let flags = ["-l", "127.0.0.1:2222", "-4", "192.0.2.77:9000"];
    let proxy = Program::Realpeer.start(&host, &flags);
    proxy.wait_for_line("192.0.2.77:9000 come back by table 8193 (socket way)");
    host.add_address("192.0.2.77/32", "lo");
    let backend = Backend::listen(&host, "192.0.2.77:9000");
    proxy.wait_for_line("192.0.2.77:9000 come back by table 8193 (mark way)");
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    stop(proxy);
    assert_eq!(state(&host), with_address);
}

#[test]
fn a_flushed_ruleset_is_put_back() {
    let (container, host) = server();
    container.run(&["ip", "route", "add", "default", "via", "192.0.2.10"]);
    let backend = Backend::listen(&container, "192.0.2.5:9000");
    let _proxy = Program::Realpeer.start(&host, &["-l", "127.0.0.1:2222", "-4", "192.0.2.5:9000"]);
    host.run(&["nft", "flush", "ruleset"]);
    wait_until("the table is back", || {
        host.run(&["nft", "list", "ruleset"])
            .contains("socket transparent")
    });
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
}

#[test]
fn two_programs_never_fight_in_a_tight_loop() {
    let stage = Stage::new(&[]);
    // Removes whatever comes back, at once, for as long as the repairs of 10 doublings would take
    // without back-off many thousand times over.
    let mut removed = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let output = stage
            .server
            .command("ip")
            .args(["rule", "del", "lookup", "8193"])
            .output();
        removed += usize::from(output.is_ok_and(|o| o.status.success()));
    }
    assert!(
        (2..10).contains(&removed),
        "{removed} repairs in two seconds"
    );
}

#[test]
fn a_rule_that_another_program_puts_in_front_is_overtaken() {
    let stage = Stage::new(&[]);
    let host = &stage.server;
    // wg-quick's pattern.
    host.run(&[
        "ip",
        "route",
        "add",
        "blackhole",
        "default",
        "table",
        "51820",
    ]);
    host.run(&[
        "ip", "rule", "add", "not", "fwmark", "51820", "table", "51820",
    ]);
    host.run(&[
        "ip",
        "rule",
        "add",
        "table",
        "main",
        "suppress_prefixlength",
        "0",
    ]);
    stage.proxy.wait_for_line("in place again");
    stage.assert_serves();
}

#[test]
fn a_hundred_ups_and_downs_at_once_leave_everything_as_it_was() {
    let (_container, host) = server();
    let before = state(&host);
    let flags = ["-4", "192.0.2.5:9000", "-6", "[::1]:9000"];
    for action in ["up", "down"] {
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| routing(&host, &[&[action], &flags[..]].concat()));
            }
        });
        if action == "up" {
            assert_eq!(host.run(&["ip", "rule"]).matches("lookup 8192").count(), 1);
            assert!(
                host.run(&["nft", "list", "ruleset"])
                    .contains("realpeer_8192")
            );
        }
    }
    assert_eq!(state(&host), before);
}

/// The kernel tells more of a rule for a port than it was given.
#[test]
fn the_rule_of_a_udp_port_is_known_again() {
    let host = Host::new("server");
    let flags = [
        "-p",
        "udp",
        "-l",
        "127.0.0.1:2222",
        "-4",
        "127.0.0.1:9000",
        "-routing-mode",
        "udp-port",
    ];
    let mut proxy = Program::Realpeer.spawn(&[], &host, &flags);
    proxy.wait_for_line("listening");
    let rules = || {
        let rules = host.run(&["ip", "rule"]);
        rules.matches("sport 9000").count()
    };
    assert_eq!(rules(), 1);
    // A change makes it look after all its rules.
    host.run(&["ip", "-6", "rule", "del", "from", "::1", "iif", "lo"]);
    proxy.wait_for_line("the way back from [::1]:443; it is in place again");
    assert_eq!(rules(), 1);
    proxy.signal(Signal::SIGTERM);
    proxy.wait_for_line("restored\":1");
    assert_eq!(proxy.exit_code(), 0);
}

#[test]
fn an_exit_takes_away_neither_ups_rules_nor_another_proxys() {
    let host = Host::new("server");
    let backend = Backend::listen(&host, "127.0.0.1:9000");
    let start = |port: &str| {
        Program::Realpeer.start(
            &host,
            &["-l", &format!("127.0.0.1:{port}"), "-4", "127.0.0.1:9000"],
        )
    };
    let (first, second) = (start("2221"), start("2222"));
    let rules = host.run(&["ip", "rule"]);
    assert!(
        rules.contains("lookup 8193") && rules.contains("lookup 8194"),
        "{rules}"
    );
    // Each looks after its own, whichever comes first, and leaves the other's in front alone.
    let repairs = |proxy: &Running| {
        let lines = proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("in place again"))
            .count()
    };
    host.run(&["ip", "rule", "del", "lookup", "8194"]);
    wait_until("the second repairs its own", || repairs(&second) == 1);
    host.run(&["ip", "rule", "del", "lookup", "8193"]);
    wait_until("the first repairs its own", || repairs(&first) == 1);
    host.run(&["ip", "rule", "del", "lookup", "8194"]);
    wait_until("the second does so again", || repairs(&second) == 2);
    assert_eq!(repairs(&first), 1);
    stop(first);
    let rules = host.run(&["ip", "rule"]);
    assert!(
        !rules.contains("lookup 8193") && rules.contains("lookup 8194"),
        "{rules}"
    );
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    stop(second);

    routing(&host, &["up"]);
    let up = state(&host);
    let third = start("2223");
    assert_eq!(state(&host), up, "nothing was missing");
    stop(third);
    assert_eq!(state(&host), up);
}

#[test]
fn what_a_killed_instance_left_is_cleaned_at_the_next_start() {
    let (container, host) = server();
    container.run(&["ip", "route", "add", "default", "via", "192.0.2.10"]);
    let before = state(&host);
    let start = |port: &str| {
        let listen = format!("127.0.0.1:{port}");
        Program::Realpeer.start(&host, &["-l", &listen, "-4", "192.0.2.5:9000"])
    };
    let (mut killed, living) = (start("2221"), start("2222"));
    killed.signal(Signal::SIGKILL);
    killed.wait_for_exit();
    assert!(state(&host).contains("realpeer_8193"), "left behind");
    let other = Program::Realpeer.start(&host, &["-l", "127.0.0.1:2223", "-4", "127.0.0.1:9000"]);
    other.wait_for_line("left behind by a killed instance");
    let now = state(&host);
    assert!(
        !now.contains("realpeer_8193") && now.contains("realpeer_8194"),
        "{now}"
    );
    stop(living);
    stop(other);
    assert_eq!(state(&host), before);
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let host = Host::new("server");
    let before = state(&host);
    let _holder = Backend::listen(&host, "127.0.0.1:2222");
    let ended = Program::Realpeer.run(&host, &["-l", "127.0.0.1:2222"]);
    assert_eq!(ended.code, 1);
    assert_eq!(state(&host), before);
}

#[test]
fn rules_placed_by_hand_for_go_mmproxy_count_and_stay() {
    let host = Host::new("server");
    let backend = Backend::listen(&host, "127.0.0.1:9000");
    for rule in [
        "ip rule add from 127.0.0.1/8 iif lo table 123",
        "ip route add local 0.0.0.0/0 dev lo table 123",
        "ip -6 rule add from ::1/128 iif lo table 123",
        "ip -6 route add local ::/0 dev lo table 123",
    ] {
        host.run(&rule.split(' ').collect::<Vec<_>>());
    }
    let by_hand = state(&host);
    let proxy = Program::Realpeer.start(&host, &["-l", "127.0.0.1:2222", "-4", "127.0.0.1:9000"]);
    assert_eq!(state(&host), by_hand);
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    // What is taken away while we run, we stand in for.
    host.run(&["ip", "rule", "del", "table", "123"]);
    wait_until("our own rule stands in", || {
        host.run(&["ip", "rule"]).contains("lookup 8193")
    });
    stop(proxy);
    assert!(!state(&host).contains("8193"));
}

#[test]
fn a_table_of_somebody_else_is_left_alone() {
    let host = Host::new("server");
    host.run(&[
        "ip",
        "route",
        "add",
        "blackhole",
        "10.9.0.0/16",
        "table",
        "8193",
    ]);
    let proxy = Program::Realpeer.start(&host, &["-l", "127.0.0.1:2222"]);
    assert!(host.run(&["ip", "rule"]).contains("lookup 8194"));
    stop(proxy);
    assert!(
        host.run(&["ip", "route", "show", "table", "8193"])
            .contains("10.9.0.0/16")
    );
}

const NO_NET_ADMIN: [&str; 3] = [
    "setpriv",
    "--bounding-set=-net_admin",
    "--inh-caps=-net_admin",
];

#[test]
fn without_the_capability_it_runs_where_routing_is_there_and_warns_where_not() {
    let (_neighbour, host) = server();
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let flags = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "192.0.2.10:9000",
        "-6",
        "[::1]:9000",
    ];

    let proxy = Program::Realpeer.start_under(&NO_NET_ADMIN, &host, &flags);
    let warning = proxy.wait_for_line("needs CAP_NET_ADMIN");
    assert!(
        warning.contains("AmbientCapabilities=CAP_NET_ADMIN"),
        "{warning}"
    );
    assert!(
        warning.contains("realpeer routing up -4 192.0.2.10:9000"),
        "{warning}"
    );
    stop(proxy);

    routing(&host, &["up", "-4", "192.0.2.10:9000", "-6", "[::1]:9000"]);
    let proxy = Program::Realpeer.start_under(&NO_NET_ADMIN, &host, &flags);
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    assert!(
        !proxy
            .stdout()
            .iter()
            .any(|line| line.contains("CAP_NET_ADMIN"))
    );
}

#[test]
fn routing_off_puts_nothing_in_but_uses_what_is_there() {
    let (_neighbour, host) = server();
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let flags = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "192.0.2.10:9000",
        "-routing",
        "off",
    ];
    let before = state(&host);
    let proxy = Program::Realpeer.start(&host, &flags);
    assert_eq!(state(&host), before);
    stop(proxy);
    routing(&host, &["up", "-4", "192.0.2.10:9000"]);
    let _proxy = Program::Realpeer.start(&host, &flags);
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
}

#[test]
fn show_prints_commands_that_put_the_plan_in_place() {
    let (_container, host) = server();
    let before = state(&host);
    let flags = ["-4", "192.0.2.10:9000", "-6", "[2001:db8::5]:9000"];
    let table = routing(&host, &[&["show"], &flags[..]].concat());
    assert!(
        table.contains("mark way, missing") && table.contains("socket way, missing"),
        "{table}"
    );
    let script = routing(&host, &[&["show", "-as", "commands"], &flags[..]].concat());
    host.run(&["bash", "-ec", &script]);
    let table = routing(&host, &[&["show"], &flags[..]].concat());
    assert!(
        table.contains("mark way, in place") && table.contains("socket way, in place"),
        "{table}"
    );
    assert!(routing(&host, &[&["up"], &flags[..]].concat()).contains("in place"));
    routing(&host, &["down"]);
    assert_eq!(state(&host), before);
}

#[test]
fn a_mode_that_cannot_work_is_refused() {
    let (_neighbour, host) = server();
    for (mode, flags) in [
        ("loopback", ["-4", "192.0.2.10:80", "-p", "tcp"]),
        ("mark", ["-4", "127.0.0.1:80", "-p", "udp"]),
        ("socket", ["-4", "127.0.0.1:80", "-p", "tcp"]),
        ("udp-port", ["-4", "127.0.0.1:80", "-p", "tcp"]),
    ] {
        let words = [&["routing", "up", "-routing-mode", mode], &flags[..]].concat();
        let ended = Program::Realpeer.run(&host, &words);
        assert_eq!(ended.code, 1, "{mode}");
        assert!(
            ended
                .stderr
                .contains(&format!("-routing-mode {mode} cannot serve")),
            "{}",
            ended.stderr
        );
    }
    routing(&host, &["up", "-routing-mode", "mark"]);
    assert!(host.run(&["ip", "rule"]).contains("fwmark 0x2000"));
}

#[test]
fn udp_backends_answer_through_the_proxy_wherever_they_are() {
    let (container, host) = server();
    container.run(&["ip", "-4", "route", "add", "default", "via", "192.0.2.10"]);
    container.run(&["ip", "-6", "route", "add", "default", "via", "2001:db8::10"]);
    let before = state(&host);
    for (backend_host, bind, target, way) in [
        (&host, "127.0.0.1:5300", "127.0.0.1:5300", "loopback"),
        (&host, "[::1]:5300", "[::1]:5300", "loopback"),
        (&host, "0.0.0.0:5300", "127.0.0.1:5300", "udp-port"),
        (&host, "[::]:5300", "[::1]:5300", "udp-port"),
        (&host, "192.0.2.10:5300", "192.0.2.10:5300", "udp-port"),
        (&host, "0.0.0.0:5300", "192.0.2.10:5300", "udp-port"),
        (&host, "[::]:5300", "[2001:db8::10]:5300", "udp-port"),
        (&container, "192.0.2.5:5300", "192.0.2.5:5300", "socket"),
        (
            &container,
            "[2001:db8::5]:5300",
            "[2001:db8::5]:5300",
            "socket",
        ),
    ] {
        let backend = datagrams::open(backend_host, bind);
        let (flag, client) = match addr(target).is_ipv4() {
            true => ("-4", CLIENT),
            false => ("-6", CLIENT6),
        };
        let proxy = datagrams::start(&host, &[flag, target]);
        let line = format!("replies of {target} come back by table 8193 ({way} way)");
        proxy.wait_for_line(&line);
        let direct_clients_lose = proxy
            .stdout()
            .iter()
            .any(|l| l.contains("now get no replies"));
        assert_eq!(direct_clients_lose, way == "udp-port");
        let near = datagrams::open(&container, "0.0.0.0:0");
        near.connect(addr("192.0.2.10:2222")).expect("connect");
        near.send(&datagrams::every(client, b"there"))
            .expect("send");
        let (payload, from) = datagrams::receive(&backend);
        assert_eq!((&payload[..], from), (&b"there"[..], addr(client)));
        backend.send_to(b"and back", from).expect("answer");
        assert_eq!(datagrams::receive(&near).0, b"and back", "{bind} {target}");
        stop(proxy);
        assert_eq!(state(&host), before);
    }
}

#[test]
fn a_udp_backend_on_the_wildcard_gets_the_port_rule_and_a_warning() {
    let host = Host::new("server");
    for (bind, target, flag, client) in [
        ("0.0.0.0:5300", "127.0.0.1:5300", "-4", "203.0.113.7:4000"),
        ("[::]:5301", "[::1]:5301", "-6", "[2001:db8:c::7]:4000"),
    ] {
        let backend = host
            .enter(|| std::net::UdpSocket::bind(bind))
            .expect("bind");
        let ended = Program::Realpeer.run(&host, &["routing", "up", "-p", "udp", flag, target]);
        assert!(ended.stdout.contains("udp-port way"), "{}", ended.stdout);
        assert!(
            ended.stderr.contains("directly, not through the proxy"),
            "{}",
            ended.stderr
        );
        // What the proxy will do: a socket that claims the client, connected to the target.
        let client = host.enter(|| claim(addr(client), addr(target)));
        client.send(b"ask").expect("send");
        backend.set_read_timeout(Some(DEADLINE)).expect("deadline");
        let (_, from) = datagrams::receive(&backend);
        backend.send_to(b"answer", from).expect("answer");
        assert_eq!(datagrams::receive(&client).0, b"answer");
    }
}

/// A UDP socket that speaks as `client`.
fn claim(client: std::net::SocketAddr, target: std::net::SocketAddr) -> std::net::UdpSocket {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(client), Type::DGRAM, None).expect("socket");
    if client.is_ipv4() {
        socket.set_ip_transparent_v4(true).expect("IP_TRANSPARENT");
    } else {
        socket.set_ip_transparent_v6(true).expect("IP_TRANSPARENT");
    }
    socket.bind(&client.into()).expect("bind");
    socket.connect(&target.into()).expect("connect");
    socket.set_read_timeout(Some(DEADLINE)).expect("deadline");
    socket.into()
}

/// Another user's sockets with names such as guard our tables, those of old and those of today. In
/// a user namespace of one user there is nobody else; a name in today's form is then our own.
fn squat(host: &Host) -> (Vec<UnixDatagram>, Vec<UnixListener>) {
    const NOBODY: Uid = Uid::from_raw(65534);
    let address = |name: String| SocketAddr::from_abstract_name(name).expect("a name");
    let tables = || (8192..=8447).chain([0]);
    // The thread's own, and gone with it.
    host.enter(|| {
        setfsuid(NOBODY);
        let is_another = setfsuid(NOBODY) == NOBODY;
        let plain = tables().map(|table| address(format!("realpeer-routing-{table}")));
        let alike = tables().map(|table| address(format!("realpeer-routing-{table}-1-0")));
        (
            plain
                .map(|name| UnixDatagram::bind_addr(&name).expect("bind"))
                .collect(),
            alike
                .filter(|_| is_another)
                .map(|name| UnixListener::bind_addr(&name).expect("bind"))
                .collect(),
        )
    })
}

#[test]
fn names_that_another_user_holds_guard_no_table() {
    let (_neighbour, host) = server();
    let before = state(&host);
    let backend = Backend::listen(&host, "192.0.2.10:9000");
    let flags = ["-4", "192.0.2.10:9000"];
    let _squatters = squat(&host);

    let proxy = Program::Realpeer.start(&host, &[&["-l", "127.0.0.1:2222"], &flags[..]].concat());
    assert_serves(&host, "127.0.0.1:2222", &backend, CLIENT);
    stop(proxy);
    routing(&host, &[&["up"], &flags[..]].concat());
    routing(&host, &["down"]);
    let ended = Program::Realpeer.run(&host, &[&["doctor"], &flags[..]].concat());
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert_eq!(state(&host), before);
}

#[test]
fn a_service_users_table_is_its_own() {
    let host = Host::new("server");
    // In a user namespace of one user the service's user is ours.
    let uid = match geteuid().is_root() {
        true => "--reuid=65534".to_owned(),
        false => format!("--reuid={}", geteuid()),
    };
    let service = [
        "setpriv",
        &uid,
        "--inh-caps=+net_admin,+net_raw",
        "--ambient-caps=+net_admin,+net_raw",
    ];
    let backend = Backend::listen(&host, "127.0.0.1:9000");
    let flags = |listen| ["-l", listen, "-4", "127.0.0.1:9000"];
    let service = Program::Realpeer.start_under(&service, &host, &flags("127.0.0.1:2221"));
    let ours = Program::Realpeer.start(&host, &flags("127.0.0.1:2222"));
    let rules = host.run(&["ip", "rule"]);
    assert!(
        rules.contains("lookup 8193") && rules.contains("lookup 8194"),
        "{rules}"
    );
    assert!(
        !ours
            .stdout()
            .iter()
            .any(|line| line.contains("left behind"))
    );
    stop(ours);
    assert!(host.run(&["ip", "rule"]).contains("lookup 8193"));
    assert_serves(&host, "127.0.0.1:2221", &backend, CLIENT);
    stop(service);
}

#[test]
fn show_and_down_count_a_running_proxys_rules_and_name_its_process() {
    let (_neighbour, host) = server();
    let targets = ["-4", "192.0.2.10:9000", "-6", "[::1]:9000"];
    let mut proxy =
        Program::Realpeer.start(&host, &[&["-l", "127.0.0.1:2222"], &targets[..]].concat());
    let pid = proxy.pid();
    let show = |words: &[&str]| routing(&host, &[&["show"], words, &targets[..]].concat());
    let table = show(&[]);
    for way in ["mark", "loopback"] {
        let line = format!("{way} way, in place by table 8193 until realpeer (process {pid}) ends");
        assert!(table.contains(&line), "{table}");
    }
    assert!(!table.contains("\n  - "), "every step is there: {table}");
    let commands = show(&["-as", "commands"]);
    assert!(
        commands.lines().all(|line| line.starts_with('#')),
        "{commands}"
    );
    let down = routing(&host, &["down"]);
    let line = format!("table 8193 stays until realpeer (process {pid}), which uses it, ends");
    assert!(down.contains(&line), "{down}");
    assert!(
        show(&[]).contains("in place"),
        "down took nothing of the proxy's"
    );

    proxy.signal(Signal::SIGKILL);
    proxy.wait_for_exit();
    assert!(
        show(&[]).contains("missing"),
        "what was left behind is no routing"
    );
    assert!(routing(&host, &["down"]).contains("table 8193 was left behind by a killed realpeer"));
}

/// Commands that make hosts without IPv6 routes, each more thoroughly.
const WITHOUT_IPV6: [&str; 4] = [
    "true",
    "ip address add 192.0.2.10/32 dev lo",
    "ip -6 address flush dev lo",
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
];

#[test]
fn a_healthy_host_without_ipv6_routes_raises_no_alarm() {
    let directory = TempDir::new();
    let allowed = directory.file("allowed", "127.0.0.0/8\n");
    for (protocol, flags) in [
        ("tcp", &[][..]),
        ("tcp", &["-dynamic-destination"]),
        ("tcp", &["-dynamic-destination", "-listen-transparent"]),
        ("tcp", &["-dynamic-destination", "-mark", "7"]),
        ("tcp", &["-dynamic-destination", "-routing-mode", "mark"]),
        ("tcp", &["-mark", "7", "-routing-mode", "loopback"]),
        ("udp", &[]),
        ("udp", &["-dynamic-destination"]),
        ("udp", &["-mark", "7"]),
    ] {
        for made in WITHOUT_IPV6 {
            let host = Host::new("server");
            host.run(&["bash", "-ec", made]);
            let (_tcp, _udp) = (
                Backend::listen(&host, "127.0.0.1:9000"),
                datagrams::open(&host, "127.0.0.1:9000"),
            );
            let fixed = [
                "-4",
                "127.0.0.1:9000",
                "-p",
                protocol,
                "-allowed-subnets",
                &allowed,
            ];
            let flags = [&fixed[..], flags].concat();
            let start = [&["-l", "127.0.0.1:2222"], &flags[..]].concat();
            let proxy = Program::Realpeer.spawn(&[], &host, &start);
            proxy.wait_for_line("listening");
            let warned = proxy
                .stdout()
                .into_iter()
                .find(|line| line.contains("WARN"));
            assert_eq!(warned, None, "{made}: {flags:?}");
            stop(proxy);
            let ended = Program::Realpeer.run(&host, &[&["doctor"], &flags[..]].concat());
            let alarm = ended.stdout.lines().find(|line| !line.starts_with("ok "));
            assert_eq!(alarm, None, "{made}: {flags:?}");
            assert_eq!(ended.code, 0);
        }
    }
}
