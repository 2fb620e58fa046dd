//! examples/bans.md, followed line by line on two hosts, to a ban at both.

mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use support::servers::{Sshd, nginx};
use support::stage::row;
use support::{Host, Journal, Program, Running, TempDir, repository, wait_until};

const BOT: &str = "203.0.113.7";

/// A block of the page that is to be typed in, and where.
#[derive(Debug)]
struct Block {
    at_ingress: bool,
    at_server: bool,
    text: String,
}

/// The page's blocks of shell. The heading or the paragraph before each says where it belongs.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut at_ingress, mut at_server) = (false, false);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let heading = line.starts_with("## ");
        if line.starts_with("At the ingress") || (heading && line.contains("t the ingress")) {
            (at_ingress, at_server) = (true, false);
        } else if line.starts_with("At the application") || (heading && line.contains("t the app"))
        {
            (at_ingress, at_server) = (false, true);
        } else if heading && line.contains("both hosts") {
            (at_ingress, at_server) = (true, true);
        }
        if line == "```sh" {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block {
                at_ingress,
                at_server,
                text: text.join("\n"),
            });
        }
    }
    blocks
}

/// A host with an /etc and a /var of its own, and a reader of the page at its keyboard.
struct Reader<'a> {
    host: &'a Host,
    files: TempDir,
    /// What the page sets on both hosts.
    variables: String,
    running: HashMap<String, Running>,
}

impl Reader<'_> {
    fn new(host: &Host) -> Reader<'_> {
        let files = TempDir::new();
        let etc = files.path("etc");
        // An ordinary user cannot read all of it; what the page is about can be read.
        let copied = Command::new("cp").arg("-a").arg("/etc").arg(&etc).output();
        copied.expect("cp is there");
        host.run(&["mount", "--bind", &etc.display().to_string(), "/etc"]);
        for place in ["/var/log", "/var/lib/fail2ban"] {
            host.run(&["mount", "-t", "tmpfs", "none", place]);
        }
        // systemd does not run here: the test starts what the reader tells it to. And what apt is to
        // install has to be there.
        let asked = files.path("asked").display().to_string();
        for (name, text) in [
            ("systemctl", format!("echo \"$@\" >>{asked}")),
            ("apt", "shift 2; exec dpkg-query -W \"$@\"".to_owned()),
        ] {
            let path = files.file(name, &format!("#!/bin/sh\n{text}\n"));
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        Reader {
            host,
            files,
            variables: String::new(),
            running: HashMap::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.files.path(name).display().to_string()
    }

    /// Types a block in, and does what systemd was told in it.
    #[track_caller]
    fn types(&mut self, block: &str) -> String {
        let mut shell = self.host.command("sh");
        // Entering the host's mounts leaves the directory.
        let top = repository("").display().to_string();
        let script = format!("cd '{top}'\n{}\n{block}", self.variables);
        shell.args(["-e", "-c", &script]).env("PATH", self.search());
        let output = shell.output().expect("sh is there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{said}{error}");
        let asked = fs::read_to_string(self.files.path("asked")).unwrap_or_default();
        let _ = fs::remove_file(self.files.path("asked"));
        for words in asked.lines() {
            match words {
                "daemon-reload" | "enable nftables" | "enable fail2ban" => {}
                "enable --now realpeer-ban-relay" => self.start_relay(),
                "restart fail2ban" => self.start_fail2ban(),
                other => panic!("the test does not know systemctl {other}"),
            }
        }
        said
    }

    /// This host's programs, with realpeer among them.
    fn search(&self) -> String {
        let realpeer = Program::Realpeer.path();
        let directory = realpeer.trim_end_matches("/realpeer");
        let usual = std::env::var("PATH").unwrap_or_default();
        let own = self.path("");
        format!("{own}:{directory}:{usual}:/usr/sbin:/sbin")
    }

    /// As the unit says, with the drop-in that the reader made.
    fn start_relay(&mut self) {
        let unit = "etc/systemd/system/realpeer-ban-relay.service";
        let text = |name: &str| fs::read_to_string(self.files.path(name)).expect("it is there");
        let whole = text(unit) + &text(&format!("{unit}.d/listen.conf"));
        let value = |key: &str| {
            let mut lines = whole.lines().rev();
            let found = lines.find_map(|line| line.strip_prefix(&format!("{key}=")));
            found.unwrap_or_else(|| panic!("no {key} in {whole}"))
        };
        let listen = value("Environment").strip_prefix("LISTEN=");
        let token = value("LoadCredential").strip_prefix("token:/");
        let token = text(token.expect("a credential"));
        self.files.file("token", &token);
        let command = value("ExecStart")
            .replace("${LISTEN}", listen.expect("LISTEN"))
            .replace("${CREDENTIALS_DIRECTORY}", &self.path(""));
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("/usr/bin/realpeer"));
        let flags: Vec<&str> = words.collect();
        let state = format!("STATE_DIRECTORY={}", self.path(value("StateDirectory")));
        let relay = Program::Realpeer.start_under(&["env", &state], self.host, &flags);
        self.running.insert("relay".into(), relay);
    }

    /// As Debian's unit does.
    fn start_fail2ban(&mut self) {
        self.running.remove("fail2ban");
        self.host.run(&["mkdir", "-p", "/run/fail2ban"]);
        let mut command = self.host.command("fail2ban-server");
        command.args(["-xf", "start"]).env("PATH", self.search());
        let mut running = Running::start("fail2ban", command).ends_by(Signal::SIGTERM);
        wait_until("fail2ban answers", || {
            assert!(!running.has_ended(), "{:?}", running.stderr());
            let mut ping = self.host.command("fail2ban-client");
            ping.arg("ping")
                .output()
                .expect("it is there")
                .status
                .success()
        });
        self.running.insert("fail2ban".into(), running);
    }
}

