//! Bans of Debian's real CrowdSec engine: at once for open sessions and new ones, over a restart of
//! the engine, and whatever it or somebody in its place answers.

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::crowdsec::{Engine, FakeEngine, NOTHING, reply, stream_of};
use support::header::v1;
use support::stage::{CLIENT, VISITED};
use support::streams::{assert_carries, assert_reset};
use support::{Ctl, Program, Stage, TempDir, repository, wait_until};

/// A proxy by a file, which asks the engine each second.
fn stage(ctl: &Ctl, engine: &Engine, more: &str) -> (Stage, TempDir) {
    let files = TempDir::new();
    let (url, key) = (engine.url, engine.key_file());
    let file = stage_file(ctl, url, &key, more);
    let path = files.file("realpeer.toml", &file);
    (stage_by(&path), files)
}

fn stage_file(ctl: &Ctl, url: &str, key: &str, more: &str) -> String {
    let (control, state) = (ctl.path(), ctl.state());
    let state = state.display();
    format!(
        "control = \"{control}\"\nstate-dir = \"{state}\"\nverbosity = 2\n
         [crowdsec]\nurl = \"{url}\"\napi-key-file = \"{key}\"\nupdate-frequency = \"1s\"\n{more}\n
         [[listener]]\nname = \"ssh\"\nlisten = \"0.0.0.0:2222\"\nipv4 = \"127.0.0.1:9000\"\nipv6 = \"[::1]:9000\"
         allowed-subnets = [\"192.0.2.5\"]\n"
    )
}

fn stage_by(path: &str) -> Stage {
    let (balancer, server) = support::stage::wire();
    let backend = support::Backend::listen(&server, "127.0.0.1:9000");
    let backend6 = support::Backend::listen(&server, "[::1]:9000");
    let program = Program::Realpeer.path();
    let proxy = server.spawn(&[&program, "-config", path]);
    proxy.wait_for_line("listening");
    Stage {
        balancer,
        server,
        backend,
        backend6,
        proxy,
    }
}

fn wait_for_update(ctl: &Ctl) {
    wait_until("the engine has answered", || {
        ctl.ok("status").contains("updated ")
    });
}

fn refused(stage: &Stage, client: &str) {
    assert_reset(&stage.dial_and_send(v1(client, VISITED)));
}

/// Waits until the proxy holds so many decisions.
#[track_caller]
fn wait_for_decisions(ctl: &Ctl, count: usize) {
    let words = format!("\ncrowdsec             {count} decisions");
    wait_until(&format!("there are {count} decisions"), || {
        ctl.ok("status").contains(&words)
    });
}

fn told(ctl: &Ctl) -> Value {
    let status: Value = serde_json::from_str(&ctl.ok("-json status")).expect("JSON");
    status["status"]["crowdsec"].clone()
}

#[test]
fn a_decision_ends_sessions_and_refuses_new_ones_until_it_is_deleted() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    let bad = stage.session(CLIENT);
    let good = stage.session("198.51.100.8:40000");
    engine.decisions(
        &stage.server,
        "add --ip 203.0.113.7 --duration 1h --reason too-many-logins",
    );
    assert_reset(&bad.near);
    assert_reset(&bad.far);
    assert_carries(&good.near, &good.far);
    refused(&stage, CLIENT);
    let line = stage.proxy.wait_for("refusal", |line| {
        line.contains("is banned") && line.contains("too-many-logins")
    });
    assert!(line.contains("CrowdSec (cscli)"), "{line}");
    stage.proxy.wait_for_line(r#""end":"client banned""#);

    engine.decisions(&stage.server, "add --range 203.0.113.0/25 --duration 1h");
    wait_for_decisions(&ctl, 2);
    refused(&stage, "203.0.113.99:1");
    // By its address, the range would go with it.
    engine.decisions(&stage.server, "delete --id 1");
    wait_for_decisions(&ctl, 1);
    refused(&stage, CLIENT);
    engine.decisions(&stage.server, "delete --range 203.0.113.0/25");
    wait_for_decisions(&ctl, 0);
    stage.session(CLIENT);
}

/// It ends by its own time, without a word of the engine.
#[test]
fn a_decision_is_over_when_its_time_is() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let running = engine.start(&stage.server);
    wait_for_update(&ctl);
    engine.decisions(&stage.server, "add --ip 203.0.113.7 --duration 8s");
    wait_for_decisions(&ctl, 1);
    refused(&stage, CLIENT);
    drop(running);
    wait_until("the decision is over", || {
        stage.dial_and_send(v1(CLIENT, VISITED));
        stage.backend.try_accept().is_some()
    });
}

