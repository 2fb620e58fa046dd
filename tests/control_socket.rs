//! The control socket and `realpeer ctl`: what they say, who may use them, and that nobody who
//! does can slow the proxy.

mod support;

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, process};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::ctl::ask;
use support::header::v1;
use support::stage::{ADDRESSES, CLIENT, CLIENT6, VISITED};
use support::streams::{assert_carries, assert_reset};
use support::{Ctl, Host, Program, Stage, TempDir, wait_until};

#[test]
fn status_and_connections_as_tables_and_as_json() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path(), "-name", "ssh"]);
    let session = stage.session(CLIENT);
    let waiting = stage.dial();
    let own = waiting.local_addr().expect("our own address");
    wait_until("both are listed", || {
        ctl.ok("connections").lines().count() == 3
    });

    let table = ctl.ok("connections");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["ID", "CLIENT", "PEER", "TARGET", "AGE"]);
    let near = session
        .near
        .local_addr()
        .expect("our own address")
        .to_string();
    assert_eq!(rows[1][1..4], [CLIENT, &near, "127.0.0.1:9000"]);
    assert!(table.contains(&own.to_string()) && table.contains("(reading its header)"));

    let json = ctl.ok("connections -json");
    let lines: Vec<Value> = json
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines[0]["connection"]["client"], CLIENT);
    assert_eq!(lines[2]["ok"], true);
    assert_eq!(lines[2]["count"], 2);

    let status = ctl.ok("status");
    for part in ["ssh", "0.0.0.0:2222 tcp", "open now             2"] {
        assert!(status.contains(part), "{status}");
    }
    assert_eq!(ctl.count("served"), 1);
}

#[test]
fn kill_ends_one_connection_or_all_of_a_client() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path(), "-v", "2"]);
    let sessions = [
        stage.session(CLIENT),
        stage.session("203.0.113.8:1"),
        stage.session(CLIENT6),
    ];
    let listed = ctl.ok("connections");
    let row = listed
        .lines()
        .find(|row| row.contains(CLIENT))
        .expect("it is listed");
    let id = row.split(' ').next().expect("an id");
    assert_eq!(ctl.ok(&format!("kill {id}")), "1 connection ended");
    assert_reset(&sessions[0].near);
    assert_reset(&sessions[0].far);
    stage.proxy.wait_for_line("ended by realpeer ctl kill");
    assert_eq!(ctl.ok("kill 2001:db8:c::/64"), "1 connection ended");
    assert_reset(&sessions[2].far);
    assert_carries(&sessions[1].near, &sessions[1].far);
    stage.session(CLIENT);
}

