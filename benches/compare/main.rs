//! realpeer beside the other programs of its kind that are installed, on this machine, in one
//! private network: a Markdown table, or a chart. benches/README.md says how to run and read it.
//!
//! ```text
//! load (this process) ─▶ proxy (one peer at a time) ─▶ backend (this program again)
//! ```

mod backend;
mod chart;
mod configurations;
mod curve;
mod load;
mod options;
mod peers;
mod row;
mod run;
#[path = "../scene/mod.rs"]
mod scene;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod tests;
mod usage;

use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;
use options::Options;
use peers::Peer;
use run::Stage;
use table::Table;
use tests::Test;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, kind] = &words[..]
        && word == "backend"
    {
        return backend::run(kind);
    }
    let options = Options::parse();
    scene::become_able();
    support::vitals::allow_many_descriptors();
    let stage = Stage::new();
    stage.host.enter(|| {
        if options.curve {
            curve::run(&stage, &options);
        } else {
            compare(&stage, &options);
        }
    });
}

/// Every test, round by round; in a round every peer once, so that they share the machine's moods.
fn compare(stage: &Stage, options: &Options) {
    let (peers, missing) = peers::installed(&options.peers);
    for name in missing {
        eprintln!("{name} is not installed: left out (benches/README.md says where it comes from)");
    }
    let mut table = Table::new(&peers);
    let how = format!("medians of {} rounds of {} s", options.rounds, options.secs);
    let machine = table::machine(&how);
    println!("{machine}\n\n{}", table.head());
    let mut drawn = Vec::new();
    for &test in &options.tests {
        for round in 1..=options.rounds {
            for (column, peer) in peers.iter().enumerate() {
                if !test.is_udp() || peer.carries_udp() {
                    eprintln!(
                        "{test:?}, round {round} of {}: {}",
                        options.rounds, peer.name
                    );
                    table.add(test, column, measure(stage, test, peer, options));
                }
            }
        }
        let rows = table.rows(test);
        for row in &rows {
            println!("{}", table.line(row));
        }
        drawn.extend(rows);
    }
    if let Some(file) = &options.svg {
        let notes = [machine, table.full_names().join(", ")];
        let chart = chart::draw(table.names(), &drawn, &notes);
        std::fs::write(file, chart).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        eprintln!("{} is drawn", file.display());
    }
}

/// The figures of one test, or none if something broke: the others go on.
fn measure(stage: &Stage, test: Test, peer: &Peer, options: &Options) -> Vec<tests::Figure> {
    catch_unwind(AssertUnwindSafe(|| test.run(stage, peer, options.secs))).unwrap_or_default()
}
