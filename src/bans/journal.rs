//! The bans on disk: a line for each ban and each unban, so that a change costs one write however
//! many bans there are. At start the file is read and replaced by one that holds only what counts.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::list::{Ban, BanList};

/// Lines beyond those that count, before the file is written anew.
const SLACK: usize = 10_000;

/// A change, as its line in the file says it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// A new ban.
    Ban(Ban),
    /// The end of one, before its time.
    Unban {
        /// Exactly as it was banned.
        network: IpNet,
        /// `None` for all.
        listener: Option<String>,
    },
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Journal {
    /// Reads the bans of `path`, if it exists, and opens it for what comes. Lines that cannot be
    /// read are logged and ignored: a crash may have cut the last one.
    pub fn open(path: &Path, now: u64) -> Result<(Journal, BanList)> {
        let mut list = match File::open(path) {
            Ok(file) => read(file, path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BanList::default(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        list.expire(now);
        Ok((replace(path, &list)?, list))
    }

    /// Writes a change down. `list` is what holds after it.
    pub fn write(&mut self, change: &Change, list: &BanList) -> Result<()> {
        let name = || format!("cannot write {}", self.path.display());
        let mut line = serde_json::to_vec(change).with_context(name)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(name)?;
        self.lines += 1;
        if self.lines > 2 * list.len() + SLACK {
            *self = replace(&self.path, list)?;
        }
        Ok(())
    }
}

fn read(file: File, path: &Path) -> Result<BanList> {
    let mut list = BanList::default();
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        match serde_json::from_slice(&line) {
            Ok(Change::Ban(ban)) => list.insert(ban),
            Ok(Change::Unban { network, listener }) => {
                list.remove(&network, listener.as_deref());
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), line = number as u64 + 1, %error, "cannot read this line of the bans file; ignoring it");
            }
        }
    }
    Ok(list)
}

/// Makes a directory and says so: one that a typing error named would otherwise keep bans unseen.
fn make(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    tracing::info!(directory = %directory.display(), "created the directory that keeps bans (-state-dir)");
    Ok(())
}

/// Puts a new file in the place of the old one in one step, so that a crash leaves either whole.
fn replace(path: &Path, list: &BanList) -> Result<Journal> {
    let name = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        make(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let new = path.with_extension("new");
    let mut out = BufWriter::new(File::create(&new).with_context(name)?);
    for ban in list.iter() {
        serde_json::to_writer(&mut out, &Change::Ban(ban.clone())).with_context(name)?;
        out.write_all(b"\n").with_context(name)?;
    }
    let file = out
        .into_inner()
        .map_err(|e| e.into_error())
        .with_context(name)?;
    file.sync_all().with_context(name)?;
    fs::rename(&new, path).with_context(name)?;
    let file = OpenOptions::new()
        .append(true)
        .open(path)
        .with_context(name)?;
    Ok(Journal {
        path: path.to_owned(),
        file,
        lines: list.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir()
                .join(format!("realpeer-journal-{}-{name}", std::process::id()));
            Scratch(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("deep").join("bans")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ban(network: &str, until: Option<u64>) -> Ban {
        Ban {
            network: crate::networks::parse(network).unwrap(),
            listener: None,
            since: 1,
            until,
            reason: "because \"of\" this\n".into(),
        }
    }

    fn add(journal: &mut Journal, list: &mut BanList, ban: Ban) {
        list.insert(ban.clone());
        journal.write(&Change::Ban(ban), list).unwrap();
    }

    #[test]
    fn what_is_written_is_read_again_without_what_ended() {
        let scratch = Scratch::new("again");
        let (mut journal, mut list) = Journal::open(&scratch.file(), 5).unwrap();
        for (network, until) in [
            ("203.0.113.7", None),
            ("203.0.113.8", Some(9)),
            ("2001:db8::/32", Some(20)),
        ] {
            add(&mut journal, &mut list, ban(network, until));
        }
        let network = "203.0.113.7/32".parse().unwrap();
        list.remove(&network, None);
        let unban = Change::Unban {
            network,
            listener: None,
        };
        journal.write(&unban, &list).unwrap();
        let (_, list) = Journal::open(&scratch.file(), 10).unwrap();
        assert_eq!(
            list.iter().collect::<Vec<_>>(),
            [&ban("2001:db8::/32", Some(20))]
        );
    }

    #[test]
    fn a_line_that_a_crash_cut_costs_only_itself() {
        let scratch = Scratch::new("cut");
        let (mut journal, mut list) = Journal::open(&scratch.file(), 0).unwrap();
        add(&mut journal, &mut list, ban("203.0.113.7", None));
        journal
            .file
            .write_all(b"{\"ban\":{\"network\":\"203.0.1")
            .unwrap();
        let (_, list) = Journal::open(&scratch.file(), 0).unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(
            fs::read_to_string(scratch.file()).unwrap().lines().count(),
            1
        );
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let scratch = Scratch::new("grow");
        let (mut journal, mut list) = Journal::open(&scratch.file(), 0).unwrap();
        for _ in 0..=SLACK + 2 {
            add(&mut journal, &mut list, ban("203.0.113.7", None));
        }
        assert!(fs::read_to_string(scratch.file()).unwrap().lines().count() < 10);
    }
}
