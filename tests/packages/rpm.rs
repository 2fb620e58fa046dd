//! The RPM: its files, its installation into an empty root, and what its scripts do.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::files;
use super::support::{Program, TempDir, repository, run};

/// Builds the RPM of the program under test and returns its file.
fn build(directory: &TempDir) -> String {
    let mut script = Command::new(repository("packaging/rpm/build"));
    let package = run(script
        .arg(Program::Realpeer.path())
        .arg(directory.path("built"))
        .env("RPM_PAYLOAD", "none"));
    package.trim().to_owned()
}

fn query(package: &str, what: &[&str]) -> BTreeSet<String> {
    let output = run(Command::new("rpm").arg("-qp").args(what).arg(package));
    output.lines().map(str::to_owned).collect()
}

/// One build for all that is asked of the file: stripping and packing take the longest.
#[test]
fn it_holds_what_is_installed_and_installs_into_an_empty_root() {
    let directory = TempDir::new();
    let package = build(&directory);
    let listed = query(&package, &["-l"]);
    let wanted = files::installed();
    assert_eq!(listed, wanted);
    // rpm keeps an edited file of these at an upgrade.
    let below_etc = wanted.iter().filter(|file| file.starts_with("/etc/"));
    assert_eq!(query(&package, &["-c"]), below_etc.cloned().collect());
    let flags = query(&package, &["--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]"]);
    assert!(
        flags.contains("/etc/realpeer/realpeer.toml cn"),
        "{flags:?}"
    );
    let version = query(&package, &["--qf", "%{NAME} %{VERSION} %{LICENSE}\n"]);
    let wanted_version = format!("realpeer {} MIT", env!("CARGO_PKG_VERSION"));
    assert!(version.contains(&wanted_version), "{version:?}");
    let requires = query(&package, &["--requires"]);
    assert!(
        requires.iter().any(|name| name.starts_with("libc.so.6(")),
        "{requires:?}"
    );
    let scripts = query(&package, &["--scripts"]);
    for kind in ["postinstall", "preuninstall", "postuninstall"] {
        let head = format!("{kind} scriptlet (using /bin/sh):");
        assert!(scripts.contains(&head), "{scripts:?}");
    }

    let root = directory.path("root");
    fs::create_dir(&root).expect("make the root");
    // Root in a user namespace, for rpm's chroot and chown; without the packages that it requires.
    let mut rpm = Command::new("unshare");
    rpm.args([
        "--user",
        "--map-root-user",
        "rpm",
        "--nodeps",
        "--noscripts",
    ]);
    rpm.args(["--dbpath", "/rpmdb", "--root"]).arg(&root);
    run(rpm.args(["-i", &package]));
    let placed = files::below(&root);
    let placed = placed.iter().filter(|file| !file.starts_with("/rpmdb/"));
    assert_eq!(placed.cloned().collect::<BTreeSet<_>>(), wanted);
    let version = run(Command::new(root.join("usr/bin/realpeer")).arg("version"));
    assert_eq!(version.trim(), wanted_version.replace(" MIT", ""));
    assert_eq!(mode(&root.join("usr/bin/realpeer")), 0o755);
    assert_eq!(mode(&root.join("etc/realpeer/realpeer.toml")), 0o644);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o7777
}

/// Runs a scriptlet where systemd seems to run, with realpeer.service and realpeer@edge.service
/// active, and returns the commands that it gave. `upgrades` is whether the old programs hand over.
fn commands_of(script: &str, argument: &str, upgrades: bool) -> Vec<String> {
    let directory = TempDir::new();
    let log = directory.file("log", "");
    let units = "echo realpeer.service loaded; echo realpeer@edge.service loaded";
    for (name, does) in [
        (
            "systemctl",
            format!("[ $1 != list-units ] || {{ {units}; }}"),
        ),
        ("systemd-sysusers", ":".to_owned()),
        ("systemd-tmpfiles", ":".to_owned()),
        ("rmdir", ":".to_owned()),
        ("realpeer", format!("exit {}", i32::from(!upgrades))),
    ] {
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>{log}\n{does}\n");
        let path = directory.file(name, &text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    }
    let script = repository(&format!("packaging/rpm/{script}"));
    let line = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec sh -e \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", line, "sh"]);
    unshare.arg(script).arg(argument);
    let stubs = directory.path("");
    let path = std::env::var("PATH").expect("a PATH");
    run(unshare.env("PATH", format!("{}:{path}", stubs.display())));
    let log = fs::read_to_string(log).expect("the log is there");
    log.lines()
        .filter(|line| !line.contains("list-units"))
        .map(str::to_owned)
        .collect()
}

/// Sessions survive an upgrade, because the running programs are told to hand over.
#[test]
fn an_upgrade_hands_over_and_a_program_that_cannot_is_restarted() {
    let prepared = [
        "systemd-sysusers realpeer.conf",
        "systemd-tmpfiles --create realpeer.conf",
        "systemctl daemon-reload",
    ];
    let first = commands_of("postinstall", "1", true);
    assert_eq!(first[..3], prepared);
    assert_eq!(first[3..], ["systemctl preset realpeer.service"]);
    let upgrade = commands_of("postinstall", "2", true);
    assert_eq!(upgrade[..3], prepared);
    assert_eq!(
        upgrade[3..],
        ["realpeer ctl upgrade", "realpeer ctl upgrade -name edge"]
    );
    let from_old = commands_of("postinstall", "2", false);
    assert_eq!(
        from_old[3..],
        [
            "realpeer ctl upgrade",
            "systemctl try-restart realpeer.service",
            "realpeer ctl upgrade -name edge",
            "systemctl try-restart realpeer@edge.service",
        ]
    );
}

/// A removal stops the services and takes routing away; the removal of the old package, which ends
/// an upgrade, touches nothing that runs.
#[test]
fn a_removal_stops_and_an_upgrade_does_not() {
    assert_eq!(commands_of("preuninstall", "1", true), [""; 0]);
    let removal = [
        "systemctl disable --now realpeer.service realpeer-ban-relay.service",
        "systemctl stop realpeer@*.socket realpeer@*.service",
        "realpeer routing down",
    ];
    assert_eq!(commands_of("preuninstall", "0", true), removal);
    let removed = ["rmdir /etc/realpeer", "systemctl daemon-reload"];
    assert_eq!(commands_of("postuninstall", "0", true), removed);
    assert_eq!(commands_of("postuninstall", "1", true), removed[1..]);
}
