//! `realpeer ban-relay`: bans that arrive over HTTP, and calls that mean harm.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::fail2ban::{Fail2ban, idle_jail};
use support::stage::wire;
use support::streams::assert_turned_away;
use support::{Host, Program, Running, TempDir, repository, wait_until};

const TOKEN: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";
const RELAY: &str = "192.0.2.10:8000";
const SETS: &str = "table inet filter {
    set banned { type ipv4_addr; flags timeout; }
    set banned6 { type ipv6_addr; flags timeout; }
}";

/// An application server at 192.0.2.5, and the ingress with the relay at 192.0.2.10.
struct Scene {
    server: Host,
    ingress: Host,
    relay: Running,
    _files: TempDir,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        Scene::under(&[], flags)
    }

    fn under(wrapper: &[&str], flags: &[&str]) -> Scene {
        let (server, ingress) = wire();
        let files = TempDir::new();
        let rules = files.file("sets.nft", SETS);
        ingress.run(&["nft", "-f", &rules]);
        let token = files.file("token", &format!("{TOKEN}\n"));
        let callers = files.file("callers", "192.0.2.5\n198.51.100.0/24\n");
        let usual = [
            "ban-relay",
            "-l",
            RELAY,
            "-token-file",
            &token,
            "-allowed-subnets",
            &callers,
        ];
        let relay = Program::Realpeer.start_under(wrapper, &ingress, &[&usual, flags].concat());
        Scene {
            server,
            ingress,
            relay,
            _files: files,
        }
    }

    /// Sends a request as it is, and returns the status and the answer.
    #[track_caller]
    fn send(&self, request: &[u8]) -> (u16, Value) {
        let mut stream = self.server.dial(RELAY);
        stream.write_all(request).expect("send a request");
        answer(stream)
    }

    #[track_caller]
    fn post(&self, body: &str) -> (u16, Value) {
        self.send(&request("POST /", Some(TOKEN), body))
    }

    #[track_caller]
    fn change(&self, mode: &str, target: &str) -> (u16, Value) {
        self.post(&json!({"mode": mode, "target": target}).to_string())
    }

    fn bans(&self) -> Value {
        self.send(&request("GET /bans", Some(TOKEN), "")).1["bans"].clone()
    }

    fn set(&self, name: &str) -> String {
        self.ingress
            .run(&["nft", "list", "set", "inet", "filter", name])
    }
}

