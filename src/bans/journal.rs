//! The bans on disk: a line for each ban and each unban, so that a change costs one write however
//! many bans there are. At start the file is read and replaced by one that holds only what counts.
//!
//! Lines are only ever added to a file that was written whole by this process. After a write that
//! failed, the next change writes a new file, with all that holds then.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::file;
use super::list::{Ban, BanList};
use crate::lock_file;

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

/// The file of one process; no other may write it meanwhile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    lock: Option<File>,
    /// `None` while the file on disk lacks changes, or may end in half a line.
    file: Option<Arc<File>>,
    lines: usize,
    /// The file that lines were written to and not synced, even if it is not trusted any more.
    unsynced: Option<Arc<File>>,
}

impl Journal {
    /// Locks and reads the bans of `path`, if it exists, and opens it for what comes. Lines that
    /// cannot be read are told and left out: a crash may have cut the last one. Where nothing can
    /// be written for now, that is told, and the bans that could be read hold.
    pub fn open(path: &Path, now: u64) -> Result<(Journal, BanList)> {
        let mut journal = Journal {
            path: path.to_owned(),
            lock: None,
            file: None,
            lines: 0,
            unsynced: None,
        };
        let locked = journal.lock()?;
        let mut list = match File::open(path) {
            Ok(file) => read(file, path)?,
            Err(e) if e.kind() == ErrorKind::NotFound => BanList::default(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        list.expire(now);
        if let Err(error) = locked.and_then(|()| journal.replace(&list)) {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                bans = list.len() as u64,
                "the bans on disk are in force, but changes of them cannot be written down for now"
            );
        }
        Ok((journal, list))
    }

    /// Writes a change down; it survives a power cut once `unsynced` is synced. `list` is what
    /// holds after it.
    pub fn write(&mut self, change: &Change, list: &BanList) -> Result<()> {
        let Some(file) = self.file.clone().filter(|_| !self.is_long(list)) else {
            return self.mend(list);
        };
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        if let Err(error) = (&*file).write_all(&line) {
            self.distrust();
            return Err(error).with_context(|| self.cannot_write());
        }
        self.lines += 1;
        self.unsynced = Some(file);
        Ok(())
    }

    /// Lets another process have the file. `mend` takes it again.
    pub fn let_go(mut self) -> Journal {
        self.distrust();
        self.lock = None;
        self
    }

    /// Writes a new file.
    pub fn mend(&mut self, list: &BanList) -> Result<()> {
        self.lock()??;
        self.replace(list)
    }

    /// As `mend`, if the file lacks changes; tells whether it did.
    pub fn mend_if_behind(&mut self, list: &BanList) -> Result<bool> {
        match self.file {
            Some(_) => Ok(false),
            None => self.mend(list).map(|()| true),
        }
    }

    /// The file, if changes were written to it since the last call.
    pub fn unsynced(&mut self) -> Option<Arc<File>> {
        self.unsynced.take()
    }

    /// Notes that the file on disk may lack changes.
    pub fn distrust(&mut self) {
        self.file = None;
    }

    fn is_long(&self, list: &BanList) -> bool {
        self.lines >= 2 * list.len() + SLACK
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }

    /// The outer error: another process holds the lock. The inner one: there can be no lock for
    /// now, so nothing may be written.
    fn lock(&mut self) -> Result<Result<()>> {
        if self.lock.is_some() {
            return Ok(Ok(()));
        }
        let path = self.path.with_extension("lock");
        let file = match file::make_directory(&self.path).and_then(|()| lock_file::open(&path)) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        match file::lock(&file) {
            Ok(None) => self.lock = Some(file),
            Ok(Some(holder)) => bail!(
                "{} is in use by {holder}: give each instance its own -name or -state-dir",
                self.path.display()
            ),
            Err(e) => return Ok(Err(e).with_context(|| format!("cannot lock {}", path.display()))),
        }
        Ok(Ok(()))
    }

    /// Puts a new file in the place of the old one in one step, so that a crash leaves either
    /// whole, and a power cut as well.
    fn replace(&mut self, list: &BanList) -> Result<()> {
        self.distrust();
        let new = self.path.with_extension("new");
        let placed = write_new(&new, list).and_then(|file| {
            fs::rename(&new, &self.path)?;
            file::sync(file::directory(&self.path))?;
            Ok(file)
        });
        if placed.is_err() {
            let _ = fs::remove_file(&new);
        }
        self.file = Some(Arc::new(placed.with_context(|| self.cannot_write())?));
        self.lines = list.len();
        self.unsynced = None;
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

/// A synced file with these bans, which takes lines at its end.
fn write_new(path: &Path, list: &BanList) -> io::Result<File> {
    let mut out = BufWriter::new(file::create(path)?);
    for ban in list.iter() {
        serde_json::to_writer(&mut out, &Change::Ban(ban.clone()))?;
        out.write_all(b"\n")?;
    }
    let file = out.into_inner().map_err(|e| e.into_error())?;
    file.sync_all()?;
    Ok(file)
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
        let mut file = journal.file.as_deref().unwrap();
        file.write_all(b"{\"ban\":{\"network\":\"203.0.1").unwrap();
        let (_, list) = Journal::open(&scratch.file(), 0).unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(
            fs::read_to_string(scratch.file()).unwrap().lines().count(),
            1
        );
    }

    #[test]
    fn what_was_written_before_a_failure_is_synced_all_the_same() {
        let scratch = Scratch::new("before");
        let (mut journal, mut list) = Journal::open(&scratch.file(), 0).unwrap();
        add(&mut journal, &mut list, ban("203.0.113.7", None));
        journal.distrust();
        assert!(journal.unsynced().is_some() && journal.unsynced().is_none());
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
