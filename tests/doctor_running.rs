//! The doctor and a proxy that runs already: whom it refuses, and who cannot even reach it.

mod support;

use std::io::Write;

use support::header::v1;
use support::stage::{CLIENT, OTHER_BALANCER, PROXY, VISITED};
use support::streams::send;
use support::{Backend, Ctl, Diagnosis, Host, Program, Stage, TempDir, addr, wait_until};

/// A proxy with a control socket, and the doctor with the same flags.
struct Scene {
    stage: Stage,
    ctl: Ctl,
    flags: Vec<String>,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        Scene::under(&[], flags)
    }

    fn under(wrapper: &[&str], flags: &[&str]) -> Scene {
        let ctl = Ctl::new();
        let path = ctl.path();
        let flags = [&["-control", &path], flags].concat();
        let stage = Stage::under(Program::Realpeer, wrapper, &flags);
        let flags = [&support::stage::ADDRESSES[..], &flags].concat();
        Scene {
            stage,
            ctl,
            flags: flags.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    fn doctor(&self) -> Diagnosis {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        Diagnosis::of(&self.stage.server, &flags)
    }

    /// A client is served by this load balancer; the doctor's probes came to the backend before.
    fn serve(&self, balancer: &str) {
        let near = self.stage.balancer.dial_from(balancer, PROXY);
        send(&near, v1(CLIENT, VISITED));
        while self.stage.backend.accept().1 != addr(CLIENT) {}
    }

    /// Connections that the proxy refuses, each counted as `kind`.
    fn refused(&self, times: u64, kind: &str, bytes: &str) {
        let before = self.ctl.count(kind);
        for _ in 0..times {
            // The reset may be faster than the connection or the bytes.
            if let Ok(mut near) = self.stage.balancer.try_dial(None, PROXY) {
                _ = near.write_all(bytes.as_bytes());
            }
        }
        wait_until("they are refused", || {
            self.ctl.count(kind) == before + times
        });
    }
}

const BALANCER: &str = "192.0.2.5:0";
const SSH: &str = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n";

#[test]
fn no_proxy_protocol_at_the_load_balancer() {
    let scene = Scene::new(&[]);
    scene.doctor().assert_healthy();
    // A scanner, or two attempts of one.
    scene.refused(2, "headerAbsent", SSH);
    let answer = scene.doctor();
    answer.assert_healthy();
    assert!(
        answer.found("refused").contains("headerAbsent 2"),
        "{:?}",
        answer.answer
    );
    scene.refused(1, "headerAbsent", SSH);
    scene.doctor().assert_only(
        "refused",
        "failed",
        &[
            "headerAbsent",
            "refused 3 connections",
            "192.0.2.5",
            "without a PROXY header",
            "none served since",
            "proxy_protocol on",
        ],
    );
    // It is mended, and clients are served.
    scene.serve(BALANCER);
    scene.doctor().assert_healthy();
}

#[test]
fn a_load_balancer_that_is_not_in_the_list() {
    let files = TempDir::new();
    let list = files.file("balancers", "192.0.2.6\n");
    let scene = Scene::new(&["-allowed-subnets", &list]);
    scene.refused(3, "peerNotAllowed", "");
    let answer = scene.doctor();
    let check = answer.assert_only(
        "refused",
        "failed",
        &["peerNotAllowed", "192.0.2.5", &list, "3 in a row"],
    );
    // The last refused may be a stranger: nobody is to paste its address.
    assert_eq!(check["run"], "");
    // Once another load balancer has served somebody, three strangers are not enough.
    scene.serve(OTHER_BALANCER);
    scene.refused(3, "peerNotAllowed", "");
    scene.doctor().assert_healthy();
}

#[test]
fn too_few_descriptors() {
    let scene = Scene::under(
        &["prlimit", "--nofile=64:64"],
        &["-max-connections", "500", "-workers", "1"],
    );
    scene.doctor().assert_only(
        "nofile-too-low",
        "failed",
        &["64 open files of process", "500"],
    );

    let scene = Scene::new(&["-max-connections", "1"]);
    let _open = scene.stage.session(CLIENT);
    scene.refused(1, "tooManyConnections", "");
    scene.doctor().assert_only(
        "refused",
        "failed",
        &["tooManyConnections", "-max-connections"],
    );
}

#[test]
fn a_firewall_on_the_listening_port() {
    let scene = Scene::new(&[]);
    let server = &scene.stage.server;
    let firewall = |rules: &str| {
        server.run(&["nft", "add table inet fw; delete table inet fw"]);
        server.run(&["nft", &format!("table inet fw {{ chain web {{ tcp dport 443 accept; }}; chain in {{ type filter hook input priority 0; {rules} }}; }}")]);
    };
    // The first line is what the doctor's own probe and the proxy's clients on lo need.
    let usual = "policy drop; ct state established,related accept; ct state invalid drop; iif lo accept; meta l4proto icmp accept; jump web;";
    for rules in [
        &*format!("{usual} tcp dport {{ 22, 80 }} accept;"),
        "iifname \"lo\" accept; tcp dport 2000-3000 reject;",
        "iif != lo tcp dport 2222 drop;",
        &format!("{usual} ip protocol udp accept; tcp dport 1-2221 accept; log; drop;"),
    ] {
        firewall(rules);
        let answer = scene.doctor();
        let check = answer
            .checks()
            .iter()
            .find(|c| c["id"] == "firewall-listener");
        let check = check.unwrap_or_else(|| panic!("{rules}: {:#?}", answer.checks()));
        assert_eq!(check["status"], "failed");
        assert!(
            check["found"]
                .to_string()
                .contains("table inet fw, chain in"),
            "{check:#}"
        );
        assert_eq!(answer.code, 1);
    }
    for rules in [
        &*format!("{usual} tcp dport {{ 22, 2222 }} accept;"),
        &format!("{usual} ip saddr 192.0.2.0/24 tcp dport 2222 accept;"),
        &format!("{usual} iifname \"to-balancer\" accept;"),
        "tcp dport 2222 ip saddr 203.0.113.7 drop;",
        "tcp dport 2222 limit rate over 50/second drop;",
        "udp dport 2222 drop; tcp dport 22 drop;",
    ] {
        firewall(rules);
        let answer = scene.doctor();
        let named = answer
            .checks()
            .iter()
            .any(|c| c["id"] == "firewall-listener");
        assert!(!named, "{rules}: {:#?}", answer.checks());
        // And it is true.
        scene.serve(BALANCER);
    }
}

/// As ufw has them: matches that nft has no words for, and chains of its own.
const LIKE_UFW: &str = "
    $t -N before; $t -N not-local; $t -N users; $t -N deny
    $t -A INPUT -j before; $t -A INPUT -j users; $t -P INPUT DROP
    $t -A before -i lo -j ACCEPT
    $t -A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $t -A before -m conntrack --ctstate INVALID -j DROP
    $t -A before -p icmp -m icmp --icmp-type echo-request -j ACCEPT
    $t -A before -p udp --sport 67 --dport 68 -j ACCEPT
    $t -A deny -m limit --limit 3/min -j LOG --log-prefix \"[UFW BLOCK] -j \"
    $t -A before -j not-local
    $t -A not-local -m addrtype --dst-type LOCAL -j RETURN
    $t -A not-local -m addrtype --dst-type BROADCAST -j RETURN
    $t -A not-local -m limit --limit 3/min -j deny
    $t -A not-local -j DROP
    $t -A users -p tcp -m multiport --dports 22,80 -m comment --comment \"dapp_SSH -j ACCEPT\" -j ACCEPT
    $t -A users -p tcp -m multiport --dports 1000:2000,3000 -j ACCEPT\n";

#[test]
fn iptables_on_the_listening_port() {
    for (program, rule) in [
        ("iptables-nft", ""),
        ("iptables-legacy", ""),
        (
            "iptables-nft",
            "$t -P INPUT ACCEPT; $t -A INPUT -p tcp -m multiport --dports 2000:3000 -j DROP",
        ),
    ] {
        let scene = Scene::new(&[]);
        let server = &scene.stage.server;
        let files = TempDir::new();
        let lock = files.file("lock", "");
        let apply = |rules: &str| {
            // An ordinary user cannot write /run/xtables.lock.
            let rules = rules.replace("$t", &format!("XTABLES_LOCKFILE={lock} {program}"));
            server.run(&["bash", "-ec", &rules]);
        };
        apply(&(LIKE_UFW.to_owned() + rule));
        let answer = scene.doctor();
        let mut found = answer
            .checks()
            .iter()
            .filter(|c| c["id"] == "firewall-listener");
        let check = found
            .next()
            .unwrap_or_else(|| panic!("{program} {rule}: {:#?}", answer.checks()));
        assert_eq!((&check["status"], answer.code), (&"failed".into(), 1));
        let found = check["found"].as_str().expect("found");
        assert!(found.contains(&format!("\"{program} -")), "{found}");
        for open in [
            "$t -I users -p tcp -m multiport --dports 2222,2223 -j ACCEPT",
            "$t -R users 1 -s 192.0.2.0/24 -j ACCEPT",
            "$t -R users 1 -i to-balancer -j ACCEPT",
        ] {
            apply(open);
            let answer = scene.doctor();
            let named = answer
                .checks()
                .iter()
                .any(|c| c["id"] == "firewall-listener");
            assert!(!named, "{program} {open}: {:#?}", answer.checks());
            // And it is true.
            scene.serve(BALANCER);
        }
    }
}

#[test]
fn the_doctor_makes_no_table_of_iptables() {
    let host = Host::new("server");
    let tables = || {
        host.run(&[
            "bash",
            "-c",
            "nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; true",
        ])
    };
    let before = tables();
    Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
    assert_eq!(tables(), before);
}

#[test]
fn a_program_that_calls_itself_realpeer() {
    let host = Host::new("server");
    let _backend = Backend::listen(&host, "127.0.0.1:9000");
    let files = TempDir::new();
    let script = files.file(
        "realpeer",
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0:8443', Listen => 5, ReuseAddr => 1); sleep 1000;",
    );
    let squatter = host.spawn(&[
        "bash",
        "-c",
        &format!("exec -a realpeer perl {script} realpeer"),
    ]);
    host.wait_for_port(8443);
    let pid = format!("process {}", squatter.pid());
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())
        .expect("look up")
        .expect("a name");
    let user = format!("user {}", user.name);
    let answer = Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
    answer.assert_only(
        "port-in-use",
        "failed",
        &["0.0.0.0:8443", &pid, &user, "perl"],
    );
    drop(squatter);
    // The real one is known, even by another name.
    let _proxy = Program::Realpeer.start(&host, &["-l", "0.0.0.0:8443", "-4", "127.0.0.1:9000"]);
    let answer = Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
    answer.assert_healthy();
    assert!(answer.found("port-in-use").contains(&user));
}

#[test]
fn a_target_that_was_left_out_is_told_with_its_default() {
    let host = Host::new("server");
    let _backends = [
        Backend::listen(&host, "127.0.0.1:9000"),
        Backend::listen(&host, "[::1]:9000"),
    ];
    let four = Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
    four.assert_healthy();
    assert_eq!(
        four.found("target-default"),
        "-6 was not given: IPv6 clients go to its default, [::1]:443"
    );
    let six = Diagnosis::of(&host, &["-6", "[::1]:9000"]);
    assert!(
        six.found("target-default")
            .starts_with("-4 was not given: IPv4")
    );
    let both = Diagnosis::of(&host, &["-4", "127.0.0.1:9000", "-6", "[::1]:9000"]);
    assert!(
        both.checks()
            .iter()
            .all(|check| check["id"] != "target-default")
    );
}
