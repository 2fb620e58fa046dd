//! A real systemd, booted in a container of its own (systemd-nspawn), runs the shipped unit.

mod support;

use std::fs;

use nix::unistd::geteuid;
use support::{Host, Program, TempDir, nspawn, repository};

/// What runs inside once systemd has booted: it notes each step, and ends the container.
const STORY: &str = r#"#!/bin/bash
exec >/story/result 2>&1
accept() { cat /proc/sys/net/ipv4/tcp_fwmark_accept; }
ip link set lo up
ip address add 192.0.2.10/32 dev lo
echo "start $(systemctl start realpeer && systemctl is-active realpeer)"
pid=$(systemctl show --property=MainPID --value realpeer)
echo "user $(ps -o user:20= -p "$pid")"
echo "status $(realpeer ctl -json status)"
echo "accept $(accept)"
python3 - <<'PYTHON'
import socket
for backend, client in [("192.0.2.10", "203.0.113.7"), ("::1", "2001:db8::7")]:
    v6 = ":" in backend
    server = socket.create_server((backend, 9000), family=socket.AF_INET6 if v6 else socket.AF_INET)
    server.settimeout(10)
    near = socket.create_connection(("127.0.0.1", 2222), 10)
    near.sendall(f"PROXY TCP{6 if v6 else 4} {client} {client} 40000 22\r\nping".encode())
    far, seen = server.accept()
    print("seen", seen[0], far.recv(4).decode())
    far.sendall(b"pong")
    print("answer", near.recv(4).decode())
PYTHON
echo "ban $(realpeer ctl ban 198.51.100.9)"
echo "reload $(systemctl reload realpeer && realpeer ctl reload)"
echo "restart $(systemctl restart realpeer && systemctl is-active realpeer)"
echo "bans $(realpeer ctl bans | grep -c 198.51.100.9)"
systemctl stop realpeer
echo "result $(systemctl show --property=Result realpeer)"
echo "accept $(accept)"
echo "rules $(ip rule | grep -c -e fwmark -e 'iif lo')"
journalctl --unit=realpeer --no-pager
sync
systemctl poweroff --force
"#;

/// Boots the machine and runs the story with the unit and a drop-in for it.
fn boot(unit: &str, drop_in: &str) -> Vec<String> {
    let files = TempDir::new();
    files.file("balancers", "127.0.0.1\n");
    let binds = [
        (files.path("").display().to_string(), "/etc/realpeer"),
        (Program::Realpeer.path(), "/usr/bin/realpeer"),
        (
            files.file("unit", unit),
            "/etc/systemd/system/realpeer.service",
        ),
        (
            files.file("drop-in", drop_in),
            "/etc/systemd/system/realpeer.service.d/test.conf",
        ),
    ];
    let result = nspawn::tell(&files, STORY, &binds);
    result.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_runs(story: &[String]) {
    let told = story.join("\n");
    for line in [
        "start active",
        "accept 1",
        "seen 203.0.113.7 ping",
        "seen 2001:db8::7 ping",
        "ban 198.51.100.9/32 banned, 0 connections ended",
        "reload the configuration was read again",
        "restart active",
        "bans 1",
        "result Result=success",
        "accept 0",
        "rules 0",
    ] {
        assert!(
            story.iter().any(|told| told == line),
            "no {line:?} in\n{told}"
        );
    }
    let answers = story.iter().filter(|line| *line == "answer pong").count();
    assert_eq!(answers, 2, "{told}");
}

/// The address that needs a mark, and so the sysctl.
const DROP_IN: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/realpeer -l 127.0.0.1:2222 \
     -4 192.0.2.10:9000 -6 [::1]:9000 -allowed-subnets /etc/realpeer/balancers\n";

#[test]
fn a_real_systemd_runs_the_shipped_unit() {
    if !geteuid().is_root() {
        return refused();
    }
    let unit = fs::read_to_string(repository("packaging/systemd/realpeer.service"));
    let story = boot(&unit.expect("read the unit"), DROP_IN);
    assert_runs(&story);
    let told = story.join("\n");
    assert!(told.contains("\nuser realpeer"), "{told}");
    for part in [
        r#""capabilities":"on""#,
        r#""seccomp":"on""#,
        r#""landlock":"on""#,
    ] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    assert!(
        !told.contains("\"WARN\",\"msg\":\"this system lacks"),
        "{told}"
    );
}

/// A unit that was hardened before there was a sandbox kills whoever makes an unknown call.
#[test]
fn a_unit_whose_filter_kills_leaves_realpeer_running_without_those_parts() {
    if !geteuid().is_root() {
        return refused();
    }
    let unit = "[Service]\nType=notify\nExecStart=/bin/true\nAmbientCapabilities=CAP_NET_ADMIN \
        CAP_NET_RAW CAP_NET_BIND_SERVICE\nUser=nobody\nRuntimeDirectory=realpeer\n\
        StateDirectory=realpeer\nRuntimeDirectoryPreserve=yes\nExecReload=/bin/kill -HUP $MAINPID\n\
        SystemCallFilter=@system-service\n";
    let story = boot(unit, DROP_IN);
    assert_runs(&story);
    let told = story.join("\n");
    for part in [
        r#""capabilities":"on""#,
        r#""seccomp":"unavailable""#,
        r#""landlock":"unavailable""#,
        "SystemCallFilter",
    ] {
        assert!(told.contains(part), "no {part} in {told}");
    }
}

/// Containers that boot are root's. What the unit gives is tried as an ordinary user by
/// tests/packaging.rs.
#[track_caller]
fn refused() {
    let mut nspawn = Host::new("machine").spawn(&["systemd-nspawn", "--directory=/", "true"]);
    assert_ne!(
        nspawn.exit_code(),
        0,
        "an ordinary user boots containers here"
    );
}
