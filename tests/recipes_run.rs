//! The recipes whose programs Debian has, played with these programs.

mod support;

use std::fs;
use std::io::Read;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use support::datagrams::{every, open, receive};
use support::header::v1;
use support::servers::{haproxy, nginx};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, row, wire};
use support::streams::{assert_carries, assert_reset, send};
use support::{Backend, Ctl, Host, Program, Running, TempDir, addr, repository, wait_until};

fn path(example: &str) -> String {
    repository("examples").join(example).display().to_string()
}

fn read(example: &str) -> String {
    fs::read_to_string(path(example)).unwrap_or_else(|e| panic!("{example}: {e}"))
}

/// realpeer with a recipe's file.
#[track_caller]
fn start(server: &Host, recipe: &str, more: &[&str]) -> Running {
    let file = path(&format!("{recipe}/realpeer.toml"));
    let flags = [&["-config", &file], more].concat();
    let proxy = Program::Realpeer.spawn(&[], server, &flags);
    proxy.wait_for_line("\"listening\"");
    proxy
}

/// sshd with the recipe's lines listens for nobody but realpeer, and logs the client's address. The
/// load balancers are those of the haproxy and the nginx recipe.
#[test]
fn sshd_logs_the_client() {
    for balancer_is_nginx in [false, true] {
        let (client, balancer, server) = row();
        let directory = TempDir::new();
        let key = directory.path("key").display().to_string();
        server.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]);
        if geteuid().is_root() {
            server.run(&["mkdir", "/run/sshd"]);
        }
        let config = format!(
            "Include {}\nHostKey {key}\nPidFile none\nLogLevel VERBOSE\n",
            path("sshd/sshd.conf")
        );
        let config = directory.file("sshd_config", &config);
        server.run(&["/usr/sbin/sshd", "-t", "-f", &config]);
        let sshd = server.spawn(&["/usr/sbin/sshd", "-D", "-e", "-f", &config]);
        wait_until("sshd listens in both families", || {
            server.listeners(22) == 2
        });
        assert!(balancer.try_dial(None, "192.0.2.10:22").is_err());

        let _proxy = start(&server, "sshd", &[]);
        let ingress = |name: &str| repository("examples/ingress").join(name);
        let _balancer = match balancer_is_nginx {
            true => (Some(nginx(&balancer, &ingress("nginx.conf"), 22000)), None),
            false => {
                let file = ingress("haproxy-send-proxy-v2.cfg");
                (None, Some(haproxy(&balancer, &file, 22000)))
            }
        };
        for at in ["203.0.113.1:22000", "[2001:db8:c::1]:22000"] {
            let mut near = client.dial(at);
            let mut banner = [0; 8];
            near.read_exact(&mut banner).expect("sshd speaks first");
            assert_eq!(&banner, b"SSH-2.0-");
            let own = near.local_addr().expect("an address");
            let (ip, port) = (own.ip(), own.port());
            sshd.wait_for_error(&format!("Connection from {ip} port {port} on "));
        }
    }
}

/// The site's access log names the client, and a ban resets it.
#[test]
fn the_access_log_has_the_client_and_a_ban_holds() {
    let (client, balancer, server) = row();
    server.run(&["mount", "-t", "tmpfs", "none", "/var/log"]);
    server.run(&["mkdir", "/var/log/nginx"]);
    let _site = nginx(&server, &repository("examples/web/nginx.conf"), 80);
    let ctl = Ctl::new();
    let _proxy = start(&server, "web", &["-control", &ctl.path()]);
    let file = repository("examples/ingress/haproxy-http.cfg");
    let _balancer = haproxy(&balancer, &file, 8000);
    for (at, ip) in [
        ("http://203.0.113.1:8000/", "203.0.113.7"),
        ("http://[2001:db8:c::1]:8000/", "2001:db8:c::7"),
    ] {
        let said = client.run(&["curl", "-sS", at]);
        assert_eq!(said.trim_end(), format!("you are {ip}"));
        let log = || server.run(&["cat", "/var/log/nginx/access.log"]);
        wait_until("the log has the client", || {
            log()
                .lines()
                .any(|line| line.starts_with(&format!("{ip} - ")))
        });
    }
    ctl.ok("ban 203.0.113.7");
    let near = balancer.dial("192.0.2.10:8080");
    send(&near, v1(CLIENT, VISITED));
    assert_reset(&near);
}

