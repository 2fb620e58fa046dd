//! The doctor: each cause is made for real, and named, and nothing else is.

mod support;

use std::net::UdpSocket;

use serde_json::Value;
use support::{Backend, Host, Program, TempDir, addr, stage, wait_until};

const BOTH: [&str; 4] = ["-4", "127.0.0.1:9000", "-6", "[::1]:9000"];

/// What mends a cause.
struct Cure {
    run: String,
    advice: String,
}

impl Cure {
    fn of(check: &Value) -> Cure {
        let field = |name: &str| check[name].as_str().expect(name).to_owned();
        let (run, advice) = (field("run"), field("advice"));
        assert!(!run.is_empty() || !advice.is_empty(), "{check:#?}");
        Cure { run, advice }
    }
}

/// What the doctor says on a host.
struct Answer {
    code: i32,
    answer: Value,
}

fn doctor(host: &Host, flags: &[&str]) -> Answer {
    doctor_under(&[], host, flags)
}

fn doctor_under(wrapper: &[&str], host: &Host, flags: &[&str]) -> Answer {
    let mut running =
        Program::Realpeer.spawn(wrapper, host, &[&["doctor", "-json"], flags].concat());
    let code = running.exit_code();
    let stdout = running.stdout().join("\n");
    let answer = serde_json::from_str(&stdout)
        .unwrap_or_else(|e| panic!("{e}: {stdout} {:?}", running.stderr()));
    Answer { code, answer }
}

impl Answer {
    fn checks(&self) -> &Vec<Value> {
        self.answer["checks"].as_array().expect("checks")
    }

    fn with_status(&self, status: &str) -> Vec<&Value> {
        self.checks()
            .iter()
            .filter(|check| check["status"] == status)
            .collect()
    }

    /// Exactly this failed, once, and what was found contains all of `words`.
    #[track_caller]
    fn assert_names(&self, id: &str, words: &[&str]) -> Cure {
        let failed = self.with_status("failed");
        assert_eq!(failed.len(), 1, "{id} alone: {failed:#?}");
        assert_eq!(failed[0]["id"], id, "{failed:#?}");
        let found = failed[0]["found"].as_str().expect("found");
        for word in words {
            assert!(found.contains(word), "{word:?} in {found:?}");
        }
        assert!(
            self.with_status("warning").is_empty(),
            "{:#?}",
            self.checks()
        );
        assert_eq!(self.answer["ok"], false);
        assert_eq!(self.code, 1);
        Cure::of(failed[0])
    }

    #[track_caller]
    fn assert_healthy(&self) {
        assert!(
            self.checks().iter().all(|check| check["status"] == "ok"),
            "{:#?}",
            self.checks()
        );
        assert_eq!(self.answer["ok"], true);
        assert_eq!(self.code, 0);
    }

    #[track_caller]
    fn assert_has(&self, id: &str, status: &str) {
        let found = self
            .checks()
            .iter()
            .any(|check| check["id"] == id && check["status"] == status);
        assert!(found, "{id} {status}: {:#?}", self.checks());
    }
}

/// Both backends on a host, and the routing placed by hand for go-mmproxy unless told otherwise.
struct Server {
    host: Host,
    _backends: [Backend; 2],
}

impl Server {
    fn bare() -> Server {
        let host = Host::new("server");
        let backends = [
            Backend::listen(&host, "127.0.0.1:9000"),
            Backend::listen(&host, "[::1]:9000"),
        ];
        Server {
            host,
            _backends: backends,
        }
    }

    fn routed() -> Server {
        let server = Server::bare();
        server.sh(RULE4);
        server.sh(ROUTE4);
        server.sh(RULE6);
        server.sh(ROUTE6);
        server
    }

    fn sh(&self, script: &str) {
        self.host.run(&["bash", "-ec", script]);
    }

    fn doctor(&self) -> Answer {
        doctor(&self.host, &BOTH)
    }

    /// The command must be the end of it.
    #[track_caller]
    fn mend(&self, cure: &Cure) {
        let program = Program::Realpeer.path();
        self.sh(&cure.run.replace("realpeer ", &format!("{program} ")));
        doctor(&self.host, &[&BOTH[..], &["-routing", "off"]].concat()).assert_healthy();
    }
}

const RULE4: &str = "ip rule add from 127.0.0.1/8 iif lo table 123";
const ROUTE4: &str = "ip route add local 0.0.0.0/0 dev lo table 123";
const RULE6: &str = "ip -6 rule add from ::1/128 iif lo table 123";
const ROUTE6: &str = "ip -6 route add local ::/0 dev lo table 123";

