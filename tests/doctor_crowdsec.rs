//! What the doctor says of a CrowdSec engine: not reachable, a wrong key, clocks apart.

mod support;

use support::crowdsec::{Engine, FakeEngine, reply};
use support::{Backend, Diagnosis, Host};

const BACKENDS: [&str; 4] = ["-4", "127.0.0.1:9000", "-6", "[::1]:9000"];

fn examine(host: &Host, engine: &Engine) -> Diagnosis {
    let flags = engine.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Diagnosis::of(host, &[&BACKENDS, &flags[..]].concat())
}

fn host() -> (Host, [Backend; 2]) {
    let host = Host::new("server");
    let backends = ["127.0.0.1:9000", "[::1]:9000"].map(|addr| Backend::listen(&host, addr));
    (host, backends)
}

#[test]
fn an_engine_that_does_not_answer_and_a_key_that_it_does_not_know() {
    let (host, _backends) = host();
    let engine = Engine::new();
    let words = [
        "cannot reach the CrowdSec engine at http://127.0.0.1:8080",
        "listen_uri",
    ];
    examine(&host, &engine).assert_only("crowdsec-unreachable", "failed", &words);
    let _running = engine.start(&host);
    let answer = examine(&host, &engine);
    answer.assert_healthy();
    assert!(answer.found("crowdsec-clock").contains("0 s apart"));
    engine.write_key("wrong");
    let words = ["(403)", "cscli bouncers add realpeer"];
    examine(&host, &engine).assert_only("crowdsec-key", "failed", &words);
}

#[test]
fn clocks_that_are_apart() {
    let (host, _backends) = host();
    let engine = Engine::new();
    let _fake = FakeEngine::start(&host, |_, stream| {
        let date = "Date: Tue, 01 Jan 2019 00:00:00 GMT\r\n";
        reply(stream, "200 OK", date, b"null");
    });
    let words = ["s behind this host's", "timedatectl"];
    examine(&host, &engine).assert_only("crowdsec-clock", "warning", &words);
}
