//! The doctor and bans: its probes draw none, and it never offers a way round one.

mod support;

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;

use support::fail2ban::Fail2ban;
use support::servers::Sshd;
use support::{Backend, Diagnosis, Host, Journal, TempDir, stage};

/// Where probes come from, as the shipped jails name it.
const PROBES: [&str; 4] = [
    "198.18.0.0/15",
    "203.0.113.128/25",
    "2001:2::/48",
    "2001:db8:fff0::/44",
];

const SSH: [&str; 4] = ["-4", "127.0.0.1:22", "-6", "[::1]:22"];
const BOTH: [&str; 4] = ["-4", "127.0.0.1:9000", "-6", "[::1]:9000"];

#[test]
fn ten_runs_are_no_reason_for_a_ban() {
    let host = Host::new("server");
    let files = TempDir::new();
    let log = files.file("auth.log", "");
    let sshd = Sshd::start_logging(&host, Some(&log));
    let jail = format!(
        "[realpeer-sshd-file]\nenabled = true\nbackend = polling\nlogpath = {log}\naction =\n\
         ignoreip =\nusedns = no\n"
    );
    // Nothing is ignored here: what sshd logs of probes must not count by itself.
    let fail2ban = Fail2ban::start(&host, &jail);
    let mut strangers = HashSet::new();
    for _ in 0..10 {
        let answer = Diagnosis::of(&host, &SSH);
        answer.assert_healthy();
        strangers.insert(answer.found("probe").to_owned());
    }
    assert!(strangers.len() > 5, "{strangers:?}");
    // What comes last is counted: all before it has been read then.
    for _ in 0..6 {
        host.dial_from("127.0.0.5:0", "127.0.0.1:22");
    }
    fail2ban.wait_for_ban("127.0.0.5");
    let counted: Vec<_> = fail2ban
        .running
        .stdout()
        .into_iter()
        .filter(|line| line.contains("Found ") && !line.contains("Found 127.0.0.5"))
        .collect();
    assert!(counted.is_empty(), "{counted:?}");
    drop(sshd);
}

#[test]
fn the_shipped_jails_ignore_the_networks_of_probes() {
    let host = Host::new("server");
    let mut journal = Journal::new(&host);
    let source = "SYSLOG_IDENTIFIER=sshd\n_COMM=sshd\n_SYSTEMD_UNIT=ssh.service";
    journal.add(source, "Server listening on :: port 22.");
    journal.wait_until_written(&host);
    let jails = format!(
        "[DEFAULT]\nignoreip = 10.0.0.0/8\n[realpeer-sshd]\nenabled = true\nbackend = {}\naction =\n",
        journal.backend()
    );
    let fail2ban = Fail2ban::start(&host, &jails);
    let clients = [
        "198.18.0.1",
        "198.19.255.254",
        "203.0.113.250",
        "2001:2::7",
        "2001:db8:fff7::9",
        // The administrator's own.
        "10.1.2.3",
        // A bot, last.
        "198.51.100.66",
    ];
    for client in clients {
        for port in 40000..40006 {
            journal.add(source, &format!("Invalid user x from {client} port {port}"));
        }
    }
    fail2ban.wait_for_ban("198.51.100.66");
    let bans = fail2ban.running.stdout();
    let bans: Vec<_> = bans.iter().filter(|line| line.contains("] Ban ")).collect();
    assert_eq!(bans.len(), 1, "{bans:?}");
}

#[test]
fn the_probe_comes_from_the_networks_that_the_jails_name_and_nobody_has() {
    let host = Host::new("server");
    let _backends = [
        Backend::listen(&host, "127.0.0.1:9000"),
        Backend::listen(&host, "[::1]:9000"),
    ];
    let jails = fs::read_to_string("packaging/fail2ban/jail.d/realpeer.conf").expect("read");
    assert!(jails.contains(&format!("realpeer_probes = {}\n", PROBES.join(" "))));
    let strangers = |host: &Host| -> Vec<IpAddr> {
        let answer = Diagnosis::of(host, &BOTH);
        answer.assert_healthy();
        let probes = answer.checks().iter().filter(|c| c["id"] == "probe");
        let found = probes.map(|check| {
            let found = check["found"].as_str().expect("found").to_owned();
            found
                .split(' ')
                .nth(3)
                .expect("an address")
                .parse()
                .expect("an address")
        });
        found.collect()
    };
    let of = |ip: IpAddr, network: &str| {
        let network: ipnet::IpNet = network.parse().expect("a network");
        network.contains(&ip)
    };
    let found = strangers(&host);
    assert!(
        of(found[0], PROBES[0]) && of(found[1], PROBES[2]),
        "{found:?}"
    );
    // Where a benchmark, a VPN or a blackhole has them, others are taken.
    host.run(&[
        "bash",
        "-ec",
        "ip route add 198.18.0.0/15 dev lo; ip -6 route add blackhole 2001:2::/48",
    ]);
    let found = strangers(&host);
    assert!(
        of(found[0], PROBES[1]) && of(found[1], PROBES[3]),
        "{found:?}"
    );
}

/// A table with this rule for what arrives.
fn firewall(host: &Host, rule: &str) {
    let table = format!(
        "table inet fw {{ set banned {{ type ipv4_addr; flags interval; elements = {{ 198.18.0.0/15, 203.0.113.128/25 }}; }}; chain f2b {{ ip saddr 203.0.113.128/25 drop; ip saddr 198.18.0.0/15 drop; }}; chain drops {{ counter; drop; }}; chain passes {{ counter; }}; chain in {{ type filter hook input priority 0; {rule}; }}; chain out {{ type filter hook output priority 0; }}; }}"
    );
    host.run(&["nft", "add table inet fw; delete table inet fw"]);
    host.run(&["nft", &table]);
}