#[test]
fn a_healthy_machine_gives_no_warning() {
    let server = Server::bare();
    let before = state(&server.host);
    // What the proxy would put in is ok, and the probe leaves nothing behind.
    let answer = server.doctor();
    answer.assert_healthy();
    let said = answer.answer.to_string();
    assert!(
        said.contains("nothing has to be set up: while it runs, realpeer itself brings"),
        "{said}"
    );
    assert_eq!(state(&server.host), before);
    // With no target given there is nothing to fail.
    doctor(&server.host, &[]).assert_healthy();
    doctor(&server.host, &["-4", "127.0.0.1:9000"]).assert_healthy();
    let routed = Server::routed();
    routed.doctor().assert_healthy();
    doctor(&routed.host, &[&BOTH[..], &["-routing", "off"]].concat()).assert_healthy();
}

#[test]
fn a_running_proxy_is_healthy_and_keeps_its_port() {
    let stage = stage::Stage::new(&[]);
    let flags = [&["-l", "0.0.0.0:2222"], &BOTH[..]].concat();
    let answer = doctor(&stage.server, &flags);
    answer.assert_healthy();
    answer.assert_has("port-in-use", "ok");
    let said = answer.answer.to_string();
    assert!(
        said.contains("come back by table 8193, of a realpeer that runs"),
        "{said}"
    );
    // The probes came in the name of nobody the proxy knows.
    assert_ne!(stage.backend.accept().1, addr("203.0.113.99:9999"));
    assert_ne!(stage.backend6.accept().1, addr("203.0.113.99:9999"));
    stage.assert_serves();
    // The probe's own rules, in front of the proxy's for a moment, were none of its business.
    assert!(
        !stage
            .proxy
            .stdout()
            .iter()
            .any(|line| line.contains("another program removed"))
    );
}

#[test]
fn a_machine_with_mark_accept_is_healthy() {
    let (_neighbour, host) = stage::wire();
    let _backend = Backend::listen(&host, "192.0.2.10:9000");
    doctor(&host, &["-4", "192.0.2.10:9000"]).assert_healthy();
    routing(&host, &["up", "-4", "192.0.2.10:9000"]);
    doctor(&host, &["-4", "192.0.2.10:9000", "-routing", "off"]).assert_healthy();
}

#[test]
fn a_container_whose_replies_pass_here_is_healthy() {
    let (container, host) = container();
    let backend = Backend::listen(&container, "192.0.2.5:9000");
    let answer = doctor(&host, &["-4", "192.0.2.5:9000", "-probe-remote"]);
    answer.assert_healthy();
    answer.assert_has("probe", "ok");
    // A probe leaves the host only when told to.
    let stranger = backend.accept().1.ip().to_string();
    assert!(
        stranger.starts_with("198.18.") || stranger.starts_with("198.19."),
        "{stranger}"
    );
    doctor(&host, &["-4", "192.0.2.5:9000"]);
    backend.assert_idle();
    host.sysctl("ipv4/ip_forward", "1");
    let answer = doctor(&host, &["-4", "192.0.2.5:9001"]);
    answer.assert_healthy();
}

#[test]
fn a_udp_backend_is_healthy() {
    let host = Host::new("server");
    let _backend = host
        .enter(|| UdpSocket::bind("127.0.0.1:5300"))
        .expect("bind");
    let answer = doctor(&host, &["-p", "udp", "-4", "127.0.0.1:5300"]);
    answer.assert_healthy();
    answer.assert_has("probe", "ok");
}

#[test]
fn text_is_a_line_a_check_and_one_for_each_cure() {
    let server = Server::bare();
    let flags = [&["doctor"], &BOTH[..], &["-routing", "off"]].concat();
    let ended = Program::Realpeer.run(&server.host, &flags);
    assert_eq!(ended.code, 1);
    let lines: Vec<_> = ended
        .stdout
        .lines()
        .filter(|line| line.starts_with("failed   no-rule "))
        .collect();
    assert_eq!(lines.len(), 2, "{}", ended.stdout);
    assert!(
        ended
            .stdout
            .contains("\n         run: realpeer routing up -4 127.0.0.1:9000\n         advice: "),
        "{}",
        ended.stdout
    );
}

#[test]
fn no_rule() {
    let server = Server::bare();
    let answer = doctor(&server.host, &["-4", "127.0.0.1:9000", "-routing", "off"]);
    let failed = answer.with_status("failed");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0]["id"], "no-rule");
    // The IPv6 target was not given.
    assert_eq!(answer.with_status("warning").len(), 1);
    server.mend(&Cure::of(failed[0]));
}

#[test]
fn empty_table() {
    let server = Server::routed();
    server.sh("ip route flush table 123");
    let fix = server.doctor().assert_names(
        "empty-table",
        &["from 127.0.0.1/8 iif lo lookup 123", "table 123 is empty"],
    );
    server.mend(&fix);
}

