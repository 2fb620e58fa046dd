//! What /proc tells about a process from outside.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Host, Running};

/// How many descriptors it has open.
pub fn descriptors(process: &Running) -> usize {
    open_numbers(process).len()
}

/// What it has open, as /proc shows it, behind the numbers: files by path, the rest by kind and
/// inode.
pub fn open_files(process: &Running) -> Vec<(u64, String)> {
    let link = |number: &u64| fs::read_link(proc_file(process, &format!("fd/{number}")));
    let numbers = open_numbers(process);
    let files = numbers
        .iter()
        .map(|number| (*number, link(number).expect("it stays open")));
    files
        .map(|(number, file)| (number, file.display().to_string()))
        .collect()
}

/// Its own resident memory in bytes, without pages of files such as its code.
pub fn memory(process: &Running) -> usize {
    let line = status(process, "RssAnon:");
    let kilobytes: usize = line
        .trim_end_matches(" kB")
        .parse()
        .expect("RssAnon is a number");
    kilobytes * 1024
}

/// The processor time that it has taken so far.
pub fn processor_time(process: &Running) -> Duration {
    let stat = fs::read_to_string(proc_file(process, "stat")).expect("read /proc/PID/stat");
    // The second word is the name in brackets, which may hold spaces: count from behind it.
    let words: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a name in brackets")
        .split_whitespace()
        .collect();
    let ticks = |word: &str| word.parse::<u64>().expect("utime and stime are numbers");
    // A tick is 10 ms on every Linux: USER_HZ is part of the ABI.
    Duration::from_millis(10 * (ticks(words[11]) + ticks(words[12])))
}

/// Its soft and hard limit of open files.
pub fn file_limits(process: &Running) -> (u64, u64) {
    let limits = fs::read_to_string(proc_file(process, "limits")).expect("read /proc/PID/limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("the limit is listed");
    let words: Vec<&str> = line.split_whitespace().collect();
    (
        words[3].parse().expect("a number"),
        words[4].parse().expect("a number"),
    )
}

/// Raises the test's own limit of open files as far as it goes: thousands of peers need as many.
pub fn allow_many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("read our own limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise our own limit");
}

/// Lets it open no further descriptor, by lowering the soft limit to the first free number.
pub fn forbid_descriptors(host: &Host, process: &Running) {
    set_soft_limit(host, process, first_free(process));
}

/// The lowest number that it would give to a new descriptor.
pub fn first_free(process: &Running) -> u64 {
    let open = open_numbers(process);
    (0..)
        .find(|number| !open.contains(number))
        .expect("some number is free")
}

/// Sets its soft limit of open files.
pub fn set_soft_limit(host: &Host, process: &Running, limit: u64) {
    let pid = process.pid().to_string();
    host.run(&["prlimit", "--pid", &pid, &format!("--nofile={limit}:")]);
}

fn open_numbers(process: &Running) -> BTreeSet<u64> {
    let listing = fs::read_dir(proc_file(process, "fd")).expect("list /proc/PID/fd");
    listing
        .map(|entry| entry.expect("list /proc/PID/fd").file_name())
        .map(|name| {
            name.to_str()
                .and_then(|name| name.parse().ok())
                .expect("a descriptor is a number")
        })
        .collect()
}

fn status(process: &Running, key: &str) -> String {
    let status = fs::read_to_string(proc_file(process, "status")).expect("read /proc/PID/status");
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in /proc/PID/status"))
        .trim()
        .to_owned()
}

fn proc_file(process: &Running, name: &str) -> String {
    format!("/proc/{}/{name}", process.pid())
}
