//! Bans in the application server's own firewall hold for what realpeer sends there, and each kind
//! is told by its own words.

mod support;

use support::header::v1;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{assert_closed, assert_reset, send};
use support::{Ctl, Program, Stage, TempDir};

fn ban(stage: &Stage, how: &str) {
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
    stage.server.run(&["nft", "-f", &rules]);
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

/// A connection that takes its time is not disturbed: the reject's messages are asked for only
/// until the answer comes.
#[test]
fn a_backend_on_another_host_is_reached_and_its_firewall_told() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-v", "1", "-control", &ctl.path()]);
    let near = stage.dial();
    send(&near, v1(CLIENT, VISITED));
    let (far, _) = stage.backend.accept();
    support::streams::assert_carries(&near, &far);
}

#[test]
fn the_doctor_names_a_rule_that_accepts_all_of_lo() {
    let stage = Stage::new(&[]);
    let doctor = || {
        let flags = [
            "doctor",
            "-l",
            "0.0.0.0:2222",
            "-4",
            "127.0.0.1:9000",
            "-6",
            "[::1]:9000",
        ];
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
