//! `realpeer ctl ban`: at once, for open sessions and new ones, for its time, over restarts.

mod support;

use std::io::BufReader;
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::ctl::ask_all;
use support::datagrams::{Scene, assert_silent, every};
use support::fail2ban::{Fail2ban, idle_jail};
use support::header::{LOCAL, UNSPEC, V2, v1};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{assert_carries, assert_reset, send};
use support::{Ctl, Host, Program, Stage, TempDir, wait_until};

fn stage(ctl: &Ctl, more: &[&str]) -> Stage {
    let path = ctl.path();
    Stage::new(&[&["-control", &path, "-v", "2"], more].concat())
}

#[test]
fn a_ban_ends_open_sessions_by_a_reset_and_refuses_new_ones() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &[]);
    let bad = [stage.session(CLIENT), stage.session("203.0.113.7:40001")];
    let bad6 = stage.session(CLIENT6);
    let good = stage.session("203.0.113.8:40000");
    assert_carries(&bad[0].near, &bad[0].far);

    let said = ctl.ok("ban 203.0.113.7 -for 1h -reason too_many_log-ins");
    assert_eq!(said, "203.0.113.7/32 banned, 2 connections ended");
    for session in &bad {
        assert_reset(&session.near);
        assert_reset(&session.far);
    }
    let said = ctl.ok("ban 2001:db8:c::/48");
    assert_eq!(said, "2001:db8:c::/48 banned, 1 connection ended");
    assert_reset(&bad6.near);
    assert_reset(&bad6.far);
    assert_carries(&good.near, &good.far);

    for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
        assert_reset(&stage.dial_and_send(v1(client, visited)));
    }
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
    assert_eq!((ctl.count("banned"), ctl.count("killed")), (2, 3));
    let line = stage.proxy.wait_for_line(r#""msg":"client banned""#);
    assert!(
        line.contains(r#""network":"203.0.113.7/32","seconds":3600"#),
        "{line}"
    );
    let line = stage.proxy.wait_for("end of the first session", |line| {
        line.contains(r#""end":"client banned""#) && line.contains(CLIENT)
    });
    assert!(line.contains(r#""bytesUp":5,"bytesDown":8"#), "{line}");
    stage.proxy.wait_for_line("too_many_log-ins");

    ctl.ok("unban 203.0.113.7");
    stage.session("203.0.113.7:40002");
}

/// The header came before the ban, and its last byte after it.
#[test]
fn a_client_whose_header_was_on_its_way_is_caught_too() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &[]);
    let header = v1(CLIENT, VISITED);
    let (first, last) = header.split_at(header.len() - 1);
    let near = stage.dial_and_send(first);
    stage.wait_until_read(&near);
    ctl.ok("ban 203.0.113.7");
    send(&near, last);
    assert_reset(&near);
    stage.backend.assert_idle();
}

/// The backend has not answered, or the header has not come: such sessions are ended, counted and
/// told as any other.
#[test]
fn sessions_that_are_not_open_yet_are_ended_too() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &["-connect-timeout", "10m", "-header-timeout", "10m"]);
    let files = TempDir::new();
    let drop = "table inet t { chain c { type filter hook input priority -1;
        tcp dport 9000 drop\n}\n}";
    stage
        .server
        .run(&["nft", "-f", &files.file("drop.nft", drop)]);
    let connecting = |near: &TcpStream| {
        let own = near.local_addr().expect("our own address").to_string();
        wait_until("it is listed with its client", || {
            let listed = ctl.ok("connections");
            let mut rows = listed.lines();
            rows.any(|row| row.contains(&own) && row.contains(CLIENT))
        });
    };
    for (command, end) in [
        ("kill 203.0.113.7", "ended by realpeer ctl kill"),
        ("ban 203.0.113.7", "client banned"),
    ] {
        let near = stage.dial_and_send(v1(CLIENT, VISITED));
        connecting(&near);
        ctl.ok(command);
        assert_reset(&near);
        let line = stage.proxy.wait_for("end of a session", |line| {
            line.contains("connection closed") && line.contains(end)
        });
        for part in [CLIENT, "127.0.0.1:9000", r#""bytesUp":0,"bytesDown":0"#] {
            assert!(line.contains(part), "{line} lacks {part}");
        }
    }
    let silent = stage.dial();
    let own = silent.local_addr().expect("our own address").to_string();
    let mut listed = String::new();
    wait_until("it is listed", || {
        listed = ctl.ok("connections");
        listed.contains(&own)
    });
    let row = listed.lines().find(|row| row.contains(&own));
    let id = row.and_then(|row| row.split(' ').next()).expect("an id");
    ctl.ok(&format!("kill {id}"));
    assert_reset(&silent);
    stage
        .proxy
        .wait_for("end of a session without a header", |line| {
            line.contains("connection closed") && line.contains(&own)
        });
    assert_eq!(ctl.count("killed"), 3);
}

