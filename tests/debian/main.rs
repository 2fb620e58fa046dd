//! The Debian package: what is in it, and its life on a small Debian beside Debian's go-mmproxy.

#[path = "../support/mod.rs"]
mod support;

mod story;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use support::{Program, TempDir, repository, run};

/// Builds the package of the program under test and returns its file.
fn build(directory: &TempDir) -> String {
    let script = repository("packaging/debian/build");
    let words = [Program::Realpeer.path(), text(&directory.path(""))];
    let mut script = Command::new(script);
    // Packing well takes longer than everything else here.
    script.args(words).env("DPKG_DEB_COMPRESSOR_LEVEL", "0");
    run(&mut script).trim().to_owned()
}

/// The package, unpacked as it would be at the root.
fn unpacked(directory: &TempDir) -> String {
    let root = text(&directory.path("root"));
    run(Command::new("dpkg-deb").args(["-x", &build(directory), &root]));
    root
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths are UTF-8").to_owned()
}

#[test]
fn lintian_has_nothing_to_say() {
    let directory = TempDir::new();
    let package = build(&directory);
    let mut lintian = Command::new("lintian");
    // It warns of root, who only reads here.
    let words = [
        "--profile=debian",
        "--fail-on=error,warning",
        "--allow-root",
        &package,
    ];
    let said = run(lintian.args(words));
    assert_eq!(said, "");
}

#[test]
fn the_package_has_every_part_and_the_version_of_the_crate() {
    let directory = TempDir::new();
    let root = unpacked(&directory);
    for file in [
        "usr/lib/systemd/system/realpeer.service",
        "usr/lib/systemd/system/realpeer@.service",
        "usr/lib/systemd/system/realpeer@.socket",
        "usr/lib/systemd/system/realpeer-ban-relay.service",
        "usr/lib/sysusers.d/realpeer.conf",
        "usr/lib/tmpfiles.d/realpeer.conf",
        "etc/realpeer/realpeer.toml",
        "etc/fail2ban/action.d/realpeer.conf",
        "etc/fail2ban/filter.d/realpeer-gitea.conf",
        "etc/fail2ban/jail.d/realpeer.conf",
        "etc/apparmor.d/realpeer",
        "usr/share/man/man8/realpeer.8.gz",
        "usr/share/man/man8/realpeer-ban-relay.8.gz",
        "usr/share/man/man1/realpeer-ctl.1.gz",
        "usr/share/man/man5/realpeer.toml.5.gz",
        "usr/share/bash-completion/completions/realpeer",
        "usr/share/zsh/vendor-completions/_realpeer",
        "usr/share/fish/vendor_completions.d/realpeer.fish",
        "usr/share/doc/realpeer/examples/nftables/realpeer-bans.nft",
        "usr/share/doc/realpeer/examples/prometheus/alerts.yml",
        "usr/share/doc/realpeer/examples/grafana/realpeer.json",
    ] {
        assert!(Path::new(&root).join(file).is_file(), "no {file}");
    }
    let program = format!("{root}/usr/bin/realpeer");
    let sections = run(Command::new("readelf").args(["-SW", &program]));
    assert!(
        !sections.contains(".symtab") && !sections.contains(".debug_info"),
        "{sections}"
    );
    let version = run(Command::new(&program).arg("version"));
    let changelog =
        fs::read_to_string(repository("packaging/debian/changelog")).expect("it is there");
    let version = version.trim().replace("realpeer ", "realpeer (") + "-";
    assert!(changelog.starts_with(&version), "{version}");
}

/// Before somebody edits it, the file sets nothing; every setting can be uncommented.
#[test]
fn the_configuration_listens_nowhere_and_the_unit_is_skipped_until_it_does() {
    let directory = TempDir::new();
    let root = unpacked(&directory);
    let config =
        fs::read_to_string(format!("{root}/etc/realpeer/realpeer.toml")).expect("it is there");
    assert!(
        config
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#')),
        "{config}"
    );
    assert!(
        config.contains("\n#[[listener]]\n#") && config.contains("\n#listen = "),
        "{config}"
    );

    for (unit, file, name) in [
        ("realpeer.service", "/etc/realpeer/realpeer.toml", ""),
        ("realpeer@.service", "/etc/realpeer/%i.toml", " -name %i"),
    ] {
        let path = format!("{root}/usr/lib/systemd/system/{unit}");
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(
            text.contains(&format!(
                "ExecStart=/usr/bin/realpeer -config {file}{name}\n"
            )),
            "{text}"
        );
        assert!(
            text.contains("\nUser=realpeer\n") && !text.contains("DynamicUser"),
            "{text}"
        );
        let condition = text
            .lines()
            .find_map(|line| line.strip_prefix("ExecCondition="));
        let (condition, _) = condition
            .expect("a condition")
            .rsplit_once(' ')
            .expect("a file");
        let holds = |content: &str| {
            let file = directory.file("file.toml", content);
            let words: Vec<&str> = condition.split(' ').collect();
            let mut grep = Command::new(words[0]);
            grep.args(&words[1..])
                .arg(file)
                .status()
                .expect("grep is there")
                .success()
        };
        assert!(!holds(&config), "nothing listens yet");
        assert!(holds("workers = 1\n [[listener]]\nname = \"ssh\"\n"));
        // As systemd reads it, with the program where it is.
        let verified = text.replace("/usr/bin/realpeer", &Program::Realpeer.path());
        let verified = directory.file(&unit.replace('@', "@x"), &verified);
        let mut verify = Command::new("systemd-analyze");
        let output = verify.args(["verify", "--man=no", &verified]).output();
        let said = String::from_utf8_lossy(&output.expect("it is there").stderr).into_owned();
        assert_eq!(said, "");
    }
}

