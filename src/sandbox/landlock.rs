//! Which files the process may open once it runs (Landlock, landlock(7)): those that it was started
//! with, so that a reload reads them again, and those that names are looked up by. Sockets and what
//! is open already are not restricted.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};
use nix::unistd::{AccessFlags, access};

use super::Part;
use crate::config::{Config, Routing, Source, TargetNetns};
use crate::control::Place;
use crate::routing::TCP_FWMARK_ACCEPT;

/// The last one whose rights concern regular files and directories: Linux 6.10.
const KNOWN: ABI = ABI::V5;

/// What is allowed below a path, or for a file.
type Rule = (PathBuf, BitFlags<AccessFs>);

/// Files that getaddrinfo(3) reads. Where one is a link, its target's directory counts.
const RESOLVER: [&str; 5] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
];

/// What it loads, which is not executed in the sense of Landlock.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
];

/// Where systems keep the certificates that they trust.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// Directories of others' files, secret ones among them: of what stands directly in these, the file
/// alone is allowed.
const SHARED: [&str; 5] = ["/", "/etc", "/root", "/home", "/tmp"];

/// The process is restricted.
static IN_FORCE: AtomicBool = AtomicBool::new(false);

/// Restricts the process to what this configuration needs.
pub fn enter(config: &Config, source: &Source, control: Option<&Place>) -> Result<Part> {
    let part = restrict(&rules(config, source, control))?;
    IN_FORCE.store(part != Part::Unavailable, Ordering::Relaxed);
    Ok(part)
}

/// What this configuration needs.
fn rules(config: &Config, source: &Source, control: Option<&Place>) -> Vec<Rule> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Vec::new();
    let resolver = RESOLVER.iter().map(Path::new);
    for file in source
        .file()
        .into_iter()
        .chain(config.lists())
        .chain(resolver)
    {
        rules.extend(around(file).into_iter().map(|path| (path, read)));
    }
    if config.process.crowdsec.is_some() {
        rules.extend(CERTIFICATES.map(|path| (path.into(), read)));
    }
    rules.extend(LIBRARIES.map(|path| (path.into(), read)));
    // What listens here, and how many processors there are for us.
    rules.extend(["/proc", "/sys/fs/cgroup"].map(|path| (path.into(), read)));
    if config.process.routing == Routing::Auto {
        rules.push((
            TCP_FWMARK_ACCEPT.into(),
            AccessFs::WriteFile | AccessFs::Truncate,
        ));
    }
    if let Some(directory) = &config.process.state_dir {
        let write =
            AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        rules.push((directory.clone(), read | write));
    }
    for netns in config
        .listeners
        .iter()
        .filter_map(|listener| listener.target_netns.as_ref())
    {
        if let TargetNetns::Path(path) = netns {
            rules.extend(around(path).into_iter().map(|path| (path, read)));
        }
    }
    rules.extend(control.map(|place| (directory(place.path()), for_control(place))));
    rules
}

/// What a path is to be replaced with, as editors do, is a new file: its directory is what can be
/// allowed. A link and its target may be in different ones.
fn around(file: &Path) -> Vec<PathBuf> {
    let both = [Some(file.to_owned()), fs::canonicalize(file).ok()];
    let places = both.into_iter().flatten().map(|file| {
        let directory = directory(&file);
        let place = fs::canonicalize(&directory).unwrap_or(directory.clone());
        match SHARED.iter().any(|shared| place == Path::new(shared)) {
            true => file,
            false => directory,
        }
    });
    places.collect()
}

/// One that is ours is removed at the end; one that is still waited for is to be made.
fn for_control(place: &Place) -> BitFlags<AccessFs> {
    match place {
        Place::Ours(_) => AccessFs::RemoveFile.into(),
        Place::InUse(_) => {
            AccessFs::MakeSock | AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile
        }
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Allows a thread inside a namespace what keeping the routing there takes. The files of /proc/sys/net
/// are others in each namespace, so all of them are allowed.
pub fn enter_namespace() -> Result<Part> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    restrict(&[("/proc".into(), read), ("/proc/sys/net".into(), write)])
}

/// Allows the calling thread no file at all.
pub fn forbid_all() -> Result<Part> {
    restrict(&[])
}

/// Allows the calling thread these, and nothing else. Paths that are not there are left out.
fn restrict(rules: &[Rule]) -> Result<Part> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .create()?;
    for (path, access) in rules {
        ruleset = ruleset.add_rules(path_beneath_rules([path], *access))?;
    }
    let status = ruleset
        .restrict_self()
        .context("cannot restrict files by Landlock")?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Part::On,
        RulesetStatus::PartiallyEnforced => Part::Partial,
        RulesetStatus::NotEnforced => Part::Unavailable,
    })
}

/// The kernel makes the files of /proc/sys anew when it has forgotten them, and rules hold for those
/// of before: an open one is not forgotten.
pub fn pins() -> Vec<PathFd> {
    PathFd::new(TCP_FWMARK_ACCEPT).into_iter().collect()
}

/// What to add to an error that says that `file` cannot be read: something if Landlock is the reason,
/// and not the mode of the file, which access(2) goes by.
pub fn hint(file: &Path) -> &'static str {
    let is_forbidden = || {
        let opened = File::open(file);
        opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            && access(file, AccessFlags::R_OK).is_ok()
    };
    match IN_FORCE.load(Ordering::Relaxed) && is_forbidden() {
        true => {
            ": Landlock (-sandbox) allows the files that realpeer was started with, and those beside them; restart it to read this one"
        }
        false => "",
    }
}