#[test]
fn exit_codes_can_be_trusted() {
    let ctl = Ctl::new();
    let missing = ctl.run("status");
    assert_eq!((missing.code, missing.stdout.as_str()), (3, ""));
    assert!(
        missing.stderr.contains("is it running"),
        "{}",
        missing.stderr
    );
    let _stage = Stage::new(&["-control", &ctl.path()]);
    assert_eq!(ctl.run("bans").code, 0);
    ctl.refused("kill 999999", "no such connection");
    ctl.refused("kill 203.0.113.0/24", "no such connection");
    ctl.refused("unban 203.0.113.7", "not banned");
    let refused = ctl.run("-json unban 203.0.113.7");
    assert_eq!(refused.code, 1);
    assert!(
        refused.stdout.starts_with(r#"{"ok":false,"error":"#),
        "{}",
        refused.stdout
    );
    for words in [
        "stop",
        "ban",
        "ban 203.0.113.7 -for never",
        "status now",
        "-nope status",
    ] {
        assert_eq!(ctl.run(words).code, 2, "{words}");
    }
}

/// From the first instant: only its owner may use it until it has its group, and then its place.
#[test]
fn it_has_its_mode_before_it_has_its_name_and_the_port_is_ours_before_all() {
    let ctl = Ctl::new();
    let traces = TempDir::new();
    let trace = traces.path("trace");
    let wrapper = [
        "strace",
        // It stands aside, so that the program is our child and ends with the test.
        "-D",
        "-f",
        "-e",
        "trace=fchmod,bind,listen,chown,fchownat,chmod,fchmodat,rename",
        "-o",
        trace.to_str().expect("a path"),
    ];
    let group = nix::unistd::getegid().to_string();
    let flags = ["-control", &ctl.path(), "-control-group", &group];
    let _stage = Stage::under(Program::Realpeer, &wrapper, &flags);
    let found = fs::metadata(ctl.path()).expect("the socket is there");
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    assert_eq!(found.gid().to_string(), group);

    let trace = fs::read_to_string(trace).expect("the trace");
    let line = |text: &str| {
        let position = trace.lines().position(|line| line.contains(text));
        position.unwrap_or_else(|| panic!("no {text} in {trace}"))
    };
    let order = [
        // The listener's backlog.
        line(", 4096)"),
        line(", 0600)"),
        line("sun_path=\"/"),
        // -1 leaves the owner as it is.
        line(&format!("-1, {group}")),
        line("0660) = 0"),
        line("control.sock\") = 0"),
    ];
    assert!(order.is_sorted(), "{order:?} in {trace}");
}

#[test]
fn a_dead_socket_is_replaced_and_one_in_use_is_not() {
    let ctl = Ctl::new();
    let mut first = Stage::new(&["-control", &ctl.path()]);
    first.proxy.signal(Signal::SIGKILL);
    first.proxy.wait_for_exit();
    assert!(
        fs::exists(ctl.path()).expect("look"),
        "a crash leaves it behind"
    );

    let mut second = Stage::new(&["-control", &ctl.path(), "-name", "second"]);
    assert!(ctl.ok("status").contains("second"));
    let third = Stage::new(&["-control", &ctl.path(), "-name", "third"]);
    let warning = third.proxy.wait_for_line("control socket is in use");
    assert!(warning.contains("WARN"), "{warning}");
    let holder = format!("\"pid\":{}", second.proxy.pid());
    assert!(warning.contains(&holder), "{warning}");
    third.assert_serves();
    assert!(ctl.ok("status").contains("second"));

    second.proxy.signal(Signal::SIGTERM);
    assert_eq!(second.proxy.exit_code(), 0);
    third
        .proxy
        .wait_for_line("control socket was free and is taken");
    assert!(ctl.ok("status").contains("third"));
}

#[test]
fn an_orderly_end_takes_it_away() {
    let ctl = Ctl::new();
    let mut stage = Stage::new(&["-control", &ctl.path()]);
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert!(!fs::exists(ctl.path()).expect("look"));
}

/// The one that is started gets the socket and the bans at once, and new bans hold where they
/// matter.
#[test]
fn a_start_while_the_old_process_drains_takes_over() {
    let ctl = Ctl::new();
    let state = ctl.state();
    let state = state.to_str().expect("a path");
    let control = ["-control", &ctl.path(), "-state-dir", state];
    let flags = [&control[..], &["-drain-timeout", "1h"]].concat();
    let mut stage = Stage::new(&flags);
    let session = stage.session(CLIENT);
    ctl.ok("ban 198.51.100.7");
    // A client that stays connected must not speak to the one that drains.
    let mut client = ctl.connect();
    stage.proxy.signal(Signal::SIGTERM);
    wait_until("nobody listens", || stage.server.listeners(2222) == 0);
    assert_eq!(ctl.run("status").code, 3);
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));

    let new = Program::Realpeer.start(&stage.server, &[&ADDRESSES, &flags[..]].concat());
    let pid = format!("pid                  {}", new.pid());
    assert!(ctl.ok("status").contains(&pid));
    ctl.ok("ban 203.0.113.8");
    assert_carries(&session.near, &session.far);
    let mut old = std::mem::replace(&mut stage.proxy, new);
    assert!(!old.has_ended());
    for banned in ["198.51.100.7:1", "203.0.113.8:1"] {
        assert_reset(&stage.dial_and_send(v1(banned, VISITED)));
    }
    stage.assert_serves();

    drop(session);
    assert_eq!(old.exit_code(), 0);
    // Its end takes nothing from the other one.
    assert!(ctl.ok("bans").contains("203.0.113.8/32"));
}

/// What a process of an earlier version does while it drains.
#[test]
fn a_socket_in_use_is_waited_for() {
    let ctl = Ctl::new();
    let other = UnixListener::bind(ctl.path()).expect("bind");
    let stage = Stage::new(&["-control", &ctl.path()]);
    let waiting = stage.proxy.wait_for_line("control socket is in use");
    let pid = format!("\"pid\":{}", process::id());
    assert!(waiting.contains(&pid), "{waiting}");
    stage.assert_serves();
    drop(other);
    stage
        .proxy
        .wait_for_line("control socket was free and is taken");
    ctl.ok("ban 203.0.113.7");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
}

/// A socket whose program is stuck is in use too, and looking must not get us stuck.
#[test]
fn a_socket_that_nobody_serves_at_the_moment_is_in_use() {
    let ctl = Ctl::new();
    let _other = UnixListener::bind(ctl.path()).expect("bind");
    let stage = Stage::new(&["-control", &ctl.path()]);
    stage.proxy.wait_for_line("control socket is in use");
    stage.assert_serves();
}

