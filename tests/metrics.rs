//! `-metrics`: counters that move with real traffic, readiness, and clients that mean no good.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::datagrams::{every, open};
use support::header::v1;
use support::http::{Answer, ask, get, read};
use support::site::{converse, listener, udp};
use support::stage::{ADDRESSES, CLIENT, VISITED};
use support::streams::{assert_carries, assert_closed, assert_reset, finish_sending, send};
use support::{Backend, Host, Program, Site, Stage, TempDir, repository, wait_until};

const AT: &str = "127.0.0.1:9150";
const METRICS: [&str; 2] = ["-metrics", AT];
const NINE: &str = "127.0.0.1:9000";
const SSH: &str = "192.0.2.10:2201";

/// The samples of a scrape, by name and labels.
type Samples = BTreeMap<String, f64>;

#[track_caller]
fn scrape(host: &Host) -> Samples {
    samples(&get(host, AT, "/metrics").body)
}

#[track_caller]
fn samples(text: &str) -> Samples {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse().expect("a number"))
    };
    lines.map(sample).collect()
}

#[track_caller]
fn value(samples: &Samples, name: &str) -> f64 {
    let found = samples.get(name);
    *found.unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
}

fn await_value(host: &Host, name: &str, expected: f64) {
    wait_until(&format!("{name} is {expected}"), || {
        scrape(host).get(name) == Some(&expected)
    });
}

fn refused(reason: &str) -> String {
    format!("realpeer_connections_refused_total{{listener=\"ssh\",reason=\"{reason}\"}}")
}

/// A TCP listener and one of UDP, with more lines for the first.
fn both(more: &str) -> String {
    format!("metrics = \"{AT}\"\n")
        + &listener("ssh", "0.0.0.0:2201", NINE, more)
        + &udp("dns", "0.0.0.0:2202", NINE, "")
}