#[test]
fn of_several_decisions_on_one_address_the_last_one_counts() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    for words in [
        "add --ip 203.0.113.7 --duration 30m --reason short",
        "add --ip 203.0.113.7 --duration 2h --reason long",
    ] {
        engine.decisions(&stage.server, words);
    }
    wait_for_decisions(&ctl, 2);
    let listed = ctl.ok("bans");
    assert!(
        (listed.contains("1h59m") || listed.contains("2h0m0s")) && listed.contains("long"),
        "{listed}"
    );
    engine.decisions(&stage.server, "delete --id 2");
    wait_for_decisions(&ctl, 1);
    refused(&stage, CLIENT);
    engine.decisions(&stage.server, "delete --ip 203.0.113.7");
    wait_for_decisions(&ctl, 0);
    stage.session(CLIENT);
}

#[test]
fn what_is_no_ban_of_an_address_is_counted_and_a_filter_is_the_engines() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(
        &ctl,
        &engine,
        "scenarios-containing = [\"ssh\", \"captcha\"]",
    );
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    engine.decisions(
        &stage.server,
        "add --ip 203.0.113.7 --type captcha --duration 1h --reason captcha",
    );
    engine.decisions(
        &stage.server,
        "add --ip 203.0.113.8 --duration 1h --reason http",
    );
    engine.decisions(
        &stage.server,
        "add --ip 203.0.113.9 --duration 1h --reason ssh-bf",
    );
    wait_for_decisions(&ctl, 1);
    wait_until("the captcha is counted", || {
        told(&ctl)["ignored"]["captcha"] == 1
    });
    assert_eq!(told(&ctl)["decisions"]["cscli"], 1);
    stage.session(CLIENT);
    stage.session("203.0.113.8:1");
    refused(&stage, "203.0.113.9:1");
}

#[test]
fn who_must_not_be_banned_is_told_once_and_served() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    for words in [
        "--ip 192.0.2.5",
        "--ip 192.0.2.10",
        "--ip 127.0.0.9",
        "--ip 203.0.113.8",
    ] {
        engine.decisions(&stage.server, &format!("add {words} --duration 1h"));
    }
    wait_for_decisions(&ctl, 1);
    let lines = || {
        let lines = stage.proxy.stdout().into_iter();
        let lines = lines.filter(|line| line.contains("is not put in force"));
        lines.collect::<Vec<_>>()
    };
    wait_until("the refusals are told", || lines().len() == 3);
    // All of them come again with a full answer.
    let frequency = told(&ctl)["lastUpdate"].as_u64();
    stage.proxy.signal(Signal::SIGHUP);
    stage
        .proxy
        .wait_for_line("the configuration was read again");
    wait_until("two more answers came", || {
        told(&ctl)["lastUpdate"].as_u64() > frequency.map(|then| then + 2)
    });
    assert_eq!(lines().len(), 3, "{:?}", lines());
    assert!(
        lines()
            .iter()
            .any(|line| line.contains("a load balancer of the allowed-subnets"))
    );
    stage.assert_serves();
    refused(&stage, "203.0.113.8:1");
}