#[test]
fn a_ban_ends_by_itself() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &[]);
    ctl.ok("ban 203.0.113.7 -for 1s");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.proxy.wait_for_line("ban ended");
    stage.session(CLIENT);
    assert_eq!(ctl.ok("-json bans"), r#"{"ok":true,"count":0}"#);
}

#[test]
fn bans_are_kept_over_a_restart_even_after_a_crash() {
    let ctl = Ctl::new();
    let state = ctl.state();
    let flags = ["-state-dir", state.to_str().expect("a path")];
    let mut scene = stage(&ctl, &flags);
    for words in [
        "ban 203.0.113.0/25 -reason crash",
        "ban 198.51.100.9 -for 1s",
        "ban 192.0.2.77",
        "unban 192.0.2.77",
    ] {
        ctl.ok(words);
    }
    scene.proxy.signal(Signal::SIGKILL);
    scene.proxy.wait_for_exit();
    // What has ended meanwhile is not there any more.
    let ends = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
    wait_until("the short ban is over", || {
        std::time::SystemTime::now() > ends
    });

    let stage = stage(&ctl, &flags);
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.session("198.51.100.9:40000");
    let listed = ctl.ok("bans");
    assert!(
        listed.contains("203.0.113.0/25") && listed.contains("never") && listed.contains("crash")
    );
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

/// The action that is shipped: the ban, its own time, and its end before that.
#[test]
fn fail2bans_action_gives_the_ban_its_own_time() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &[]);
    let action = format!(
        "realpeer[options=\"-control {}\", realpeer={}]",
        ctl.path(),
        Program::Realpeer.path()
    );
    let jails = idle_jail("short", &action) + "bantime = 2h\n";
    let jails = jails + &idle_jail("long", &action) + "bantime = -1\n";
    let fail2ban = Fail2ban::start(&stage.server, &jails);
    // When a client's ban ends, for those that are banned.
    let ends = |client: &str| {
        let bans = ctl.ok("-json bans");
        let ban = bans.lines().find(|line| line.contains(client))?.to_owned();
        let ban: Value = serde_json::from_str(&ban).expect("JSON");
        let seconds = |name: &str| ban["ban"][name].as_u64();
        Some(seconds("until").map(|until| until - seconds("since").expect("a time")))
    };
    for (jail, client) in [("short", "203.0.113.7"), ("long", "2001:db8:c::7")] {
        fail2ban.tell(&stage.server, &format!("set {jail} banip {client}"));
        wait_until("it is banned", || ends(client).is_some());
    }
    // Rounded up to a whole second.
    let short = ends("203.0.113.7").flatten();
    assert!(
        short.is_some_and(|s| (7200..=7201).contains(&s)),
        "{short:?}"
    );
    assert_eq!(ends("2001:db8:c::7"), Some(None));
    assert!(ctl.ok("bans").contains("fail2ban: long"));

    fail2ban.tell(&stage.server, "set short unbanip 203.0.113.7");
    wait_until("it is unbanned", || ends("203.0.113.7").is_none());
    // One that ended otherwise is no failure.
    ctl.ok("unban 2001:db8:c::7");
    fail2ban.tell(&stage.server, "set long unbanip 2001:db8:c::7");
    fail2ban.tell(&stage.server, "set long banip 2001:db8:c::8");
    wait_until("the next one is banned", || ends("2001:db8:c::8").is_some());
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}

