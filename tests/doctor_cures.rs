//! The doctor's commands, pasted as printed: one paste mends all, the client is served after it, and
//! another host can reach no more than before.

mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::header::v1;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{assert_carries, send};
use support::{Backend, Host, Program, TempDir, addr};

/// A way to break a server.
struct Case {
    wrong: &'static str,
    setup: &'static str,
    id: &'static str,
    flags: &'static [&'static str],
}

const BOTH: &[&str] = &["-4", "127.0.0.1:9000", "-6", "[::1]:9000"];
const BY_HAND: &[&str] = &[
    "-4",
    "127.0.0.1:9000",
    "-6",
    "[::1]:9000",
    "-routing",
    "off",
];
const OWN_ADDRESS: &[&str] = &["-4", "192.0.2.10:9000", "-6", "[2001:db8::10]:9000"];

/// Keeps other hosts out, where the case is not about the firewall.
const GUARD: &str = "nft 'table inet guard { chain in { type filter hook input priority 5; iif != lo tcp dport 9000 drop; }; }'\n";

/// go-mmproxy's rules.
const ROUTED: &str = "
    ip rule add from 127.0.0.1/8 iif lo table 123
    ip route add local 0.0.0.0/0 dev lo table 123
    ip -6 rule add from ::1/128 iif lo table 123
    ip -6 route add local ::/0 dev lo table 123\n";

const FIREWALLS: &[Case] = &[
    Case {
        wrong: "nft drops by policy what arrives",
        setup: "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop; tcp dport 2222 accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ip saddr 127.0.0.1 accept; ip6 saddr ::1 accept; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops by policy after a return",
        setup: "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop; tcp dport 2222 accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ip saddr 127.0.0.1 accept; ip6 saddr ::1 accept; return; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops the backend's port",
        setup: "nft 'table inet fw { chain in { type filter hook input priority 0; jump more; }; chain more { tcp dport 9000 drop; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft rejects the backend's port by a reset",
        setup: "nft 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 reject with tcp reset; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "a rule against forged addresses on lo, and the port closed to others",
        setup: "nft 'table inet fw { chain in { type filter hook input priority 0; iif lo ip saddr != 127.0.0.0/8 ip saddr != 192.0.2.10 drop; iif lo ip6 saddr != ::1 drop; iif != lo tcp dport 9000 drop; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops what leaves and what arrives, in two tables",
        setup: "nft 'table inet a { chain in { type filter hook input priority 0; policy drop; tcp dport 2222 accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; chain out { type filter hook output priority 0; policy drop; tcp sport 2222 accept; oif != lo icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }; table inet b { chain in { type filter hook input priority 10; tcp dport 9000 drop; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops before the routing",
        setup: "nft 'table inet raw { chain pre { type filter hook prerouting priority raw; tcp dport 9000 drop; }; }'",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops the replies, and the port is closed to others",
        setup: "nft 'table inet fw { chain out { type filter hook output priority 0; tcp sport 9000 drop; }; }'",
        id: "firewall-output",
        flags: BOTH,
    },
    Case {
        wrong: "iptables and ip6tables drop by policy",
        setup: "for t in iptables-nft ip6tables-nft; do $t -A INPUT -p tcp --dport 2222 -j ACCEPT; $t -P INPUT DROP; done; ip6tables-nft -A INPUT -p icmpv6 -j ACCEPT",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "iptables rejects in a chain of its own, and drops the replies",
        setup: "for t in iptables-nft ip6tables-nft; do $t -N local; $t -A local -p tcp --dport 1 -j DROP; $t -A local -p tcp --dport 9000 -j REJECT; $t -A INPUT -j local; $t -A OUTPUT -p tcp --sport 9000 -j DROP; done",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft and iptables together",
        setup: "nft 'table inet fw { chain in { type filter hook input priority 10; tcp dport 9000 reject; }; }'; iptables-nft -A INPUT -p tcp --dport 9000 -j DROP; ip6tables-nft -t mangle -A INPUT -p tcp --dport 9000 -j DROP",
        id: "firewall-input",
        flags: BOTH,
    },
    Case {
        wrong: "nft drops what arrives for another address of this host",
        setup: "nft 'table inet fw { chain in { type filter hook input priority 0; tcp dport 9000 drop; }; }'",
        id: "firewall-input",
        flags: OWN_ADDRESS,
    },
];

