//! The configuration file: what runs by it, and the commands that know it.

mod support;

use std::net::UdpSocket;

use serde_json::Value;
use support::datagrams::{every, open, receive};
use support::header::v1;
use support::program::Ended;
use support::stage::{CLIENT, CLIENT6, OTHER_BALANCER, VISITED, VISITED6, wire};
use support::streams::{assert_carries, assert_closed, assert_turned_away, send};
use support::{Backend, Diagnosis, Host, Program, Running, TempDir, addr};

/// A load balancer, and a server that runs a file.
struct Scene {
    balancer: Host,
    server: Host,
    proxy: Running,
}

impl Scene {
    #[track_caller]
    fn new(file: &str) -> Scene {
        let directory = TempDir::new();
        let path = directory.file("realpeer.toml", file);
        let (balancer, server) = wire();
        let proxy = Program::Realpeer.spawn(&[], &server, &["-config", &path]);
        for _ in file.matches("[[listener]]") {
            proxy.wait_for_line("listening");
        }
        Scene {
            balancer,
            server,
            proxy: proxy.with(directory),
        }
    }

    /// A session of the client by way of `to`, which the backend must see as the client.
    #[track_caller]
    fn serves(&self, to: &str, client: &str, backend: &Backend) {
        let visited = if addr(client).is_ipv4() {
            VISITED
        } else {
            VISITED6
        };
        let near = self.balancer.dial(to);
        send(&near, v1(client, visited));
        let (far, from) = backend.accept();
        assert_eq!(from, addr(client));
        assert_carries(&near, &far);
    }

    /// A datagram of the client each way by way of `to`.
    #[track_caller]
    fn converses(&self, to: &str, client: &str, backend: &UdpSocket) {
        let near = open(&self.balancer, "0.0.0.0:0");
        near.connect(addr(to)).expect("connect a UDP socket");
        near.send(&every(client, b"there")).expect("send");
        assert_eq!(receive(backend), (b"there".to_vec(), addr(client)));
        backend.send_to(b"back", addr(client)).expect("answer");
        assert_eq!(receive(&near).0, b"back");
    }
}

fn run(host: &Host, words: &[&str]) -> Ended {
    Program::Realpeer.run(host, words)
}

/// What a command prints that goes well.
#[track_caller]
fn printed(host: &Host, words: &[&str]) -> String {
    let ended = run(host, words);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{words:?}");
    ended.stdout + "\n"
}

#[test]
fn listeners_of_tcp_and_udp_serve_side_by_side() {
    let scene = Scene::new(
        r#"
[[listener]]
name = "ssh"
listen = ["192.0.2.10:2222", "[::]:2223"]
ipv4 = "127.0.0.1:9000"
ipv6 = "[::1]:9000"

[[listener]]
name = "web"
listen = ":8080"
ipv4 = "127.0.0.1:9001"

[[listener]]
name = "dns"
listen = "0.0.0.0:2222"
protocol = "udp"
ipv4 = "127.0.0.1:9000"
"#,
    );
    let ssh = Backend::listen(&scene.server, "127.0.0.1:9000");
    let ssh6 = Backend::listen(&scene.server, "[::1]:9000");
    let web = Backend::listen(&scene.server, "127.0.0.1:9001");
    let dns = open(&scene.server, "127.0.0.1:9000");
    for listener in ["ssh", "web", "dns"] {
        scene.proxy.wait_for("line of each listener", |line| {
            line.contains("\"msg\":\"listening\"")
                && line.contains(&format!("\"listener\":\"{listener}\""))
        });
    }
    scene.serves("192.0.2.10:2222", CLIENT, &ssh);
    scene.serves("[2001:db8::10]:2223", CLIENT6, &ssh6);
    scene.serves("192.0.2.10:2223", "203.0.113.8:40000", &ssh);
    scene.serves("192.0.2.10:8080", CLIENT, &web);
    scene.converses("192.0.2.10:2222", CLIENT, &dns);
}

#[test]
fn lists_may_stand_in_place_or_in_files() {
    let lists = TempDir::new();
    let subnets = lists.file("subnets", "192.0.2.6\n");
    let clients = lists.file("clients", "203.0.113.0/24\n");
    let denied = lists.file("denied", "203.0.113.66\n");
    let file = |subnets: &str, allowed: &str, denied: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nlisten = \":2222\"\nipv4 = \"127.0.0.1:9000\"\n\
             allowed-subnets = {subnets}\nallowed-clients = {allowed}\ndenied-clients = {denied}\n"
        )
    };
    let quoted = |path: &str| format!("{path:?}");
    for file in [
        file(
            "[\"192.0.2.6\"]",
            "[\"203.0.113.0/24\"]",
            "[\"203.0.113.66\"]",
        ),
        file(&quoted(&subnets), &quoted(&clients), &quoted(&denied)),
    ] {
        let scene = Scene::new(&file);
        let backend = Backend::listen(&scene.server, "127.0.0.1:9000");
        assert_turned_away(scene.balancer.try_dial(None, "192.0.2.10:2222"));
        let dial = |client: &str| {
            let near = scene.balancer.dial_from(OTHER_BALANCER, "192.0.2.10:2222");
            send(&near, v1(client, VISITED));
            near
        };
        let _near = dial(CLIENT);
        assert_eq!(backend.accept().1, addr(CLIENT));
        for refused in ["203.0.113.66:40000", "198.51.100.7:40000"] {
            assert_closed(&dial(refused));
        }
        backend.assert_idle();
    }
}