#[test]
fn not_local_route() {
    let server = Server::routed();
    server.sh("ip -6 route flush table 123; ip -6 route add default dev lo table 123");
    let fix = server.doctor().assert_names(
        "not-local-route",
        &["table 123", "\"default dev lo\"", "[::1]:9000"],
    );
    server.mend(&fix);
}

#[test]
fn one_family_missing() {
    let server = Server::routed();
    server.sh("ip -6 rule del table 123");
    let answer = doctor(&server.host, &[&BOTH[..], &["-routing", "off"]].concat());
    let fix = answer.assert_names(
        "one-family-missing",
        &["IPv4 has its policy rule, IPv6 has none"],
    );
    server.mend(&fix);

    let server = Server::routed();
    server.sh("ip rule del table 123");
    let answer = doctor(&server.host, &[&BOTH[..], &["-routing", "off"]].concat());
    answer.assert_names(
        "one-family-missing",
        &["IPv6 has its policy rule, IPv4 has none"],
    );
    // The proxy would put it in.
    server.doctor().assert_healthy();
}

#[test]
fn rule_shadowed_by_wireguard() {
    let server = Server::routed();
    // What wg-quick does for AllowedIPs = 0.0.0.0/0.
    server.sh(
        "ip route add default dev lo table 51820; ip rule add not fwmark 51820 table 51820; \
         ip rule add table main suppress_prefixlength 0",
    );
    let fix = server.doctor().assert_names(
        "rule-shadowed",
        &["not from all fwmark 0xca6c lookup 51820", "lookup 123"],
    );
    server.mend(&fix);
}

#[test]
fn rule_shadowed_by_tailscale() {
    let server = Server::routed();
    server.sh(
        "ip rule add priority 5210 fwmark 0x80000/0xff0000 lookup main; \
         ip rule add priority 5230 fwmark 0x80000/0xff0000 lookup default; \
         ip rule add priority 5250 fwmark 0x80000/0xff0000 unreachable; \
         ip rule add priority 5270 lookup 52; ip route add default dev lo table 52",
    );
    let fix = server
        .doctor()
        .assert_names("rule-shadowed", &["5270: from all lookup 52"]);
    server.mend(&fix);
}

#[test]
fn tailscale_without_an_exit_node_is_harmless() {
    let server = Server::routed();
    server.sh(
        "ip rule add priority 5250 fwmark 0x80000/0xff0000 unreachable; \
         ip rule add priority 5270 lookup 52; ip route add 100.100.100.100 dev lo table 52",
    );
    server.doctor().assert_healthy();
}

#[test]
fn table_in_use() {
    let server = Server::routed();
    server.sh("ip rule add from 10.8.0.0/24 lookup 123");
    let fix = server.doctor().assert_names(
        "table-in-use",
        &["table 123", "from 10.8.0.0/24 lookup 123"],
    );
    server.mend(&fix);

    let server = Server::routed();
    server.sh("ip route add blackhole 10.9.0.0/16 table 123");
    server
        .doctor()
        .assert_names("table-in-use", &["blackhole 10.9.0.0/16"]);

    // A VPN had the table first, so our route could not be added.
    let server = Server::routed();
    server.sh("ip route flush table 123; ip route add default dev lo table 123; ip rule add fwmark 7 lookup 123");
    server
        .doctor()
        .assert_names("table-in-use", &["fwmark 0x7 lookup 123"]);
}

#[test]
fn the_table_of_routing_up_in_use() {
    let server = Server::bare();
    server.sh("ip route add blackhole 10.9.0.0/16 table 8192");
    let answer = doctor(&server.host, &["-4", "127.0.0.1:9000", "-routing", "off"]);
    answer.assert_has("table-in-use", "failed");
    assert_eq!(answer.with_status("failed").len(), 1);
    // A running proxy finds another table.
    server.doctor().assert_healthy();
}

#[test]
fn a_table_shared_with_tproxy_is_fine() {
    let server = Server::routed();
    server.sh("ip rule add fwmark 1 lookup 123");
    server.doctor().assert_healthy();
}

