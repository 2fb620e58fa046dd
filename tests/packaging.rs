//! What a distribution ships is what was tested: the unit file runs, and every flag is documented
//! wherever flags are.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use support::header::v1;
use support::stage::{CLIENT, CLIENT6, OTHER_BALANCER, VISITED, VISITED6, wire};
use support::streams::{assert_carries, assert_turned_away, send};
use support::{Backend, Host, Program, TempDir, addr, repository};

/// What the unit's -allowed-subnets names.
const BALANCERS: &str = "/etc/realpeer/balancers";

/// The unit starts with the capabilities it lists and no others, serves, and stops, without any
/// `ip` line. (DynamicUser gives a user without privileges, as `setpriv` does here.)
#[test]
fn the_unit_file_needs_nothing_but_its_capabilities() {
    let unit = read("packaging/systemd/realpeer.service");
    let value = |key: &str| {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("the unit has no {key}"))
            .to_owned()
    };
    assert!(
        !unit.contains("ExecStartPost"),
        "realpeer sees to its routing itself"
    );
    assert_eq!(value("AmbientCapabilities"), value("CapabilityBoundingSet"));
    let start = value("ExecStart");
    let files = TempDir::new();
    let start = start.replace(BALANCERS, &files.file("balancers", "192.0.2.5\n"));
    let mut words = start.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/realpeer"));
    let flags: Vec<&str> = words.collect();

    let caps = value("AmbientCapabilities")
        .to_lowercase()
        .replace("cap_", "+")
        .replace(' ', ",");
    let caps = format!("-all,{caps}");
    let [inherit, ambient, bounding] = ["inh", "ambient", "bounding"].map(|set| match set {
        "bounding" => format!("--bounding-set={caps}"),
        set => format!("--{set}-caps={caps}"),
    });
    let mut wrapper = vec!["setpriv", "--no-new-privs", &inherit, &ambient, &bounding];
    if nix::unistd::getuid().is_root() {
        wrapper.extend(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }

    let (balancer, server) = wire();
    let backends = [
        Backend::listen(&server, "127.0.0.1:22"),
        Backend::listen(&server, "[::1]:22"),
    ];
    let mut proxy = Program::Realpeer.start_under(&wrapper, &server, &flags);
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
    // Whoever is not in the file may not speak.
    assert_turned_away(balancer.try_dial(Some(OTHER_BALANCER), "192.0.2.10:2222"));
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
}

/// Who starts the unit without a word about load balancers must not let in everybody.
#[test]
fn the_unit_file_fails_closed_and_says_what_to_put_where() {
    let unit = read("packaging/systemd/realpeer.service");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/realpeer "));
    let flags: Vec<&str> = start
        .expect("the unit starts realpeer")
        .split(' ')
        .collect();
    assert!(flags.contains(&BALANCERS), "{flags:?}");
    // A host of a test has the machine's /etc, but not what an administrator makes.
    let ended = Program::Realpeer.run(&Host::new("server"), &flags);
    assert_eq!(ended.code, 1);
    for part in ["-allowed-subnets", BALANCERS] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    for (name, text) in [("unit", &unit), ("README.md", &read("README.md"))] {
        let command = format!("echo 192.0.2.5 > {BALANCERS}");
        assert!(
            text.contains(&command),
            "{name} does not say what to put there"
        );
    }
}

/// In systemd's own words: nothing in the units is unknown to it, and of what they could do without
/// they have little, the relay no more than the proxy.
#[test]
fn systemd_understands_the_units_and_finds_them_hardened() {
    let host = Host::new("server");
    let files = TempDir::new();
    for name in ["realpeer.service", "realpeer-ban-relay.service"] {
        let unit = read(&format!("packaging/systemd/{name}"));
        // It looks whether the program is there.
        let unit = unit.replace("/usr/bin/realpeer", &Program::Realpeer.path());
        let unit = files.file(name, &unit);
        let mut verify = host.command("systemd-analyze");
        let output = verify.args(["verify", "--man=no", &unit]).output();
        let output = output.expect("systemd-analyze is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
        // Tenths of its "exposure level", of which 100 is a unit without any hardening.
        let words = ["security", "--offline=true", "--no-pager", "--threshold=25"];
        host.run(&[&["systemd-analyze"], &words[..], &[&unit]].concat());
    }
}

#[test]
fn every_flag_is_in_the_readme_and_in_the_manual() {
    let help = Program::Realpeer.run(&Host::new("help"), &["-h"]).stdout;
    let readme = read("README.md");
    let manual = read("packaging/man/realpeer.8");
    let flags = help.lines().filter_map(|line| line.strip_prefix("  -"));
    let names: Vec<&str> = flags
        .filter_map(|line| line.split([' ', ',']).next())
        .collect();
    assert!(names.len() > 15, "-h lists the flags: {names:?}");
    for name in names {
        assert!(
            readme.contains(&format!("-{name}")),
            "README.md has no -{name}"
        );
        assert!(
            manual.contains(&format!(".It Fl {name}")),
            "the manual has no -{name}"
        );
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