/// fail2ban reads the jail of the page beside the shipped ones.
#[test]
fn fail2ban_has_the_jail_of_the_web_recipe() {
    let directory = TempDir::new();
    let to = directory.path("fail2ban").display().to_string();
    let host = Host::new("server");
    host.run(&["cp", "-r", "/etc/fail2ban", &to]);
    for part in ["action.d", "filter.d", "jail.d"] {
        let from = repository("packaging/fail2ban").join(part);
        host.run(&[
            "cp",
            "-rT",
            &from.display().to_string(),
            &format!("{to}/{part}"),
        ]);
    }
    host.run(&["cp", &path("web/realpeer.local"), &format!("{to}/jail.d/")]);
    host.run(&["mount", "-t", "tmpfs", "none", "/var/log"]);
    host.run(&["mkdir", "/var/log/nginx"]);
    host.run(&["touch", "/var/log/nginx/access.log", "/var/log/auth.log"]);
    let said = host.run(&["fail2ban-client", "-c", &to, "-d"]);
    let jail: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("realpeer-botsearch'"))
        .collect();
    assert!(
        jail.iter()
            .any(|line| line.contains("'addaction', 'realpeer'")),
        "{said}"
    );
    assert!(
        !jail.iter().any(|line| line.contains("realpeer-ingress")),
        "{said}"
    );
}

/// A query over UDP and one over TCP: the name server's log has the client both times.
#[test]
fn the_query_log_has_the_client() {
    let (client, balancer, server) = row();
    let dnsmasq = server.spawn(&[
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1,::1",
        "--address=/example.test/198.51.100.77",
        "--log-queries=extra",
    ]);
    dnsmasq.wait_for_error("started");
    let proxy = start(&server, "dns", &[]);
    wait_until("both listeners are open", || {
        let lines = proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("\"listening\""))
            .count()
            == 2
    });
    let file = path("ingress/dnsdist.conf");
    let dnsdist = balancer.spawn(&["dnsdist", "--supervised", "--disable-syslog", "-C", &file]);
    dnsdist.wait_for("back end that is up", |line| line.contains("as 'up'"));

    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    query.extend(b"\x01q\x07example\x04test\0\0\x01\0\x01");
    let socket = open(&client, "203.0.113.7:0");
    let port = socket.local_addr().expect("an address").port();
    socket
        .send_to(&query, addr("203.0.113.1:53"))
        .expect("send");
    assert!(receive(&socket).0.ends_with(&[198, 51, 100, 77]));
    dnsmasq.wait_for_error(&format!(" 203.0.113.7/{port} query[A] q.example.test"));

    let near = client.dial("203.0.113.1:53");
    let length = u16::try_from(query.len()).expect("it is short");
    send(&near, [&length.to_be_bytes()[..], &query].concat());
    let mut answer = [0; 2];
    (&near).read_exact(&mut answer).expect("an answer");
    let told = || {
        dnsmasq
            .stderr()
            .iter()
            .filter(|line| line.contains(" 203.0.113.7/"))
            .count()
    };
    wait_until("both queries are logged", || told() >= 2);
}

/// A game server that binds UDP to 0.0.0.0, as most do.
#[test]
fn a_game_server_on_all_addresses_sees_the_player() {
    let (balancer, server) = wire();
    let tcp = Backend::listen(&server, "0.0.0.0:27015");
    let udp = open(&server, "0.0.0.0:27015");
    let proxy = start(&server, "game", &[]);
    proxy.wait_for_line("(udp-port way)");
    wait_until("it accepts", || server.listeners(27016) > 0);

    let near = balancer.dial("192.0.2.10:27016");
    send(&near, v1(CLIENT, VISITED));
    let (far, from) = tcp.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);

    let socket = open(&balancer, "192.0.2.5:0");
    let player = || {
        let datagram = every(CLIENT, b"move");
        socket
            .send_to(&datagram, addr("192.0.2.10:27016"))
            .expect("send");
        receive(&udp)
    };
    assert_eq!(player(), (b"move".to_vec(), addr(CLIENT)));
    udp.send_to(b"state", addr(CLIENT)).expect("answer");
    assert_eq!(receive(&socket).0, b"state");
}