#[test]
fn no_capability() {
    let server = Server::bare();
    let without = [
        "setpriv",
        "--bounding-set=-net_admin,-net_raw",
        "--inh-caps=-net_admin,-net_raw",
    ];
    let answer = doctor_under(&without, &server.host, &BOTH);
    let fix = answer.assert_names("no-capability", &["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    assert!(fix.advice.contains("AmbientCapabilities"));
    // One of the two is enough to run, where the routing is there.
    let raw_only = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ];
    doctor_under(&raw_only, &Server::routed().host, &BOTH).assert_healthy();
    let answer = doctor_under(&raw_only, &server.host, &["-4", "127.0.0.1:9000"]);
    assert_eq!(answer.with_status("failed").len(), 1);
    answer.assert_has("no-rule", "failed");
}

#[test]
fn backend_down() {
    let server = Server::bare();
    let answer = doctor(&server.host, &["-4", "127.0.0.1:9001"]);
    answer.assert_names("backend-down", &["nothing listens on 127.0.0.1:9001"]);
    let answer = doctor(&server.host, &["-p", "udp", "-4", "127.0.0.1:9001"]);
    answer.assert_names("backend-down", &["nothing listens on 127.0.0.1:9001 (udp)"]);
}

#[test]
fn backend_other_address() {
    let (_neighbour, host) = stage::wire();
    let _elsewhere = Backend::listen(&host, "192.0.2.10:9000");
    let answer = doctor(&host, &["-4", "127.0.0.1:9000"]);
    let fix = answer.assert_names(
        "backend-other-address",
        &["127.0.0.1:9000", "192.0.2.10:9000"],
    );
    assert!(fix.advice.contains("-4 192.0.2.10:9000"), "{}", fix.advice);

    let _four_only = Backend::listen(&host, "0.0.0.0:9001");
    let answer = doctor(&host, &["-6", "[::1]:9001"]);
    answer.assert_names("backend-other-address", &["[::1]:9001", "0.0.0.0:9001"]);

    // nginx's `listen [::]:9002` is for IPv6 only.
    let _six_only = host.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)
            .expect("socket");
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
        socket.bind(&addr("[::]:9002").into()).expect("bind");
        socket.listen(1).expect("listen");
        socket
    });
    let answer = doctor(&host, &["-4", "127.0.0.1:9002"]);
    answer.assert_names("backend-other-address", &["127.0.0.1:9002", "[::]:9002"]);
}

#[test]
fn target_not_local() {
    let (_neighbour, host) = stage::wire();
    // A neighbour that knows no way to strangers, least of all by us.
    let answer = doctor(&host, &["-4", "192.0.2.5:9000"]);
    answer.assert_names("target-not-local", &["192.0.2.5:9000", "does not forward"]);
    let answer = doctor(&host, &["-4", "198.51.100.9:9000"]);
    answer.assert_names("target-not-local", &["knows no way"]);
    host.run(&["ip", "route", "add", "default", "via", "192.0.2.5"]);
    let answer = doctor(&host, &["-4", "198.51.100.9:9000"]);
    answer.assert_names("target-not-local", &["beyond the gateway 192.0.2.5"]);
    let answer = doctor(&host, &["-4", "192.0.2.7:9000"]);
    answer.assert_names("target-not-local", &["another gateway, 192.0.2.5"]);
}

#[test]
fn target_not_local_shown_by_a_probe() {
    let (neighbour, host) = stage::wire();
    host.sysctl("ipv4/ip_forward", "1");
    let _backend = Backend::listen(&neighbour, "192.0.2.5:9000");
    doctor(&host, &["-4", "192.0.2.5:9000"]).assert_healthy();
    let answer = doctor(&host, &["-4", "192.0.2.5:9000", "-probe-remote"]);
    answer.assert_names("target-not-local", &["it answers this host"]);
    neighbour.run(&["ip", "route", "add", "default", "via", "192.0.2.10"]);
    doctor(&host, &["-4", "192.0.2.5:9001", "-probe-remote"])
        .assert_names("backend-down", &["192.0.2.5:9001"]);
}

#[test]
fn docker_proxy() {
    let host = Host::new("server");
    let _docker = docker_relay(&host);
    let fix = doctor(&host, &["-4", "127.0.0.1:8080"])
        .assert_names("docker-proxy", &["127.0.0.1:8080", "docker-proxy"]);
    assert!(fix.advice.contains("-4 172.17.0.2:80"), "{}", fix.advice);
}

/// A relay as Docker starts it, and its process number.
fn docker_relay(host: &Host) -> (impl Sized + use<>, String) {
    let files = TempDir::new();
    let program = files.file(
        "docker-proxy",
        "#!/usr/bin/perl\nuse IO::Socket::INET;\n\
         my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0:8080', Listen => 5, ReuseAddr => 1);\nsleep 1000;\n",
    );
    host.run(&["chmod", "+x", &program]);
    let words =
        "-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80";
    let docker = host.spawn(
        &[
            &[program.as_str()],
            &words.split(' ').collect::<Vec<_>>()[..],
        ]
        .concat(),
    );
    host.wait_for_port(8080);
    let pid = docker.pid().to_string();
    ((docker, files), pid)
}

