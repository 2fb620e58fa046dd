//! The recipes in examples/: each configuration of realpeer serves as it is, each file is understood
//! by the program that it is for, and each command on the pages can be typed in.

mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use support::datagrams::{every, open, receive, spp};
use support::header::v2;
use support::pages::{blocks, is_command_line, is_shell, links_lead_somewhere};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{assert_carries, send};
use support::{Backend, Host, Program, Running, TempDir, addr, repository, wait_until};

/// Folders of examples/ that other tests play as a whole.
const ELSEWHERE: [&str; 3] = ["ingress", "crowdsec", "gitea"];

/// Files below examples/, by their path from there.
fn files() -> Vec<String> {
    let mut found = vec![];
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(repository("examples").join(&folder)).expect("a folder");
        for entry in entries {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            match entry.path().is_dir() {
                true => folders.push(path),
                false => found.push(path.display().to_string()),
            }
        }
    }
    found.sort();
    found
}

fn path(example: &str) -> String {
    repository("examples").join(example).display().to_string()
}

fn read(example: &str) -> String {
    fs::read_to_string(path(example)).unwrap_or_else(|e| panic!("{example}: {e}"))
}

/// Starts realpeer with a recipe's file and waits for all of its listeners.
#[track_caller]
fn start(server: &Host, recipe: &str) -> Running {
    let file = path(&format!("{recipe}/realpeer.toml"));
    let listeners = read(&format!("{recipe}/realpeer.toml"))
        .matches("[[listener]]")
        .count();
    let mut proxy = Program::Realpeer.spawn(&[], server, &["-config", &file]);
    wait_until(&format!("the listeners of {recipe} are open"), || {
        assert!(!proxy.has_ended(), "{recipe}: {:?}", proxy.stderr());
        let lines = proxy.stdout();
        lines
            .iter()
            .filter(|line| line.contains("\"listening\""))
            .count()
            >= listeners
    });
    proxy
}

/// A listener as a recipe has it.
struct Listener {
    table: toml::Table,
}

impl Listener {
    fn all(recipe: &str) -> Vec<Listener> {
        let text = read(&format!("{recipe}/realpeer.toml"));
        let file: toml::Table = text.parse().expect("TOML");
        let listeners = file["listener"].as_array().expect("a list").iter();
        let tables = listeners.map(|listener| listener.as_table().expect("a table").clone());
        tables.map(|table| Listener { table }).collect()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key)?.as_str()
    }

    fn is_udp(&self) -> bool {
        self.text("protocol") == Some("udp")
    }

    /// Where the load balancer connects to.
    fn address(&self) -> SocketAddr {
        let listen = addr(self.text("listen").expect("listen"));
        match listen.ip().is_unspecified() {
            true => SocketAddr::new([192, 0, 2, 10].into(), listen.port()),
            false => listen,
        }
    }

    /// An address of the first network that may connect.
    fn balancer(&self) -> IpAddr {
        let allowed = self.table["allowed-subnets"].as_array().expect("a list");
        let first = allowed[0].as_str().expect("a network");
        match first.split_once('/') {
            None => first.parse().expect("an address"),
            Some(_) => {
                let network: ipnet::Ipv4Net = first.parse().expect("a network");
                network.hosts().next().expect("a host").into()
            }
        }
    }

    /// The clients of each family that it has a backend for.
    fn backends(&self) -> Vec<(&str, &str, &str)> {
        let four = self.text("ipv4").map(|target| (target, CLIENT, VISITED));
        let six = self.text("ipv6").map(|target| (target, CLIENT6, VISITED6));
        four.into_iter().chain(six).collect()
    }
}