/// Only its syntax: the kernel of a test machine may have no AppArmor.
#[test]
fn the_profile_of_apparmor_is_understood() {
    let profile = repository("packaging/apparmor/realpeer");
    run(Command::new("apparmor_parser")
        .args(["-Q", "-T", "-K"])
        .arg(profile));
}

/// A Debian in a directory, with its own package manager.
struct Debian(TempDir);

impl Debian {
    /// Its smallest system, with these packages.
    fn new(packages: &str) -> Debian {
        let directory = TempDir::new();
        let root = text(&directory.path("root"));
        let include = format!("--include={packages}");
        let words = ["--quiet", "--mode=root", "--variant=minbase", &include];
        run(Command::new("mmdebstrap")
            .args(words)
            .args(["bookworm", &root]));
        Debian(directory)
    }

    fn path(&self, inside: &str) -> String {
        text(&self.0.path(&format!("root/{inside}")))
    }

    /// Runs a line of a shell in it, in a network of its own.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let root = self.path("");
        let proc = format!("--mount-proc={root}/proc");
        let words = ["--mount", "--pid", "--fork", &proc];
        let mut command = Command::new("unshare");
        command
            .args(words)
            .args(["chroot", &root, "sh", "-ec", line]);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C");
        run(&mut command)
    }

    /// Which program answers to the name.
    fn gommproxy(&self) -> String {
        self.run("readlink -f /usr/bin/go-mmproxy")
            .trim()
            .to_owned()
    }

    /// All files, but for what package managers write down about what they did, caches, and the
    /// copies that useradd and userdel keep of the files of accounts.
    fn files(&self) -> BTreeSet<String> {
        let all = self.run(
            "find / -xdev \\( -path /proc -o -path /tmp -o -path /var/cache -o -path /var/log -o -path /var/lib/dpkg \
             -o -path /var/lib/apt -o -path /root -o -path '/etc/*-' \\) -prune -o -print",
        );
        all.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn assert_files(&self, wanted: &BTreeSet<String>) {
        let found = self.files();
        let differences: Vec<_> = found.symmetric_difference(wanted).collect();
        assert!(differences.is_empty(), "{differences:?}");
    }
}

/// Installed before and after go-mmproxy, upgraded, removed and purged in each order: the
/// administrator's choice holds, and nothing is left behind.
#[test]
fn it_lives_beside_gommproxy_and_leaves_nothing_behind() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("NOT TESTED: installing the Debian package needs root, for chroot and for dpkg");
        return;
    }
    const OURS: &str = "/usr/bin/realpeer";
    const THEIRS: &str = "/usr/bin/go-mmproxy.debian";
    let debian = Debian::new("systemd-standalone-sysusers,iproute2");
    let package = TempDir::new();
    fs::copy(build(&package), debian.path("tmp/realpeer.deb")).expect("copy the package");
    debian.run("cd /tmp && apt-get -q update && apt-get -q download go-mmproxy && mv go-mmproxy_*.deb go-mmproxy.deb");
    let [install, remove, purge] = ["-i /tmp/realpeer.deb", "-r realpeer", "-P realpeer"];
    let dpkg = |words: &str| debian.run(&format!("dpkg {words} 2>&1"));
    let (their_install, their_removal) = ("-i /tmp/go-mmproxy.deb", "-P go-mmproxy");
    let before = debian.files();

    // Alone: it answers for go-mmproxy.
    dpkg(install);
    assert_eq!(debian.gommproxy(), OURS);
    assert!(
        debian
            .run("realpeer version; getent passwd realpeer")
            .contains("/var/lib/realpeer")
    );
    dpkg(remove);
    assert!(Path::new(&debian.path("etc/realpeer/realpeer.toml")).exists());
    dpkg(purge);
    debian.assert_files(&before);

    // go-mmproxy first: it goes on answering, until the administrator chooses.
    dpkg(their_install);
    let theirs_alone = debian.files();
    dpkg(install);
    assert_eq!(debian.gommproxy(), THEIRS);
    debian.run("update-alternatives --set go-mmproxy /usr/bin/realpeer");
    assert_eq!(debian.gommproxy(), OURS);
    // The choice outlives upgrades of both.
    dpkg(their_install);
    dpkg(install);
    assert_eq!(debian.gommproxy(), OURS);
    dpkg(purge);
    assert_eq!(debian.gommproxy(), "/usr/bin/go-mmproxy");
    debian.run("dpkg -V go-mmproxy");
    debian.assert_files(&theirs_alone);
    dpkg(their_removal);

    // go-mmproxy comes later, and goes first.
    dpkg(install);
    dpkg(their_install);
    assert_eq!(debian.gommproxy(), THEIRS);
    dpkg(their_removal);
    assert_eq!(debian.gommproxy(), OURS);
    dpkg(purge);
    debian.assert_files(&before);
    assert_eq!(debian.run("dpkg-divert --list '*mmproxy*'"), "");
}