/// Postfix needs root, as the programs of its master do. Its own files are copies.
#[test]
fn postfix_logs_the_client() {
    let (client, balancer, server) = row();
    let directory = TempDir::new();
    let etc = directory.path("postfix").display().to_string();
    server.run(&["cp", "-r", "/etc/postfix", &etc]);
    server.run(&["mount", "--bind", &etc, "/etc/postfix"]);
    server.run(&[
        "cp",
        "/usr/share/postfix/master.cf.dist",
        "/etc/postfix/master.cf",
    ]);
    let more = "myhostname = server.example.test\nmaillog_file = /dev/stdout\n";
    directory.file("postfix/main.cf", &(read("postfix/main.cf") + more));
    if !geteuid().is_root() {
        let output = server.command("postfix").arg("check").output();
        let output = output.expect("postfix is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("superuser"), "{said}");
        return;
    }
    server.run(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "mode=755",
        "none",
        "/var/spool/postfix",
    ]);
    server.run(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "mode=700",
        "none",
        "/var/lib/postfix",
    ]);
    server.run(&["chown", "postfix", "/var/lib/postfix"]);
    server.run(&["postfix", "check"]);
    let postfix = server
        .spawn(&["postfix", "start-fg"])
        .ends_by(Signal::SIGTERM);
    server.wait_for_port(25);
    assert!(balancer.try_dial(None, "192.0.2.10:25").is_err());

    let _proxy = start(&server, "postfix", &[]);
    let ingress = read("ingress/haproxy-send-proxy-v2.cfg").replace(":2222", ":2525");
    let ingress = directory.file("haproxy.cfg", &ingress);
    let _balancer = haproxy(&balancer, ingress.as_ref(), 22000);
    for at in ["203.0.113.1:22000", "[2001:db8:c::1]:22000"] {
        let mut near = client.dial(at);
        let mut greeting = [0; 4];
        near.read_exact(&mut greeting)
            .expect("SMTP servers speak first");
        assert_eq!(&greeting, b"220 ");
        let ip = near.local_addr().expect("an address").ip();
        postfix.wait_for_line(&format!("connect from unknown[{ip}]"));
    }
    server.run(&["postfix", "stop"]);
}

/// The sshd recipe at work with both families.
#[track_caller]
fn assert_serves(balancer: &Host, backends: &[Backend; 2]) {
    for (backend, client, visited) in [
        (&backends[0], CLIENT, VISITED),
        (&backends[1], CLIENT6, VISITED6),
    ] {
        let near = balancer.dial("192.0.2.10:2222");
        send(&near, v1(client, visited));
        let (far, from) = backend.accept();
        assert_eq!(from, addr(client));
        assert_carries(&near, &far);
    }
}

fn backends(server: &Host) -> [Backend; 2] {
    ["127.0.0.1:22", "[::1]:22"].map(|at| Backend::listen(server, at))
}