#[test]
fn the_readme_shows_what_the_doctor_prints() {
    let print = |wrapper: &[&str], host: &Host, target| {
        let flags = ["doctor", "-4", target];
        let mut running = Program::Realpeer.spawn(wrapper, host, &flags);
        assert_eq!(running.exit_code(), 1);
        let lines = running.stdout();
        let first = lines.iter().position(|line| line.starts_with("failed "));
        let first = first.expect("a check that failed");
        let cure = lines[first + 1..].iter();
        let cure = cure.take_while(|line| line.starts_with("         "));
        let check: Vec<_> = [&lines[first]].into_iter().chain(cure).collect();
        let check: Vec<_> = check.iter().map(|line| format!("{line}\n")).collect();
        check.concat()
    };
    let host = Host::new("server");
    let _sshd = Backend::listen(&host, "127.0.0.1:22");
    let raw_only = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ];
    let no_rule = print(&raw_only, &host, "127.0.0.1:22");
    let firewall = "table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; }; }";
    host.run(&["nft", firewall]);
    let closed = print(&[], &host, "127.0.0.1:22");
    let (_docker, pid) = docker_relay(&host);
    let docker = print(&[], &host, "127.0.0.1:8080").replace(&pid, "6820");
    // Whoever runs the test.
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let user = user.expect("look up").expect("a name").name;
    let docker = docker.replace(&format!("user {user})"), "user root)");

    let readme = std::fs::read_to_string(support::repository("README.md")).expect("README");
    for sample in [no_rule, docker, closed] {
        assert!(
            readme.contains(&format!("```text\n{sample}```\n")),
            "not in README.md:\n{sample}"
        );
    }
}

/// The backend must not get a datagram of the probe's, and yet its own port is looked at.
#[test]
fn a_firewall_in_the_way_of_udp() {
    for (firewall, id) in [
        (
            "chain in { type filter hook input priority 0; policy drop; }; chain out { type filter hook output priority 0; policy drop; };",
            "firewall-input",
        ),
        (
            "chain in { type filter hook input priority 0; udp dport 5300 drop; };",
            "firewall-input",
        ),
        (
            "chain out { type filter hook output priority 0; udp sport 5300 drop; };",
            "firewall-output",
        ),
    ] {
        let host = Host::new("server");
        let sockets = ["127.0.0.1:5300", "[::1]:5300"].map(|at| {
            let socket = host.enter(|| UdpSocket::bind(at)).expect("bind");
            socket.set_nonblocking(true).expect("non-blocking");
            socket
        });
        host.run(&["nft", &format!("table inet fw {{ {firewall} }}")]);
        let flags = ["-p", "udp", "-4", "127.0.0.1:5300", "-6", "[::1]:5300"];
        let answer = doctor(&host, &flags);
        let failed = answer.with_status("failed");
        assert_eq!(failed.len(), 2, "{failed:#?}");
        assert!(failed.iter().all(|check| check["id"] == id), "{failed:#?}");
        let fix = Cure::of(failed[0]);
        assert!(
            fix.run
                .contains("lo ip daddr 127.0.0.1 udp dport 5300 accept")
                || id == "firewall-output",
            "{}",
            fix.run
        );
        host.run(&["bash", "-ec", &fix.run]);
        doctor(&host, &flags).assert_healthy();
        for socket in sockets {
            let received = socket.recv_from(&mut [0; 64]);
            assert!(received.is_err(), "{received:?}");
        }
    }
}

/// Any user may call a program docker-proxy, and give it any words.
#[test]
fn words_of_other_programs_never_reach_terminal_or_shell() {
    const ESCAPES: &str = "\x1b]0;owned\x07\x1b[2J\u{9b}2J\u{202e}";
    let host = Host::new("server");
    let files = TempDir::new();
    let program = files.file(
        "docker-proxy",
        "#!/usr/bin/perl\nuse IO::Socket::INET;\n\
         my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0:8080', Listen => 5, ReuseAddr => 1);\nsleep 1000;\n",
    );
    host.run(&["chmod", "+x", &program]);
    let address = format!(
        "172.17.0.2;$(touch {})`id`\n{ESCAPES}",
        files.path("owned").display()
    );
    let port = format!("80 && reboot #{ESCAPES}");
    let _docker = host.spawn(&[
        &program,
        "-container-ip",
        &address,
        "-container-port",
        &port,
    ]);
    host.wait_for_port(8080);
    // The same of the firewall's and the routing's names.
    host.run(&["bash", "-ec", &format!("nft 'table inet fw {{ chain in {{ type filter hook input priority 0; tcp dport 9000 drop comment \"{ESCAPES}\"; }}; }}'")]);
    host.run(&[
        "ip",
        "rule",
        "add",
        "from",
        "127.0.0.1",
        "iif",
        "a;$(id)'`x`",
        "table",
        "123",
    ]);
    host.run(&[
        "ip",
        "rule",
        "add",
        "from",
        "127.0.0.0/8",
        "iif",
        "lo",
        "table",
        "123",
    ]);
    host.run(&[
        "ip", "route", "add", "local", "default", "dev", "lo", "table", "123",
    ]);
    let _backend = Backend::listen(&host, "127.0.0.1:9000");

    for target in ["127.0.0.1:8080", "127.0.0.1:9000"] {
        for routing in ["auto", "off"] {
            for json in [&["-json"][..], &[]] {
                let flags = [&["doctor", "-4", target, "-routing", routing], json].concat();
                let ended = Program::Realpeer.run(&host, &flags);
                assert_eq!(ended.code, 1, "{}", ended.stdout);
                let hidden = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
                assert!(!ended.stdout.contains(hidden), "{:?}", ended.stdout);
                if json.is_empty() {
                    let starts = [
                        "ok ",
                        "warning ",
                        "failed ",
                        "         run: ",
                        "         advice: ",
                    ];
                    for line in ended.stdout.lines() {
                        assert!(
                            starts.iter().any(|start| line.starts_with(start)),
                            "{line:?}"
                        );
                    }
                }
            }
        }
    }
    let fix = doctor(&host, &["-4", "127.0.0.1:8080"])
        .with_status("failed")
        .first()
        .map(|check| Cure::of(check));
    let fix = fix.expect("docker-proxy is blamed");
    // What is no address is not repeated, least of all as a command.
    assert_eq!(fix.run, "");
    assert!(
        fix.advice.contains("CONTAINER-ADDRESS:PORT"),
        "{}",
        fix.advice
    );
    assert!(!files.path("owned").exists());
}