#[test]
fn the_page_leads_to_a_ban_at_both() {
    let (bot, ingress, server) = row();
    let page = fs::read_to_string(repository("examples/bans.md")).expect("the page");
    let (mut at_ingress, mut at_server) = (Reader::new(&ingress), Reader::new(&server));

    // What the page takes for granted: sshd with a journal, realpeer, and a load balancer.
    let mut journal = Journal::new(&server);
    journal.add("_SYSTEMD_UNIT=ssh.service", "Server listening on port 22.");
    journal.wait_until_written(&server);
    let machine = "/var/log/journal/0123456789abcdef0123456789abcdef";
    server.run(&["mkdir", "-p", machine]);
    server.run(&["mount", "--bind", &journal.path(), machine]);
    server.run(&["rm", "-f", "/var/log/auth.log"]);
    let sshd = Sshd::start(&server);
    let balancers = at_server.files.file("balancers", "192.0.2.5\n");
    let state = at_server.path("state");
    let flags = "-l 0.0.0.0:2222 -4 127.0.0.1:22 -6 [::1]:22 -control /run/realpeer/control.sock";
    let mut flags: Vec<&str> = flags.split(' ').collect();
    flags.extend(["-allowed-subnets", &balancers, "-state-dir", &state]);
    server.run(&["mkdir", "/run/realpeer"]);
    let _proxy = Program::Realpeer.start(&server, &flags);
    let _nginx = nginx(&ingress, &repository("examples/ingress/nginx.conf"), 22000);

    let blocks = blocks(&page);
    assert_eq!(blocks.len(), 7, "{blocks:?}");
    let mut token = String::new();
    for block in &blocks {
        // What the reader must put in.
        let text = block
            .text
            .replace("INGRESS=10.0.0.1 ", "INGRESS=192.0.2.5 ")
            .replace("SERVER=10.0.0.2 ", "SERVER=192.0.2.10 ")
            .replace("what-the-ingress-has-shown", token.trim());
        match (block.at_ingress, block.at_server) {
            (true, true) => {
                at_ingress.variables.clone_from(&text);
                at_server.variables = text;
            }
            (true, false) => token = at_ingress.types(&text),
            (false, true) => {
                at_server.types(&text);
            }
            (false, false) => panic!("where does this belong? {text}"),
        }
    }
    let banned = |reader: &mut Reader| reader.types("nft list set inet filter banned");
    assert!(!banned(&mut at_ingress).contains("203.0.113.9"));

    // And a bot, whom sshd's own words give away.
    for n in 1..=6 {
        let mut login = bot.command("ssh");
        login.args(["-F", "none", "-o", "BatchMode=yes", "-o"]);
        login.args([
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        login.args(["-p", "22000", "nobody-here@203.0.113.1", "true"]);
        assert!(!login.output().expect("ssh is there").status.success());
        wait_until("sshd has told of it", || {
            let lines = sshd.running.stderr();
            lines
                .iter()
                .filter(|line| line.contains("Invalid user"))
                .count()
                >= n
        });
    }
    let told = sshd.running.stderr();
    let source = "SYSLOG_IDENTIFIER=sshd\n_COMM=sshd\n_SYSTEMD_UNIT=ssh.service";
    for line in told.iter().filter(|line| line.contains("Invalid user")) {
        journal.add(source, line.trim_end());
    }
    wait_until("both have banned it", || {
        banned(&mut at_ingress).contains(BOT) && at_server.types("realpeer ctl bans").contains(BOT)
    });

    // The ingress boots again, as its enabled units do it.
    at_ingress.running.remove("relay");
    ingress.run(&["nft", "flush", "ruleset"]);
    ingress.run(&["nft", "-f", "/etc/nftables.conf"]);
    assert!(!banned(&mut at_ingress).contains(BOT));
    at_ingress.start_relay();
    wait_until("the ban is back", || banned(&mut at_ingress).contains(BOT));
    let rules = ingress.run(&["nft", "list", "chain", "inet", "filter", "banned-input"]);
    assert!(rules.contains("ip saddr @banned drop"), "{rules}");
    at_server.types(&format!("fail2ban-client set realpeer-sshd unbanip {BOT}"));
    assert!(!banned(&mut at_ingress).contains(BOT));
}
