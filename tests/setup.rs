//! `realpeer setup`, without systemd and with a systemctl of the test's: what it writes and refuses to
//! write, what it takes back, and that the lines it prints are all that a load balancer needs.

mod support;

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;

use nix::unistd::geteuid;
use support::program::Ended;
use support::servers::{haproxy, nginx};
use support::stage::{CLIENT, VISITED, VISITED6, wire};
use support::streams::{assert_carries, assert_reset, send};
use support::{Backend, Host, Program, Running, TempDir, Terminal, addr, header, ssh_story};

const ANSWERS: [&str; 7] = [
    "-yes",
    "-backend",
    "127.0.0.1:22",
    "-from",
    "192.0.2.5",
    "-listen",
    ":2222",
];

/// The same, with another address to listen on.
fn listening(address: &str) -> Vec<&str> {
    let [before @ .., _] = ANSWERS;
    [&before[..], &[address]].concat()
}

const FILE: &str = "/etc/realpeer/port-22.toml";

/// A host gets an /etc of its own, a copy of the machine's without anything of realpeer.
fn with_etc(host: &Host) {
    host.run(&[
        "sh",
        "-c",
        "mkdir /run/etc && { cp -a /etc/. /run/etc/ 2>/dev/null || true; } &&
         rm -rf /run/etc/realpeer /run/etc/systemd && mkdir -p /run/etc/systemd/system &&
         mount --bind /run/etc /etc",
    ]);
}

fn host() -> Host {
    let host = Host::new("server");
    with_etc(&host);
    host
}

/// The command line of `realpeer setup`. Setup wants root, which an ordinary user is in a user
/// namespace of the user's own.
fn words<'a>(program: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    let root: &[&str] = match geteuid().is_root() {
        true => &[],
        false => &["unshare", "--user", "--map-root-user"],
    };
    [root, &[program, "setup"], words].concat()
}

#[track_caller]
fn setup(host: &Host, flags: &[&str]) -> Ended {
    ended(host.spawn(&words(&Program::Realpeer.path(), flags)))
}

#[track_caller]
fn ended(mut running: Running) -> Ended {
    let code = running.exit_code();
    Ended {
        code,
        stdout: running.stdout().join("\n"),
        stderr: running.stderr().join("\n"),
    }
}

#[track_caller]
fn succeeds(host: &Host, flags: &[&str]) -> String {
    let ended = setup(host, flags);
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    ended.stdout
}

