//! Bytes through the real program, beside the same bytes without it.

mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use scene::client::{receive, send};
use scene::{Relayed, Way};
use support::Host;

const KIB: usize = 1 << 10;
const BULK: usize = 64 << 20;

fn main() {
    scene::run(|criterion, host| {
        messages(criterion, host);
        transfers(criterion, host);
    });
}

/// One message to the backend and back again.
fn messages(criterion: &mut Criterion, host: &Host) {
    for (name, size) in [
        ("6 B", 6),
        ("1 KiB", KIB),
        ("16 KiB", 16 * KIB),
        ("256 KiB", 256 * KIB),
    ] {
        compare(criterion, host, &format!("{name} to and fro"), size, size);
    }
}

/// Much in one direction, acknowledged by one byte in the other.
fn transfers(criterion: &mut Criterion, host: &Host) {
    compare(criterion, host, "64 MiB up", BULK, 1);
    compare(criterion, host, "64 MiB down", 1, BULK);
}

/// Measures an exchange of `up` bytes for `down` bytes, direct and through realpeer.
fn compare(criterion: &mut Criterion, host: &Host, name: &str, up: usize, down: usize) {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Bytes((up + down) as u64))
        .warm_up_time(Duration::from_secs(1))
        .sample_size(if up + down > BULK { 10 } else { 50 })
        .measurement_time(Duration::from_secs(4));
    let relayed = Relayed::start(host);
    for (way, name) in Way::BOTH {
        let (near, far) = relayed.connect(way, &[]);
        let backend = thread::spawn(move || answer(&far, up, down));
        let mut buffer = vec![0; Piece::MOST];
        group.bench_function(name, |b| {
            b.iter(|| {
                put(&near, up, &mut buffer);
                take(&near, down, &mut buffer).expect("the answer");
            });
        });
        drop(near);
        backend.join().expect("the backend does not panic");
    }
}

/// Plays the backend until the client closes.
fn answer(far: &TcpStream, up: usize, down: usize) {
    let mut buffer = vec![0; Piece::MOST];
    while take(far, up, &mut buffer).is_ok() {
        put(far, down, &mut buffer);
    }
}

/// Bytes of an exchange that go in one call.
struct Piece;

impl Piece {
    const MOST: usize = 256 * KIB;

    fn sizes(total: usize) -> impl Iterator<Item = usize> {
        (0..total)
            .step_by(Piece::MOST)
            .map(move |at| (total - at).min(Piece::MOST))
    }
}

fn put(stream: &TcpStream, total: usize, buffer: &mut [u8]) {
    for size in Piece::sizes(total) {
        send(stream, &buffer[..size]);
    }
}

fn take(stream: &TcpStream, total: usize, buffer: &mut [u8]) -> io::Result<()> {
    Piece::sizes(total).try_for_each(|size| receive(stream, &mut buffer[..size]))
}