#[test]
fn what_is_no_socket_is_left_alone_and_no_start_is_better_than_a_wrong_one() {
    let ctl = Ctl::new();
    let host = Host::new("server");
    fs::write(ctl.path(), "precious").expect("write a file");
    let run = |flags: &[&str]| {
        let ended = Program::Realpeer.run(&host, &[&["-routing", "off"], flags].concat());
        assert_eq!(ended.code, 1, "{}", ended.stdout);
        ended.stderr
    };
    assert!(run(&["-control", &ctl.path()]).contains("is no socket"));
    assert_eq!(fs::read_to_string(ctl.path()).expect("read it"), "precious");
    assert!(run(&["-control", "/nonexistent/dir/socket"]).contains("/nonexistent/dir"));
    let unknown = run(&["-control", &ctl.path(), "-control-group", "no-such-group"]);
    assert!(unknown.contains("no-such-group"), "{unknown}");
}

/// Whoever may look into a directory can lock it.
#[test]
fn a_stranger_can_lock_nothing_that_the_start_needs() {
    let ctl = Ctl::new();
    let path = ctl.path();
    let directory = Path::new(&path).parent().expect("a directory");
    let directory = File::open(directory).expect("open the directory");
    let _held = Flock::lock(directory, FlockArg::LockExclusive).expect("lock it");
    let _stage = Stage::new(&["-control", &path]);
    ctl.ok("status");
    let lock = fs::metadata(format!("{path}.lock")).expect("the lock is there");
    assert_eq!(lock.permissions().mode() & 0o7777, 0o600);
}

/// Clients that send nothing, too much, or rubbish, or do not read: the proxy serves on, and when
/// they are gone the administrator gets through.
#[test]
fn hostile_clients_never_slow_the_proxy() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let session = stage.session(CLIENT);
    let fds = || {
        fs::read_dir(format!("/proc/{}/fd", stage.proxy.pid()))
            .expect("list")
            .count()
    };
    let before = fds();

    let mut long = ctl.connect();
    // It is cut off: whether while we write or while we read is chance.
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    assert!(
        matches!(long.read(&mut [0]), Ok(0) | Err(_)),
        "a request without end is answered"
    );

    let mut rubbish = BufReader::new(ctl.connect());
    for request in [
        "rubbish",
        "{}",
        "[]",
        "\u{0}",
        r#"{"do":"ban"}"#,
        r#"{"do":"kill"}"#,
        r#"{"do":"ban","network":"203.0.113.7","for":-1}"#,
        r#"{"do":"ban","network":"203.0.113.7","for":1e300}"#,
    ] {
        assert_eq!(ask(&mut rubbish, request)["ok"], false, "{request}");
    }
    drop(rubbish);

    let silent: Vec<_> = (0..100).map(|_| ctl.connect()).collect();
    let mut deaf = Vec::new();
    for mut client in silent {
        // As many answers as fit nowhere, which nobody reads.
        client.set_nonblocking(true).expect("set non-blocking");
        while client.write(&b"{\"do\":\"status\"}\n".repeat(100)).is_ok() {}
        deaf.push(client);
    }
    assert!(
        fds() < before + 16,
        "clients take {} descriptors",
        fds() - before
    );
    for n in 1..100 {
        assert_carries(&session.near, &session.far);
        stage.session(&format!("203.0.113.9:{n}"));
    }
    drop(deaf);
    wait_until("the administrator gets through", || {
        ctl.run("status").code == 0
    });
}

/// Without `-control`, each instance has a socket of its own by its name.
#[test]
fn the_usual_place_goes_by_the_name() {
    // A /run of our own, because the machine's may be in use, or not ours.
    let own_run = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /run && exec \"$@\"",
        "sh",
    ];
    let first = Stage::under(Program::Realpeer, &own_run, &["-control", ""]);
    let same_run = format!("--mount=/proc/{}/ns/mnt", first.proxy.pid());
    let inside = ["nsenter", &same_run];
    let second = Stage::under(
        Program::Realpeer,
        &inside,
        &["-name", "web", "-control", ""],
    );
    let off = Stage::under(
        Program::Realpeer,
        &inside,
        &["-name", "none", "-control", "off"],
    );
    let host = Host::new("admin");
    let ctl = |words: &[&str]| {
        let mut running =
            Program::Realpeer.spawn(&inside, &host, &[&["ctl", "status"], words].concat());
        (running.exit_code(), running.stdout().join("\n"))
    };
    let pid = |stage: &Stage| format!("pid                  {}", stage.proxy.pid());
    assert!(ctl(&[]).1.contains(&pid(&first)));
    assert!(ctl(&["-name", "web"]).1.contains(&pid(&second)));
    assert_eq!(ctl(&["-name", "none"]).0, 3);
    assert!(process::id() != off.proxy.pid());
}