fn request(line: &str, token: Option<&str>, body: &str) -> Vec<u8> {
    let token = token.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let length = body.len();
    format!("{line} HTTP/1.1\r\nHost: relay\r\n{token}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[track_caller]
fn answer(mut stream: TcpStream) -> (u16, Value) {
    let mut text = Vec::new();
    // After an answer that it gives early, the relay may reset what we were still sending.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let status = text.get(9..12).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP status in {text:?}"));
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn bans_go_into_nft_sets_with_their_time_and_out_again() {
    let scene = Scene::new(&["-exec", "nft:inet/filter/banned", "-ban-time", "2h"]);
    let (status, said) = scene.change("ban", "203.0.113.9");
    assert_eq!((status, &said["done"]), (200, &json!("banned")), "{said}");
    assert_eq!(said["by"], "nft:inet/filter/banned");
    scene.change("ban", "2001:db8:c::9");
    scene.change("ban", "::ffff:203.0.113.10");
    assert!(
        scene.set("banned").contains("203.0.113.9 timeout 2h"),
        "{}",
        scene.set("banned")
    );
    assert!(
        scene.set("banned6").contains("2001:db8:c::9 timeout 2h"),
        "{}",
        scene.set("banned6")
    );

    let bans = scene.bans();
    let listed: Vec<&str> = bans
        .as_array()
        .expect("a list")
        .iter()
        .map(|b| b["target"].as_str().expect("an address"))
        .collect();
    assert_eq!(listed.len(), 3, "{bans}");
    assert!(
        bans[0]["seconds"]
            .as_u64()
            .is_some_and(|left| (7100..=7200).contains(&left)),
        "{bans}"
    );

    assert_eq!(
        scene.change("ban", "203.0.113.9").1["done"],
        "was banned already"
    );
    for target in ["203.0.113.9", "203.0.113.10", "2001:db8:c::9"] {
        assert_eq!(scene.change("unban", target).1["done"], "unbanned");
        assert_eq!(scene.change("unban", target).1["done"], "was not banned");
    }
    assert_eq!(scene.bans(), json!([]));
    let mut scene = scene;
    scene.relay.signal(Signal::SIGTERM);
    assert_eq!(scene.relay.exit_code(), 0);
}

/// The kernel ends the ban; a ban that is repeated begins anew.
#[test]
fn an_nft_ban_ends_by_itself() {
    let scene = Scene::new(&["-exec", "nft:inet/filter/banned", "-ban-time", "500ms"]);
    scene.change("ban", "203.0.113.9");
    scene.change("ban", "203.0.113.9");
    wait_until("the ban has ended", || scene.bans() == json!([]));
}

/// The unit's capability is enough for the sets, for a user without any other privilege.
#[test]
fn the_units_capability_is_enough() {
    let unit = fs::read_to_string(repository("packaging/systemd/realpeer-ban-relay.service"))
        .expect("the unit file");
    for line in [
        "AmbientCapabilities=CAP_NET_ADMIN",
        "CapabilityBoundingSet=CAP_NET_ADMIN",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    assert!(start.is_some_and(|start| start.contains("-exec nft:inet/filter/banned")));
    let caps = "=-all,+net_admin";
    let sets = ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}{caps}"));
    let mut wrapper = vec!["setpriv", "--no-new-privs", &sets[0], &sets[1], &sets[2]];
    if nix::unistd::getuid().is_root() {
        wrapper.extend(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    let scene = Scene::under(&wrapper, &["-exec", "nft:inet/filter/banned"]);
    assert_eq!(scene.change("ban", "203.0.113.9").1["done"], "banned");
    assert_eq!(scene.bans()[0]["target"], "203.0.113.9");
}

#[test]
fn without_the_token_nothing_is_read() {
    let scene = Scene::new(&[]);
    let body = r#"{"mode":"ban","target":"203.0.113.9"}"#;
    let almost = &TOKEN[..TOKEN.len() - 1];
    let longer = format!("{TOKEN}x");
    for token in [
        None,
        Some(""),
        Some(almost),
        Some(&longer),
        Some(&TOKEN.to_lowercase()),
    ] {
        for line in ["POST /", "GET /bans", "GET /nothing"] {
            let (status, said) = scene.send(&request(line, token, body));
            assert_eq!((status, &said["ok"]), (401, &json!(false)), "{token:?}");
        }
    }
    assert_eq!(scene.bans(), json!([]));
}

#[test]
fn only_listed_hosts_are_spoken_to() {
    let scene = Scene::new(&[]);
    assert_turned_away(scene.server.try_dial(Some("192.0.2.6:0"), RELAY));
    scene.relay.wait_for_line("not in the allowed-subnets file");
    assert_eq!(scene.change("ban", "203.0.113.9").0, 200);
}

#[test]
fn what_is_no_address_or_must_not_be_banned_is_refused() {
    let scene = Scene::new(&[]);
    for target in [
        "",
        "all",
        "0.0.0.0/0",
        "::/0",
        "203.0.113.0/24",
        "203.0.113.9; reboot",
        "$(reboot)",
        "`reboot`",
        "203.0.113.9\nset",
        "-h",
        "203.0.113.9 ",
        "localhost",
        "1",
        "0x7f.1",
        "203.0.113.9:22",
    ] {
        let (status, said) = scene.change("ban", target);
        assert_eq!(
            (status, &said["ok"]),
            (400, &json!(false)),
            "{target:?} {said}"
        );
    }
    for body in [
        "",
        "rubbish",
        "{}",
        "\u{0}",
        r#"{"mode":"flush","target":"203.0.113.9"}"#,
        r#"{"mode":"ban","target":{}}"#,
    ] {
        assert_eq!(scene.post(body).0, 400, "{body}");
    }
    for target in [
        "192.0.2.10",
        "2001:db8::10",
        "127.0.0.1",
        "::1",
        "192.0.2.5",
        "198.51.100.77",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.0.1",
        "fe80::1",
        "::ffff:192.0.2.10",
    ] {
        let (status, said) = scene.change("ban", target);
        assert_eq!(
            (status, &said["ok"]),
            (403, &json!(false)),
            "{target} {said}"
        );
    }
    assert_eq!(scene.send(&request("GET /", Some(TOKEN), "")).0, 405);
    assert_eq!(scene.send(&request("DELETE /bans", Some(TOKEN), "")).0, 405);
    assert_eq!(scene.send(&request("POST /ban", Some(TOKEN), "")).0, 404);
    assert_eq!(scene.bans(), json!([]));
}

#[test]
fn a_thousand_calls_at_once_are_answered_by_the_rate() {
    let scene = Scene::new(&["-rate", "20"]);
    let start = Instant::now();
    let mut done = 0u64;
    for n in 0..1000 {
        match scene
            .change("ban", &format!("203.0.{}.{}", n / 250, n % 250))
            .0
        {
            200 => done += 1,
            429 => {}
            other => panic!("{other}"),
        }
    }
    // A second's worth at once, and the rate since.
    let most = 20 + (start.elapsed().as_secs_f64() * 20.0).ceil() as u64;
    assert!((20..=most).contains(&done), "{done} of {most}");
    // Strangers cannot use the rate up.
    wait_until("the rate lets calls pass", || {
        scene.change("ban", "203.0.113.9").0 == 200
    });
}

#[test]
fn slow_and_oversized_calls_hold_nobody_up() {
    let scene = Scene::new(&[]);
    let body = "x".repeat(100 << 10);
    assert_eq!(scene.post(&body).0, 413);
    let endless = format!(
        "POST / HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let chunks = "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n";
    assert_eq!(scene.send((endless + &chunks.repeat(8)).as_bytes()).0, 413);
    let head = format!("GET /bans HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(scene.send(head.as_bytes()).0, 431);

    // A head and a body that never end, while others are served.
    let mut slow_head = scene.server.dial(RELAY);
    slow_head
        .write_all(b"POST / HTTP/1.1\r\nHost: relay\r\n")
        .expect("send");
    let mut slow_body = scene.server.dial(RELAY);
    let half = format!(
        "POST / HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 40\r\n\r\n{{"
    );
    slow_body.write_all(half.as_bytes()).expect("send");
    assert_eq!(scene.change("ban", "203.0.113.9").0, 200);
    assert_eq!(answer(slow_body).0, 408);
    let mut rest = Vec::new();
    slow_head
        .read_to_end(&mut rest)
        .expect("the relay ends the connection");

    // More silent callers than there are places.
    let silent: Vec<_> = (0..100)
        .map(|_| scene.server.try_dial(None, RELAY))
        .collect();
    drop(silent);
    wait_until("there is a place again", || {
        let mut stream = scene.server.dial(RELAY);
        stream
            .write_all(&request("GET /bans", Some(TOKEN), ""))
            .is_ok()
            && stream.read(&mut [0]).is_ok_and(|n| n > 0)
    });
}

#[test]
fn fail2ban_client_is_started_with_an_argument_vector() {
    let files = TempDir::new();
    let client = files.file("fail2ban-client", &fake_client(&files));
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let directory = client.trim_end_matches("/fail2ban-client");
    let path = format!("PATH={directory}:/usr/bin:/bin");
    let scene = Scene::under(&["env", &path], &["-exec", "fail2ban:sshd"]);
    assert_eq!(scene.change("ban", "203.0.113.9").1["done"], "banned");
    assert_eq!(scene.change("unban", "2001:db8:c::9").1["done"], "unbanned");
    assert_eq!(
        scene.bans(),
        json!([{"target": "203.0.113.9"}, {"target": "2001:db8:c::9"}])
    );
    let started = fs::read_to_string(files.path("started")).expect("it was started");
    assert_eq!(
        started,
        "5 set sshd banip 203.0.113.9\n5 set sshd unbanip 2001:db8:c::9\n4 get sshd banip\n"
            .replace("5 ", "4 ")
            .replace("4 get", "3 get")
    );

    let (status, said) = scene.change("ban", "203.0.113.66");
    assert_eq!(status, 502);
    assert!(
        said["error"]
            .as_str()
            .is_some_and(|e| e.contains("Sorry but the jail 'sshd' does not exist")),
        "{said}"
    );
}

/// The action that is shipped, as fail2ban's server on the application server runs it.
#[test]
fn fail2bans_action_bans_and_unbans_here() {
    let scene = Scene::new(&["-exec", "nft:inet/filter/banned"]);
    let files = TempDir::new();
    let jail = |name, token| {
        let token = files.file(name, token);
        let action = format!("realpeer-ingress[url=http://{RELAY}/, tokenfile={token}]");
        idle_jail(name, &action)
    };
    let jails = jail("ssh", TOKEN) + &jail("stranger", "another-token-altogether");
    let fail2ban = Fail2ban::start(&scene.server, &jails);
    for (target, set) in [("203.0.113.9", "banned"), ("2001:db8:c::9", "banned6")] {
        fail2ban.tell(&scene.server, &format!("set ssh banip {target}"));
        wait_until("it is banned", || scene.set(set).contains(target));
        fail2ban.tell(&scene.server, &format!("set ssh unbanip {target}"));
        wait_until("it is not banned", || !scene.set(set).contains(target));
    }
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
    // Whoever reads fail2ban's log learns of a relay that said no.
    fail2ban.tell(&scene.server, "set stranger banip 203.0.113.9");
    wait_until("the failure is told", || fail2ban.has_failed());
    assert_eq!(scene.bans(), json!([]));
}

fn fake_client(files: &TempDir) -> String {
    format!(
        "#!/bin/sh
         echo \"$# $*\" >>{}
         case \"$*\" in
         *.66) echo \"Sorry but the jail 'sshd' does not exist\" >&2; exit 255 ;;
         get*) echo 203.0.113.9 2001:db8:c::9 ;;
         *) echo 1 ;;
         esac",
        files.path("started").display()
    )
}

#[test]
fn a_set_that_is_missing_or_wrong_is_told() {
    let scene = Scene::new(&["-exec", "nft:inet/filter/nothing"]);
    for mode in ["ban", "unban"] {
        let (status, said) = scene.change(mode, "203.0.113.9");
        assert_eq!(status, 502);
        let error = said["error"].as_str().expect("an error").to_owned();
        assert!(
            error.contains("the set nothing of table filter") && error.contains("flags timeout"),
            "{error}"
        );
    }
    assert_eq!(scene.send(&request("GET /bans", Some(TOKEN), "")).0, 502);
}

#[test]
fn it_does_not_start_without_its_guards() {
    let host = Host::new("ingress");
    let files = TempDir::new();
    let token = files.file("token", TOKEN);
    let short = files.file("short", "secret\n");
    let callers = files.file("callers", "192.0.2.5\n");
    let empty = files.file("empty", "");
    for (flags, code, why) in [
        (vec!["-token-file", &token], 2, "needs -allowed-subnets"),
        (vec!["-allowed-subnets", &callers], 2, "needs -token-file"),
        (
            vec![
                "-token-file",
                &token,
                "-allowed-subnets",
                &callers,
                "-exec",
                "sh:reboot",
            ],
            2,
            "fail2ban:JAIL",
        ),
        (
            vec!["-token-file", &short, "-allowed-subnets", &callers],
            1,
            "16 characters",
        ),
        (
            vec!["-token-file", &token, "-allowed-subnets", &empty],
            1,
            "no network",
        ),
        (
            vec!["-token-file", "/nonexistent", "-allowed-subnets", &callers],
            1,
            "/nonexistent",
        ),
    ] {
        let ended = Program::Realpeer.run(&host, &[&["ban-relay"], &flags[..]].concat());
        assert_eq!(ended.code, code, "{flags:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
}
