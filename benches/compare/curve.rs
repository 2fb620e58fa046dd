//! What realpeer costs as work grows. Flat is good: the cost of a message should not depend on how
//! many connections or flows it is one of. HAProxy and nginx stand beside it, to tell what grows
//! in the kernel for everybody.

use crate::load::{self, Flows};
use crate::options::Options;
use crate::peers::{self, Peer};
use crate::run::{Run, Stage};
use crate::table::{cell, machine};

/// Messages in flight at once, however many connections there are: what changes is only how many
/// the work is spread over.
const IN_FLIGHT: usize = 50;

const CONNECTIONS: [usize; 5] = [1, 10, 100, 1_000, 9_000];
/// The most that the usual limit of 20,000 open files carries, less some for everything else.
const FLOWS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 19_000];

/// So many bring what is there once for all, such as buffers of each thread.
const FIRST: usize = 16;

/// Measures and prints both curves.
pub fn run(stage: &Stage, options: &Options) {
    let (peers, _) = peers::installed(&["realpeer", "haproxy", "nginx"].map(str::to_owned));
    println!("{}", machine(&format!("{} s each", options.secs)));
    println!("| | connections | CPU µs/message | KiB/connection | median, µs | 99%, µs |");
    println!("|---|---:|---:|---:|---:|---:|");
    for peer in &peers {
        for count in CONNECTIONS {
            connections(stage, peer, count, options.secs);
        }
    }
    println!("\n| | UDP flows | CPU µs/datagram | KiB/flow | lost, % |");
    println!("|---|---:|---:|---:|---:|");
    for count in FLOWS {
        flows(stage, &peers[0], count, options.secs);
    }
}

fn connections(stage: &Stage, peer: &Peer, count: usize, secs: u64) {
    let run = Run::start(stage, peer, "echo");
    let _first = load::open(&run, FIRST);
    let empty = run.usage().expect("there is a proxy");
    let streams = load::open(&run, count);
    if streams.len() < count {
        println!(
            "| {} | {count} | carries {} only | | | |",
            peer.name,
            streams.len()
        );
        return;
    }
    let full = run.usage().expect("there is a proxy");
    let mut done = load::ping(streams, IN_FLIGHT, 6, secs);
    let after = run.usage().expect("there is a proxy");
    let figures = [
        (after.cpu - full.cpu) * 1e6 / done.units as f64,
        (full.memory - empty.memory) / count as f64,
        done.percentile(0.5),
        done.percentile(0.99),
    ];
    row(peer, count, &figures);
}

fn flows(stage: &Stage, peer: &Peer, count: usize, secs: u64) {
    let run = Run::start(stage, peer, "udp");
    load::datagrams(&mut Flows::new(&run, FIRST, 64), 1);
    let empty = run.usage().expect("there is a proxy");
    let mut flows = Flows::new(&run, count, 64);
    // Opens every flow, which is another work than carrying it.
    load::datagrams(&mut flows, secs);
    let full = run.usage().expect("there is a proxy");
    let done = load::datagrams(&mut flows, secs);
    let after = run.usage().expect("there is a proxy");
    let figures = [
        (after.cpu - full.cpu) * 1e6 / done.units as f64,
        (full.memory - empty.memory) / count as f64,
        100.0 * done.lost as f64 / (done.lost + done.units) as f64,
    ];
    row(peer, count, &figures);
}

fn row(peer: &Peer, count: usize, figures: &[f64]) {
    let cells: Vec<String> = figures.iter().map(|figure| cell(Some(*figure))).collect();
    println!("| {} | {count} | {} |", peer.name, cells.join(" | "));
}