const OTHERS: &[Case] = &[
    Case {
        wrong: "lo is down",
        setup: "ip link set lo down",
        id: "lo-down",
        flags: BOTH,
    },
    Case {
        wrong: "lo has lost its address",
        setup: "ip address del 127.0.0.1/8 dev lo",
        id: "lo-down",
        flags: BOTH,
    },
    Case {
        wrong: "IPv6 is off",
        setup: "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
        id: "ipv6-disabled",
        flags: BOTH,
    },
    Case {
        wrong: "what sets marks was switched off",
        setup: "realpeer routing up -4 192.0.2.10:9000 -6 [2001:db8::10]:9000 >&2; sysctl -qw net.ipv4.tcp_fwmark_accept=0",
        id: "fwmark-accept-off",
        flags: &[
            "-4",
            "192.0.2.10:9000",
            "-6",
            "[2001:db8::10]:9000",
            "-routing",
            "off",
        ],
    },
    Case {
        wrong: "the list lacks the load balancer, and its last newline",
        setup: "printf 10.0.0.0/8 > \"$FILES/load balancers\"",
        id: "peer-not-allowed",
        flags: &[
            "-4",
            "127.0.0.1:9000",
            "-6",
            "[::1]:9000",
            "-allowed-subnets",
            "$FILES/load balancers",
        ],
    },
    Case {
        wrong: "nothing brings the replies back",
        setup: "",
        id: "no-rule",
        flags: BY_HAND,
    },
    Case {
        wrong: "the table is empty",
        setup: "ROUTED ip route flush table 123",
        id: "empty-table",
        flags: BY_HAND,
    },
    Case {
        wrong: "the route is not local",
        setup: "ROUTED ip route flush table 123; ip route add default dev lo table 123",
        id: "not-local-route",
        flags: BY_HAND,
    },
    Case {
        wrong: "IPv6 was forgotten",
        setup: "ROUTED ip -6 rule del table 123",
        id: "one-family-missing",
        flags: BY_HAND,
    },
    Case {
        wrong: "a VPN takes everything",
        setup: "ROUTED ip route add default via 192.0.2.5 table 51820; ip rule add not fwmark 51820 table 51820",
        id: "rule-shadowed",
        flags: BY_HAND,
    },
    Case {
        wrong: "accepted connections inherit -mark, and a rule takes what is marked",
        setup: "ROUTED ip route add default via 192.0.2.5 table 100; ip rule add fwmark 7 table 100; sysctl -qw net.ipv4.tcp_fwmark_accept=1",
        id: "rule-shadowed",
        flags: &[
            "-4",
            "127.0.0.1:9000",
            "-6",
            "[::1]:9000",
            "-routing",
            "off",
            "-mark",
            "7",
        ],
    },
    Case {
        wrong: "the table serves a VPN as well",
        setup: "ROUTED ip rule add from 10.8.0.0/24 lookup 123",
        id: "table-in-use",
        flags: BY_HAND,
    },
    Case {
        wrong: "nft marks all that leaves, and a rule takes what is marked",
        setup: "ROUTED ip route add default via 192.0.2.5 table 100; ip rule add fwmark 1 table 100; nft 'table inet m { chain out { type route hook output priority mangle; meta mark set 1; }; }'",
        id: "mark-changed",
        flags: BY_HAND,
    },
    Case {
        wrong: "iptables marks all that leaves, and a rule takes what is marked",
        setup: "ROUTED ip route add default via 192.0.2.5 table 100; ip rule add fwmark 1 table 100; iptables-nft -t mangle -A OUTPUT -j MARK --set-mark 1",
        id: "mark-changed",
        flags: BY_HAND,
    },
    Case {
        wrong: "nft takes away realpeer's own mark",
        setup: "nft 'table inet m { chain out { type route hook output priority mangle; meta mark set 1; }; }'",
        id: "mark-changed",
        flags: OWN_ADDRESS,
    },
    Case {
        wrong: "iptables takes away realpeer's own mark",
        setup: "for t in iptables-nft ip6tables-nft; do $t -t mangle -A PREROUTING -j MARK --set-mark 0; done",
        id: "mark-changed",
        flags: OWN_ADDRESS,
    },
];

#[test]
fn a_firewalls_cure_opens_the_way_and_nothing_else() {
    for case in FIREWALLS {
        Scene::new(case.setup).play(case);
    }
}

#[test]
fn every_other_command_mends_it_at_one_paste() {
    for case in OTHERS {
        let routed = case.setup.replace("ROUTED", ROUTED);
        Scene::new(&(GUARD.to_owned() + &routed)).play(case);
    }
}