#[test]
fn counters_move_with_the_traffic() {
    let site = Site::new(&both(""));
    let host = &site.server;
    let (backend, udp_backend) = (Backend::listen(host, NINE), open(host, NINE));
    let ssh = |name: &str| format!("{name}{{listener=\"ssh\"}}");
    let before = scrape(host);
    assert_eq!(
        value(&before, &ssh("realpeer_connections_accepted_total")),
        0.0
    );

    let session = site.session(SSH, &backend, CLIENT);
    let now = scrape(host);
    for (name, expected) in [
        ("realpeer_connections_accepted_total", 1.0),
        ("realpeer_connections_served_total", 1.0),
        ("realpeer_connections_open", 1.0),
        ("realpeer_header_duration_seconds_count", 1.0),
        ("realpeer_backend_connect_duration_seconds_count", 1.0),
        ("realpeer_listener_accepting", 1.0),
    ] {
        assert_eq!(value(&now, &ssh(name)), expected, "{name}");
    }
    for name in [
        "realpeer_header_duration",
        "realpeer_backend_connect_duration",
    ] {
        assert!(
            value(&now, &ssh(&format!("{name}_seconds_sum"))) > 0.0,
            "{name}"
        );
        let all = format!("{name}_seconds_bucket{{listener=\"ssh\",le=\"+Inf\"}}");
        assert_eq!(value(&now, &all), 1.0);
    }

    // A second client of the same port gets another one.
    let other = site.balancer.dial(SSH);
    send(&other, v1(CLIENT, VISITED));
    let (far, _) = backend.accept();
    assert_carries(&other, &far);
    assert_eq!(
        value(&scrape(host), &ssh("realpeer_port_fallbacks_total")),
        1.0
    );

    finish_sending(&session.near);
    finish_sending(&session.far);
    assert_closed(&session.near);
    await_value(host, &ssh("realpeer_connections_open"), 1.0);
    let bytes = |way: &str| format!("realpeer_bytes_total{{listener=\"ssh\",direction=\"{way}\"}}");
    await_value(host, &bytes("up"), "there".len() as f64);
    await_value(host, &bytes("down"), "and back".len() as f64);

    let near = site.socket("192.0.2.10:2202");
    converse(&near, &udp_backend, CLIENT);
    near.send(b"no header").expect("send");
    await_value(
        host,
        "realpeer_udp_dropped_total{listener=\"dns\",reason=\"headerAbsent\"}",
        1.0,
    );
    let now = scrape(host);
    for (name, expected) in [
        ("realpeer_udp_flows_opened_total{listener=\"dns\"}", 1.0),
        ("realpeer_udp_flows_open{listener=\"dns\"}", 1.0),
        ("realpeer_udp_flows_evicted_total{listener=\"dns\"}", 0.0),
        (
            "realpeer_udp_datagrams_total{listener=\"dns\",direction=\"up\"}",
            1.0,
        ),
        (
            "realpeer_udp_datagrams_total{listener=\"dns\",direction=\"down\"}",
            1.0,
        ),
        (
            "realpeer_bytes_total{listener=\"dns\",direction=\"up\"}",
            5.0,
        ),
        ("realpeer_bans", 0.0),
        ("realpeer_ready", 1.0),
        ("realpeer_routing_repairs_total", 0.0),
        ("realpeer_config_reloads_total{result=\"success\"}", 0.0),
        (
            concat!(
                "realpeer_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"}"
            ),
            1.0,
        ),
    ] {
        assert_eq!(value(&now, name), expected, "{name}");
    }
    let fds = format!("/proc/{}/fd", site.proxy.pid());
    let open = fs::read_dir(fds).expect("list the descriptors").count() as f64;
    assert!(
        (value(&now, "process_open_fds") - open).abs() < 10.0,
        "{open} {now:?}"
    );
    assert!(value(&now, "process_max_fds") > open);
    let uptime = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs_f64()
        - value(&now, "process_start_time_seconds");
    assert!((0.0..3600.0).contains(&uptime), "{uptime}");

    site.ctl.ok("ban 203.0.113.7 -listener ssh");
    let now = scrape(host);
    assert_eq!(value(&now, "realpeer_bans"), 1.0);
    assert_eq!(
        value(
            &now,
            "realpeer_sessions_ended_total{listener=\"ssh\",reason=\"killed\"}"
        ),
        1.0
    );
    let told = site.reload(&both("").replace(AT, "127.0.0.1:9151"));
    assert!(told.contains("metrics needs a restart"), "{told}");
    site.write("nonsense");
    assert_eq!(site.ctl.run("reload").code, 1);
    let now = scrape(host);
    assert_eq!(
        value(&now, "realpeer_config_reloads_total{result=\"success\"}"),
        1.0
    );
    assert_eq!(
        value(&now, "realpeer_config_reloads_total{result=\"failure\"}"),
        1.0
    );

    site.server
        .run(&["ip", "rule", "del", "from", "127.0.0.0/8", "iif", "lo"]);
    await_value(host, "realpeer_routing_repairs_total", 1.0);
}

