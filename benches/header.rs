//! Reading a header: what each connection pays before anything else.

// Of the tests' harness only the header builder is needed here.
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use realpeer::header::{Progress, Transport, parse};
use support::header::{ALPN, AUTHORITY, AWS, UNIQUE_ID, v1, v2};

const CLIENT: &str = "203.0.113.7:40000";
const VISITED: &str = "198.51.100.1:443";

criterion_group!(benches, whole, split);
criterion_main!(benches);

/// Headers as load balancers send them.
fn kinds() -> [(&'static str, Vec<u8>); 4] {
    let v6 = ("[2001:db8:c::7]:40000", "[2001:db8:b::1]:443");
    let with_tlvs = v2(CLIENT, VISITED)
        .tlv(ALPN, b"h2")
        .tlv(AUTHORITY, b"www.example.org")
        .tlv(UNIQUE_ID, &[7; 16])
        .tlv(AWS, b"\x01vpce-08d2bf15fac5001c9")
        .checksum();
    [
        ("v1", v1(CLIENT, VISITED)),
        ("v1 IPv6", v1(v6.0, v6.1)),
        ("v2", v2(CLIENT, VISITED).bytes()),
        ("v2 with TLVs and CRC32C", with_tlvs.bytes()),
    ]
}

fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    for (name, bytes) in kinds() {
        assert!(is_complete(&bytes), "{name}");
        group.bench_function(name, |b| {
            b.iter(|| parse(black_box(&bytes), Transport::Stream));
        });
    }
}

/// In four pieces: each new piece is another look at all that has come so far.
fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header in 4 pieces");
    for (name, bytes) in kinds() {
        let cuts = [1, 2, 3, 4].map(|quarter| bytes.len() * quarter / 4);
        group.bench_function(name, |b| {
            b.iter(|| {
                cuts.iter()
                    .any(|&cut| is_complete(black_box(&bytes[..cut])))
            });
        });
    }
}

fn is_complete(bytes: &[u8]) -> bool {
    matches!(parse(bytes, Transport::Stream), Ok(Progress::Complete(_)))
}
