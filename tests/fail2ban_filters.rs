//! The filters of packaging/fail2ban find whom they should in real log lines, and nobody else.

mod support;

use std::fs;
use std::io::Write;

use support::fail2ban::Configuration;
use support::servers::{Sshd, nginx};
use support::{Host, TempDir, repository, wait_until};

fn data(name: &str) -> String {
    let path = repository("tests/data/fail2ban").join(name);
    path.to_str().expect("the path is UTF-8").to_owned()
}

#[test]
fn gitea_in_a_container() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let find = |log| configuration.find(&host, &data(log), "realpeer-gitea");
    let mut expected: Vec<String> = (1..=9).map(|n| format!("203.0.113.{n}")).collect();
    expected[3] = "2001:db8::4".into();
    // The name that this one chose holds another address.
    expected[8] = "2001:db8::9".into();
    assert_eq!(find("gitea.log"), expected);
    assert_eq!(find("gitea-innocent.log"), Vec::<String>::new());
}

#[test]
fn bot_search_in_traefiks_log() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let find = |log| configuration.find(&host, &data(log), "realpeer-botsearch");
    assert_eq!(
        find("traefik.log"),
        ["203.0.113.1", "203.0.113.2", "2001:db8::3"]
    );
    assert_eq!(find("traefik-innocent.log"), Vec::<String>::new());
}

/// The lines that nginx writes today.
#[test]
fn bot_search_in_nginxs_log() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let files = TempDir::new();
    let place = |name| files.path(name).display().to_string();
    let log = place("access.log");
    let web = files.file("web.conf", &format!(
        "events {{}} http {{ access_log {log} combined;
         client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; uwsgi_temp_path {}; scgi_temp_path {};
         server {{ listen 127.0.0.1:80; location / {{ return 404; }} location = / {{ return 200; }} }} }}",
        place("a"), place("b"), place("c"), place("d"), place("e")));
    let _nginx = nginx(&host, web.as_ref(), 80);
    let get = |from: &str, path: &str| {
        let url = format!("http://127.0.0.1{path}");
        host.run(&[
            "curl",
            "-s",
            "--interface",
            from,
            "--path-as-is",
            "-o",
            "/dev/null",
            &url,
        ]);
    };
    for (n, path) in [
        "/wp-login.php",
        "//.git/config",
        "/old/phpMyAdmin/",
        "/cgi-bin/x?y=%22",
    ]
    .iter()
    .enumerate()
    {
        get(&format!("127.0.0.{}", n + 10), path);
    }
    for path in ["/", "/nothing-here", "/?q=/wp-login.php"] {
        get("127.0.0.2", path);
    }
    wait_until("all is logged", || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 7)
    });
    let found = configuration.find(&host, &log, "realpeer-botsearch");
    assert_eq!(
        found,
        ["127.0.0.10", "127.0.0.11", "127.0.0.12", "127.0.0.13"]
    );
}

/// sshd's own words, as the container's journal would show them.
#[test]
fn what_opensshs_server_says_today() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let sshd = Sshd::start(&host);
    let mut login = host.command("ssh");
    login.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-b",
        "127.0.0.9",
        "nobody-here@127.0.0.1",
        "true",
    ]);
    assert!(!login.output().expect("ssh is there").status.success());
    let mut rubbish = host.dial_from("127.0.0.8:0", "127.0.0.1:22");
    rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    sshd.running.wait_for_error("127.0.0.9 port");
    sshd.running.wait_for_error("invalid format");
    sshd.running.wait_for_error("[preauth]");
    let files = TempDir::new();
    let lines = sshd.running.stderr();
    let journal: Vec<String> = lines
        .iter()
        .map(|line| {
            format!(
                "2026-11-22T18:00:01 server 3f2a9c1d77e0[812]: {}",
                line.trim_end()
            )
        })
        .collect();
    let log = files.file("journal", &(journal.join("\n") + "\n"));
    let mut found = configuration.find(&host, &log, "realpeer-gitea");
    found.sort();
    found.dedup();
    assert_eq!(found, ["127.0.0.8", "127.0.0.9"], "{lines:?}");
}

/// Every jail that is shipped can be turned on.
#[test]
fn the_jails_are_understood() {
    let host = Host::new("server");
    let names = [
        "realpeer-sshd",
        "realpeer-sshd-file",
        "realpeer-gitea",
        "realpeer-botsearch",
        "realpeer-botsearch-traefik",
        "realpeer",
    ];
    // The log files need not be here: what matters is what the jails say.
    let log = data("traefik.log");
    let turned_on = |name: &&str| format!("[{name}]\nenabled = true\nlogpath = {log}\n");
    let on: String = names.iter().map(turned_on).collect();
    let configuration = Configuration::new(&on);
    let dump = host.run(&["fail2ban-client", "-c", &configuration.path(), "--dp"]);
    for name in names {
        assert!(
            dump.contains(&format!("['start', '{name}']")),
            "{name} is missing in {dump}"
        );
    }
    for part in [
        "CONTAINER_NAME=gitea",
        "_SYSTEMD_UNIT=ssh.service",
        "ctl",
        "relay-token",
        "nft",
    ] {
        assert!(dump.contains(part), "{part} is missing in {dump}");
    }
}