#[test]
fn an_interface_with_a_shells_characters_is_quoted_in_a_command() {
    let server = Server::routed();
    server.sh("ip rule add from 10.8.0.0/24 iif 'b`id`' lookup 123");
    let answer = doctor(&server.host, &[&BOTH[..], &["-routing", "off"]].concat());
    let fix = Cure::of(answer.with_status("failed")[0]);
    assert!(
        answer.with_status("failed")[0]["found"]
            .as_str()
            .expect("found")
            .contains("iif 'b`id`'")
    );
    server.mend(&fix);
}

#[test]
fn firewall_input() {
    for (firewall, rule) in [
        (
            "nft -f - <<< 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 drop; }; }'",
            "tcp dport 9000 drop",
        ),
        (
            "nft -f - <<< 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 reject; }; }'",
            "tcp dport 9000 reject",
        ),
        (
            "nft -f - <<< 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 reject with tcp reset; }; }'",
            "reject with tcp reset",
        ),
        (
            "nft -f - <<< 'table inet fw { chain in { type filter hook input priority 0; policy drop; ip saddr 127.0.0.1 accept; }; }'",
            "the policy of table inet fw, chain in",
        ),
        (
            "iptables-nft -A INPUT -p tcp --dport 9000 -j DROP",
            "in table ip filter, chain INPUT",
        ),
        (
            "iptables-nft -A INPUT -p tcp --dport 9000 -j REJECT",
            "in table ip filter, chain INPUT",
        ),
    ] {
        let server = Server::routed();
        server.sh(firewall);
        let before = server.host.run(&["nft", "list", "tables"]);
        let answer = doctor(&server.host, &["-4", "127.0.0.1:9000"]);
        let fix = answer.assert_names(
            "firewall-input",
            &[rule, "what clients send to 127.0.0.1:9000"],
        );
        assert_eq!(
            server.host.run(&["nft", "list", "tables"]),
            before,
            "the trace table is gone"
        );
        server.sh(&fix.run);
        doctor(&server.host, &["-4", "127.0.0.1:9000"]).assert_healthy();
    }
}

#[test]
fn firewall_output() {
    for (firewall, rule) in [
        (
            "nft -f - <<< 'table inet fw { chain out { type filter hook output priority 0; tcp sport 9000 drop; }; }'",
            "tcp sport 9000 drop",
        ),
        (
            "ip6tables-nft -A OUTPUT -p tcp --sport 9000 -j DROP",
            "in table ip6 filter, chain OUTPUT",
        ),
        (
            "ip6tables-nft -A INPUT -p tcp --sport 9000 -j DROP",
            "in table ip6 filter, chain INPUT",
        ),
    ] {
        let server = Server::routed();
        server.sh(firewall);
        let answer = doctor(&server.host, &["-6", "[::1]:9000"]);
        let fix = answer.assert_names("firewall-output", &[rule, "the replies of [::1]:9000"]);
        server.sh(&fix.run);
        doctor(&server.host, &["-6", "[::1]:9000"]).assert_healthy();
    }
}