#[test]
fn every_refusal_counts_by_its_reason() {
    let denied = "allowed-subnets = [\"192.0.2.5\"]\ndenied-clients = [\"203.0.113.50\"]\n\
                  max-connections-per-client = 1\nheader-timeout = \"300ms\"";
    let small = listener("small", "0.0.0.0:2203", NINE, "max-connections = 1");
    let site = Site::new(&(both(denied) + &small));
    let host = &site.server;
    let by = |bytes: Vec<u8>| {
        let near = site.balancer.dial(SSH);
        send(&near, bytes);
        near
    };
    let stranger = site.balancer.try_dial(Some("192.0.2.6:0"), SSH);
    support::streams::assert_turned_away(stranger);
    finish_sending(&site.balancer.dial(SSH));
    let cut = by(b"PROXY ".to_vec());
    finish_sending(&cut);
    assert_closed(&site.balancer.dial(SSH));
    assert_closed(&by(b"SSH-2.0-x\r\n".to_vec()));
    assert_closed(&by(b"PROXY TCP4 nonsense\r\n".to_vec()));
    assert_closed(&by(v1("127.0.0.1:1", VISITED)));
    assert_reset(&by(v1("203.0.113.50:1", VISITED)));
    site.ctl.ok("ban 203.0.113.9");
    assert_reset(&by(v1("203.0.113.9:1", VISITED)));
    assert_reset(&by(v1(CLIENT, VISITED)));
    let backend = Backend::listen(host, NINE);
    let one = site.session(SSH, &backend, CLIENT);
    assert_reset(&by(v1("203.0.113.7:9", VISITED)));
    let small = "192.0.2.10:2203";
    let two = site.session(small, &backend, "203.0.113.8:1");
    support::streams::assert_turned_away(site.balancer.try_dial(None, small));
    let too_many = refused("tooManyConnections").replace("ssh", "small");
    await_value(host, &too_many, 1.0);
    drop((one, two));
    for reason in [
        "peerNotAllowed",
        "silent",
        "headerCut",
        "headerTimeout",
        "headerAbsent",
        "headerBad",
        "bogusClient",
        "clientDenied",
        "banned",
        "upstreamFailed",
        "tooManyOfClient",
    ] {
        await_value(host, &refused(reason), 1.0);
    }
    let zero = [
        "tooManyConnections",
        "clientNotAllowed",
        "drained",
        "targetIsListener",
        "badDestination",
        "targetGone",
    ];
    for reason in zero {
        assert_eq!(value(&scrape(host), &refused(reason)), 0.0, "{reason}");
    }
    let all = scrape(host);
    let reasons = all
        .keys()
        .filter(|name| name.starts_with("realpeer_connections_refused_total{listener=\"ssh\""));
    assert_eq!(
        reasons.count(),
        11 + zero.len(),
        "another reason is to be tested here"
    );
}