#[test]
fn a_directory_for_bans_that_had_to_be_made_is_told_once() {
    let files = TempDir::new();
    let directory = files.path("deep").join("state");
    let directory = directory.to_str().expect("temporary paths are UTF-8");
    let made = |stage: &Stage| {
        stage.proxy.wait_for_line("listening");
        let lines = stage.proxy.stdout();
        let about_it = |line: &&String| {
            line.contains("created the directory") && line.contains(&format!("{directory:?}"))
        };
        lines.iter().filter(about_it).count()
    };
    for expected in [1, 0] {
        let stage = Stage::new(&["-state-dir", directory]);
        assert_eq!(made(&stage), expected, "{:?}", stage.proxy.stdout());
    }
}

#[test]
fn bans_that_cannot_be_kept_keep_the_proxy_from_starting() {
    let host = Host::new("server");
    let files = TempDir::new();
    let file = files.file("file", "");
    let flags = ["-routing", "off", "-state-dir", &file];
    let ended = Program::Realpeer.run(&host, &flags);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("-state-dir"), "{}", ended.stderr);
}

#[test]
fn nobody_bans_all_by_mistake() {
    let ctl = Ctl::new();
    let files = TempDir::new();
    let allowed = files.file("balancers", "192.0.2.0/29\n2001:db8::5\n");
    let stage = stage(&ctl, &["-allowed-subnets", &allowed]);
    for network in [
        "192.0.2.10",
        "192.0.2.0/28",
        "0.0.0.0/0",
        "::/0",
        "127.0.0.2",
        "2001:db8::10",
    ] {
        ctl.refused(&format!("ban {network}"), "own address");
    }
    for network in ["192.0.2.5", "2001:db8::5", "192.0.2.4/30"] {
        ctl.refused(&format!("ban {network}"), "allowed-subnets");
    }
    ctl.ok("ban 0.0.0.0/0 -force");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    ctl.refused("unban 203.0.113.7", "a part of 0.0.0.0/0");
    ctl.refused("unban 2001:db8::77", "is not banned");
}

#[test]
fn a_ban_for_one_listener_holds_there() {
    let ctl = Ctl::new();
    let stage = stage(&ctl, &["-name", "ssh"]);
    ctl.refused("ban 203.0.113.7 -listener web", "web");
    ctl.ok("ban 203.0.113.7 -listener ssh");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    assert!(ctl.ok("bans").contains("ssh"));
    ctl.ok("unban 203.0.113.7 -listener ssh");
    stage.session(CLIENT);
}

#[test]
fn a_hundred_thousand_bans_are_taken_kept_and_looked_up() {
    const BANS: u32 = 100_000;
    let ctl = Ctl::new();
    let state = ctl.state();
    let flags = ["-state-dir", state.to_str().expect("a path")];
    let mut scene = stage(&ctl, &flags);
    let mut socket = BufReader::new(ctl.connect());
    let ban = |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        json!({"do": "ban", "network": format!("10.{b}.{c}.{d}"), "for": 86400}).to_string()
    };
    for batch in (0..BANS).collect::<Vec<_>>().chunks(500) {
        let requests: Vec<String> = batch.iter().map(|n| ban(*n)).collect();
        ask_all(&mut socket, &requests);
    }
    drop(socket);
    scene.assert_serves();
    scene.proxy.signal(Signal::SIGTERM);
    assert_eq!(scene.proxy.exit_code(), 0);

    let stage = stage(&ctl, &flags);
    assert_reset(&stage.dial_and_send(v1("10.1.134.159:40000", VISITED)));
    stage.session("10.1.134.160:40000");
    assert_eq!(ctl.ok("-json bans").lines().count(), BANS as usize + 1);
}

