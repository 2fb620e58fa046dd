//! Looking a peer up in a list of networks, and a client among the bans: once a connection, with
//! lists of any length.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use realpeer::program::internals::{Ban, Bans, Cause, Decision, Decisions, Networks};

criterion_group!(benches, look_up, look_up_ban, look_up_decision);
criterion_main!(benches);

/// The networks of the list are 10.x.y.z/32 and 2001:db8:…/64 in turn, spread over the range.
fn list(length: u32) -> Networks {
    let mut networks = Networks::default();
    for number in 0..length {
        let network = if number % 2 == 0 {
            format!("{}/32", v4(number))
        } else {
            format!("{}/64", v6(number))
        };
        networks.insert(network.parse().expect("a network"));
    }
    networks
}

/// Addresses far apart from each other, so that look-ups go down different branches.
fn v4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 | (number.wrapping_mul(2_654_435_761) >> 8))
}

fn v6(number: u32) -> Ipv6Addr {
    let [a, b] = [number.wrapping_mul(2_654_435_761) >> 16, number & 0xffff].map(|n| n as u16);
    Ipv6Addr::new(0x2001, 0xdb8, a, b, 0, 0, 0, 0)
}

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admission");
    for length in [10, 1_000, 100_000] {
        let networks = list(length);
        let listed = |number: u32| -> IpAddr {
            match number % 2 {
                0 => v4(number).into(),
                _ => v6(number).into(),
            }
        };
        // Strangers live among the listed ones, where telling them apart takes longest.
        let stranger = |number: u32| IpAddr::from(v4(number | 1));
        assert!((0..length).all(|number| networks.contains(listed(number))));
        for (name, address) in [
            ("listed", &listed as &dyn Fn(u32) -> IpAddr),
            ("stranger", &stranger),
        ] {
            // Another address each time: one and the same would stay in the processor's cache.
            let asked: Vec<IpAddr> = (0..4096).map(|n| address(n * 7919 % length)).collect();
            let mut next = asked.iter().cycle();
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| networks.contains(*black_box(next.next().expect("it cycles"))));
            });
        }
    }
}

/// What a connection pays for the bans when its client has none.
fn look_up_ban(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bans");
    for length in [10, 1_000, 100_000] {
        let bans = Bans::default();
        for number in 0..length {
            let ban = Ban {
                network: IpAddr::from(v4(2 * number)).into(),
                listener: None,
                since: 0,
                until: None,
                reason: String::new(),
            };
            bans.ban(ban).expect("a ban in memory");
        }
        assert!(bans.find(v4(2 * length - 2).into(), None).is_some());
        let asked: Vec<IpAddr> = (0..4096)
            .map(|n| v4(2 * (n * 7919 % length) + 1).into())
            .collect();
        let mut next = asked.iter().cycle();
        group.bench_function(BenchmarkId::new("free", length), |b| {
            b.iter(|| bans.find(*black_box(next.next().expect("it cycles")), None));
        });
    }
}

/// So many decisions of a CrowdSec engine on single addresses, and one on a network.
fn decide(decisions: &Decisions, length: u32) {
    let cause = Arc::new(Cause::new("CAPI", "crowdsecurity/ssh-bf"));
    for number in 0..length {
        let network = match number {
            0 => "198.51.100.0/24".parse().expect("a network"),
            _ => IpAddr::from(v4(2 * number)).into(),
        };
        let decision = Decision {
            network,
            until: u64::from(u32::MAX),
            cause: Arc::clone(&cause),
        };
        decisions.insert(number.into(), 1, decision);
    }
}

/// What a connection pays for the decisions when its client has none, and what taking them in costs.
fn look_up_decision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decisions");
    group.sample_size(10);
    for length in [10, 1_000, 100_000, 1_000_000] {
        let bans = Bans::default();
        let before = resident();
        decide(&bans.decisions, length);
        let bytes = resident().saturating_sub(before);
        println!(
            "decisions/{length}: {} bytes each",
            bytes / u64::from(length)
        );
        assert!(bans.find(v4(2 * length - 2).into(), None).is_some());
        let asked: Vec<IpAddr> = (0..4096)
            .map(|n| v4(2 * (n * 7919 % length) + 1).into())
            .collect();
        let mut next = asked.iter().cycle();
        group.bench_function(BenchmarkId::new("free", length), |b| {
            b.iter(|| bans.find(*black_box(next.next().expect("it cycles")), None));
        });
        group.bench_function(BenchmarkId::new("take in", length), |b| {
            b.iter(|| decide(&Decisions::default(), length));
        });
    }
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = pages.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.expect("a number") * 4096
}