#[test]
fn both_formats_are_spoken_and_prometheus_finds_no_fault() {
    let site = Site::new(&both(""));
    let host = &site.server;
    let plain = get(host, AT, "/metrics");
    assert_eq!(
        plain.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(
        plain
            .body
            .contains("# TYPE realpeer_connections_accepted_total counter\n")
    );
    let accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5";
    let open = ask(
        host,
        AT,
        &format!("GET /metrics HTTP/1.1\r\nHost: {AT}\r\nAccept: {accept}\r\n\r\n"),
    );
    let kind = open.header("content-type");
    assert_eq!(
        kind,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(
        open.body
            .contains("# TYPE realpeer_connections_accepted counter\n")
    );
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    // The labels stand in another order.
    let families = |text: &str| {
        let names = samples(text).into_keys();
        names
            .map(|name| name.split('{').next().map(str::to_owned))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        families(&plain.body),
        families(&open.body),
        "both say the same"
    );
    assert_eq!(samples(&plain.body).len(), samples(&open.body).len());
    promtool(&["check", "metrics"], &plain.body);
}

/// Runs promtool, which must find nothing.
#[track_caller]
fn promtool(words: &[&str], input: &str) {
    let host = Host::new("prometheus");
    let mut command = host.command("promtool");
    command.args(words).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is there");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "{words:?}: {said}"
    );
}

/// What the shipped files name, scraped with listeners of both protocols, has to be there.
#[test]
fn the_shipped_alerts_and_dashboard_name_what_there_is() {
    let (alerts, board) = (
        "packaging/prometheus/alerts.yml",
        "packaging/grafana/realpeer.json",
    );
    promtool(
        &["check", "rules", &repository(alerts).display().to_string()],
        "",
    );
    let alerts = fs::read_to_string(repository(alerts)).expect("the alerts");
    let board = fs::read_to_string(repository(board)).expect("the dashboard");
    let board_json: Value = serde_json::from_str(&board).expect("JSON");
    let variables = board_json["templating"]["list"]
        .as_array()
        .expect("variables");
    assert!(
        variables
            .iter()
            .any(|variable| variable["type"] == "datasource")
    );
    let mut ids = Vec::new();
    for panel in board_json["panels"].as_array().expect("panels") {
        ids.push(panel["id"].as_u64().expect("an id"));
        let queries = panel["targets"].as_array().cloned().unwrap_or_default();
        assert!(panel["type"] == "row" || !queries.is_empty(), "{panel}");
        for query in queries {
            let expression = query["expr"].as_str().expect("an expression");
            let expression = expression
                .replace("$__rate_interval", "5m")
                .replace("$__range", "1h");
            let rule = serde_json::json!({"groups": [{"name": "a", "rules": [
                {"record": "a:b", "expr": expression}]}]});
            let files = TempDir::new();
            let rule = files.file("rule.yml", &rule.to_string());
            promtool(&["check", "rules", &rule], "");
        }
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids differ");

    let site = Site::new(&both(""));
    let scraped = get(&site.server, AT, "/metrics").body;
    let there = |name: &str| {
        let mut lines = scraped.lines();
        lines.any(|line| line.split(['{', ' ']).next() == Some(name))
    };
    for (file, text) in [("alerts", &alerts), ("dashboard", &board)] {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names = words.filter(|word| {
            word.starts_with("realpeer_") || word.starts_with("process_") && *word != "process_"
        });
        let names: Vec<_> = names.collect();
        assert!(names.len() > 5, "{names:?}");
        for name in names {
            assert!(there(name), "{name} of the {file} is not in {scraped}");
        }
    }
}

#[track_caller]
fn await_ready(host: &Host) {
    wait_until("it is ready", || get(host, AT, "/readyz").status == 200);
    assert_eq!(get(host, AT, "/readyz").body, "ready\n");
}

#[track_caller]
fn not_ready(host: &Host, why: &str) -> Answer {
    let mut answer = get(host, AT, "/readyz");
    wait_until(&format!("not ready: {why}"), || {
        answer = get(host, AT, "/readyz");
        answer.status == 503 && answer.body.contains(why)
    });
    assert_eq!(get(host, AT, "/healthz").body, "alive\n");
    assert_eq!(value(&scrape(host), "realpeer_ready"), 0.0);
    answer
}

#[test]
fn readiness_tells_a_target_that_refuses_until_it_serves_again() {
    let site = Site::new(&both(""));
    let host = &site.server;
    await_ready(host);
    let near = site.balancer.dial(SSH);
    send(&near, v1(CLIENT, VISITED));
    assert_reset(&near);
    not_ready(
        host,
        "listener ssh: the target 127.0.0.1:9000 refuses connections",
    );
    let backend = Backend::listen(host, NINE);
    site.session(SSH, &backend, CLIENT);
    await_ready(host);
    drop(backend);

    // What is wrong with one client says nothing of the target.
    assert_closed(&{
        let near = site.balancer.dial(SSH);
        send(&near, v1("127.0.0.1:1", VISITED));
        near
    });
    await_value(host, &refused("bogusClient"), 1.0);
    await_ready(host);

    let near = site.socket("192.0.2.10:2202");
    wait_until("the backend's host rejects datagrams", || {
        near.send(&every(CLIENT, b"there")).expect("send");
        get(host, AT, "/readyz").status == 503
    });
    not_ready(
        host,
        "listener dns: the target 127.0.0.1:9000 refuses connections",
    );
    let udp_backend = open(host, NINE);
    wait_until("a datagram comes back", || {
        near.send(&every(CLIENT, b"there")).expect("send");
        let (_, from) = support::datagrams::receive(&udp_backend);
        udp_backend.send_to(b"and back", from).expect("answer");
        get(host, AT, "/readyz").status == 200
    });
}

#[test]
fn readiness_tells_missing_routing_and_drained_listeners() {
    let site = Site::new(&both(""));
    let host = &site.server;
    site.ctl.ok("drain dns");
    assert_eq!(
        not_ready(host, "listener dns is drained").body,
        "listener dns is drained\n"
    );
    site.ctl.ok("resume dns");
    await_ready(host);
    drop(site);

    // Nobody puts routing in: what is there now counts.
    let stage = Stage::new(&[&METRICS[..], &["-routing", "off"]].concat());
    let missing = not_ready(
        &stage.server,
        "replies of 127.0.0.1:9000 will not come back",
    );
    assert!(missing.body.contains("[::1]:9000"), "{}", missing.body);
    let program = Program::Realpeer.path();
    let up = [&[&program[..], "routing", "up"], &ADDRESSES[2..]].concat();
    stage.server.run(&up);
    await_ready(&stage.server);
}

#[test]
fn it_answers_until_the_last_session_has_ended() {
    let mut stage = Stage::new(&[&METRICS[..], &["-drain-timeout", "60s"]].concat());
    let session = stage.session(CLIENT);
    stage.proxy.signal(Signal::SIGTERM);
    let answer = not_ready(&stage.server, "realpeer is stopping");
    assert_eq!(
        answer.body,
        "realpeer is stopping: open sessions are finished\n"
    );
    assert_carries(&session.near, &session.far);
    let open = "realpeer_connections_open{listener=\"0.0.0.0:2222\"}";
    assert_eq!(
        value(&scrape(&stage.server), open),
        1.0,
        "its address is its name"
    );
    assert!(
        get(&stage.server, AT, "/")
            .body
            .contains("realpeer is stopping")
    );
    drop(session);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert!(stage.server.try_dial(None, AT).is_err());
}

#[test]
fn only_reading_is_possible_and_only_what_there_is() {
    let stage = Stage::new(&METRICS);
    let host = &stage.server;
    let with = |method: &str, path: &str| {
        ask(
            host,
            AT,
            &format!("{method} {path} HTTP/1.1\r\nHost: {AT}\r\n\r\n"),
        )
    };
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        for path in ["/", "/metrics", "/nothing"] {
            let answer = with(method, path);
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, "GET, HEAD"),
                "{method}"
            );
        }
    }
    for path in ["/nothing", "/metrics/", "/../etc/passwd", "//"] {
        assert_eq!(get(host, AT, path).status, 404, "{path}");
    }
    for path in [
        "/",
        "/status.json",
        "/metrics",
        "/healthz",
        "/readyz",
        "/style.css",
        "/script.js",
    ] {
        let (whole, head) = (with("GET", path), with("HEAD", path));
        assert_eq!((whole.status, head.status), (200, 200), "{path}");
        assert!(!whole.body.is_empty() && head.body.is_empty(), "{path}");
        assert_eq!(whole.header("content-type"), head.header("content-type"));
        for (name, expected) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                 frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            ),
        ] {
            assert_eq!(whole.header(name), expected, "{path}");
        }
    }
    for foreign in ["evil.example:9150", "evil.example"] {
        let request = format!("GET /status.json HTTP/1.1\r\nHost: {foreign}\r\n\r\n");
        let answer = ask(host, AT, &request);
        assert_eq!(answer.status, 421, "{}", answer.body);
        assert!(!answer.body.contains("pid"));
    }
    let old = ask(host, AT, "GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 200);
}