#[test]
fn bans_are_listed_by_origin_and_unban_asks_for_force() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    ctl.ok("ban 203.0.113.7 -reason by-hand");
    ctl.ok("ban 203.0.113.8 -reason by-hand");
    engine.decisions(
        &stage.server,
        "add --ip 203.0.113.7 --duration 1h --reason ssh-bf",
    );
    wait_for_decisions(&ctl, 1);
    let all = ctl.ok("bans");
    assert_eq!(all.lines().count(), 4, "{all}");
    for (origin, count) in [
        ("local", 2),
        ("crowdsec", 1),
        ("crowdsec/cscli", 1),
        ("crowdsec/CAPI", 0),
    ] {
        let listed = ctl.ok(&format!("bans -origin {origin}"));
        assert_eq!(listed.lines().count(), 1 + count, "{origin}: {listed}");
    }
    let row = ctl.ok("bans -origin crowdsec");
    for word in ["203.0.113.7/32", "crowdsec/cscli", "ssh-bf"] {
        assert!(row.contains(word), "{word}: {row}");
    }
    assert!(row.contains("59m") || row.contains("1h0m0s"), "{row}");
    // Each stands on its own.
    let ended = ctl.run("unban 203.0.113.7");
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("it stays banned"), "{}", ended.stderr);
    refused(&stage, CLIENT);
    ctl.refused("unban 203.0.113.7", "the engine brings it back");
    ctl.refused(
        "unban 203.0.113.7",
        "cscli decisions delete --ip 203.0.113.7",
    );
    ctl.ok("unban 203.0.113.7 -force");
    stage.session(CLIENT);
    refused(&stage, "203.0.113.8:1");
    let written = std::fs::read_to_string(ctl.state().join("realpeer.bans")).expect("a journal");
    assert!(
        written.contains("by-hand") && !written.contains("ssh-bf"),
        "{written}"
    );
}

#[test]
fn an_engine_that_goes_away_is_told_once_and_what_it_said_stays() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    // The start waits for nobody.
    let (stage, _files) = stage(&ctl, &engine, "");
    stage.assert_serves();
    let unreachable = || {
        let lines = stage.proxy.stdout().into_iter();
        lines
            .filter(|line| line.contains("cannot reach the CrowdSec engine"))
            .count()
    };
    wait_until("it failed more than once", || {
        told(&ctl)["failures"].as_u64() > Some(1)
    });
    assert_eq!(unreachable(), 1);
    let running = engine.start(&stage.server);
    wait_for_update(&ctl);
    engine.decisions(&stage.server, "add --ip 203.0.113.7 --duration 1h");
    engine.decisions(&stage.server, "add --ip 203.0.113.8 --duration 1h");
    wait_for_decisions(&ctl, 2);
    running.signal(Signal::SIGKILL);
    drop(running);
    wait_until("it failed again", || told(&ctl)["trouble"].is_string());
    refused(&stage, CLIENT);
    let words = told(&ctl)["words"].to_string();
    assert!(
        words.contains("2 decisions of") && words.contains("hold until their own end"),
        "{words}"
    );

    let _running = engine.start(&stage.server);
    stage
        .proxy
        .wait_for_line("the CrowdSec engine answers again");
    engine.decisions(&stage.server, "delete --ip 203.0.113.7");
    wait_for_decisions(&ctl, 1);
    stage.session(CLIENT);
    refused(&stage, "203.0.113.8:1");
}

#[test]
fn a_wrong_key_is_told_with_its_cure_and_a_new_one_is_read_without_a_restart() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let key = std::fs::read_to_string(engine.key_file()).expect("a key");
    engine.write_key("00000000000000000000000000000000");
    let (stage, _files) = stage(&ctl, &engine, "");
    let running = engine.start(&stage.server);
    let line = stage.proxy.wait_for_line("(403)");
    assert!(line.contains("cscli bouncers add realpeer"), "{line}");
    assert!(line.contains(&engine.key_file()), "{line}");
    std::fs::write(engine.key_file(), key).expect("write");
    wait_for_update(&ctl);
    // Of the report that 1.4.6 does not know, nothing is said.
    let lines = stage.proxy.stdout();
    assert!(
        !lines.iter().any(|line| line.contains("usage")),
        "{lines:?}"
    );
    drop(running);
}

#[test]
fn a_key_that_others_may_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let (ctl, engine) = (Ctl::new(), Engine::new());
    std::fs::set_permissions(engine.key_file(), std::fs::Permissions::from_mode(0o644))
        .expect("chmod");
    let (stage, _files) = stage(&ctl, &engine, "");
    let line = stage.proxy.wait_for_line("may read the CrowdSec API key");
    assert!(
        line.contains("WARN") && line.contains(&engine.key_file()),
        "{line}"
    );
}

#[test]
fn an_engine_with_tls_is_trusted_by_its_ca_alone() {
    let (ctl, engine) = (Ctl::new(), Engine::with_tls());
    let ca = format!("tls-ca-file = \"{}\"", engine.path("ca.pem"));
    let (trusting, _files) = stage(&ctl, &engine, &ca);
    let _running = engine.start(&trusting.server);
    wait_for_update(&ctl);
    let other = Ctl::new();
    let (wary, _files) = stage(&other, &engine, "");
    let _other_engine = engine.start(&wary.server);
    wary.proxy.wait_for("distrust", |line| {
        line.contains("cannot reach") && line.to_lowercase().contains("certificate")
    });
}

