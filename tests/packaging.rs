//! What a distribution ships is what was tested: the unit file runs, and every flag is documented
//! wherever flags are.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use realpeer::program::internals;
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
    // systemd 252 takes notify-reload for simple, and hears nothing.
    assert_eq!(value("Type"), "notify");
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
    let readme = read("README.md");
    for (name, text, write) in [("unit", &unit, ">"), ("README.md", &readme, "| sudo tee")] {
        let command = format!("echo 192.0.2.5 {write} {BALANCERS}");
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
    let units = [
        ("realpeer.service", "--threshold=17"),
        ("realpeer-ban-relay.service", "--threshold=25"),
    ];
    for (name, threshold) in units {
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
        let words = ["security", "--offline=true", "--no-pager", threshold];
        host.run(&[&["systemd-analyze"], &words[..], &[&unit]].concat());
    }
}

#[test]
fn every_flag_is_in_the_manual() {
    let help = Program::Realpeer.run(&Host::new("help"), &["-h"]).stdout;
    let manual = read("packaging/man/realpeer.8");
    let flags = help.lines().filter_map(|line| line.strip_prefix("  -"));
    let names: Vec<&str> = flags
        .filter_map(|line| line.split([' ', ',']).next())
        .collect();
    assert!(names.len() > 15, "-h lists the flags: {names:?}");
    for name in names {
        assert!(
            manual.contains(&format!(".It Fl {name}")),
            "the manual has no -{name}"
        );
    }
}

#[test]
fn every_command_and_its_flags_are_in_the_manual() {
    let host = Host::new("help");
    let help = |words: &[&str]| Program::Realpeer.run(&host, words).stdout;
    let manual = read("packaging/man/realpeer.8");
    let synopsis = section(&manual, "SYNOPSIS");
    let pages = ["realpeer-ctl.1", "realpeer-ban-relay.8"];
    let pages = pages
        .map(|name| read(&format!("packaging/man/{name}")))
        .concat();
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
                format!("{manual}{pages}").contains(&format!("Fl {name}")),
                "the manual has no -{name} of {command}"
            );
        }
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
}

/// As it is shipped, it listens where only this host can connect, and it serves.
#[test]
fn the_configuration_file_is_good_and_serves_this_host_only() {
    let text = read("packaging/realpeer.toml");
    assert!(text.contains(&format!("allowed-subnets = {BALANCERS:?}")));
    let files = TempDir::new();
    let balancers = files.file("balancers", "127.0.0.1\n");
    let file = files.file("realpeer.toml", &text.replace(BALANCERS, &balancers));
    let server = Host::new("server");
    let check = Program::Realpeer.run(&server, &["config", "check", &file]);
    assert_eq!(check.code, 0, "{}", check.stderr);
    let listen: Vec<&str> = check.stdout.lines().skip(1).collect();
    assert_eq!(listen, ["ssh: would listen on 127.0.0.1:2222 (tcp)"]);

    let backend = Backend::listen(&server, "127.0.0.1:22");
    let proxy = Program::Realpeer.spawn(&[], &server, &["-config", &file]);
    proxy.wait_for_line("listening");
    let near = server.dial("127.0.0.1:2222");
    send(&near, v1(CLIENT, VISITED));
    let (far, from) = backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);

    // Before the load balancers are listed, nothing starts.
    let file = files.file("realpeer.toml", &text);
    let check = Program::Realpeer.run(&server, &["config", "check", &file]);
    assert_eq!(check.code, 1);
    assert!(check.stderr.contains(BALANCERS), "{}", check.stderr);
}

/// What it has as a comment can be uncommented, and no key is left out.
#[test]
fn the_configuration_file_shows_every_key() {
    let text = read("packaging/realpeer.toml");
    let lines: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        })
        .collect();
    let files = TempDir::new();
    let all = lines
        .join("\n")
        .replace(BALANCERS, &files.file("balancers", "192.0.2.5\n"));
    let file = files.file("realpeer.toml", &all);
    let host = Host::new("host");
    let shown = Program::Realpeer.run(&host, &["config", "show", &file]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let keys = shown.stdout.lines().filter_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        line.split([' ', ':'])
            .next()
            .filter(|key| !key.is_empty() && !key.starts_with('['))
    });
    let keys: Vec<&str> = keys.collect();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let start = format!("{key} = ");
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "no {key}"
        );
    }
}

#[test]
fn every_action_of_ctl_and_config_is_in_the_manual() {
    for (command, page, heading) in [
        ("ctl", "realpeer-ctl.1", "DESCRIPTION"),
        ("config", "realpeer.8", "CONFIGURATION FILE"),
    ] {
        let manual = read(&format!("packaging/man/{page}"));
        let help = Program::Realpeer
            .run(&Host::new("help"), &[command, "-h"])
            .stdout;
        let (_, actions) = help.split_once("Actions:\n").expect("its actions");
        let actions = actions.lines().take_while(|line| !line.is_empty());
        let actions: Vec<&str> = actions
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(actions.len() > 2, "{actions:?}");
        let section = section(&manual, heading);
        for action in actions {
            let named = section.lines().filter(|line| line.starts_with(".It "));
            let named = named.flat_map(|line| line.split_whitespace());
            assert!(
                named.clone().any(|word| word == action),
                "no {action} of {command}"
            );
        }
    }
}

#[test]
fn every_check_of_the_doctor_is_in_the_manual() {
    let manual = read("packaging/man/realpeer.8");
    let section = section(&manual, "DOCTOR");
    let named: Vec<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix(".It Li "))
        .collect();
    assert_eq!(named, internals::IDS);
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