#[test]
fn the_status_is_there_for_programs() {
    let site = Site::new(&both(""));
    let backend = Backend::listen(&site.server, NINE);
    let _session = site.session(SSH, &backend, CLIENT);
    site.ctl.ok("ban 203.0.113.9 -reason why");
    let answer = get(&site.server, AT, "/status.json");
    assert_eq!(answer.header("content-type"), "application/json");
    let status: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(status["pid"], site.proxy.pid());
    assert_eq!((&status["open"], &status["bans"]), (&1.into(), &1.into()));
    assert_eq!(status["listeners"][0]["counts"]["served"], 1);
    assert_eq!(status["clients"][0]["address"], "203.0.113.7");
    assert_eq!(status["newestBans"][0]["reason"], "why");
    assert_eq!(status["notReady"], serde_json::json!([]));
    assert!(
        status["advice"][0]
            .as_str()
            .expect("a text")
            .contains("no -allowed-subnets")
    );
    wait_until("the rate shows in the first seconds", || {
        site.session(SSH, &backend, "203.0.113.8:1");
        let answer = get(&site.server, AT, "/status.json");
        let status: Value = serde_json::from_str(&answer.body).expect("JSON");
        status["rates"]["ssh"]["accepted"]
            .as_f64()
            .expect("a number")
            > 0.0
    });
}

