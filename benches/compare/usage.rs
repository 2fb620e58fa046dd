//! What a program has taken from the machine, its children included.

use std::fs;
use std::path::Path;

/// Totals so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time, to the nanosecond: the scheduler's own account.
    pub cpu: f64,
    /// KiB of memory; what processes share counts once (Pss).
    pub memory: f64,
    /// Open files.
    pub descriptors: f64,
}

impl Usage {
    /// Adds up a process and its children.
    pub fn of(pid: u32) -> Usage {
        let process = format!("/proc/{pid}");
        let mut usage = Usage {
            cpu: 0.0,
            memory: memory(&process),
            descriptors: entries(&format!("{process}/fd")).count() as f64,
        };
        for thread in entries(&format!("{process}/task")) {
            usage.cpu += number(&thread, "schedstat", 0) / 1e9;
            for child in words(&thread, "children")
                .iter()
                .filter_map(|word| word.parse().ok())
            {
                let child = Usage::of(child);
                usage.cpu += child.cpu;
                usage.memory += child.memory;
                usage.descriptors += child.descriptors;
            }
        }
        usage
    }
}

fn memory(process: &str) -> f64 {
    let rollup = words(process, "smaps_rollup");
    let at = rollup
        .iter()
        .position(|word| word == "Pss:")
        .expect("smaps_rollup has Pss");
    rollup[at + 1].parse().expect("Pss is a number")
}

fn number(directory: &str, file: &str, word: usize) -> f64 {
    words(directory, file)[word].parse().expect("a number")
}

fn words(directory: &str, file: &str) -> Vec<String> {
    let path = Path::new(directory).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.split_whitespace().map(str::to_owned).collect()
}

fn entries(directory: &str) -> impl Iterator<Item = String> {
    let listing = fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory}: {e}"));
    listing.map(|entry| {
        entry
            .expect("list a directory")
            .path()
            .to_str()
            .expect("numbers")
            .to_owned()
    })
}
