//! The medians as a Markdown table, and what they were measured on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::peers::Peer;
use crate::row::{Row, cell};
use crate::tests::{Figure, Test};

/// The figures of all rounds.
pub struct Table {
    names: Vec<&'static str>,
    versions: Vec<String>,
    /// Test and place of the figure in it.
    rows: BTreeMap<(Test, usize), Rounds>,
}

/// One figure, of every peer, round by round.
struct Rounds {
    figure: Figure,
    columns: Vec<Vec<f64>>,
}

impl Table {
    /// An empty table with a column for each peer.
    pub fn new(peers: &[Peer]) -> Table {
        Table {
            names: peers.iter().map(|peer| peer.name).collect(),
            versions: peers.iter().map(Peer::version).collect(),
            rows: BTreeMap::new(),
        }
    }

    /// Adds what one round of a test gave for a peer.
    pub fn add(&mut self, test: Test, column: usize, figures: Vec<Figure>) {
        // The direct way has the first figures only, those that need no proxy.
        for (place, figure) in figures.into_iter().enumerate() {
            let rounds = self.rows.entry((test, place)).or_insert_with(|| Rounds {
                figure,
                columns: vec![Vec::new(); self.names.len()],
            });
            rounds.columns[column].push(figure.value);
        }
    }

    /// The names of the peers, in the order of the medians.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Each peer with its version.
    pub fn full_names(&self) -> Vec<String> {
        let both = self.names.iter().zip(&self.versions);
        both.map(|(name, version)| format!("{name} {version}").trim_end().to_owned())
            .collect()
    }

    /// The heading.
    pub fn head(&self) -> String {
        format!(
            "| | | {} | realpeer / best other |\n|---|---|{}---|",
            self.full_names().join(" | "),
            "---:|".repeat(self.names.len())
        )
    }

    /// The rows of one test.
    pub fn rows(&self, test: Test) -> Vec<Row> {
        let rows = self.rows.range((test, 0)..=(test, usize::MAX));
        rows.map(|(_, rounds)| Row {
            test: test.title(),
            figure: rounds.figure.name,
            more_is_better: rounds.figure.more_is_better,
            medians: rounds.columns.iter().map(|all| median(all)).collect(),
        })
        .collect()
    }

    /// A row as a line of the table.
    pub fn line(&self, row: &Row) -> String {
        let cells = row.medians.iter().map(|median| median.map(cell));
        let cells: Vec<String> = cells.map(Option::unwrap_or_default).collect();
        let verdict = row.ratio(&self.names).map(|ratio| format!("{ratio:.2}"));
        let mark = if row.loses(&self.names) {
            " **loses**"
        } else {
            ""
        };
        format!(
            "| {} | {} | {} | {}{mark} |",
            row.test,
            row.figure,
            cells.join(" | "),
            verdict.unwrap_or_default()
        )
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Machine, kernel and date in a sentence that ends with `how` it was measured.
pub fn machine(how: &str) -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "));
    let cores = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let date = Command::new("date")
        .arg("+%F")
        .output()
        .map(|output| output.stdout);
    format!(
        "{cores} cores of {}, Linux {}, {}; {how}.",
        model.unwrap_or("an unknown processor"),
        // What a vendor adds to the version says nothing here.
        read("/proc/sys/kernel/osrelease")
            .split('.')
            .take(2)
            .collect::<Vec<_>>()
            .join("."),
        String::from_utf8_lossy(&date.unwrap_or_default()).trim(),
    )
}
