//! The filters of packaging/fail2ban find whom they should in real log lines, and nobody else.

mod support;

use std::fs;
use std::io::Write;

use support::fail2ban::Configuration;
use support::servers::{Sshd, nginx};
use support::{Host, Journal, TempDir, repository, wait_until};

fn data(name: &str) -> String {
    let path = repository("tests/data/fail2ban").join(name);
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// 203.0.113.1 and so on, with one in IPv6 among them.
fn clients(last: u8, in_ipv6: &[u8]) -> Vec<String> {
    let address = |n| match in_ipv6.contains(&n) {
        true => format!("2001:db8::{n}"),
        false => format!("203.0.113.{n}"),
    };
    (1..=last).map(address).collect()
}

/// What the container wrote, read from a journal as its jail reads it.
#[test]
fn gitea_in_a_container() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let find = |name| {
        let journal = container_journal(&host, &fs::read_to_string(data(name)).expect("the data"));
        let filter = "realpeer-gitea";
        configuration.find_in_journal(&host, &journal, "CONTAINER_NAME=gitea", filter)
    };
    assert_eq!(find("gitea.log"), clients(24, &[15]));
    assert_eq!(find("gitea-innocent.log"), Vec::<String>::new());
    let forged = find("gitea-forged.log");
    assert_eq!(
        forged,
        [1, 2, 3, 4, 5, 8, 11].map(|n| format!("203.0.113.{n}"))
    );
}

/// These lines as Docker's journald driver would note them.
fn container_journal(host: &Host, lines: &str) -> TempDir {
    let mut journal = Journal::new(host);
    for line in lines.lines() {
        if !line.starts_with('#') && !line.is_empty() {
            let line = line.replace("ESC[", "\x1b[");
            // An sshd that logs to standard error ends its lines with it; gitea does not.
            let end = match line.contains("Failed authentication attempt") {
                true => "",
                false => "\r",
            };
            let source = "CONTAINER_NAME=gitea\nSYSLOG_IDENTIFIER=3f2a9c1d77e0\n_COMM=dockerd";
            journal.add(source, &format!("{line}{end}"));
        }
    }
    journal.finish()
}

/// With the filter's options as the jails give them.
#[test]
fn openssh_of_many_versions() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let jails = fs::read_to_string(repository("packaging/fail2ban/jail.d/realpeer.conf"))
        .expect("the jails");
    let filters: Vec<&str> = jails
        .lines()
        .filter_map(|line| line.strip_prefix("filter = "))
        .filter(|filter| filter.starts_with("sshd["))
        .collect();
    assert_eq!(filters.len(), 2, "{filters:?}");
    for filter in filters {
        let find = |log| configuration.find(&host, &data(log), filter);
        assert_eq!(find("sshd.log"), clients(11, &[]));
        assert_eq!(find("sshd-innocent.log"), Vec::<String>::new());
    }
}

#[test]
fn bot_search_in_traefiks_log() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let find = |log| configuration.find(&host, &data(log), "realpeer-botsearch");
    assert_eq!(find("traefik.log"), clients(10, &[6, 9]));
    assert_eq!(find("traefik-innocent.log"), Vec::<String>::new());
    // Nobody makes it too old to count: two lines speak of the first second of the year 2000.
    let rows = configuration.regex(
        &host,
        &["-o", "row", &data("traefik.log"), "realpeer-botsearch"],
    );
    assert!(!rows.concat().contains("946684800"), "{rows:?}");
}

/// Words that look like a bot's and are an honest client's, and the bots' beside them; the same paths
/// in traefik's JSON.
#[test]
fn bot_search_spares_what_honest_clients_ask_for() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let files = TempDir::new();
    for (name, count) in [("botsearch.log", BOTS), ("botsearch-innocent.log", 0)] {
        let lines = fs::read_to_string(data(name)).expect("the data");
        let json = files.file(name, &as_json(&lines));
        for log in [data(name), json] {
            let found = configuration.find(&host, &log, "realpeer-botsearch");
            assert_eq!(found, clients(count, &[]), "{log}");
        }
    }
}

/// How many lines botsearch.log has.
const BOTS: u8 = 33;

/// Lines of nginx as traefik would write them.
fn as_json(lines: &str) -> String {
    let request = |line: &str| {
        let client = line.split(' ').next()?;
        let path = line.split("\"GET ").nth(1)?.split(' ').next()?;
        Some(format!(
            "{{\"ClientAddr\":\"{client}:40000\",\"DownstreamStatus\":404,\"RequestMethod\":\"GET\",\"RequestPath\":\"{path}\",\"RequestPort\":\"-\",\"time\":\"2024-12-29T12:42:41+01:00\"}}\n"
        ))
    };
    lines.lines().filter_map(request).collect()
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
    // A user's name that would be a line of its own.
    let name = "x\n127.0.0.3 - - [22/Nov/2026:18:00:01 +0000] \"GET /.env HTTP/1.1\" 404 1 \"";
    let mut forged = host.command("curl");
    forged.args(["-s", "-o", "/dev/null", "--interface", "127.0.0.2"]);
    forged.args(["-u", &format!("{name}:x"), "http://127.0.0.1/"]);
    assert!(forged.status().expect("curl is there").success());
    wait_until("all is logged", || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 8)
    });
    let found = configuration.find(&host, &log, "realpeer-botsearch");
    assert_eq!(
        found,
        ["127.0.0.10", "127.0.0.11", "127.0.0.12", "127.0.0.13"]
    );
}

/// sshd's own words, as the container's journal would show them; one client's certificate and user
/// name speak of other addresses.
#[test]
fn what_opensshs_server_says_today() {
    let (host, configuration) = (Host::new("server"), Configuration::new(""));
    let sshd = Sshd::start(&host);
    let files = TempDir::new();
    let key = files.path("key").display().to_string();
    for name in ["", "ca"] {
        let path = format!("{key}{name}");
        host.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &path]);
    }
    let id = "x from 127.0.0.66 port 1 ssh2: x";
    let (ca, public) = (format!("{key}ca"), format!("{key}.pub"));
    host.run(&["ssh-keygen", "-q", "-s", &ca, "-I", id, "-n", "x", &public]);
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .expect("read the user database")
        .expect("we have a name");
    for (from, user) in [
        ("127.0.0.9", "nobody-here"),
        ("127.0.0.10", "nobody from 127.0.0.66 port 1"),
        ("127.0.0.11", &user.name),
    ] {
        let mut login = host.command("ssh");
        login.args(["-F", "none", "-o", "BatchMode=yes", "-o"]);
        login.args([
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        login.args(["-i", &key, "-b", from, "-l", user, "127.0.0.1", "true"]);
        assert!(!login.output().expect("ssh is there").status.success());
        sshd.running.wait_for_error(&format!("{from} port"));
    }
    let mut rubbish = host.dial_from("127.0.0.8:0", "127.0.0.1:22");
    rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    sshd.running.wait_for_error("invalid format");
    sshd.running.wait_for_error("[preauth]");
    let lines = sshd.running.stderr();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("Failed publickey") && line.contains(id)),
        "{lines:?}"
    );
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    let journal = container_journal(&host, &lines.join("\n"));
    let filter = "realpeer-gitea";
    let mut found = configuration.find_in_journal(&host, &journal, "CONTAINER_NAME=gitea", filter);
    found.sort();
    found.dedup();
    let clients = ["127.0.0.10", "127.0.0.11", "127.0.0.8", "127.0.0.9"];
    assert_eq!(found, clients, "{lines:?}");
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
        "realpeer-limits",
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