#[test]
fn flags_are_enough() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let flags = engine.flags();
    let control = ctl.path();
    let mut words = vec!["-control", &control];
    words.extend(flags.iter().map(String::as_str));
    let stage = Stage::new(&words);
    let _running = engine.start(&stage.server);
    wait_for_update(&ctl);
    let shown = Program::Realpeer.run(&stage.server, &["config", "show", "-control", &control]);
    assert!(
        shown
            .stdout
            .contains("[crowdsec]\nurl = \"http://127.0.0.1:8080\""),
        "{}",
        shown.stdout
    );
    let translate: Vec<&str> = ["config", "from-flags"]
        .into_iter()
        .chain(words.clone())
        .collect();
    let file = Program::Realpeer.run(&stage.server, &translate).stdout;
    let files = TempDir::new();
    let path = files.file("realpeer.toml", &file);
    let good = Program::Realpeer.run(&stage.server, &["config", "check", &path]);
    assert_eq!(good.code, 0, "{}{file}", good.stderr);
    assert!(
        file.contains(&format!("api-key-file = \"{}\"", engine.key_file())),
        "{file}"
    );
}

#[test]
fn mistakes_in_the_table_are_told() {
    let files = TempDir::new();
    let host = support::Host::new("server");
    let path = files.file(
        "realpeer.toml",
        "[crowdsec]\nurl = \"ftp://x\"\nscopes = [\"country\"]\norigin = \"x\"\n[[listener]]\nname = \"a\"\nlisten = \":1\"\n",
    );
    let ended = Program::Realpeer.run(&host, &["config", "check", &path]);
    assert_eq!(ended.code, 1);
    for text in [
        ":2:7: url: found \"ftp://x\"; write a URL",
        "write ip, range or both",
        "unknown key origin; did you mean origins?",
        "api-key-file is missing",
    ] {
        assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
    }
}

#[test]
fn a_million_decisions_are_taken_in_while_messages_go_on() {
    let ctl = Ctl::new();
    let engine = Engine::new();
    let packed = stream_of(1_000_000);
    let (stage, _files) = stage(&ctl, &engine, "");
    let mut bad = Vec::new();
    let good = stage.session(CLIENT);
    bad.push(stage.session("10.0.0.0:40000".replace("10.0.0.0", "10.0.0.3").as_str()));
    let fake = FakeEngine::start(&stage.server, move |line, stream| {
        match line.contains("startup=true") {
            true => reply(stream, "200 OK", "Content-Encoding: gzip\r\n", &packed),
            false => reply(stream, "200 OK", "", NOTHING),
        }
    });
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let mut messages = 0;
    while !support::streams::has_ended(&bad[0].near) {
        assert!(
            began.elapsed() < 20 * support::DEADLINE,
            "the million never came"
        );
        let sent = Instant::now();
        assert_carries(&good.near, &good.far);
        longest = longest.max(sent.elapsed());
        messages += 1;
    }
    println!(
        "a million in {:?}; longest of {messages} messages {longest:?}",
        began.elapsed()
    );
    wait_for_decisions(&ctl, 1_000_000);
    refused(&stage, "10.0.0.6:1");
    stage.session("10.0.0.7:1");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", stage.proxy.pid())).expect("status");
    let memory = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("VmHWM");
    println!("{memory}");
    let kib: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    assert!(kib < 400 * 1024, "{memory}");
    // The list of a million holds nobody up.
    let listed = ctl.run("-json bans -origin crowdsec");
    assert_eq!(listed.stdout.lines().count(), 1_000_001);
    assert!(fake.count("GET /v1/decisions/stream?startup=true") == 1);
}

