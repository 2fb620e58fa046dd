//! packaging/install, the one list of what is installed where.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::support::{Program, TempDir, repository, run};

/// What packaging/install puts below an empty directory, by absolute paths.
pub fn installed() -> BTreeSet<String> {
    let root = TempDir::new();
    install(&repository("packaging/install"), &root.path(""));
    below(&root.path(""))
}

/// Runs a packaging/install for the program under test.
#[track_caller]
pub fn install(script: &Path, root: &Path) {
    let mut script = Command::new(script);
    run(script.arg(Program::Realpeer.path()).env("DESTDIR", root));
}

const EXAMPLES: &str = "/usr/share/doc/realpeer/examples";

/// The files below a directory, by their paths in it.
pub fn below(root: &Path) -> BTreeSet<String> {
    let all = run(Command::new("find")
        .arg(root)
        .args(["-type", "f", "-printf", "/%P\\n"]));
    all.lines().map(str::to_owned).collect()
}

/// Every file of packaging/ that somebody runs or reads is on the list.
#[test]
fn every_part_is_installed() {
    let installed = installed();
    for (folder, place) in [
        ("systemd", "/usr/lib/systemd/system"),
        ("fail2ban/action.d", "/etc/fail2ban/action.d"),
        ("fail2ban/filter.d", "/etc/fail2ban/filter.d"),
        ("fail2ban/jail.d", "/etc/fail2ban/jail.d"),
        ("grafana", "/usr/share/doc/realpeer/examples/grafana"),
        ("nftables", "/usr/share/doc/realpeer/examples/nftables"),
        ("prometheus", "/usr/share/doc/realpeer/examples/prometheus"),
    ] {
        for file in names(folder) {
            let by_name = match file.as_str() {
                "realpeer.sysusers" => "/usr/lib/sysusers.d/realpeer.conf".to_owned(),
                "realpeer.tmpfiles" => "/usr/lib/tmpfiles.d/realpeer.conf".to_owned(),
                // It gives more capabilities, so it waits for the administrator.
                "realpeer.service.d" => format!("{EXAMPLES}/{file}/containers.conf"),
                _ => format!("{place}/{file}"),
            };
            assert!(installed.contains(&by_name), "no {by_name}: {installed:?}");
        }
    }
    for page in names("man") {
        let section = page.rsplit('.').next().expect("split gives one");
        let page = format!("/usr/share/man/man{section}/{page}");
        assert!(installed.contains(&page), "no {page}: {installed:?}");
    }
    for file in [
        "/usr/bin/realpeer",
        "/usr/lib/systemd/system/realpeer@.service",
        "/etc/realpeer/realpeer.toml",
    ] {
        assert!(installed.contains(file), "no {file}: {installed:?}");
    }
}

fn names(folder: &str) -> Vec<String> {
    let folder = repository(&format!("packaging/{folder}"));
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.into_string().expect("names are UTF-8"))
        .collect()
}

/// Installing again keeps what the administrator has written.
#[test]
fn an_edited_configuration_stays() {
    let root = TempDir::new();
    let script = repository("packaging/install");
    install(&script, &root.path(""));
    let config = root.path("etc/realpeer/realpeer.toml");
    let shipped = fs::read_to_string(&config).expect("it is installed");
    let is_unset = |line: &str| line.is_empty() || line.starts_with('#');
    assert!(shipped.lines().all(is_unset), "{shipped}");
    fs::write(&config, "workers = 1\n").expect("write it");
    install(&script, &root.path(""));
    let now = fs::read_to_string(&config).expect("it is there");
    assert_eq!(now, "workers = 1\n");
    assert!(!root.path("etc/realpeer/realpeer.toml.new").exists());
}