/// A datagram of a banned client goes nowhere, and neither does the backend's answer to earlier
/// ones.
#[test]
fn a_ban_ends_udp_flows_too() {
    let ctl = Ctl::new();
    let path = ctl.path();
    let scene = Scene::new(&["-control", &path, "-v", "2"]);
    let near = scene.socket();
    let seen = scene.pass(&near, CLIENT, b"before");
    scene.converse(&near, "203.0.113.8:40000");
    ctl.ok("ban 203.0.113.7");
    scene.backend.send_to(b"late answer", seen).expect("send");
    near.send(&every(CLIENT, b"after")).expect("send");
    scene.proxy.wait_for_line(r#""end":"client banned""#);
    scene.proxy.wait_for_line("is banned: 203.0.113.7/32");
    // What comes next is the other client's, both ways.
    scene.converse(&near, "203.0.113.8:40000");
    assert_silent(&near);
    assert_silent(&scene.backend);
    ctl.ok("unban 203.0.113.7");
    scene.converse(&near, CLIENT);
}

/// Without a further datagram, and however many there are; on one worker each of its listeners has
/// some of them.
#[test]
fn a_ban_or_a_kill_ends_idle_udp_flows_at_once() {
    const FLOWS: u64 = 300;
    for listeners in ["1", "2"] {
        let ctl = Ctl::new();
        let path = ctl.path();
        // Nothing else ends them.
        let flags = ["-control", &path, "-close-after", "0"];
        let scene = Scene::new(&[&flags[..], &["-listeners", listeners, "-workers", "1"]].concat());
        let near = scene.socket();
        let sockets = || scene.server.run(&["ss", "-Huna", "dport = :9000"]);
        let good = "198.51.100.8:40000";
        scene.converse(&near, good);
        scene.converse(&near, CLIENT);
        ctl.ok("kill 203.0.113.7");
        wait_until("its socket is closed", || !sockets().contains(CLIENT));
        assert!(!ctl.ok("connections").contains(CLIENT));
        assert_eq!(ctl.count("killed"), 1);

        for i in 0..FLOWS {
            scene.converse(&near, &format!("203.0.113.{}:{}", i % 250 + 1, 1024 + i));
        }
        assert_eq!(sockets().lines().count() as u64, FLOWS + 1);
        ctl.ok("ban 203.0.113.0/24");
        wait_until("their sockets are closed", || {
            sockets().lines().count() == 1
        });
        assert_eq!(ctl.count("killed"), FLOWS + 1);
        assert!(!ctl.ok("connections").contains("203.0.113."));
        scene.converse(&near, good);
    }
}

#[test]
fn udp_flows_are_listed_and_can_be_killed() {
    let ctl = Ctl::new();
    let path = ctl.path();
    let scene = Scene::new(&["-control", &path, "-v", "2"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    scene.converse(&near, "203.0.113.8:40000");
    let listed = ctl.ok("connections");
    assert!(
        listed.contains(CLIENT) && listed.contains("203.0.113.8:40000"),
        "{listed}"
    );
    ctl.ok("kill 203.0.113.7");
    // The client is no enemy: its next datagram begins a new flow.
    scene.converse(&near, CLIENT);
    scene
        .proxy
        .wait_for_line(r#""end":"ended by realpeer ctl kill""#);
    scene.converse(&near, "203.0.113.8:40000");
    let banned = ctl.ok("ban 203.0.113.8");
    assert!(
        banned.contains('1'),
        "a ban tells how many it ended: {banned}"
    );
}

#[test]
fn health_checks_over_udp_outlive_a_ban_on_the_load_balancer() {
    let ctl = Ctl::new();
    let path = ctl.path();
    let files = TempDir::new();
    let balancers = files.file("balancers", "192.0.2.5\n");
    let scene = Scene::new(&["-control", &path, "-allowed-subnets", &balancers]);
    let near = scene.socket();
    for ban in ["ban 192.0.2.5 -force", "ban 192.0.2.0/24 -force"] {
        ctl.ok(ban);
        near.send(
            &[
                V2::new(LOCAL, UNSPEC, Vec::new()).bytes(),
                b"alive?".to_vec(),
            ]
            .concat(),
        )
        .expect("send");
        scene.expect("192.0.2.5:1", b"alive?");
    }
}
