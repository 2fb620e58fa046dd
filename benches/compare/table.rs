//! The medians as a Markdown table, and what they were measured on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::peers::Peer;
use crate::tests::{Figure, Test};

/// The figures of all rounds.
pub struct Table {
    names: Vec<String>,
    /// Test and place of the figure in it.
    rows: BTreeMap<(Test, usize), Row>,
}

/// One figure, of every peer.
struct Row {
    figure: Figure,
    columns: Vec<Vec<f64>>,
}

impl Table {
    /// An empty table with a column for each peer.
    pub fn new(peers: &[Peer]) -> Table {
        let names = peers
            .iter()
            .map(|peer| format!("{} {}", peer.name, peer.version()));
        Table {
            names: names.map(|name| name.trim_end().to_owned()).collect(),
            rows: BTreeMap::new(),
        }
    }

    /// Adds what one round of a test gave for a peer.
    pub fn add(&mut self, test: Test, column: usize, figures: Vec<Figure>) {
        // The direct way has the first figures only, those that need no proxy.
        for (place, figure) in figures.into_iter().enumerate() {
            let row = self.rows.entry((test, place)).or_insert_with(|| Row {
                figure,
                columns: vec![Vec::new(); self.names.len()],
            });
            row.columns[column].push(figure.value);
        }
    }
}

impl Row {
    fn medians(&self) -> Vec<Option<f64>> {
        self.columns.iter().map(|values| median(values)).collect()
    }

    /// The best of the peers besides realpeer; the direct way is no peer.
    fn best(&self, names: &[String], medians: &[Option<f64>]) -> Option<f64> {
        let others = names
            .iter()
            .zip(medians)
            .filter(|(name, _)| !matches!(name.split(' ').next(), Some("direct" | "realpeer")));
        let better = if self.figure.more_is_better {
            f64::max
        } else {
            f64::min
        };
        others.filter_map(|(_, median)| *median).reduce(better)
    }
}

impl Table {
    /// The heading.
    pub fn head(&self) -> String {
        format!(
            "| | | {} | realpeer / best other |\n|---|---|{}---|",
            self.names.join(" | "),
            "---:|".repeat(self.names.len())
        )
    }

    /// The rows of one test.
    pub fn rows(&self, test: Test) -> String {
        let rows = self.rows.range((test, 0)..=(test, usize::MAX));
        rows.map(|(_, row)| self.line(test, row)).collect()
    }

    fn line(&self, test: Test, row: &Row) -> String {
        let medians = row.medians();
        let cells: Vec<String> = medians.iter().map(|median| cell(*median)).collect();
        let ours = self.column("realpeer").and_then(|at| medians[at]);
        let ratio = ours.zip(row.best(&self.names, &medians));
        let verdict = ratio.map_or(String::new(), |(ours, best)| {
            verdict(ours / best, row.figure.more_is_better)
        });
        let (title, name) = (test.title(), row.figure.name);
        format!("| {title} | {name} | {} | {verdict} |\n", cells.join(" | "))
    }

    fn column(&self, name: &str) -> Option<usize> {
        let mut names = self.names.iter();
        names.position(|column| column.split(' ').next() == Some(name))
    }
}

/// The ratio, and a mark where realpeer is behind by more than rounding.
fn verdict(ratio: f64, more_is_better: bool) -> String {
    let behind = if more_is_better {
        ratio < 0.995
    } else {
        ratio >= 1.005
    };
    let mark = if behind { " **loses**" } else { "" };
    format!("{ratio:.2}{mark}")
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

/// Three digits that count.
pub fn cell(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// Machine, kernel and date in a line that ends with `how` it was measured.
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
        "{cores} cores of {}, Linux {}, {}; {how}.\n",
        model.unwrap_or("an unknown processor"),
        read("/proc/sys/kernel/osrelease").trim(),
        String::from_utf8_lossy(&date.unwrap_or_default()).trim(),
    )
}