#[test]
fn check_says_what_would_listen_and_binds_nothing() {
    let files = TempDir::new();
    let text = "[[listener]]\nname = \"a\"\nlisten = [\":2222\", \"127.0.0.1:23\"]\n\
                [[listener]]\nname = \"b\"\nlisten = \"0.0.0.0:53\"\nprotocol = \"udp\"\n";
    let file = files.file("realpeer.toml", text);
    let server = Host::new("server");
    // Somebody else has the address.
    let _taken = Backend::listen(&server, "127.0.0.1:23");
    let said = printed(&server, &["config", "check", &file]);
    assert_eq!(
        said.trim(),
        format!(
            "{file}: good\na: would listen on [::]:2222 (tcp)\n\
             a: would listen on 127.0.0.1:23 (tcp)\nb: would listen on 0.0.0.0:53 (udp)"
        )
    );
}

#[test]
fn show_prints_defaults_and_is_a_file_that_means_the_same() {
    let files = TempDir::new();
    let text = "[[listener]]\nname = \"a\"\nheader-timeout = 90\nconnect-timeout = \"1m30s\"\n\
                allow-claims = [\"240.0.0.1\"]\nipv4 = \"localhost:22\"\n";
    let file = files.file("realpeer.toml", text);
    let host = Host::new("host");
    let shown = printed(&host, &["config", "show", &file]);
    for line in [
        "drain-timeout = \"5s\"",
        "listen = [\"0.0.0.0:8443\"]",
        "ipv4 = \"127.0.0.1:22\"",
        "header-timeout = \"90s\"",
        "connect-timeout = \"90s\"",
        "allow-claims = [\"240.0.0.1/32\"]",
        "source-port = \"keep\"",
        "untrusted = \"refuse\"",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}:\n{shown}");
    }
    let again = files.file("again.toml", &shown);
    assert!(printed(&host, &["config", "check", &again]).contains("good"));
    assert_eq!(printed(&host, &["config", "show", &again]), shown);
}

#[test]
fn show_without_a_file_asks_the_proxy() {
    let files = TempDir::new();
    let control = files.path("control.sock");
    let control = control.to_str().expect("UTF-8");
    let file = |control: &str| {
        let text = format!("{control}\ndrain-timeout = 1\n[[listener]]\nname = \"a\"\n");
        files.file("realpeer.toml", &text)
    };
    let server = Host::new("server");
    let start = |flags: &[&str]| {
        let proxy = server.spawn(&[&[Program::Realpeer.path().as_str()], flags].concat());
        proxy.wait_for_line("listening");
        proxy
    };

    let at = file(&format!("control = {control:?}"));
    let proxy = start(&["-config", &at]);
    let shown = printed(&server, &["config", "show", "-control", control]);
    assert_eq!(shown, printed(&server, &["config", "show", &at]));
    drop(proxy);

    // By its name, and with a flag that counts more than the file.
    let named = file("name = \"edge\"");
    let _proxy = start(&["-config", &named, "-drain-timeout", "9s"]);
    let shown = printed(&server, &["config", "show", "-name", "edge"]);
    assert!(shown.contains("drain-timeout = \"9s\""), "{shown}");
    assert_eq!(run(&server, &["config", "show"]).code, 3);
    assert_eq!(run(&server, &["config", "show", "-name", "other"]).code, 3);
}

#[test]
fn a_listeners_flag_beside_a_file_is_refused_by_name() {
    let files = TempDir::new();
    let file = files.file("realpeer.toml", "[[listener]]\nname = \"a\"\n");
    let host = Host::new("host");
    for (words, flag) in [
        (&["-l", ":2222"][..], "-l"),
        (&["-listen-addr=:2222"], "-l"),
        (&["-4", "127.0.0.1:22"], "-4"),
        (&["-c", "5"], "-close-after"),
        (&["-a", "/etc/hosts"], "-allowed-subnets"),
        (&["-listen-transparent=false"], "-listen-transparent"),
        (
            &["-max-connections-per-client", "5"],
            "-max-connections-per-client",
        ),
    ] {
        for command in [&[][..], &["doctor"], &["routing", "show"]] {
            let ended = run(&host, &[command, &["-config", &file], words].concat());
            assert_eq!(ended.code, 2, "{words:?}");
            let last = ended.stderr.lines().last().expect("an error");
            let told = last.split([' ', ':']).any(|word| word == flag);
            assert!(told && last.contains("-config"), "{words:?}: {last}");
        }
    }
}