#[track_caller]
fn fails(host: &Host, flags: &[&str], why: &str) {
    let ended = setup(host, flags);
    assert_ne!(ended.code, 0, "{}", ended.stdout);
    assert!(
        ended.stderr.contains(why),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
}

/// All that setup may touch, with contents and times.
fn kept(host: &Host) -> String {
    host.run(&[
        "sh",
        "-c",
        "cd /etc && for f in $(find realpeer systemd/system 2>/dev/null | sort); do
             stat -c '%n %a %i' $f; [ -d $f ] || cat $f; done",
    ])
}

fn read(host: &Host, path: &str) -> String {
    host.run(&["cat", path])
}

fn names(host: &Host) -> Vec<String> {
    let list = host.run(&["sh", "-c", "ls -A /etc/realpeer 2>/dev/null || true"]);
    list.lines().map(str::to_owned).collect()
}

#[test]
fn what_it_writes_serves_and_undo_removes_it() {
    let (balancer, server) = wire();
    with_etc(&server);
    let before = kept(&server);
    let backend = Backend::listen(&server, "127.0.0.1:22");
    let other = Backend::listen(&server, "[::1]:443");
    // It would be called after the program that listens, the test.
    let said = succeeds(&server, &[&ANSWERS[..], &["-name", "port-22"]].concat());
    assert!(said.contains("no systemd here"), "{said}");
    assert!(
        said.contains(&format!("realpeer -config {FILE} -name port-22")),
        "{said}"
    );
    assert!(
        said.contains("server port-22 192.0.2.10:2222 send-proxy-v2"),
        "{said}"
    );
    let file = read(&server, FILE);
    for line in [
        "listen = \"[::]:2222\"",
        "ipv4 = \"127.0.0.1:22\"",
        "allowed-clients = [\"0.0.0.0/0\"]",
        "allowed-subnets = [\"192.0.2.5\"]",
    ] {
        assert!(file.lines().any(|l| l == line), "{line}: {file}");
    }
    // Again, with the same answers; the last one is guessed right.
    let after = kept(&server);
    assert!(after.contains("realpeer/port-22.toml 644"), "{after}");
    succeeds(&server, &ANSWERS);
    succeeds(&server, &ANSWERS[..5]);
    assert_eq!(kept(&server), after);

    let _proxy = Program::Realpeer.start_on(2222, &server, &["-config", FILE]);
    let near = balancer.dial("192.0.2.10:2222");
    send(&near, header::v1(CLIENT, VISITED));
    let (far, from) = backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
    // No client of a family that has no backend goes to that family's default.
    let near = balancer.dial("192.0.2.10:2222");
    send(&near, header::v1("[2001:db8:c::7]:40000", VISITED6));
    assert_reset(&near);
    drop(other);

    // A second server beside it, and other answers for the first.
    succeeds(
        &server,
        &[
            "-yes",
            "-backend",
            "127.0.0.1:9000",
            "-from",
            "192.0.2.0/24,2001:db8::5",
        ],
    );
    assert_eq!(names(&server), ["port-22.toml", "port-9000.toml"]);
    assert!(read(&server, "/etc/realpeer/port-9000.toml").contains("listen = \"[::]:19000\""));
    succeeds(
        &server,
        &[
            "-yes",
            "-backend",
            "127.0.0.1:22",
            "-from",
            "192.0.2.6",
            "-listen",
            ":2222",
        ],
    );
    assert!(read(&server, FILE).contains("[\"192.0.2.6\"]"));
    assert_eq!(names(&server), ["port-22.toml", "port-9000.toml"]);

    succeeds(&server, &["-undo", "-yes", "-name", "port-9000"]);
    assert_eq!(names(&server), ["port-22.toml"]);
    succeeds(&server, &["-undo", "-yes"]);
    assert_eq!(kept(&server), before);
    assert!(succeeds(&server, &["-undo", "-yes"]).contains("nothing here"));
}

#[test]
fn nothing_is_written_without_a_yes() {
    let host = host();
    let before = kept(&host);
    // It is shown.
    let ended = setup(&host, &ANSWERS[1..]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(
        ended.stdout.contains("allowed-subnets = [\"192.0.2.5\"]"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stderr.contains("-yes was not given"),
        "{}",
        ended.stderr
    );
    fails(&host, &[], "give -backend and -from");
    fails(&host, &["-yes"], "give -backend and -from");
    fails(
        &host,
        &["-yes", "-backend", "127.0.0.1", "-from", "192.0.2.5"],
        "the port is missing",
    );
    fails(
        &host,
        &["-yes", "-backend", "127.0.0.1:22", "-from", "0.0.0.0/0"],
        "claim to be any client",
    );
    fails(&host, &listening("2222"), "the port is missing");
    fails(&host, &listening(":22"), "loop");
    fails(&host, &["now"], "stray word");
    // A port that is in use.
    let _taken = Backend::listen(&host, "127.0.0.1:2222");
    fails(&host, &ANSWERS, "choose another address with -listen");
    assert_eq!(kept(&host), before);
}

#[test]
fn it_wants_root_before_it_asks() {
    let host = host();
    let program = Program::Realpeer.path();
    let ended = match geteuid().is_root() {
        true => ended(host.spawn(&[
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            &program,
            "setup",
        ])),
        false => ended(host.spawn(&[&program, "setup"])),
    };
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("run it as root"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

#[test]
fn files_of_others_and_edited_ones_stay() {
    let host = host();
    host.run(&["sh", "-c", "mkdir /etc/realpeer && echo '# mine' > /etc/realpeer/port-22.toml && ln -s /etc/passwd /etc/realpeer/link.toml"]);
    let mine = kept(&host);
    let named = |name| [&ANSWERS[..], &["-name", name]].concat();
    fails(&host, &named("port-22"), "not by setup");
    fails(&host, &named("link"), "not by setup");
    assert_eq!(kept(&host), mine);
    // Without -name another one is taken.
    succeeds(&host, &ANSWERS);
    assert_eq!(
        names(&host),
        ["link.toml", "port-22-22.toml", "port-22.toml"]
    );

    host.run(&[
        "sh",
        "-c",
        "echo '# edited' >> /etc/realpeer/port-22-22.toml",
    ]);
    let edited = kept(&host);
    fails(&host, &ANSWERS, "was edited");
    fails(&host, &["-undo", "-yes"], "was edited");
    assert_eq!(kept(&host), edited);
    // Somebody who is asked may say yes.
    let terminal = Terminal::new(&host, 100, 30);
    terminal.command(&words(&Program::Realpeer.path(), &["-undo"]).join(" "));
    terminal.wait_for("port-22-22.toml (edited since)");
    terminal.wait_for("y/n");
    terminal.command("y");
    terminal.wait_for("is removed");
    assert_eq!(kept(&host), mine);
}

/// What a systemctl of the test's does beside noting its words; `$1` to `$3` are those.
fn systemctl(host: &Host, directory: &TempDir, does: &str) -> String {
    host.run(&["mkdir", "-p", "/run/systemd/system"]);
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}/words\n{does}\n",
        directory.path("").display()
    );
    let path = directory.file("systemctl", &script);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    format!(
        "PATH={}:/usr/sbin:/usr/bin:/sbin:/bin",
        directory.path("").display()
    )
}

#[test]
fn what_fails_half_way_is_taken_back() {
    for (does, told) in [
        (
            "case $1 in is-*) exit 1;; enable) echo no such thing >&2; exit 1;; esac",
            "no such thing",
        ),
        // A start that was skipped.
        ("case $1 in is-*) exit 1;; esac", "did not start"),
    ] {
        let (host, directory) = (host(), TempDir::new());
        let before = kept(&host);
        let path = systemctl(&host, &directory, does);
        let ended = ended(host.spawn(&as_installed(&host, &path, &ANSWERS)));
        assert_eq!(ended.code, 1, "{}", ended.stdout);
        assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("nothing was changed"),
            "{}",
            ended.stderr
        );
        assert_eq!(kept(&host), before, "{told}");
    }
}

#[test]
fn an_interruption_is_taken_back_and_what_cannot_be_is_told() {
    let (host, directory) = (host(), TempDir::new());
    let before = kept(&host);
    let flag = directory.path("begun").display().to_string();
    let does = format!(
        "case $1 in is-*) [ -e {flag} ];; enable) touch {flag}; kill -INT $PPID;; disable) rm {flag};; esac"
    );
    let path = systemctl(&host, &directory, &does);
    let interrupted = ended(host.spawn(&as_installed(&host, &path, &ANSWERS)));
    assert_eq!(interrupted.code, 1, "{}", interrupted.stderr);
    for told in ["nothing was changed", "interrupted"] {
        assert!(interrupted.stderr.contains(told), "{}", interrupted.stderr);
    }
    assert_eq!(kept(&host), before);

    let path = systemctl(&host, &directory, "exit 1");
    let failed = ended(host.spawn(&as_installed(&host, &path, &ANSWERS)));
    for told in [
        "not all could be taken back",
        "daemon-reload",
        "realpeer setup -undo -name port-22",
    ] {
        assert!(failed.stderr.contains(told), "{told}: {}", failed.stderr);
    }
    assert_eq!(kept(&host), before);
}

#[test]
fn a_read_only_or_full_directory_keeps_nothing() {
    for mount in ["ro", "size=4k"] {
        let host = host();
        host.run(&["mkdir", "/etc/realpeer"]);
        host.run(&["mount", "-t", "tmpfs", "-o", mount, "none", "/etc/realpeer"]);
        if mount != "ro" {
            host.run(&["sh", "-c", "head -c 4096 /dev/zero > /etc/realpeer/full"]);
        }
        let before = kept(&host);
        fails(&host, &ANSWERS, "cannot write /etc/realpeer/port-22.toml");
        assert_eq!(kept(&host), before, "{mount}");
    }
}

/// The program where a unit can run it from, with that PATH.
fn as_installed<'a>(host: &Host, path: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let mount = "[ -e /opt/realpeer ] || { mount -t tmpfs none /opt && touch /opt/realpeer && mount --bind \"$0\" /opt/realpeer; }";
    host.run(&["sh", "-c", mount, &Program::Realpeer.path()]);
    let root: &[&str] = match geteuid().is_root() {
        true => &[],
        false => &["unshare", "--user", "--map-root-user"],
    };
    [root, &["env", path, "/opt/realpeer", "setup"], flags].concat()
}

#[test]
fn with_systemd_the_unit_is_shown_enabled_and_taken_away() {
    let (host, directory) = (host(), TempDir::new());
    let before = kept(&host);
    let path = systemctl(&host, &directory, "");
    let shown = ended(host.spawn(&as_installed(&host, &path, &ANSWERS[1..])));
    assert!(
        shown.stdout.contains(
            "    ExecStart=/opt/realpeer -config /etc/realpeer/port-22.toml -name port-22"
        ),
        "{}",
        shown.stdout
    );
    assert_eq!(kept(&host), before);
    // The doctor finds no backend: it is told, and what was set up stays.
    let ended_with = ended(host.spawn(&as_installed(&host, &path, &ANSWERS)));
    assert_eq!(ended_with.code, 1, "{}", ended_with.stderr);
    assert!(
        ended_with.stdout.contains("failed   backend-down"),
        "{}",
        ended_with.stdout
    );
    assert!(
        ended_with
            .stdout
            .contains("realpeer setup -undo -name port-22"),
        "{}",
        ended_with.stdout
    );
    let noted = std::fs::read_to_string(directory.path("words")).expect("it was called");
    assert!(
        noted.contains("daemon-reload\n")
            && noted.contains("enable --now realpeer@port-22.service\n"),
        "{noted}"
    );
    let unit = "/etc/systemd/system/realpeer@port-22.service";
    let text = read(&host, unit);
    assert!(!text.contains("/etc/realpeer/balancers"), "{text}");
    let undone = ended(host.spawn(&as_installed(&host, &path, &["-undo", "-yes"])));
    assert_eq!(undone.code, 0, "{}", undone.stderr);
    let noted = std::fs::read_to_string(directory.path("words")).expect("it was called");
    assert!(
        noted.contains("disable --now realpeer@port-22.service\n"),
        "{noted}"
    );
    assert_eq!(kept(&host), before);
}

#[test]
fn in_a_terminal_it_asks_until_it_understands() {
    let host = host();
    let sshd = support::servers::Sshd::start(&host);
    let terminal = Terminal::new(&host, 100, 60);
    terminal.command(&words(&Program::Realpeer.path(), &[]).join(" "));
    terminal.wait_for("ADDRESS:PORT [1]");
    let screen = terminal.screen();
    assert!(
        screen.contains("1  sshd ") || !geteuid().is_root(),
        "{screen}"
    );
    terminal.command("7");
    terminal.wait_for("there is no such number");
    terminal.command("1");
    terminal.wait_for("The load balancer's address");
    terminal.command("::/0");
    terminal.wait_for("claim to be any client: list only");
    terminal.command("192.0.2.5");
    terminal.wait_for("[:2222]");
    terminal.key("Enter");
    let screen = terminal.wait_for("Write this? y/n");
    for line in [
        "ipv4 = \"127.0.0.1:22\"",
        "ipv6 = \"[::1]:22\"",
        "proxy_protocol on;",
    ] {
        assert!(screen.contains(line), "{line}: {screen}");
    }
    assert!(names(&host).is_empty());
    terminal.command("n");
    terminal.wait_for("nothing was changed");
    assert!(names(&host).is_empty());
    // The same with a yes, then Ctrl-D and Ctrl-C at questions.
    terminal.command(&format!(
        "clear; {}",
        words(&Program::Realpeer.path(), &ANSWERS[1..]).join(" ")
    ));
    terminal.wait_for("Write this? y/n");
    terminal.command("yes");
    terminal.wait_for("is written");
    assert_eq!(names(&host).len(), 1);
    for key in ["C-d", "C-c"] {
        terminal.command(&format!(
            "clear; {}; echo over=$?",
            words(&Program::Realpeer.path(), &["-undo"]).join(" ")
        ));
        terminal.wait_for("y/n");
        terminal.key(key);
        terminal.wait_for("ready>");
        assert_eq!(names(&host).len(), 1);
    }
    drop(sshd);
}

/// A client logs in by a load balancer that has just the printed line, in front of a realpeer that was
/// started as it was said.
#[track_caller]
fn play<T>(below: &str, start: impl FnOnce(&Host, &str) -> T) {
    let line = RefCell::new(String::new());
    let proxy = |server: &Host| {
        with_etc(server);
        let said = succeeds(server, &ANSWERS);
        let mut lines = said
            .lines()
            .skip_while(|line| !line.trim_start().starts_with(below));
        *line.borrow_mut() = lines.nth(1).expect("a line below").trim().to_owned();
        let file = names(server).remove(0);
        let file = format!("/etc/realpeer/{file}");
        Program::Realpeer.start_on(2222, server, &["-config", &file])
    };
    ssh_story::play_behind(ssh_story::IPV4, proxy, |balancer| {
        start(balancer, &line.borrow())
    });
}

#[test]
fn the_printed_line_is_all_that_nginx_needs() {
    play("nginx", |balancer, line| {
        let directory = TempDir::new();
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nevents {{}}\n\
             stream {{\n  server {{\n    listen 22000;\n    {line}\n  }}\n}}\n"
        );
        let file = directory.file("nginx.conf", &text);
        let globals = format!("pid {}; error_log stderr;", directory.path("pid").display());
        balancer.run(&["nginx", "-t", "-c", &file, "-e", "stderr", "-g", &globals]);
        (nginx(balancer, file.as_ref(), 22000), directory)
    });
}