/// Clients that send nothing, too much, or rubbish, do not read, or are too many: the proxy serves on,
/// and when they are gone it answers again.
#[test]
fn hostile_clients_never_slow_the_proxy() {
    let stage = Stage::new(&METRICS);
    let host = &stage.server;
    let session = stage.session(CLIENT);
    let fds = || {
        let list = fs::read_dir(format!("/proc/{}/fd", stage.proxy.pid()));
        list.expect("list the descriptors").count()
    };
    let before = fds();
    let mut long = host.dial(AT);
    // It is cut off: whether while we write or while we read is chance.
    let _ = long.write_all(&[b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat());
    let mut answer = Vec::new();
    let _ = long.read_to_end(&mut answer);
    assert!(
        !answer.starts_with(b"HTTP/1.1 200"),
        "a head without end is answered"
    );
    for rubbish in [
        "rubbish\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = host.dial(AT);
        send(&stream, rubbish);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{rubbish:?}");
    }
    let silent: Vec<_> = (0..100)
        .filter_map(|_| host.try_dial(None, AT).ok())
        .collect();
    wait_until("those that are too many are turned away", || {
        fds() <= before + 16
    });
    for n in 1..100 {
        assert_carries(&session.near, &session.far);
        stage.session(&format!("203.0.113.9:{n}"));
    }
    // They need not go by themselves.
    wait_until("it answers again", || {
        let Ok(stream) = host.try_dial(None, AT) else {
            return false;
        };
        let _ =
            (&stream).write_all(format!("GET /healthz HTTP/1.1\r\nHost: {AT}\r\n\r\n").as_bytes());
        let mut answer = Vec::new();
        let _ = (&stream).read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200")
    });
    drop(silent);
    let deaf = host.dial(AT);
    send(&deaf, format!("GET / HTTP/1.1\r\nHost: {AT}\r\n\r\n"));
    assert_carries(&session.near, &session.far);
    assert_eq!(read(deaf).status, 200);
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_that_helps() {
    let (host, taken) = (Host::new("host"), AT);
    let _holder = Backend::listen(&host, taken);
    for (address, expected) in [
        (
            taken,
            "-metrics: cannot listen on 127.0.0.1:9150: Address already in use (os error 98): another program has the port: `ss -ltnp 'sport = 9150'` shows which; stop it, or choose another port with -metrics",
        ),
        (
            "192.0.2.99:9150",
            "-metrics: cannot listen on 192.0.2.99:9150: Cannot assign requested address (os error 99): no interface of this host has the address: `ip address` lists those it has",
        ),
    ] {
        let flags = [&ADDRESSES[..], &["-metrics", address]].concat();
        let ended = Program::Realpeer.run(&host, &flags);
        assert_eq!(ended.code, 1);
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains(expected), "{said}");
        assert!(
            !host.run(&["ip", "rule"]).contains("8193"),
            "nothing was changed"
        );
    }
    let ended = Program::Realpeer.run(&host, &["-metrics", "9150"]);
    let expected = "write an address and a port, such as 127.0.0.1:9150 or [::1]:9150";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
}
