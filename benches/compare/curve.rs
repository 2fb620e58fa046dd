//! What realpeer costs as work grows. Flat is good: the cost of a message should not depend on how
//! many connections or flows it is one of. HAProxy and nginx stand beside it, to tell what grows
//! in the kernel for everybody.

use crate::load::{self, Flows};
use crate::options::Options;
use crate::peers::{self, Peer};
use crate::row::cell;
use crate::run::{Run, Stage};
use crate::table::machine;

/// Messages in flight at once, however many connections there are: what changes is only how many
/// the work is spread over.
const IN_FLIGHT: usize = 50;

/// Open connections, and those of them that carry messages.
const CONNECTIONS: [(usize, usize); 7] = [
    (1, 1),
    (10, 10),
    (100, 100),
    (1_000, 1_000),
    (1_000, 100),
    (9_000, 9_000),
    (9_000, 100),
];
/// Open flows, and those of them that carry datagrams; the most that the usual limit of 20,000 open
/// files carries, less some for everything else.
const FLOWS: [(usize, usize); 7] = [
    (1, 1),
    (10, 10),
    (100, 100),
    (1_000, 1_000),
    (10_000, 10_000),
    (19_000, 19_000),
    (19_000, 100),
];

/// So many bring what is there once for all, such as buffers of each thread.
const FIRST: usize = 16;

/// Measures and prints both curves.
pub fn run(stage: &Stage, options: &Options) {
    let (peers, _) = peers::installed(&["realpeer", "haproxy", "nginx"].map(str::to_owned));
    println!("{}\n", machine(&format!("{} s each", options.secs)));
    println!(
        "| | connections | busy ones | CPU µs/message | KiB/connection | median, µs | 99%, µs |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for peer in &peers {
        for (open, busy) in CONNECTIONS {
            connections(stage, peer, open, busy, options.secs);
        }
    }
    println!("\n| | UDP flows | busy ones | CPU µs/datagram | KiB/flow | lost, % |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (open, busy) in FLOWS {
        flows(stage, &peers[0], open, busy, options.secs);
    }
}

fn connections(stage: &Stage, peer: &Peer, open: usize, busy: usize, secs: u64) {
    let run = Run::start(stage, peer, "echo");
    let _first = load::open(&run, FIRST);
    let empty = run.usage().expect("there is a proxy");
    let mut streams = load::open(&run, open);
    if streams.len() < open {
        println!(
            "| {} | {open} | {busy} | carries {} only | | | |",
            peer.name,
            streams.len()
        );
        return;
    }
    let full = run.usage().expect("there is a proxy");
    let _idle = streams.split_off(busy);
    let mut done = load::ping(streams, IN_FLIGHT, 6, secs);
    let after = run.usage().expect("there is a proxy");
    let figures = [
        (after.cpu - full.cpu) * 1e6 / done.units as f64,
        (full.memory - empty.memory) / open as f64,
        done.percentile(0.5),
        done.percentile(0.99),
    ];
    row(peer, &format!("{open} | {busy}"), &figures);
}

fn flows(stage: &Stage, peer: &Peer, open: usize, busy: usize, secs: u64) {
    let run = Run::start(stage, peer, "udp");
    load::datagrams(&mut Flows::new(&run, FIRST, 64), 1);
    let empty = run.usage().expect("there is a proxy");
    let mut flows = Flows::new(&run, open, 64);
    // Opens every flow, which is another work than carrying it.
    load::datagrams(&mut flows, secs);
    let full = run.usage().expect("there is a proxy");
    flows.silence_all_but(busy);
    let done = load::datagrams(&mut flows, secs);
    let after = run.usage().expect("there is a proxy");
    let figures = [
        (after.cpu - full.cpu) * 1e6 / done.units as f64,
        (full.memory - empty.memory) / open as f64,
        100.0 * done.lost as f64 / (done.lost + done.units) as f64,
    ];
    row(peer, &format!("{open} | {busy}"), &figures);
}

fn row(peer: &Peer, load: &str, figures: &[f64]) {
    let cells: Vec<String> = figures.iter().map(|figure| cell(*figure)).collect();
    println!("| {} | {load} | {} |", peer.name, cells.join(" | "));
}