#[test]
fn garbage_cut_and_endless_answers_harm_nothing() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let number = std::sync::atomic::AtomicUsize::new(0);
    let ban = |id: u32| {
        format!(
            r#"{{"duration":"1h","id":{id},"origin":"o","scenario":"s","scope":"Ip","type":"ban","value":"203.0.113.{id}"}}"#
        )
    };
    let good = format!(
        r#"{{"deleted":null,"new":[{},{{"id":9,"type":"ban","scope":"Ip","value":"nonsense","duration":"1h"}}]}}"#,
        ban(7)
    );
    let fake = FakeEngine::start(&stage.server, move |line, stream| {
        if !line.contains("/v1/decisions/stream") {
            return reply(stream, "404 Not Found", "", b"");
        }
        let whole = line.contains("startup=true");
        let count = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match count {
            0 => reply(stream, "200 OK", "", good.as_bytes()),
            1 => reply(stream, "200 OK", "", b"\x00\xff<html>"),
            2 => {
                assert!(whole, "after a failure everything is asked for");
                let text = format!(r#"{{"deleted":null,"new":[{},"#, ban(8));
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len() + 100
                );
                let _ = stream.write_all(head.as_bytes());
            }
            3 => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"new\":[{\"value\":\"");
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
            }
            4 => reply(stream, "500 Internal Server Error", "", b"{}"),
            _ => reply(stream, "200 OK", "", good.as_bytes()),
        }
    });
    wait_for_decisions(&ctl, 1);
    wait_until("each was tried", || {
        fake.count("GET /v1/decisions/stream") > 5
    });
    for words in ["cannot be used", "too long", "answered 500"] {
        stage.proxy.wait_for_line(words);
    }
    refused(&stage, CLIENT);
    // What the answer that was cut said is forgotten with the next full one.
    wait_for_decisions(&ctl, 1);
    stage.session("203.0.113.8:1");
    stage.assert_serves();
    assert!(told(&ctl)["ignored"]["unreadable"].as_u64() > Some(0));
}

#[test]
fn use_is_reported_where_the_engine_knows_reports() {
    let (ctl, engine) = (Ctl::new(), Engine::new());
    let (stage, _files) = stage(&ctl, &engine, "");
    let answer = br#"{"deleted":null,"new":[{"duration":"1h","id":1,"origin":"CAPI","scenario":"s","scope":"Ip","type":"ban","value":"203.0.113.7"}]}"#;
    let fake = FakeEngine::start(&stage.server, |line, stream| {
        match line.starts_with("POST") {
            true => reply(stream, "201 Created", "", b""),
            false => reply(stream, "200 OK", "", answer),
        }
    });
    wait_until("a report came", || {
        fake.count("POST /v1/usage-metrics") == 1
    });
    let requests = fake.requests.lock().expect("no panic").clone();
    let (_, body) = requests
        .iter()
        .find(|(line, _)| line.starts_with("POST"))
        .expect("it came");
    let report: Value = serde_json::from_str(body).expect("JSON");
    let component = &report["remediation_components"][0];
    assert_eq!(component["type"], "realpeer");
    assert!(component["version"].is_string() && component["utc_startup_timestamp"].is_u64());
    let items = component["metrics"][0]["items"].as_array().expect("items");
    let active = items
        .iter()
        .find(|item| item["name"] == "active_decisions")
        .expect("active");
    assert_eq!(
        (&active["value"], &active["labels"]["origin"]),
        (&1.into(), &"CAPI".into())
    );
    assert!(
        items
            .iter()
            .any(|item| item["name"] == "processed" && item["unit"] == "request")
    );
    drop(ctl);
}

#[test]
fn the_acquisition_files_of_the_page_are_read_by_the_engine() {
    let engine = Engine::new();
    let host = support::Host::new("server");
    let directory = repository("examples/crowdsec/acquis.d");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("the page's files") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("read");
        let verdict = engine.accepts_acquisition(&host, &text);
        assert_eq!(verdict, Ok(()), "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 2);
    let nonsense = engine.accepts_acquisition(&host, "source: nonsense\nlabels: {type: syslog}\n");
    assert!(nonsense.is_err());
}

#[test]
fn the_file_of_the_page_is_good() {
    let host = support::Host::new("server");
    let files = TempDir::new();
    let text =
        std::fs::read_to_string(repository("examples/crowdsec/realpeer.toml")).expect("read");
    let balancers = files.file("balancers", "192.0.2.5\n");
    let path = files.file(
        "realpeer.toml",
        &text.replace("/etc/realpeer/balancers", &balancers),
    );
    let ended = Program::Realpeer.run(&host, &["config", "check", &path]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}
