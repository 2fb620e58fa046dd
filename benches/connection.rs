//! A new connection: accept, header, connect in the client's name, four bytes to and fro, and the
//! end of both sides in order.

mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::Shutdown;

use criterion::Criterion;
use scene::client::{receive, send};
use scene::{Relayed, Way};
use support::Host;

fn main() {
    scene::run(connections);
}

fn connections(criterion: &mut Criterion, host: &Host) {
    let relayed = Relayed::start(host);
    let mut group = criterion.benchmark_group("a connection");
    for (way, name) in Way::BOTH {
        group.bench_function(name, |b| b.iter(|| one(&relayed, way)));
    }
    let inside = Relayed::start_inside(host);
    group.bench_function("realpeer -target-netns", |b| {
        b.iter(|| one(&inside, Way::Inside));
    });
}

/// One thread plays both the client and the backend, for they take turns.
fn one(relayed: &Relayed, way: Way) {
    let mut word = [0; 4];
    let (near, far) = relayed.connect(way, b"ping");
    receive(&far, &mut word).expect("the word");
    send(&far, &word);
    receive(&near, &mut word).expect("the word back");
    near.shutdown(Shutdown::Write)
        .expect("finish as the client");
    assert_eq!(far.peek(&mut word).expect("the client's end"), 0);
    drop(far);
    assert_eq!(near.peek(&mut word).expect("the backend's end"), 0);
}
