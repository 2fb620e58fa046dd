//! The package on a Debian that a real systemd has booted: installed, configured, upgraded under load,
//! removed and purged by a script that an administrator could type (story.sh).

use std::fs;
use std::process::Command;

use nix::unistd::getuid;

use crate::support::{Host, TempDir, repository};
use crate::{Debian, build, run, text};

/// Runs the script, writes down which files it left, and ends the machine.
const RUN: &str = r"
exec >/story/result 2>&1
list() {
    find / -xdev \( -path /var/log -o -path /var/lib/dpkg -o -path /var/cache -o -path '/etc/*-' \) -prune -o -print | sort
}
list >/run/before
bash /story/story.sh
list >/run/after
diff /run/before /run/after && echo 'no file is left'
journalctl --no-pager --unit=realpeer --unit='realpeer@*'
sync
systemctl poweroff --force
";

/// The same package again, with the next version.
fn newer(package: &str, directory: &TempDir) {
    let parts = text(&directory.path("parts"));
    let newer = text(&directory.path("newer.deb"));
    run(Command::new("dpkg-deb").args(["-R", package, &parts]));
    let control = format!("{parts}/DEBIAN/control");
    let old = fs::read_to_string(&control).expect("it is there");
    let new = old.replacen("\nVersion: ", "\nVersion: 1:", 1);
    assert_ne!(old, new);
    fs::write(control, new).expect("write it");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build", &parts, &newer]));
    fs::remove_dir_all(parts).expect("remove it");
}

/// Boots a Debian, in a network of its own, and returns what the script and its commands said.
fn played() -> String {
    let debian = Debian::new("systemd,openssh-server,iproute2");
    let (files, host) = (TempDir::new(), Host::new("machine"));
    let package = build(&files);
    newer(&package, &files);
    fs::rename(package, files.path("realpeer.deb")).expect("rename it");
    fs::copy(repository("tests/debian/story.sh"), files.path("story.sh")).expect("copy it");
    files.file("run", RUN);
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/bash /story/run\n";
    fs::write(debian.path("etc/systemd/system/story.service"), unit).expect("write it");
    // The visits come one after the other, but sshd may be slow to see each end.
    let sshd = debian.path("etc/ssh/sshd_config.d/test.conf");
    fs::write(sshd, "MaxStartups 1000\n").expect("write it");
    let machine = format!("--machine=realpeer-debian-{}", std::process::id());
    let root = format!("--directory={}", debian.path(""));
    let bind = format!("--bind={}:/story", files.path("").display());
    // Longer than it takes on a machine that is busy.
    let mut words = vec!["timeout", "--kill-after=10", "240", "systemd-nspawn"];
    words.extend([machine.as_str(), &root, &bind]);
    words.extend(
        "--quiet --private-network --register=no --keep-unit --link-journal=no --capability=all \
         --console=pipe --boot"
            .split(' '),
    );
    // The container's own filter is older than Landlock.
    words.push(
        "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    );
    words.extend(["systemd.unit=basic.target", "systemd.wants=story.service"]);
    let said = host.run(&words);
    fs::read_to_string(files.path("result")).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn from_a_fresh_debian_through_an_upgrade_under_load_to_the_purge() {
    if !getuid().is_root() {
        eprintln!("NOT TESTED: booting a Debian needs root");
        return;
    }
    let told = played();
    println!("{told}");
    // In this order, each as a line of its own.
    let mut lines = told.lines();
    for wanted in [
        "inactive",
        "ssh: would listen on 0.0.0.0:2222 (tcp)",
        "active",
        "SSH-2.0-OpenSSH_",
        "inactive",
        "the second serves",
        "active",
        "Setting up realpeer (1:",
        "all were served",
        "new processes",
        "the second still serves",
        "the first session goes on",
        "Connection ",
        "rules are there",
        "no rule is left",
        "no route is left",
        "no user is left",
        "no file is left",
    ] {
        let found = lines.any(|line| line.starts_with(wanted));
        assert!(found, "no {wanted:?} in its place in\n{told}");
    }
    for part in [
        " by 203.0.113.7 port 40000",
        "ls: cannot access '/run/realpeer'",
    ] {
        assert!(told.contains(part), "no {part:?} in\n{told}");
    }
}
