//! What a distribution ships is what was tested: the unit file runs, and every flag is documented
//! wherever flags are.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use realpeer::cli::{self, Command};
use support::header::v1;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6, wire};
use support::streams::{assert_carries, send};
use support::{Backend, Host, Program, TempDir, addr, repository};

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
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
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

/// `mandoc -Tlint` finds missing arguments, unknown macros and sections out of order.
#[test]
fn the_manual_is_well_formed() {
    let host = Host::new("manual");
    let file = repository("packaging/man/realpeer.8");
    let mut lint = host.command("mandoc");
    let output = lint.args(["-Tlint", "-Wwarning"]).arg(file).output();
    let output = output.expect("mandoc is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn every_command_and_its_flags_are_in_the_manual() {
    let host = Host::new("help");
    let help = |words: &[&str]| Program::Realpeer.run(&host, words).stdout;
    let manual = read("packaging/man/realpeer.8");
    let synopsis = section(&manual, "SYNOPSIS");
    let all = help(&["-h"]);
    let commands = all
        .lines()
        .filter_map(|line| line.strip_prefix("  realpeer ")?.split(' ').next())
        .filter(|word| word.starts_with(char::is_alphabetic));
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 6, "{commands:?}");
    for command in commands {
        assert!(
            synopsis
                .lines()
                .any(|line| line == format!(".Cm {command}")),
            "SYNOPSIS has no {command}"
        );
        for flag in help(&[command, "-h"]).lines() {
            let Some(flag) = flag.strip_prefix("  -") else {
                continue;
            };
            let name = flag.split([' ', ',']).next().expect("split gives one");
            assert!(
                manual.contains(&format!("Fl {name}")),
                "the manual has no -{name} of {command}"
            );
        }
    }
}

/// So that a flag that is renamed leaves no example behind.
#[test]
fn the_examples_of_the_manual_are_command_lines() {
    let manual = read("packaging/man/realpeer.8");
    let examples = section(&manual, "EXAMPLES")
        .lines()
        .filter_map(|line| line.strip_prefix(".Dl realpeer "));
    let examples: Vec<&str> = examples.collect();
    assert!(examples.len() > 5, "{examples:?}");
    for example in examples {
        let words: Vec<String> = example.split(' ').map(str::to_owned).collect();
        let command = cli::parse(&words).unwrap_or_else(|e| panic!("{example}: {e}"));
        assert!(!matches!(command, Command::Print(_)), "{example}");
    }
}

#[test]
fn the_manual_names_files_and_exit_codes_and_explains_held_back() {
    let manual = read("packaging/man/realpeer.8");
    let files = section(&manual, "FILES");
    for file in ["/run/realpeer/control.sock", "DIR/realpeer.bans"] {
        assert!(files.contains(file), "FILES has no {file}");
    }
    let codes = section(&manual, "EXIT STATUS");
    for code in 0..=3 {
        assert!(codes.contains(&format!(".It {code}\n")), "no {code}");
    }
    assert!(section(&manual, "LOG").contains("heldBack"));
    assert!(read("README.md").contains("`heldBack`"));
}

/// What stands below a heading.
fn section<'a>(manual: &'a str, name: &str) -> &'a str {
    let (_, rest) = manual
        .split_once(&format!("\n.Sh {name}\n"))
        .unwrap_or_else(|| panic!("the manual has no {name}"));
    rest.split("\n.Sh ").next().expect("split gives one")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
