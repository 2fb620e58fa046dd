//! A unit of go-mmproxy starts, serves and stops with realpeer when nothing but the program's path
//! in its ExecStart is changed; the `ip` lines that it runs itself must not fail because of us.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use support::header::v1;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{assert_carries, send};
use support::{Backend, Host, Program, TempDir, addr, repository};

/// When systemd comes to ExecStartPost: for a `Type=simple` service as soon as the program is
/// executed, which may be before or after it has set itself up.
#[derive(PartialEq)]
enum Then {
    AtOnce,
    OnceItListens,
}

#[test]
fn realpeer_takes_go_mmproxys_place_in_its_unit() {
    with_its_flags(&Program::Realpeer.path(), Then::AtOnce);
}

#[test]
fn the_file_for_the_units_flags_does_the_same() {
    let unit = unit();
    let words = &commands(&unit, "ExecStart")[0];
    // The whole command line, as it stands in the unit.
    let flags: Vec<&str> = words.iter().map(String::as_str).collect();
    let translate = [&["config", "from-flags"], flags.as_slice()].concat();
    let ended = Program::Realpeer.run(&Host::new("admin"), &translate);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let directory = TempDir::new();
    let file = directory.file("realpeer.toml", &ended.stdout);
    let program = Program::Realpeer.path();
    for then in [Then::AtOnce, Then::OnceItListens] {
        start_serve_and_stop(&[&program, "-config", &file], then);
    }
}

#[test]
fn realpeer_does_not_stand_in_the_way_of_the_units_own_rules() {
    with_its_flags(&Program::Realpeer.path(), Then::OnceItListens);
}

#[test]
fn the_unit_is_one_that_go_mmproxy_itself_runs_with() {
    with_its_flags("/usr/bin/go-mmproxy", Then::AtOnce);
}

fn unit() -> String {
    fs::read_to_string(repository("tests/data/go-mmproxy.service")).expect("the unit is there")
}

/// Changes only the program's path in the unit.
fn with_its_flags(program: &str, then: Then) {
    let exec_start = commands(&unit(), "ExecStart");
    assert_eq!(exec_start.len(), 1);
    assert_eq!(exec_start[0][0], "/usr/bin/go-mmproxy");
    let arguments = exec_start[0][1..].iter().map(String::as_str);
    let words: Vec<&str> = [program].into_iter().chain(arguments).collect();
    start_serve_and_stop(&words, then);
}

/// Does with the unit what systemd does, with this command line.
fn start_serve_and_stop(exec_start: &[&str], then: Then) {
    let unit = unit();
    let (balancer, server) = wire();
    let backends = [
        Backend::listen(&server, "127.0.0.1:22"),
        Backend::listen(&server, "[::1]:22"),
    ];
    let untouched = routing(&server);

    let mut proxy = server.spawn(exec_start);
    if then == Then::OnceItListens {
        server.wait_for_port(2222);
        // Whether a rule can be added twice depends on the kernel, so we look ourselves.
        let own = |line: &String| line.contains("lookup 123") || line.contains("table 123");
        let taken = routing(&server).into_iter().find(own);
        assert_eq!(taken, None, "table 123 is the unit's");
    }
    run_each(&server, &unit, "ExecStartPost", 4);

    server.wait_for_port(2222);
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

    // go-mmproxy is killed by the signal, which systemd takes for a clean end too.
    proxy.signal(Signal::SIGTERM);
    assert!(matches!(proxy.wait_for_exit().code(), None | Some(0)));
    run_each(&server, &unit, "ExecStopPost", 4);
    assert_eq!(routing(&server), untouched, "nothing is left behind");
}

/// Runs the unit's commands of one kind; each must succeed.
fn run_each(host: &Host, unit: &str, key: &str, count: usize) {
    let commands = commands(unit, key);
    assert_eq!(commands.len(), count, "{key} lines in the unit");
    for command in commands {
        host.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// The policy routing of a host: rules, and the routes of every table but the kernel's own.
fn routing(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for what in [
            ["rule", "show"].as_slice(),
            &["route", "show", "table", "all"],
        ] {
            let listing = host.run(&[&["ip", family], what].concat());
            lines.extend(
                listing
                    .lines()
                    .filter(|line| !line.contains("table local"))
                    .map(str::to_owned),
            );
        }
    }
    lines
}

/// The words of each `key=` line of a unit.
fn commands(unit: &str, key: &str) -> Vec<Vec<String>> {
    let values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(words).collect()
}

/// Splits as systemd does where only double quotes matter.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().expect("one word at least").push(character),
        }
    }
    words
}
