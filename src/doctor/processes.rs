//! Which process holds a socket, as /proc tells it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// A running process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name in /proc/PID/comm.
    pub name: String,
    /// Its command line.
    pub words: Vec<String>,
    /// Whose it is: a name, or a number that has none.
    pub user: String,
}

/// The process that holds the socket. `None` if it is gone or, without root, somebody else's.
pub fn holder(inode: u64) -> Option<Process> {
    holders(&[inode]).remove(&inode)
}

/// As `holder`, for many sockets: /proc is read once.
pub fn holders(inodes: &[u64]) -> HashMap<u64, Process> {
    let mut wanted: HashMap<String, u64> = inodes
        .iter()
        .map(|inode| (format!("socket:[{inode}]"), *inode))
        .collect();
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    while !wanted.is_empty()
        && let Some(pid) = pids.next()
    {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let link = fs::read_link(descriptor.path()).unwrap_or_default();
            if let Some(inode) = link.to_str().and_then(|link| wanted.remove(link)) {
                found.insert(inode, process(pid));
            }
        }
    }
    found
}

impl Process {
    /// True if this is the program `name`, by its file or by how it was called.
    pub fn is(&self, name: &str) -> bool {
        let called = self.words.first().map(|word| file_name(word));
        self.name == name || called == Some(name)
    }

    /// The file that it runs.
    pub fn program(&self) -> String {
        let link = fs::read_link(format!("/proc/{}/exe", self.pid));
        link.map_or_else(|_| "unknown".into(), |path| path.display().to_string())
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
        let Process {
            name, pid, user, ..
        } = self;
        write!(f, "{name} (process {pid}, user {user})")
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
        user: user(&text(&read("status"))),
    }
}

/// By the real user id in /proc/PID/status. The owner of /proc/PID would be root for a process
/// that got capabilities from its file.
fn user(status: &str) -> String {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = ids.and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    let Some(id) = real else {
        return "unknown".into();
    };
    let user = User::from_uid(Uid::from_raw(id)).ok().flatten();
    user.map_or_else(|| id.to_string(), |user| user.name)
}

/// True if the process runs the very file that this one runs, whatever it calls itself. Or one that
/// has been replaced there since, by an upgrade: only who may write there can have put it there. In a
/// user namespace of its own a process can mount what it likes, so there the path proves nothing.
pub fn is_this_program(pid: u32) -> bool {
    let of = |who: &str, name: &str| fs::read_link(format!("/proc/{who}/{name}")).ok();
    let file = |who: &str| {
        let found = fs::metadata(format!("/proc/{who}/exe")).ok()?;
        Some((found.dev(), found.ino()))
    };
    let pid = pid.to_string();
    let own = file("self");
    if own.is_some() && own == file(&pid) {
        return true;
    }
    let replaced = of("self", "exe").map(|path| {
        let mut path = path.into_os_string();
        path.push(" (deleted)");
        path
    });
    let namespace = of("self", "ns/user");
    replaced.is_some()
        && replaced == of(&pid, "exe").map(PathBuf::into_os_string)
        && namespace.is_some()
        && namespace == of(&pid, "ns/user")
}

fn file_name(path: &str) -> &str {
    Path::new(path)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(path)
}