/// ufw keeps everybody out until the recipe's line lets the load balancer in. It wants root.
#[test]
fn ufw_lets_the_load_balancer_in() {
    let (balancer, server) = wire();
    let directory = TempDir::new();
    for (from, name) in [("/etc/ufw", "ufw"), ("/etc/default", "default")] {
        let copy = directory.path(name).display().to_string();
        let copied = server.command("cp").args(["-a", from, &copy]).output();
        copied.expect("cp is there");
        server.run(&["mount", "--bind", &copy, from]);
    }
    if !geteuid().is_root() {
        let output = server.command("ufw").arg("status").output();
        let output = output.expect("ufw is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("need to be root"), "{said}");
        return;
    }
    let backends = backends(&server);
    let _proxy = start(&server, "sshd", &[]);
    server.run(&["ufw", "--force", "enable"]);
    let rules = server.run(&["iptables", "-S", "INPUT"]);
    assert!(rules.contains("-P INPUT DROP"), "{rules}");
    server.run(&["sh", &path("ufw/setup.sh")]);
    let status = server.run(&["ufw", "status"]);
    assert!(
        status.contains("2222/tcp") && status.contains("192.0.2.5"),
        "{status}"
    );
    assert_serves(&balancer, &backends);
    let flags = [
        "-l",
        "0.0.0.0:2222",
        "-4",
        "127.0.0.1:22",
        "-from",
        "192.0.2.5",
    ];
    let doctor = Program::Realpeer.run(&server, &[&["doctor"], &flags[..]].concat());
    assert!(doctor.stdout.contains("lo-accepted"), "{}", doctor.stdout);
}

/// The same with firewalld, which needs the system's message bus and wants root.
#[test]
fn firewalld_lets_the_load_balancer_in() {
    let (balancer, server) = wire();
    if !geteuid().is_root() {
        let output = server.command("firewalld").arg("--nofork").output();
        let output = output.expect("firewalld is there");
        assert!(!output.status.success());
        return;
    }
    let directory = TempDir::new();
    let copy = directory.path("firewalld").display().to_string();
    server.run(&["cp", "-a", "/etc/firewalld", &copy]);
    server.run(&["mount", "--bind", &copy, "/etc/firewalld"]);
    server.run(&["mount", "-t", "tmpfs", "none", "/var/log"]);
    server.run(&["mkdir", "/run/dbus"]);
    let _bus = server.spawn(&["dbus-daemon", "--system", "--nofork", "--nopidfile"]);
    wait_until("the bus is there", || {
        let mut test = server.command("test");
        let status = test.args(["-S", "/run/dbus/system_bus_socket"]).status();
        status.expect("test is there").success()
    });
    let backends = backends(&server);
    let _proxy = start(&server, "sshd", &[]);
    let mut firewalld = server
        .spawn(&["firewalld", "--nofork", "--nopid"])
        .ends_by(Signal::SIGTERM);
    wait_until("firewalld runs", || {
        assert!(!firewalld.has_ended(), "{:?}", firewalld.stderr());
        let state = server.command("firewall-cmd").arg("--state").output();
        state.expect("firewall-cmd is there").status.success()
    });
    assert!(balancer.try_dial(None, "192.0.2.10:2222").is_err());
    server.run(&["sh", &path("firewalld/setup.sh")]);
    let rules = server.run(&["nft", "list", "ruleset"]);
    assert!(
        rules.contains("fib saddr . mark . iif oif missing drop"),
        "{rules}"
    );
    assert_serves(&balancer, &backends);
}

/// The rules that wg-quick and Tailscale add for a tunnel that takes everything, before realpeer
/// starts and after; a wire stands for the tunnel.
#[test]
fn the_rules_of_tunnels_do_not_take_replies_away() {
    let wg_quick = "ip route add default dev to-elsewhere table 51820
        ip rule add not fwmark 51820 table 51820
        ip rule add table main suppress_prefixlength 0
        ip -6 route add default dev to-elsewhere table 51820
        ip -6 rule add not fwmark 51820 table 51820
        ip -6 rule add table main suppress_prefixlength 0";
    // Its table leads to the other nodes, the load balancer among them.
    let tailscale = "ip route add default dev to-elsewhere table 52
        ip route add 192.0.2.0/24 dev to-balancer table 52
        ip -6 route add default dev to-elsewhere table 52
        ip rule add pref 5210 fwmark 0x80000/0xff0000 table main
        ip rule add pref 5270 table 52
        ip -6 rule add pref 5210 fwmark 0x80000/0xff0000 table main
        ip -6 rule add pref 5270 table 52";
    for rules in [wg_quick, tailscale] {
        for before in [true, false] {
            let (balancer, server) = wire();
            let elsewhere = Host::new("elsewhere");
            server.connect(&["10.7.0.2/24"], &elsewhere, &["10.7.0.1/24"]);
            let backends = backends(&server);
            let add = || server.run(&["sh", "-ec", rules]);
            if before {
                add();
            }
            let _proxy = start(&server, "sshd", &[]);
            if !before {
                add();
                wait_until("realpeer's rules are in front again", || {
                    let four = "-4 route get 203.0.113.7 from 127.0.0.1";
                    let six = "-6 route get 2001:db8:c::7 from ::1";
                    // Until then it fails, or names another interface.
                    [four, six].iter().all(|words| {
                        let output = server.command("ip").args(words.split(' ')).output();
                        let output = output.expect("ip is there");
                        String::from_utf8_lossy(&output.stdout).starts_with("local ")
                    })
                });
            }
            assert_serves(&balancer, &backends);
        }
    }
}
