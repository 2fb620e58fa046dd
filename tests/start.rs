//! The start: signals that come in its midst, and what is said when it fails.

mod support;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::stage::{ADDRESSES, CLIENT, wire};
use support::{Host, Program, Running, Stage, TempDir, wait_until};

/// Starts the proxy with a signal at its first system call of that name.
fn interrupted(host: &Host, signal: &str, call: &str, trace: &TempDir, flags: &[&str]) -> Running {
    let inject = format!("inject={call}:signal={signal}:when=1");
    let output = trace.path("trace").display().to_string();
    // -D: the program is our child and gets our signals.
    let wrapper = ["strace", "-D", "-f", "-e", &inject, "-o", &output];
    Program::Realpeer.spawn(&wrapper, host, &[&ADDRESSES, flags].concat())
}

fn rules(host: &Host) -> String {
    host.run(&["ip", "rule"]) + &host.run(&["ip", "-6", "rule"])
}

/// The first epoll is the runtime's, before signals are watched; the first bind is the listener's
/// own, before anything is changed; the first sendto tells the kernel something by netlink.
#[test]
fn a_hangup_during_the_start_is_kept_for_after_it() {
    for call in ["epoll_create1", "bind", "sendto"] {
        let (server, trace) = (Host::new("server"), TempDir::new());
        let before = rules(&server);
        let mut proxy = interrupted(&server, "SIGHUP", call, &trace, &[]);
        proxy.wait_for_line(r#""msg":"listening""#);
        proxy.wait_for_line("the lists of clients were read again");
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code(), 0);
        assert_eq!(rules(&server), before);
    }
}

#[test]
fn an_end_that_is_asked_for_during_the_start_takes_away_what_was_put_in() {
    for (signal, call) in [
        ("SIGTERM", "bind"),
        ("SIGTERM", "sendto"),
        ("SIGINT", "sendto"),
    ] {
        let (server, files) = (Host::new("server"), TempDir::new());
        let before = rules(&server);
        let socket = files.path("socket");
        let control = ["-control", socket.to_str().expect("a path")];
        let mut proxy = interrupted(&server, signal, call, &files, &control);
        assert_eq!(proxy.exit_code(), 0, "{signal} at {call}");
        proxy.wait_for_line(&format!(r#""msg":"stopping","signal":"{signal}""#));
        assert_eq!(rules(&server), before);
        assert!(!socket.exists());
    }
}

/// The kernel says which of the causes it is; each has its own cure.
#[test]
fn a_listener_that_cannot_be_says_why_in_the_logs_format() {
    const CURES: [&str; 3] = [
        "ss -ltnp 'sport = 2222'",
        "`ip address`",
        "CAP_NET_BIND_SERVICE",
    ];
    let stage = Stage::new(&[]);
    let no_low_ports = [
        "setpriv",
        "--bounding-set=-net_bind_service",
        "--inh-caps=-net_bind_service",
    ];
    for (wrapper, listen, cure) in [
        (&[][..], "0.0.0.0:2222", CURES[0]),
        (&[], "192.0.2.99:2222", CURES[1]),
        (&no_low_ports, "0.0.0.0:80", CURES[2]),
    ] {
        let mut proxy = Program::Realpeer.spawn(wrapper, &stage.server, &["-l", listen]);
        assert_eq!(proxy.exit_code(), 1, "{listen}");
        let said = proxy.stderr();
        assert_eq!(said.len(), 1, "{said:?}");
        let event: Value = serde_json::from_str(&said[0]).expect("JSON");
        assert_eq!(event["level"], "ERROR");
        let message = event["msg"].as_str().expect("text");
        let said: Vec<_> = CURES.iter().filter(|c| message.contains(**c)).collect();
        assert_eq!(said, [&cure], "{message}");
        assert!(message.contains(listen) && message.contains("os error"));
    }
    let text = ["-log-format", "text", "-l", "0.0.0.0:2222"];
    let ended = Program::Realpeer.run(&stage.server, &text);
    assert!(
        ended
            .stderr
            .contains(" ERROR cannot listen on 0.0.0.0:2222"),
        "{}",
        ended.stderr
    );
    stage.session(CLIENT);
}

#[test]
fn other_failures_of_the_start_are_in_the_logs_format_too() {
    let host = Host::new("server");
    for (flags, why) in [
        (["-allowed-subnets", "/no/such/file"], "/no/such/file"),
        (["-4", "no-such-host.invalid:22"], "no-such-host.invalid"),
        (["-control", "/no/such/dir/socket"], "/no/such/dir"),
    ] {
        let ended = Program::Realpeer.run(&host, &flags);
        assert_eq!(ended.code, 1);
        let event: Value = serde_json::from_str(&ended.stderr).expect("JSON");
        let message = event["msg"].as_str().expect("text");
        assert!(message.contains(why), "{message}");
    }
}

/// Who connects while the start is not done is served when it is.
#[test]
fn nobody_is_turned_away_during_the_start() {
    let (balancer, server) = wire();
    let backend = support::Backend::listen(&server, "127.0.0.1:9000");
    let trace = TempDir::new();
    let output = trace.path("trace").display().to_string();
    // The routing takes a second.
    let slow = "inject=sendto:delay_enter=1s:when=1";
    let wrapper = ["strace", "-D", "-f", "-e", slow, "-o", &output];
    let proxy = Program::Realpeer.spawn(&wrapper, &server, &ADDRESSES);
    wait_until("it has the port", || server.listeners(2222) == 1);
    assert!(
        proxy
            .stdout()
            .iter()
            .all(|line| !line.contains("listening"))
    );
    let near = balancer.dial(support::stage::PROXY);
    support::streams::send(&near, support::header::v1(CLIENT, support::stage::VISITED));
    let (_far, from) = backend.accept();
    assert_eq!(from, support::addr(CLIENT));
}
