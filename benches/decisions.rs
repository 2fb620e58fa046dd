//! The first stream of decisions of a CrowdSec engine: how long it takes until they are in force, and
//! how long a message of an open session takes at most meanwhile.

mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, SamplingMode};
use scene::client::{receive, send};
use scene::{Relayed, Way};
use support::crowdsec::{FakeEngine, NOTHING, reply, stream_of};
use support::{Host, TempDir};

/// Messages go on at least that long, so that a short stream shows what the machine does without one.
const SHORTEST: Duration = Duration::from_secs(1);

fn main() {
    scene::run(|criterion, host| {
        let mut group = criterion.benchmark_group("first stream");
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        let answer = Arc::new(Mutex::new(Vec::new()));
        let (asked, questions) = mpsc::channel();
        let packed = Arc::clone(&answer);
        let _engine = FakeEngine::start(host, move |line, stream| {
            let _ = asked.send(Instant::now());
            match line.contains("startup=true") {
                true => {
                    let body = packed.lock().expect("no panic");
                    reply(stream, "200 OK", "Content-Encoding: gzip\r\n", &body);
                }
                false => reply(stream, "200 OK", "", NOTHING),
            }
        });
        for count in [0, 1_000, 100_000, 1_000_000] {
            *answer.lock().expect("no panic") = stream_of(count);
            let first = |_| First::of(host, count, &questions);
            group.bench_function(BenchmarkId::new("longest message", count), |b| {
                b.iter_custom(|n| (0..n).map(first).map(|first| first.longest).sum());
            });
            if count > 0 {
                group.bench_function(BenchmarkId::new("in force", count), |b| {
                    b.iter_custom(|n| (0..n).map(first).map(|first| first.in_force).sum());
                });
            }
        }
    });
}

/// One start of the program, with a session whose messages go to and fro one after the other.
struct First {
    /// From the question until all sessions were looked through for the new bans.
    in_force: Duration,
    longest: Duration,
}

impl First {
    fn of(host: &Host, count: u32, questions: &Receiver<Instant>) -> First {
        let files = TempDir::new();
        let key = files.file("key", "a-key");
        let url = "http://127.0.0.1:8080";
        let flags = ["-crowdsec-url", url, "-crowdsec-key-file", &key];
        let relayed = Relayed::start_with(host, &flags);
        let (near, far) = relayed.connect_as(
            "198.51.100.8:40000".parse().expect("an address"),
            Way::Proxied,
            &[],
        );
        let began = Instant::now();
        let (mut longest, mut in_force) = (Duration::ZERO, None);
        while began.elapsed() < SHORTEST || (count > 0 && in_force.is_none()) {
            let sent = Instant::now();
            for (from, to) in [(&near, &far), (&far, &near)] {
                send(from, b"a word");
                receive(to, &mut [0; 6]).expect("the word");
            }
            longest = longest.max(sent.elapsed());
            let lines = relayed.proxy.stdout();
            if in_force.is_none() && lines.iter().any(|line| line.contains("are in force")) {
                in_force = Some(Instant::now());
            }
        }
        let asked = questions.recv().expect("it asks");
        while questions.try_recv().is_ok() {}
        First {
            in_force: in_force.unwrap_or(asked) - asked,
            longest,
        }
    }
}
