//! Bans in the application server's own firewall hold for what realpeer sends there, and each kind
//! is told by its own words.

mod support;

use support::fail2ban::{Fail2ban, idle_jail};
use support::header::v1;
use support::stage::{ADDRESSES, CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{assert_carries, assert_closed, assert_reset, send};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

fn ban(stage: &Stage, how: &str) {
    reject(&stage.server, how);
}

fn reject(host: &Host, how: &str) {
    let files = TempDir::new();
    let rules = files.file(
        "ban.nft",
        &format!(
            "table inet f2b {{ chain input {{ type filter hook input priority -1;
             ip saddr 203.0.113.7 tcp dport 9000 {how}
             ip6 saddr 2001:db8:c::7 tcp dport 9000 {how}
             }}
 }}"
        ),
    );
    host.run(&["nft", "-f", &rules]);
}

#[test]
fn an_icmp_reject_closes_the_client_at_once_and_is_told() {
    for how in [
        "reject",
        "reject with icmpx admin-prohibited",
        "reject with icmpx type host-unreachable",
    ] {
        // Its time-out is longer than this test's patience.
        let stage = Stage::new(&["-v", "1", "-connect-timeout", "10m"]);
        ban(&stage, how);
        for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
            assert_reset(&stage.dial_and_send(v1(client, visited)));
            let line = stage.proxy.wait_for("refusal", |line| {
                line.contains(client) && line.contains("dropping")
            });
            assert!(
                line.contains("refused by a local firewall"),
                "{how}: {line}"
            );
        }
        stage.assert_serves();
    }
}

/// What fail2ban's own iptables action does: REJECT with icmp-port-unreachable.
#[test]
fn fail2bans_iptables_ban_is_told_as_such() {
    let stage = Stage::new(&["-v", "1", "-connect-timeout", "10m"]);
    for rule in [
        "-N f2b-sshd",
        "-I INPUT -p tcp -j f2b-sshd",
        "-A f2b-sshd -s 203.0.113.7 -j REJECT --reject-with icmp-port-unreachable",
    ] {
        let words: Vec<&str> = ["iptables", "-w"]
            .into_iter()
            .chain(rule.split(' '))
            .collect();
        stage.server.run(&words);
    }
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.proxy.wait_for_line("refused by a local firewall");
    stage.session("203.0.113.8:40000");
}

/// fail2ban's server with its own actions, in both families, and the end of the ban.
#[test]
fn fail2bans_own_actions_hold() {
    for action in ["iptables", "nftables"] {
        let stage = Stage::new(&["-v", "1", "-connect-timeout", "10m"]);
        let jail = idle_jail("web", &format!("{action}[type=multiport, port=9000]"));
        let fail2ban = Fail2ban::start(&stage.server, &jail);
        let ruleset = || stage.server.run(&["nft", "list", "ruleset"]);
        for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
            let ip = addr(client).ip().to_string();
            fail2ban.tell(&stage.server, &format!("set web banip {ip}"));
            wait_until("the rule is there", || ruleset().contains(&ip));
            assert_reset(&stage.dial_and_send(v1(client, visited)));
            stage.proxy.wait_for("refusal", |line| {
                line.contains(client) && line.contains("refused by a local firewall")
            });
            fail2ban.tell(&stage.server, &format!("set web unbanip {ip}"));
            wait_until("the rule is gone", || !ruleset().contains(&ip));
            stage.session(client);
        }
        assert!(!fail2ban.has_failed());
    }
}

#[test]
fn a_drop_is_told_after_the_connect_timeout() {
    let stage = Stage::new(&["-v", "1", "-connect-timeout", "300ms"]);
    ban(&stage, "drop");
    assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage
        .proxy
        .wait_for_line("no answer: a firewall may drop it");
}

#[test]
fn a_reset_is_a_closed_port_as_ever() {
    let stage = Stage::new(&["-v", "1"]);
    ban(&stage, "reject with tcp reset");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage
        .proxy
        .wait_for_line("refused the connection: is it running");
}

/// Its reject comes later, when nothing waits in connect(2) any more; and a connection that takes
/// its time is carried as any other.
#[test]
fn a_firewall_on_the_backends_own_host_is_told_too() {
    let (backend_host, server) = wire();
    for route in [
        "203.0.113.0/24 via 192.0.2.10",
        "198.51.100.0/24 via 192.0.2.10",
    ] {
        let words: Vec<&str> = ["ip", "route", "add"]
            .into_iter()
            .chain(route.split(' '))
            .collect();
        backend_host.run(&words);
    }
    server.sysctl("ipv4/ip_forward", "1");
    let backend = Backend::listen(&backend_host, "192.0.2.5:9000");
    let flags = [
        "-l",
        "0.0.0.0:2222",
        "-4",
        "192.0.2.5:9000",
        "-v",
        "1",
        "-connect-timeout",
        "10m",
    ];
    let proxy = Program::Realpeer.start(&server, &flags);

    let near = backend_host.dial("192.0.2.10:2222");
    send(&near, v1("198.51.100.8:40000", VISITED));
    let (far, from) = backend.accept();
    assert_eq!(from.to_string(), "198.51.100.8:40000");
    assert_carries(&near, &far);

    reject(&backend_host, "reject");
    let near = backend_host.dial("192.0.2.10:2222");
    send(&near, v1(CLIENT, VISITED));
    assert_reset(&near);
    proxy.wait_for_line("refused by a distant firewall");
}

#[test]
fn the_doctor_names_a_rule_that_accepts_all_of_lo() {
    let stage = Stage::new(&[]);
    let doctor = || {
        let flags = [&["doctor"], &ADDRESSES[..]].concat();
        Program::Realpeer.run(&stage.server, &flags).stdout
    };
    assert!(!doctor().contains("lo-accepted"));
    let files = TempDir::new();
    let rules = "table inet ufw { chain before-input { iifname \"lo\" counter accept\n}\nchain input { type filter hook input priority 0; jump before-input;\n}\n}";
    stage
        .server
        .run(&["nft", "-f", &files.file("ufw.nft", rules)]);
    let said = doctor();
    assert!(
        said.contains("lo-accepted") && said.contains("chain before-input"),
        "{said}"
    );
}