/// A server with a backend on all its addresses, and a load balancer.
struct Scene {
    files: TempDir,
    balancer: Host,
    server: Host,
    backend: Backend,
}

impl Scene {
    fn new(setup: &str) -> Scene {
        let (balancer, server) = wire();
        let backend = Backend::listen(&server, "[::]:9000");
        let scene = Scene {
            files: TempDir::new(),
            balancer,
            server,
            backend,
        };
        scene.paste(&format!("set -e\n{setup}"));
        scene
    }

    #[track_caller]
    fn play(&self, case: &Case) {
        println!("{}", case.wrong);
        self.assert_closed_to_others(case);
        let (code, text) = self.doctor(case, &[]);
        assert_eq!(code, 1, "{}: {text}", case.wrong);
        let found = format!("failed   {} ", case.id);
        assert!(text.contains(&found), "{}: {text}", case.wrong);

        let commands: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("         run: "))
            .collect();
        assert!(!commands.is_empty(), "{}: {text}", case.wrong);
        for command in &commands {
            self.paste(command);
        }
        let (code, json) = self.doctor(case, &["-json"]);
        let answer: Value = serde_json::from_str(&json).expect("JSON");
        let all_ok = |check: &Value| check["status"] == "ok";
        let checks = answer["checks"].as_array().expect("checks");
        assert!(
            checks.iter().all(all_ok),
            "{}: {commands:#?} {answer:#}",
            case.wrong
        );
        assert_eq!(code, 0);
        // What the doctor opened for its own probe is gone.
        let rules = self.server.run(&["nft", "list", "ruleset"]);
        assert!(
            !rules.contains("203.0.113.") && !rules.contains("2001:db8:fff1:"),
            "{rules}"
        );

        self.assert_serves(case);
        self.assert_closed_to_others(case);
    }

    fn doctor(&self, case: &Case, more: &[&str]) -> (i32, String) {
        let flags = self.flags(case);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let flags = [&["doctor", "-from", "192.0.2.5"], &flags[..], more].concat();
        let ended = Program::Realpeer.run(&self.server, &flags);
        (ended.code, ended.stdout)
    }

    fn flags(&self, case: &Case) -> Vec<String> {
        let flags = ["-l", "0.0.0.0:2222"].iter().chain(case.flags);
        let place = self.files.path("").display().to_string();
        flags.map(|flag| flag.replace("$FILES", &place)).collect()
    }

    /// As an administrator does: the shell gets exactly what was printed.
    #[track_caller]
    fn paste(&self, command: &str) {
        let program = Program::Realpeer.path();
        let directory = Path::new(&program).parent().expect("a directory").display();
        let output = self
            .server
            .command("bash")
            .args(["-c", command])
            .env("FILES", self.files.path(""))
            .env(
                "PATH",
                format!(
                    "{directory}:{}:/usr/sbin:/sbin",
                    std::env::var("PATH").unwrap_or_default()
                ),
            )
            .output()
            .expect("bash");
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[track_caller]
    fn assert_serves(&self, case: &Case) {
        while self.backend.try_accept().is_some() {}
        let flags = self.flags(case);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let _proxy = Program::Realpeer.start(&self.server, &flags);
        for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
            let near = self.balancer.dial("192.0.2.10:2222");
            send(&near, v1(client, visited));
            let (far, from) = self.backend.accept();
            let expected = addr(client);
            assert_eq!(
                (from.ip().to_canonical(), from.port()),
                (expected.ip(), expected.port()),
                "{}",
                case.wrong
            );
            assert_carries(&near, &far);
        }
    }

    /// Neither directly, nor from a port that replies come from, nor in the name of a client.
    #[track_caller]
    fn assert_closed_to_others(&self, case: &Case) {
        for (from, to) in [
            ("192.0.2.5:0", "192.0.2.10:9000"),
            ("192.0.2.5:9000", "192.0.2.10:9000"),
            ("[2001:db8::5]:0", "[2001:db8::10]:9000"),
            ("[2001:db8::5]:9000", "[2001:db8::10]:9000"),
        ] {
            assert!(
                !self.is_open(from, to),
                "{}: {from} reaches {to}",
                case.wrong
            );
        }
    }

    fn is_open(&self, from: &str, to: &str) -> bool {
        // What is open answers in microseconds.
        const PATIENCE: Duration = Duration::from_millis(300);
        self.balancer.enter(|| {
            let to = addr(to);
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&addr(from).into()).expect("bind");
            socket.connect_timeout(&to.into(), PATIENCE).is_ok()
        })
    }
}
