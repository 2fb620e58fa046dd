//! What realpeer costs as work grows. Flat is good: a row's cost should not depend on how many
//! connections or flows there are.

use crate::load::{self, Flows};
use crate::options::Options;
use crate::peers;
use crate::run::{Run, Stage};
use crate::table::{cell, machine};

/// Messages in flight at once, however many connections there are: what changes is only how many
/// the work is spread over.
const IN_FLIGHT: usize = 50;

const CONNECTIONS: [usize; 5] = [1, 10, 100, 1_000, 9_000];
const FLOWS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 19_000];

/// Measures and prints both curves.
pub fn run(stage: &Stage, options: &Options) {
    println!("{}", machine(options));
    println!("| connections | CPU µs/message | KiB/connection | median, µs | 99%, µs |");
    println!("|---:|---:|---:|---:|---:|");
    for count in CONNECTIONS {
        connections(stage, count, options.secs);
    }
    println!("\n| UDP flows | CPU µs/datagram | KiB/flow | lost |");
    println!("|---:|---:|---:|---:|");
    for count in FLOWS {
        flows(stage, count, options.secs);
    }
}

fn connections(stage: &Stage, count: usize, secs: u64) {
    let run = Run::start(stage, &peers::realpeer(), "echo");
    // A first connection brings what is there once for all.
    let _first = load::open(&run, 1);
    let empty = run.usage().expect("there is a proxy");
    let streams = load::open(&run, count);
    assert_eq!(streams.len(), count, "the proxy takes all of them");
    let full = run.usage().expect("there is a proxy");
    let mut done = load::ping(streams, IN_FLIGHT, 6, secs);
    let after = run.usage().expect("there is a proxy");
    let figures = [
        (after.cpu - full.cpu) * 1e6 / done.units as f64,
        (full.memory - empty.memory) / count as f64,
        done.percentile(0.5),
        done.percentile(0.99),
    ];
    row(count, &figures);
}

fn flows(stage: &Stage, count: usize, secs: u64) {
    let run = Run::start(stage, &peers::realpeer(), "udp");
    load::datagrams(&mut Flows::new(&run, 1, 64), 1);
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
        done.lost as f64,
    ];
    row(count, &figures);
}

fn row(count: usize, figures: &[f64]) {
    let cells: Vec<String> = figures.iter().map(|figure| cell(Some(*figure))).collect();
    println!("| {count} | {} |", cells.join(" | "));
}