#[test]
fn marks_of_legacy_iptables() {
    for (setup, flags, words) in [
        (
            "ip rule add from 127.0.0.1/8 iif lo table 123; ip route add local default dev lo table 123; ip route add default via 192.0.2.5 table 100; ip rule add fwmark 1 table 100; $t -A OUTPUT -j MARK --set-mark 1",
            ["-4", "127.0.0.1:9000", "-routing", "off"],
            ["mark 0x1", "127.0.0.1:9000"],
        ),
        (
            "$t -A OUTPUT -j MARK --set-mark 0",
            ["-4", "192.0.2.10:9000", "-routing", "auto"],
            ["mark 0x0", "192.0.2.10:9000"],
        ),
    ] {
        let (_neighbour, host) = stage::wire();
        let _backend = Backend::listen(&host, flags[1]);
        let files = TempDir::new();
        // An ordinary user cannot write /run/xtables.lock.
        let lock = files.file("lock", "");
        let program = format!("XTABLES_LOCKFILE={lock} iptables-legacy -t mangle");
        host.run(&["bash", "-ec", &setup.replace("$t", &program)]);
        let answer = doctor(&host, &flags);
        let failed = answer.with_status("failed");
        assert_eq!(failed.len(), 1, "{failed:#?}");
        assert_eq!(failed[0]["id"], "mark-changed", "{failed:#?}");
        let text = failed[0].to_string();
        for word in words.iter().chain(&["iptables-legacy"]) {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}

#[test]
fn src_valid_mark() {
    let (container, host) = container();
    let _backend = Backend::listen(&container, "192.0.2.5:9000");
    host.sysctl("ipv4/conf/all/src_valid_mark", "1");
    for flags in [
        &["-4", "192.0.2.5:9000"][..],
        &["-4", "192.0.2.5:9000", "-probe-remote"],
    ] {
        let fix = doctor(&host, flags).assert_names("src-valid-mark", &["to-balancer"]);
        assert!(fix.run.starts_with("sysctl -w "), "{}", fix.run);
    }
    let fix = doctor(&host, &["-4", "192.0.2.5:9000"]).assert_names("src-valid-mark", &[]);
    host.run(&["bash", "-ec", &fix.run]);
    doctor(&host, &["-4", "192.0.2.5:9000", "-probe-remote"]).assert_healthy();
}

#[test]
fn fwmark_accept_off() {
    let (_neighbour, host) = stage::wire();
    let _backend = Backend::listen(&host, "192.0.2.10:9000");
    routing(&host, &["up", "-4", "192.0.2.10:9000"]);
    host.sysctl("ipv4/tcp_fwmark_accept", "0");
    for mode in ["off", "auto"] {
        let answer = doctor(&host, &["-4", "192.0.2.10:9000", "-routing", mode]);
        let fix = answer.assert_names("fwmark-accept-off", &["tcp_fwmark_accept is 0"]);
        assert_eq!(fix.run, "sysctl -w net.ipv4.tcp_fwmark_accept=1");
    }
}

#[test]
fn udp_wildcard_backend() {
    let server = Server::routed();
    for (bind, flags) in [
        ("0.0.0.0:5300", ["-p", "udp", "-4", "127.0.0.1:5300"]),
        ("[::]:5301", ["-p", "udp", "-6", "[::1]:5301"]),
    ] {
        let _backend = server.host.enter(|| UdpSocket::bind(bind)).expect("bind");
        doctor(&server.host, &flags).assert_names("udp-wildcard-backend", &["wildcard"]);
        // By hand, too; and where nothing is in place yet, the proxy puts in the port rule.
        let bare = Server::bare();
        let _backend = bare.host.enter(|| UdpSocket::bind(bind)).expect("bind");
        let by_hand = [&flags[..], &["-routing-mode", "loopback"]].concat();
        doctor(&bare.host, &by_hand).assert_names("udp-wildcard-backend", &["wildcard"]);
        doctor(&bare.host, &flags).assert_healthy();
    }
}

#[test]
fn ipv6_disabled() {
    let (_neighbour, host) = stage::wire();
    let _backend = Backend::listen(&host, "127.0.0.1:9000");
    host.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let fix = doctor(&host, &BOTH).assert_names("ipv6-disabled", &["-6 [::1]:9000"]);
    doctor(&host, &["-l", "[::]:8443", "-4", "127.0.0.1:9000"])
        .assert_names("ipv6-disabled", &["-l [::]:8443"]);
    doctor(&host, &["-4", "127.0.0.1:9000"]).assert_healthy();
    host.run(&["bash", "-ec", &fix.run]);
    let _backend6 = Backend::listen(&host, "[::1]:9000");
    doctor(&host, &BOTH).assert_healthy();
    // Other interfaces go on without it, and the backend has no address there that others reach.
    let addresses = host.run(&["ip", "-6", "-oneline", "address"]);
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
}

#[test]
fn port_in_use() {
    let server = Server::bare();
    let _holder = Backend::listen(&server.host, "0.0.0.0:8443");
    let own = format!("process {}", std::process::id());
    for listen in ["0.0.0.0:8443", "127.0.0.1:8443", "[::]:8443"] {
        let answer = doctor(&server.host, &[&["-l", listen], &BOTH[..]].concat());
        answer.assert_names("port-in-use", &[listen, &own]);
    }
}

#[test]
fn target_is_listener() {
    let server = Server::bare();
    let answer = doctor(
        &server.host,
        &["-l", "0.0.0.0:2222", "-4", "127.0.0.1:2222"],
    );
    answer.assert_names("target-is-listener", &["127.0.0.1:2222", "-l 0.0.0.0:2222"]);
    // A target that was not given is not blamed.
    doctor(&server.host, &["-l", "0.0.0.0:443"]).assert_healthy();
}

#[test]
fn peer_not_allowed() {
    let server = Server::bare();
    let files = TempDir::new();
    let subnets = files.file("subnets", "10.0.0.0/8\n");
    let flags = |from| [&["-allowed-subnets", &subnets, "-from", from], &BOTH[..]].concat();
    doctor(&server.host, &flags("192.0.2.5"))
        .assert_names("peer-not-allowed", &["192.0.2.5", &subnets]);
    doctor(&server.host, &flags("10.1.2.3")).assert_healthy();
    doctor(&server.host, &flags("::ffff:10.1.2.3")).assert_healthy();
    // A missing file is no check of the doctor's.
    let missing = [
        &["-allowed-subnets", "/nonexistent", "-from", "10.1.2.3"],
        &BOTH[..],
    ]
    .concat();
    doctor(&server.host, &missing).assert_healthy();
}

#[test]
fn nofile_too_low() {
    let server = Server::bare();
    let low = ["prlimit", "--nofile=256:256"];
    let flags = [&["-workers", "1", "-max-connections", "1000"], &BOTH[..]].concat();
    let fix = doctor_under(&low, &server.host, &flags)
        .assert_names("nofile-too-low", &["256 open files", "1000"]);
    let enough: String = fix
        .advice
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let high = format!("--nofile={enough}:{enough}");
    doctor_under(&["prlimit", &high], &server.host, &flags).assert_healthy();
}

/// A container: its way to strangers leads through the host.
fn container() -> (Host, Host) {
    let (container, host) = stage::wire();
    container.run(&["ip", "-4", "route", "add", "default", "via", "192.0.2.10"]);
    (container, host)
}

fn routing(host: &Host, words: &[&str]) {
    let ended = Program::Realpeer.run(host, &[&["routing"], words].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

/// All that policy routing and nftables hold.
fn state(host: &Host) -> String {
    host.run(&["bash", "-ec", "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset"])
}

#[test]
fn an_interrupted_doctor_leaves_nothing_behind() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
    let server = Server::bare();
    let host = &server.host;
    server.sh("nft -f - <<< 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 drop; }; }'");
    let before = state(host);
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let mut running = Program::Realpeer.spawn(&[], host, &[&["doctor"], &BOTH[..]].concat());
        wait_until("the probe's rules are in", || {
            host.run(&["ip", "rule"]).contains("8193")
        });
        running.signal(signal);
        assert_eq!(running.exit_code(), 1);
        wait_until("everything is as it was", || state(host) == before);
    }
}

#[test]
fn an_address_of_this_host_never_plays_the_stranger() {
    let server = Server::bare();
    server.sh("ip address add 203.0.113.251/32 dev lo; ip address add 2001:db8:fff1::251/128 dev lo nodad");
    server.doctor().assert_healthy();
    let answer = doctor(&server.host, &[&BOTH[..], &["-routing", "off"]].concat());
    assert_eq!(
        answer.with_status("failed").len(),
        2,
        "{:#?}",
        answer.checks()
    );
}

#[test]
fn the_start_of_the_proxy_warns_with_the_same_words_and_contacts_nobody() {
    let server = Server::bare();
    let flags = [
        "-l",
        "127.0.0.1:2222",
        "-4",
        "127.0.0.1:9001",
        "-6",
        "[::1]:9000",
    ];
    let said = doctor(&server.host, &flags).assert_names("backend-down", &[]);
    let [_, backend6] = &server._backends;
    backend6.accept(); // the doctor's own probe
    let proxy = Program::Realpeer.start(&server.host, &flags);
    let line = proxy.wait_for_line("\"check\":\"backend-down\"");
    assert!(
        line.contains("nothing listens on 127.0.0.1:9001") && line.contains(&said.advice),
        "{line}"
    );
    assert_eq!(
        proxy
            .stdout()
            .iter()
            .filter(|line| line.contains("\"check\""))
            .count(),
        1
    );
    backend6.assert_idle();
}