#[test]
fn the_printed_line_is_all_that_haproxy_needs() {
    play("HAProxy", |balancer, line| {
        let directory = TempDir::new();
        let text = format!(
            "defaults\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen ssh\n  mode tcp\n  bind :22000\n  {line}\n"
        );
        let file = directory.file("haproxy.cfg", &text);
        balancer.run(&["haproxy", "-c", "-f", &file]);
        (haproxy(balancer, file.as_ref(), 22000), directory)
    });
}

/// Of UDP: the file says so, and the line is dnsdist's.
#[test]
fn servers_of_udp_are_set_up_too() {
    let (_balancer, server) = wire();
    with_etc(&server);
    let said = succeeds(
        &server,
        &[
            "-yes",
            "-p",
            "udp",
            "-backend",
            "[::1]:53",
            "-from",
            "192.0.2.5",
        ],
    );
    let line = said
        .lines()
        .find(|line| line.contains("newServer"))
        .expect("a line");
    let file = read(&server, "/etc/realpeer/port-53.toml");
    for wanted in [
        "protocol = \"udp\"",
        "listen = \"[::]:10053\"",
        "ipv6 = \"[::1]:53\"",
        "allowed-clients = [\"::/0\"]",
    ] {
        assert!(file.lines().any(|l| l == wanted), "{wanted}: {file}");
    }
    let directory = TempDir::new();
    let file = directory.file("dnsdist.conf", line.trim());
    server.run(&["dnsdist", "--check-config", "-C", &file]);
    assert_eq!(
        line.trim(),
        "newServer({address='192.0.2.10:10053', useProxyProtocol=true})"
    );
}
