//! Which process holds a socket, as /proc tells it.

use std::fs;
use std::path::Path;

/// A running process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name in /proc/PID/comm.
    pub name: String,
    /// Its command line.
    pub words: Vec<String>,
}

/// The process that holds the socket. `None` if it is gone or, without root, somebody else's.
pub fn holder(inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        descriptors.into_iter().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        })
    })
    .map(process)
}

impl Process {
    /// True if this is the program `name`, by its file or by how it was called.
    pub fn is(&self, name: &str) -> bool {
        let called = self.words.first().map(|word| file_name(word));
        self.name == name || called == Some(name)
    }

    /// The value behind a flag of its command line: `-x v`, `--x v`, `-x=v`.
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut words = self.words.iter();
        while let Some(word) = words.next() {
            let bare = word.trim_start_matches('-');
            if bare == name && bare.len() < word.len() {
                return words.next().map(String::as_str);
            }
            if let Some(value) = bare
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='))
            {
                return Some(value);
            }
        }
        None
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

fn process(pid: u32) -> Process {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let command = read("cmdline");
    Process {
        pid,
        name: text(&read("comm")).trim_end().to_owned(),
        words: command.split(|b| *b == 0).map(text).collect(),
    }
}

fn file_name(path: &str) -> &str {
    Path::new(path)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(path)
}
