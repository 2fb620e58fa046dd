//! The whole story: a bot hammers a service behind an ingress; fail2ban reads its real address in
//! the service's log, and the ban holds at the application server and at the ingress, for its time.
//! Four hosts: bot, good client, ingress, application server.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use support::fail2ban::Fail2ban;
use support::servers::{Sshd, haproxy, nginx};
use support::stage::row;
use support::streams::assert_turned_away;
use support::{Ctl, Host, Program, Running, TempDir, repository, wait_until};

const BOT: &str = "198.51.100.66";
const TOKEN: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";

/// Seconds that a ban lasts: long enough to look at, short enough to wait for.
const BAN_TIME: &str = "12";

/// The hosts, and where things lie.
struct Scene {
    bot: Host,
    client: Host,
    ingress: Host,
    server: Host,
    ctl: Ctl,
    files: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let (client, ingress, server) = row();
        let bot = Host::new("bot");
        bot.connect(&["198.51.100.66/24"], &ingress, &["198.51.100.1/24"]);
        let files = TempDir::new();
        files.file("token", TOKEN);
        files.file("callers", "192.0.2.10\n");
        files.file("balancers", "192.0.2.5\n");
        Scene {
            bot,
            client,
            ingress,
            server,
            ctl: Ctl::new(),
            files,
        }
    }

    fn path(&self, name: &str) -> String {
        self.files
            .path(name)
            .to_str()
            .expect("temporary paths are UTF-8")
            .to_owned()
    }

    fn realpeer(&self, listen: &str, target: &str) -> Running {
        let (balancers, control) = (self.path("balancers"), self.ctl.path());
        let flags = [
            "-l",
            listen,
            "-4",
            target,
            "-allowed-subnets",
            &balancers,
            "-control",
            &control,
            "-v",
            "1",
        ];
        Program::Realpeer.start(&self.server, &flags)
    }

    /// The relay at the ingress; `path` finds its fail2ban-client.
    fn relay(&self, exec: &str, path: &str) -> Running {
        let (token, callers) = (self.path("token"), self.path("callers"));
        let flags = [
            "ban-relay",
            "-l",
            "192.0.2.5:8100",
            "-token-file",
            &token,
            "-allowed-subnets",
            &callers,
            "-exec",
            exec,
        ];
        let path = format!("PATH={path}:/usr/bin:/bin");
        Program::Realpeer.start_under(&["env", &path], &self.ingress, &flags)
    }

    /// The application server's fail2ban: this jail, with both actions of ours.
    fn fail2ban(&self, jail: &str, log: &str) -> Fail2ban {
        let jails = format!(
            "[{jail}]
            enabled = true
            backend = polling
            logpath = {log}
            maxretry = 3
            findtime = 600
            bantime = {BAN_TIME}
            usedns = no
            action = realpeer[options=\"-control {}\", realpeer={}]
                     realpeer-ingress[url=http://192.0.2.5:8100/, tokenfile={}]
            ",
            self.ctl.path(),
            Program::Realpeer.path(),
            self.path("token"),
        );
        let jails = jails.replace("\n            ", "\n");
        Fail2ban::start(&self.server, &jails)
    }

    fn bans(&self) -> String {
        self.ctl.ok("bans")
    }

    /// The bot knocks and its packets are dropped on their way in.
    #[track_caller]
    fn assert_dropped_at_the_ingress(&self, port: u16) {
        let to = format!("198.51.100.1:{port}").parse().expect("an address");
        let patience = std::time::Duration::from_millis(500);
        let dialled = self
            .bot
            .enter(|| std::net::TcpStream::connect_timeout(&to, patience));
        assert_eq!(
            dialled.expect_err("the ingress answers").kind(),
            ErrorKind::TimedOut
        );
    }

    /// Opens the ingress for the bot again, by the relay and by hand.
    fn open_the_ingress(&self) {
        let body = format!(r#"{{"mode":"unban","target":"{BOT}"}}"#);
        let header = format!("Authorization: Bearer {TOKEN}");
        let said = self.server.run(&[
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "-H",
            &header,
            "--data",
            &body,
            "http://192.0.2.5:8100/",
        ]);
        assert!(said.contains(r#""done":"unbanned""#), "{said}");
    }
}

/// As `command`, when only its end matters.
fn succeeds(mut command: Command) -> bool {
    command
        .output()
        .expect("the program is there")
        .status
        .success()
}

#[test]
fn a_bot_at_sshd_is_banned_at_the_server_and_at_the_ingress_for_its_time() {
    let scene = Scene::new();
    let log = scene.path("sshd.log");
    let sshd = Sshd::start_logging(&scene.server, Some(&log));
    let proxy = scene.realpeer("0.0.0.0:2222", "127.0.0.1:22");
    let _nginx = nginx(
        &scene.ingress,
        &repository("examples/ingress/nginx.conf"),
        22000,
    );
    let ingress_jail = format!(
        "[realpeer]\nenabled = true\nlogpath = {}\nbantime = 1h\n",
        scene.files.file("nothing.log", "")
    );
    let ingress = Fail2ban::start(&scene.ingress, &ingress_jail);
    let _relay = scene.relay("fail2ban:realpeer", &ingress.client_directory());
    let fail2ban = scene.fail2ban("realpeer-sshd-file", &log);

    let good = || {
        let mut login = sshd.client(&scene.client, "203.0.113.1", 22000);
        login.arg("true");
        succeeds(login)
    };
    let bad = || {
        let mut login = scene.bot.command("ssh");
        login.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        login.args([
            "-o",
            "ConnectTimeout=1",
            "-p",
            "22000",
            "nobody-here@198.51.100.1",
            "true",
        ]);
        assert!(!succeeds(login), "the bot got in");
    };
    // Lines that sshd wrote about the bot.
    let seen = || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .matches(BOT)
            .count()
    };

    assert!(good());
    for _ in 0..3 {
        bad();
    }
    fail2ban.wait_for_ban(BOT);
    ingress.wait_for_ban(BOT);
    let ruleset = || scene.ingress.run(&["nft", "list", "ruleset"]);
    wait_until("both have carried it out", || {
        scene.bans().contains(BOT) && ruleset().contains(BOT)
    });
    assert!(
        scene.bans().contains("fail2ban: realpeer-sshd-file"),
        "{}",
        scene.bans()
    );
    scene.assert_dropped_at_the_ingress(22000);
    assert!(good(), "the good client is served all the time");

    // Were the ingress open, the server would still hold.
    let before = seen();
    scene.open_the_ingress();
    assert_turned_away(scene.bot.try_dial(None, "198.51.100.1:22000"));
    proxy.wait_for_line("is banned: 198.51.100.66/32");
    assert_eq!(seen(), before, "sshd sees no more of it");
    assert!(good());

    wait_until("the bot is served again", || {
        bad();
        seen() > before
    });
    assert!(!scene.bans().contains(BOT));
    assert!(good());
}

#[test]
fn a_bot_at_a_web_server_behind_haproxy_is_banned_in_an_nft_set() {
    let scene = Scene::new();
    let log = scene.path("access.log");
    let _web = nginx(&scene.server, web_server(&scene.files).as_ref(), 80);
    let _proxy = scene.realpeer("0.0.0.0:8080", "127.0.0.1:80");
    let _haproxy = haproxy(
        &scene.ingress,
        &repository("examples/ingress/haproxy-http.cfg"),
        8000,
    );
    let sets = "table inet filter {
        set banned { type ipv4_addr; flags timeout; }
        set banned6 { type ipv6_addr; flags timeout; }
        chain input { type filter hook input priority 0; ip saddr @banned drop; ip6 saddr @banned6 drop; }
        }";
    scene
        .ingress
        .run(&["nft", "-f", &scene.files.file("sets.nft", sets)]);
    let _relay = scene.relay("nft:inet/filter/banned", "/nowhere");
    fs::write(&log, "").expect("make the log");
    let fail2ban = scene.fail2ban("realpeer-botsearch", &log);

    let get = |host: &Host, url: &str| {
        let mut curl = host.command("curl");
        curl.args([
            "-sS",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            "2",
            "-o",
            "/dev/null",
            url,
        ]);
        succeeds(curl)
    };
    let good = || get(&scene.client, "http://203.0.113.1:8000/");
    let bad = || assert!(!get(&scene.bot, "http://198.51.100.1:8000/wp-login.php"));
    let seen = || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .matches(BOT)
            .count()
    };
    let in_set = || {
        scene
            .ingress
            .run(&["nft", "list", "set", "inet", "filter", "banned"])
            .contains(BOT)
    };

    assert!(good());
    for _ in 0..3 {
        bad();
    }
    fail2ban.wait_for_ban(BOT);
    wait_until("both have banned it", || {
        scene.bans().contains(BOT) && in_set()
    });
    scene.assert_dropped_at_the_ingress(8000);
    let before = seen();
    scene.open_the_ingress();
    bad();
    assert_eq!(seen(), before, "the web server sees no more of it");
    assert!(good());
    wait_until("the bot is served again", || {
        bad();
        seen() > before
    });
    assert!(!in_set() && !scene.bans().contains(BOT));
}

fn web_server(files: &TempDir) -> String {
    let place = |name| files.path(name).display().to_string();
    files.file(
        "web.conf",
        &format!(
            "events {{}} http {{ access_log {} combined;
             client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; uwsgi_temp_path {}; scgi_temp_path {};
             server {{ listen 127.0.0.1:80; location / {{ return 404; }} location = / {{ return 200; }} }} }}",
            place("access.log"), place("a"), place("b"), place("c"), place("d"), place("e"),
        ),
    )
}