/// Every recipe's own file, at a load balancer and a server that have its addresses: the backend sees
/// the client, by each listener and in each family.
#[test]
fn every_configuration_serves() {
    let recipes = files();
    let recipes = recipes
        .iter()
        .filter_map(|file| file.strip_suffix("/realpeer.toml"))
        .filter(|recipe| !ELSEWHERE.contains(recipe));
    let mut count = 0;
    for recipe in recipes {
        let (balancer, server) = wire();
        let listeners = Listener::all(recipe);
        for listener in &listeners {
            give_addresses(&balancer, &server, listener);
        }
        let targets: Vec<_> = listeners
            .iter()
            .map(|listener| Targets::open(&server, listener))
            .collect();
        let _proxy = start(&server, recipe);
        for (listener, targets) in listeners.iter().zip(&targets) {
            let near = match listener.balancer().is_loopback() {
                true => &server,
                false => &balancer,
            };
            targets.see_the_client(near, listener);
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

/// What the two hosts lack of a recipe's addresses.
fn give_addresses(balancer: &Host, server: &Host, listener: &Listener) {
    let give = |host: &Host, device: &str, other: &Host, back: &str, ip: IpAddr| {
        let known = ip.is_loopback() || ip.to_string().starts_with("192.0.2.");
        if !known && !host.run(&["ip", "address"]).contains(&format!(" {ip}/")) {
            host.add_address(&format!("{ip}/32"), device);
            other.run(&["ip", "route", "add", &ip.to_string(), "dev", back]);
        }
    };
    let (at_balancer, at_server) = ("to-server", "to-balancer");
    give(
        balancer,
        at_balancer,
        server,
        at_server,
        listener.balancer(),
    );
    give(
        server,
        at_server,
        balancer,
        at_balancer,
        listener.address().ip(),
    );
}

/// The backends of a listener, played by the test.
enum Targets {
    Tcp(Vec<Backend>),
    Udp(Vec<std::net::UdpSocket>),
}

impl Targets {
    fn open(server: &Host, listener: &Listener) -> Targets {
        let backends = listener.backends();
        let targets = backends.iter().map(|(target, ..)| *target);
        match listener.is_udp() {
            false => Targets::Tcp(targets.map(|at| Backend::listen(server, at)).collect()),
            true => Targets::Udp(targets.map(|at| open(server, at)).collect()),
        }
    }

    #[track_caller]
    fn see_the_client(&self, near: &Host, listener: &Listener) {
        let from = SocketAddr::new(listener.balancer(), 0).to_string();
        let to = listener.address().to_string();
        for (number, (_, client, visited)) in listener.backends().into_iter().enumerate() {
            match self {
                Targets::Tcp(backends) => {
                    let stream = near.dial_from(&from, &to);
                    send(&stream, v2(client, visited).bytes());
                    let (far, seen) = backends[number].accept();
                    assert_eq!(seen, addr(client), "{to}");
                    assert_carries(&stream, &far);
                }
                Targets::Udp(backends) => {
                    let socket = open(near, &from);
                    let datagram = match listener.text("udp-header") {
                        Some("spp") => spp(client, visited, b"there"),
                        _ => every(client, b"there"),
                    };
                    socket.send_to(&datagram, addr(&to)).expect("send");
                    let (got, seen) = receive(&backends[number]);
                    assert_eq!((&got[..], seen), (&b"there"[..], addr(client)), "{to}");
                    backends[number].send_to(b"back", seen).expect("answer");
                    assert!(receive(&socket).0.ends_with(b"back"));
                }
            }
        }
    }
}

/// Files that no other test starts are read by their program, or by what reads their format.
#[test]
fn every_file_is_understood() {
    let host = Host::new("server");
    let directory = TempDir::new();
    for file in files() {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", &file));
        let path = path(&file);
        match (folder, name) {
            ("", "demo") => {}                         // tests/demo.rs runs it
            ("", "status-page.png") => {}              // the README shows it
            ("", name) if name.ends_with(".svg") => {} // tests/pictures.rs looks at them
            _ if ELSEWHERE.iter().any(|name| file.starts_with(name)) => {}
            (_, "realpeer.toml") => {
                let check = Program::Realpeer.run(&host, &["config", "check", &path]);
                assert_eq!(check.code, 0, "{file}: {}", check.stderr);
            }
            (_, name) if name.ends_with(".toml") => {
                read(&file).parse::<toml::Table>().expect(&file);
            }
            (_, name) if name.ends_with(".json") => {
                serde_json::from_str::<serde_json::Value>(&read(&file)).expect(&file);
            }
            (_, name) if name.ends_with(".sh") => is_shell(&file, &read(&file)),
            (_, name) if name.ends_with(".md") => {}
            ("", name) if name.ends_with(".rs") => {} // cargo builds them
            ("postfix", "main.cf") => {
                let copy = directory.file("main.cf", &read(&file));
                let parent = Path::new(&copy).parent().expect("a directory");
                let said = host.run(&["postconf", "-c", &parent.display().to_string(), "-n"]);
                for line in read(&file).lines().filter(|line| line.contains(" = ")) {
                    assert!(said.lines().any(|known| known == line), "{line}: {said}");
                }
            }
            ("wireguard", "wg0.conf") => {
                // It insists on root, and only reads.
                let said = host.run(&["unshare", "-Ur", "wg-quick", "strip", &path]);
                assert!(said.contains("AllowedIPs = 10.7.0.1/32"), "{said}");
            }
            ("systemd-networkd", "realpeer.conf") => {
                let daemon = fs::read("/lib/systemd/systemd-networkd").expect("systemd is there");
                for line in read(&file).lines().filter(|line| line.contains('=')) {
                    let (key, _) = line.split_once('=').expect("a key");
                    let known = daemon.windows(key.len()).any(|at| at == key.as_bytes());
                    assert!(known, "networkd does not know {key}");
                }
            }
            ("compose" | "compose/sshd", _) => {} // tests/docker_image.rs starts them
            (folder, _) if folder.starts_with("kubernetes/") => {} // tests/kubernetes.rs
            ("sshd", "sshd.conf") | ("web", "nginx.conf" | "realpeer.local") => {} // run below
            _ => panic!("{file} is not tested"),
        }
    }
}

/// Shell is shell, command lines of realpeer are command lines, files are files, and links lead
/// somewhere.
#[test]
fn every_page_is_understood() {
    let host = Host::new("server");
    let directory = TempDir::new();
    let pages: Vec<String> = files()
        .into_iter()
        .filter(|file| file.ends_with(".md"))
        .collect();
    let mut commands = 0;
    for page in &pages {
        let text = read(page);
        for block in blocks(&text, "sh") {
            is_shell(page, &block);
            for line in block
                .lines()
                .filter_map(|line| line.strip_prefix("realpeer "))
            {
                is_command_line(page, line);
                commands += 1;
            }
        }
        for block in blocks(&text, "toml") {
            let file = directory.file("block.toml", &block);
            let check = Program::Realpeer.run(&host, &["config", "check", &file]);
            assert_eq!(check.code, 0, "{page}: {}", check.stderr);
        }
        let folder = repository("examples").join(Path::new(page).parent().expect("a folder"));
        links_lead_somewhere(page, &text, &folder);
    }
    assert!(commands > 20, "{commands}");
    // And each folder has a page, which the list names.
    let list = read("README.md");
    for folder in files().iter().filter_map(|file| file.split_once('/')) {
        let (folder, _) = folder;
        if !ELSEWHERE.contains(&folder) {
            assert!(pages.contains(&format!("{folder}/README.md")), "{folder}");
            assert!(list.contains(&format!("]({folder})")), "{folder}");
        }
    }
}
