//! `realpeer ban-relay`: bans that arrive over HTTP, and calls that mean harm.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
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
    wrapper: Vec<String>,
    flags: Vec<String>,
    files: Vec<TempDir>,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        Scene::under(&[], flags)
    }

    /// Two application servers, at 192.0.2.5 and 192.0.2.6, and a relay that keeps what it knows.
    fn of_two_servers(flags: &[&str]) -> Scene {
        Scene::of_two_servers_under(&[], flags)
    }

    fn of_two_servers_under(wrapper: &[&str], flags: &[&str]) -> Scene {
        let files = TempDir::new();
        let callers = files.file("callers", "192.0.2.5\n192.0.2.6\n");
        let state = files.path("state").display().to_string();
        let own = ["-allowed-subnets", &callers, "-state-dir", &state];
        let mut scene = Scene::under(wrapper, &[&own, flags].concat());
        scene.files.push(files);
        scene
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
        let flags = [&usual, flags].concat();
        let relay = Program::Realpeer.start_under(wrapper, &ingress, &flags);
        Scene {
            server,
            ingress,
            relay,
            wrapper: wrapper.iter().map(|word| (*word).to_owned()).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            files: vec![files],
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

    /// As `change`, from one of the server's addresses and with what else the call says.
    #[track_caller]
    fn change_from(&self, from: &str, mut call: Value, target: &str) -> String {
        call["target"] = target.into();
        let mut stream = self.server.dial_from(&format!("{from}:0"), RELAY);
        stream
            .write_all(&request("POST /", Some(TOKEN), &call.to_string()))
            .expect("send a request");
        let (status, said) = answer(stream);
        assert_eq!(status, 200, "{said}");
        said["done"].as_str().expect("what was done").to_owned()
    }

    /// Ends the relay at once and starts another with the same flags.
    fn restart(&mut self) {
        self.kill_relay();
        self.start_relay();
    }

    fn kill_relay(&mut self) {
        self.relay.signal(Signal::SIGKILL);
        self.relay.wait_for_exit();
    }

    fn start_relay(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let wrapper: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        self.relay = Program::Realpeer.start_under(&wrapper, &self.ingress, &flags);
    }

    /// The element of a set that holds an address, with its time-out if it has one.
    fn element(&self, target: &str) -> Option<String> {
        let listed = self.set("banned");
        let (_, elements) = listed.split_once("elements = {")?;
        let mut elements = elements.split([',', '}']).map(str::trim);
        let found = elements.find(|element| element.split(' ').next() == Some(target));
        found.map(|element| match element.split_once(" expires ") {
            Some((element, _)) => element.to_owned(),
            None => element.to_owned(),
        })
    }

    /// The administrator's own ban.
    fn add_by_hand(&self, element: &str) {
        let rule = format!("add element inet filter banned {{ {element} }}");
        self.ingress.run(&["nft", &rule]);
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

const ONE: &str = "192.0.2.5";
const TWO: &str = "192.0.2.6";

fn ban_for(seconds: i64) -> Value {
    json!({"mode": "ban", "seconds": seconds})
}

fn unban() -> Value {
    json!({"mode": "unban"})
}

#[test]
fn a_servers_unban_ends_its_own_ban_only() {
    let mut scene = Scene::of_two_servers(&[]);
    let target = "203.0.113.9";
    let timeout = |scene: &Scene| scene.element(target);
    for restart in [false, true] {
        assert_eq!(scene.change_from(ONE, ban_for(7200), target), "banned");
        let second = scene.change_from(TWO, ban_for(600), target);
        assert_eq!(second, "was banned already");
        assert_eq!(
            timeout(&scene).as_deref(),
            Some("203.0.113.9 timeout 2h"),
            "no ban is shortened by another"
        );
        if restart {
            scene.restart();
        }
        for _ in 0..2 {
            let done = scene.change_from(ONE, unban(), target);
            assert_eq!(done, "still banned: not by this caller");
        }
        let left = timeout(&scene).expect("it is in the set");
        let left = left.rsplit_once(' ').expect("a time-out").1;
        assert!(left == "10m" || left.starts_with("9m5"), "{left}");
        assert_eq!(scene.change_from(TWO, unban(), target), "unbanned");
        assert_eq!(timeout(&scene), None);
        assert_eq!(scene.change_from(TWO, unban(), target), "was not banned");
    }
}

#[test]
fn the_administrators_own_bans_are_neither_shortened_nor_ended() {
    let mut scene = Scene::of_two_servers(&[]);
    for (own, whole) in [
        ("203.0.113.1", "203.0.113.1"),
        ("203.0.113.2 timeout 1d", "203.0.113.2 timeout 1d"),
    ] {
        let target = own.split(' ').next().expect("an address");
        scene.add_by_hand(own);
        let untouched = |scene: &Scene| assert_eq!(scene.element(target).as_deref(), Some(whole));
        let others = "still banned: not by this caller";
        assert_eq!(scene.change_from(TWO, unban(), target), others);
        untouched(&scene);
        let done = scene.change_from(ONE, ban_for(60), target);
        assert_eq!(done, "was banned already");
        untouched(&scene);
        scene.restart();
        assert_eq!(scene.change_from(ONE, unban(), target), others);
        untouched(&scene);
    }
    // A shorter one of theirs holds for its time, too.
    let target = "203.0.113.3";
    scene.add_by_hand("203.0.113.3 timeout 1h");
    scene.change_from(ONE, ban_for(-1), target);
    assert_eq!(scene.element(target).as_deref(), Some(target));
    scene.change_from(ONE, unban(), target);
    let left = scene.element(target).expect("it is in the set");
    assert!(
        left.ends_with(" 1h") || left.contains(" timeout 59m"),
        "{left}"
    );
    // What they take out is out.
    let rule = format!("delete element inet filter banned {{ {target} }}");
    scene.ingress.run(&["nft", &rule]);
    scene.change_from(ONE, ban_for(60), target);
    assert_eq!(scene.change_from(ONE, unban(), target), "unbanned");
    assert_eq!(scene.element(target), None);
}

/// What the firewall lost is put back for the rest of its time, and nothing else is.
#[test]
fn bans_survive_a_reboot_of_the_ingress() {
    let mut scene = Scene::of_two_servers(&[]);
    scene.change_from(ONE, ban_for(3600), "203.0.113.1");
    scene.change_from(ONE, ban_for(-1), "203.0.113.2");
    scene.change_from(ONE, ban_for(1), "203.0.113.3");
    scene.change_from(ONE, ban_for(3600), "203.0.113.4");
    scene.change_from(ONE, unban(), "203.0.113.4");
    wait_until("the short one is over", || {
        scene.element("203.0.113.3").is_none()
    });
    scene.ingress.run(&["nft", "flush", "ruleset"]);
    let rules = scene.files[0].path("sets.nft").display().to_string();
    scene.ingress.run(&["nft", "-f", &rules]);
    assert_eq!(scene.bans(), json!([]));
    scene.restart();
    wait_until("the bans are back", || {
        scene.element("203.0.113.2").is_some() && scene.element("203.0.113.1").is_some()
    });
    assert_eq!(scene.element("203.0.113.2").as_deref(), Some("203.0.113.2"));
    let left = scene.element("203.0.113.1").expect("it is in the set");
    assert!(
        left.ends_with(" 1h") || left.contains(" timeout 59m"),
        "{left}"
    );
    assert_eq!(scene.bans().as_array().map(Vec::len), Some(2));
}

/// A state that cannot be used costs no ban, and two relays do not share one.
#[test]
fn a_broken_or_taken_state_is_told() {
    let mut scene = Scene::of_two_servers(&[]);
    let state = scene.files[1].path("state");
    let (flags, ingress) = (&scene.flags, &scene.ingress);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(["-l", "192.0.2.10:8001"]);
    let second = Program::Realpeer.run(ingress, &flags);
    assert_eq!(second.code, 1, "{}", second.stdout);
    assert!(second.stderr.contains("in use"), "{}", second.stderr);
    // Whoever may look into the directory can lock it; that keeps no relay from its start.
    let directory = fs::File::open(&state).expect("open the directory");
    let _held = Flock::lock(directory, FlockArg::LockExclusive).expect("lock it");
    scene.restart();

    scene.change_from(ONE, ban_for(60), "203.0.113.1");
    let file = state.join("relayed-bans");
    let mode = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::write(&file, "{\"203.0").expect("spoil it");
    scene.restart();
    scene.relay.wait_for_line("cannot understand who asked");
    assert_eq!(scene.change_from(ONE, ban_for(60), "203.0.113.2"), "banned");
    // A link that waits where the new file will be is not followed.
    let (link, victim) = (state.join("relayed-bans.new"), state.join("victim"));
    std::os::unix::fs::symlink(&victim, &link).expect("make a link");
    scene.change_from(ONE, unban(), "203.0.113.2");
    assert!(!victim.exists());
    // A directory in its place: as good as a disk that is full.
    fs::create_dir(&link).expect("make a directory");
    assert_eq!(scene.change_from(ONE, ban_for(60), "203.0.113.3"), "banned");
    scene.relay.wait_for_line("is not kept over a restart");
}

/// Who, what, until when; and why not.
#[test]
fn each_call_is_in_the_log() {
    let scene = Scene::of_two_servers(&[]);
    let line = |text: &str| -> Value {
        serde_json::from_str(&scene.relay.wait_for_line(text)).expect("a line of JSON")
    };
    scene.change_from(TWO, ban_for(3600), "203.0.113.1");
    let said = line("203.0.113.1");
    assert_eq!(said["msg"], "call done");
    assert_eq!(
        (&said["mode"], &said["done"]),
        (&json!("ban"), &json!("banned"))
    );
    let from = said["frontendRemoteAddr"].as_str().expect("who");
    assert!(from.starts_with("192.0.2.6:"), "{from}");
    let until = said["until"].as_str().expect("until when");
    let until = humantime::parse_rfc3339(until).expect("a time");
    let left = until.duration_since(std::time::SystemTime::now());
    let left = left.expect("it is to come").as_secs();
    assert!((3500..=3600).contains(&left), "{left}");

    scene.change_from(ONE, ban_for(-1), "203.0.113.2");
    assert_eq!(line("203.0.113.2")["until"], "never");
    scene.change_from(ONE, unban(), "203.0.113.3");
    assert_eq!(line("203.0.113.3")["done"], "was not banned");
    scene.bans();
    assert_eq!(line("GET /bans")["msg"], "call done");

    let refused = |request: &[u8], text: &str, status: u16| {
        assert_eq!(scene.send(request).0, status);
        let said = line(text);
        assert_eq!(said["msg"], "call refused", "{said}");
        assert_eq!(said["status"], status, "{said}");
        let from = said["frontendRemoteAddr"].as_str().expect("who");
        assert!(from.starts_with("192.0.2.5:"), "{from}");
        said
    };
    let body = r#"{"mode":"ban","target":"192.0.2.10"}"#;
    refused(&request("POST /x1", None, body), "/x1", 401);
    refused(&request("POST /x2", Some(TOKEN), body), "/x2", 404);
    refused(&request("PUT /", Some(TOKEN), body), "PUT /", 405);
    let said = refused(&request("POST /", Some(TOKEN), body), "an address of", 403);
    assert_eq!(
        (&said["mode"], &said["target"]),
        (&json!("ban"), &json!("192.0.2.10"))
    );
    let cut = request("POST /", Some(TOKEN), r#"{"mode":"ban""#);
    refused(&cut, "EOF while parsing", 400);
    let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(scene.send(head.as_bytes()).0, 431);
    assert_eq!(line("too large")["msg"], "call refused");
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
    assert_eq!(scene.change("ban", "2001:db8:c::9").1["done"], "banned");
    assert_eq!(scene.change("unban", "2001:db8:c::9").1["done"], "unbanned");
    assert_eq!(
        scene.bans(),
        json!([{"target": "203.0.113.9"}, {"target": "2001:db8:c::9"}])
    );
    let started = fs::read_to_string(files.path("started")).expect("it was started");
    assert_eq!(
        started,
        "4 set sshd banip 203.0.113.9\n4 set sshd banip 2001:db8:c::9\n\
         4 set sshd unbanip 2001:db8:c::9\n3 get sshd banip\n"
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

/// Also one that fail2ban makes longer later (bantime.increment), and one for ever.
#[test]
fn fail2bans_action_tells_the_bans_own_time() {
    let scene = Scene::new(&["-rate", "100000"]);
    let files = TempDir::new();
    let token = files.file("token", TOKEN);
    let action = format!("realpeer-ingress[url=http://{RELAY}/, tokenfile={token}]");
    let jail = |name, options: &str| idle_jail(name, &action) + options;
    let jails = jail("short", "bantime = 7200\n")
        + &jail("ever", "bantime = -1\n")
        + &jail(
            "more",
            "bantime = 2\nbantime.increment = true\nbantime.formula = ban.Time + 5\n",
        );
    let fail2ban = Fail2ban::start(&scene.server, &jails);
    let ban = |jail, target| fail2ban.tell(&scene.server, &format!("set {jail} banip {target}"));
    let left = || scene.bans()[0]["seconds"].as_u64();

    ban("short", "203.0.113.1");
    assert!(left().is_some_and(|left| (7100..=7200).contains(&left)));
    fail2ban.tell(&scene.server, "set short unbanip 203.0.113.1");

    ban("ever", "203.0.113.2");
    assert_eq!(scene.element("203.0.113.2").as_deref(), Some("203.0.113.2"));
    fail2ban.tell(&scene.server, "set ever unbanip 203.0.113.2");
    assert_eq!(scene.bans(), json!([]));

    ban("more", "203.0.113.3");
    fail2ban.running.wait_for_line("Unban 203.0.113.3");
    ban("more", "203.0.113.3");
    fail2ban.running.wait_for_line("Increase Ban 203.0.113.3");
    wait_until("the ingress has heard of it", || {
        left().is_some_and(|left| left > 2)
    });
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}

#[test]
fn an_unban_during_a_restart_of_the_relay_is_made_good() {
    let mut scene = Scene::of_two_servers(&[]);
    let token = scene.files[1].file("token", TOKEN);
    let action = format!("realpeer-ingress[url=http://{RELAY}/, tokenfile={token}]");
    let fail2ban = Fail2ban::start(&scene.server, &idle_jail("ssh", &action));
    fail2ban.tell(&scene.server, "set ssh banip 203.0.113.9");
    assert!(scene.element("203.0.113.9").is_some());

    scene.kill_relay();
    let calls = "add table inet calls; add chain inet calls in { type filter hook input priority 0; }; add rule inet calls in tcp dport 8000 tcp flags syn counter";
    scene.ingress.run(&["nft", calls]);
    let mut unban = fail2ban.start_telling(&scene.server, "set ssh unbanip 203.0.113.9");
    wait_until("fail2ban has called in vain", || {
        let counted = scene
            .ingress
            .run(&["nft", "list", "table", "inet", "calls"]);
        !counted.contains("packets 0")
    });
    scene.start_relay();
    assert_eq!(unban.exit_code(), 0);
    assert_eq!(scene.element("203.0.113.9"), None);
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}

/// A jail has one time for all its bans; the relay ends each when its own is over, also one that was
/// over while the relay was down.
#[test]
fn bans_in_a_jail_end_at_their_own_time_and_by_those_who_asked() {
    // fail2ban needs no network: its socket is a file.
    let fail2ban = Fail2ban::start(&Host::new("ingress"), &idle_jail("realpeer", ""));
    let path = format!("PATH={}:/usr/bin:/bin", fail2ban.client_directory());
    let flags = ["-exec", "fail2ban:realpeer"];
    let mut scene = Scene::of_two_servers_under(&["env", &path], &flags);
    let banned = |scene: &Scene| scene.bans().to_string();

    scene.change_from(ONE, ban_for(2), "203.0.113.1");
    scene.change_from(ONE, ban_for(-1), "203.0.113.2");
    assert!(banned(&scene).contains("203.0.113.1"));
    scene.relay.wait_for_line("ban over");
    assert!(!banned(&scene).contains("203.0.113.1"));

    scene.change_from(TWO, ban_for(600), "203.0.113.2");
    let others = "still banned: not by this caller";
    assert_eq!(scene.change_from(ONE, unban(), "203.0.113.2"), others);
    fail2ban.tell(&scene.ingress, "set realpeer banip 203.0.113.3");
    let own = scene.change_from(ONE, ban_for(600), "203.0.113.3");
    assert_eq!(own, "was banned already");
    assert_eq!(scene.change_from(ONE, unban(), "203.0.113.3"), others);
    scene.change_from(ONE, ban_for(1), "203.0.113.4");
    scene.restart();
    assert_eq!(scene.change_from(TWO, unban(), "203.0.113.2"), "unbanned");
    wait_until("what was over meanwhile is ended", || {
        scene.bans() == json!([{"target": "203.0.113.3"}])
    });
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