#[test]
fn flags_of_mmproxy_rs_become_a_file_too() {
    let files = TempDir::new();
    let subnets = files.file("subnets", "192.0.2.0/24\n");
    let flags = [
        "/usr/local/bin/mmproxy",
        "--ipv4",
        "127.0.0.1:9000",
        "--ipv6=[::1]:9000",
        "--listen-addr",
        "0.0.0.0:2222",
        "--protocol",
        "udp",
        "-a",
        &subnets,
        "-c",
        "30",
        "-m",
        "0x7b",
        "--listeners",
        "2",
    ];
    let host = Host::new("host");
    let file = printed(&host, &[&["config", "from-flags"], &flags[..]].concat());
    let path = files.file("realpeer.toml", &file);
    let shown = printed(&host, &["config", "show", &path]);
    for line in [
        "ipv4 = \"127.0.0.1:9000\"",
        "ipv6 = \"[::1]:9000\"",
        "listen = [\"0.0.0.0:2222\"]",
        "protocol = \"udp\"",
        &format!("allowed-subnets = {subnets:?}"),
        "close-after = \"30s\"",
        "mark = 123",
        "listeners = 2",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}:\n{shown}");
    }
    let scene = Scene::new(&file);
    let backend = open(&scene.server, "127.0.0.1:9000");
    scene.converses("192.0.2.10:2222", CLIENT, &backend);
}

#[test]
fn from_flags_refuses_what_the_proxy_refuses() {
    let host = Host::new("host");
    for (words, code, told) in [
        (&["-mark", "x"][..], 2, "-mark"),
        (&["-no-such-flag"], 2, "-no-such-flag"),
        (&["-v", "1", "stray"], 2, "stray"),
        (&["-config", "x"], 2, "-config"),
        (&["-untrusted", "serve"], 1, "allowed-subnets"),
        (&["-l", ":22", "-4", "127.0.0.1:22"], 1, "loop"),
    ] {
        let ended = run(&host, &[&["config", "from-flags"], words].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{words:?}");
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
}

#[test]
fn the_command_line_of_config_is_checked() {
    let host = Host::new("host");
    for (line, told) in [
        ("config", "check, show, from-flags"),
        ("config check", "name a file"),
        ("config check a b", "\"b\""),
        ("config chek a", "did you mean check?"),
        ("config show -nam x", "did you mean -name?"),
    ] {
        let ended = run(&host, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(ended.code, 2, "{line}");
        assert!(ended.stderr.contains(told), "{line}: {}", ended.stderr);
    }
}

const TWO: &str = r#"
[[listener]]
name = "ssh"
listen = "0.0.0.0:2222"
ipv4 = "127.0.0.1:9000"

[[listener]]
name = "dns"
listen = "0.0.0.0:5300"
protocol = "udp"
ipv4 = "192.0.2.10:9001"
"#;

#[test]
fn doctor_examines_every_listener_of_a_file() {
    let files = TempDir::new();
    let file = files.file("realpeer.toml", TWO);
    let (_balancer, server) = wire();
    let _ssh = Backend::listen(&server, "127.0.0.1:9000");
    let diagnosis = Diagnosis::of(&server, &["-config", &file]);
    let of = |name: &str| -> Vec<&Value> {
        let checks = diagnosis.checks().iter();
        checks.filter(|check| check["listener"] == name).collect()
    };
    let failed = |checks: &[&Value]| checks.iter().any(|check| check["status"] == "failed");
    let (ssh, dns) = (of("ssh"), of("dns"));
    assert!(!ssh.is_empty() && !failed(&ssh), "{ssh:#?}");
    // Nobody is there.
    assert!(failed(&dns) && diagnosis.code == 1, "{dns:#?}");
    assert!(
        dns.iter()
            .any(|c| c["found"].to_string().contains("192.0.2.10:9001"))
    );
}

#[test]
fn routing_is_for_every_listener_of_a_file() {
    let files = TempDir::new();
    let file = files.file("realpeer.toml", TWO);
    let (_balancer, server) = wire();
    let shown = printed(&server, &["routing", "show", "-config", &file]);
    for target in ["127.0.0.1:9000", "192.0.2.10:9001"] {
        assert!(shown.contains(target), "{shown}");
    }
    let up = run(&server, &["routing", "up", "-config", &file]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    let rules = server.run(&["ip", "rule"]);
    for rule in ["from 127.0.0.0/8 iif lo", "ipproto udp sport 9001"] {
        assert!(rules.contains(rule), "{rules}");
    }
}