#[test]
fn no_accept_is_offered_in_front_of_a_ban() {
    let host = Host::new("server");
    let _backend = Backend::listen(&host, "127.0.0.1:9000");
    let doctor = || Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
    for rule in [
        "ip saddr @banned drop",
        "ip saddr { 198.18.0.0/15, 203.0.113.128/25 } reject",
        "tcp dport 9000 ip saddr @banned reject with tcp reset",
        "tcp dport 9000 jump f2b",
        "ip saddr @banned jump drops",
    ] {
        firewall(&host, rule);
        let answer = doctor();
        let check = answer.assert_only(
            "firewall-input",
            "warning",
            &["the probe's address", "banned"],
        );
        assert_eq!(check["run"], "", "{check:#}");
        assert!(!check["advice"].to_string().contains("accept"), "{check:#}");
    }
    // On its way back, too.
    firewall(&host, "accept");
    host.run(&["nft", "add rule inet fw out ip daddr @banned drop"]);
    doctor().assert_only("firewall-output", "warning", &["the probe's address"]);
    // A list of the only clients that are wanted stands in every client's way.
    firewall(&host, "tcp dport 9000 ip saddr != 10.0.0.0/8 drop");
    let answer = doctor();
    let check = answer.assert_only("firewall-input", "failed", &["does not name"]);
    assert_eq!(check["run"], "", "{check:#}");
    // A jump that came back has nothing to do with what drops after it.
    firewall(&host, "ip saddr @banned jump passes; tcp dport 9000 drop");
    let answer = doctor();
    let check = answer.assert_only("firewall-input", "failed", &["tcp dport 9000 drop"]);
    assert_ne!(check["run"], "", "{check:#}");
}

#[test]
fn a_ban_of_one_network_is_not_taken_for_a_fault() {
    let (_neighbour, host) = stage::wire();
    let _backend = Backend::listen(&host, "127.0.0.1:9000");
    for ban in [
        "iptables-nft -N f2b-sshd; iptables-nft -A f2b-sshd -s 198.18.0.0/15 -j REJECT; iptables-nft -A INPUT -p tcp --dport 9000 -j f2b-sshd",
        "nft 'table inet f2b-table { set addr-set-sshd { type ipv4_addr; flags interval; elements = { 198.18.0.0/15 }; }; chain f2b-chain { type filter hook input priority -1; tcp dport 9000 ip saddr @addr-set-sshd reject; }; }'",
    ] {
        host.run(&["bash", "-ec", ban]);
        Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]).assert_healthy();
    }
    host.dial("127.0.0.1:9000");
}

#[test]
fn a_cure_lets_nobody_pass_the_bans_behind_it() {
    let (_neighbour, host) = stage::wire();
    let _backend = Backend::listen(&host, "127.0.0.1:9000");
    for (wall, mended) in [
        (
            "iptables-nft -N f2b-sshd; iptables-nft -A f2b-sshd -s 198.51.100.77 -j REJECT; iptables-nft -A f2b-sshd -j RETURN; iptables-nft -A INPUT -p tcp --dport 9000 -j DROP; iptables-nft -A INPUT -p tcp --dport 9000 -j f2b-sshd",
            "iptables-nft -D INPUT -p tcp --dport 9000 -j f2b-sshd; iptables-nft -I INPUT -p tcp --dport 9000 -j f2b-sshd",
        ),
        (
            "iptables-nft -A INPUT -i lo ! -s 127.0.0.0/8 -j DROP; iptables-nft -A INPUT -p tcp --dport 9000 -m recent --update --seconds 60 --hitcount 4 -j DROP",
            "iptables-nft -D INPUT 2; iptables-nft -I INPUT -p tcp --dport 9000 -m recent --update --seconds 60 --hitcount 4 -j DROP",
        ),
        (
            "nft 'table inet fw { set bans { type ipv4_addr; elements = { 198.51.100.77 }; }; chain bans { ip saddr @bans drop; }; chain local { tcp dport 9000 drop; }; chain in { type filter hook input priority 0; jump local; jump bans; }; }'",
            "nft insert rule inet fw in jump bans",
        ),
    ] {
        host.run(&["bash", "-ec", &format!("nft flush ruleset; {wall}")]);
        let doctor = || Diagnosis::of(&host, &["-4", "127.0.0.1:9000"]);
        let answer = doctor();
        let words = ["in front of", "banned clients"];
        let check = answer.assert_only("firewall-input", "failed", &words);
        assert_eq!(check["run"], "", "{wall}: {check:#}");
        // As advised. What is left behind the rule of nft bans nobody any more.
        host.run(&["bash", "-ec", mended]);
        host.run(&["bash", "-ec", "nft -a list chain inet fw in 2>/dev/null | sed -n 's/.*jump bans # handle //p' | tail -n +2 | xargs -rn1 nft delete rule inet fw in handle"]);
        let answer = doctor();
        let check = answer.assert_only("firewall-input", "failed", &["9000"]);
        let command = check["run"].as_str().expect("run");
        assert_ne!(command, "", "{wall}: {check:#}");
        host.run(&["bash", "-ec", command]);
        doctor().assert_healthy();
    }
}
