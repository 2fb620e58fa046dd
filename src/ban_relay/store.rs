//! The book on disk, written anew at each change: a restart forgets nobody's ban, and puts back into
//! the sets what a reboot took out of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::book::Book;
use crate::lock_file;

/// A directory that is this process's alone.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Takes the directory, which is made where it is missing. Fails if another process has it.
    pub fn open(directory: &Path) -> Result<Store> {
        let name = directory.display();
        fs::create_dir_all(directory).with_context(|| format!("cannot make {name}"))?;
        let path = directory.join("relayed-bans");
        let lock = lock_file::open(&path.with_extension("lock"))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(_lock) => Ok(Store { path, _lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => {
                bail!("{name} is in use by another realpeer: give each its own")
            }
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {name}")),
        }
    }

    /// What was written last. A file that cannot be understood is told and set aside.
    pub fn read(&self) -> Book {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Book::default(),
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "cannot read who asked for which ban; starting without");
                return Book::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            let aside = self.path.with_extension("bad");
            let _ = fs::rename(&self.path, &aside);
            tracing::warn!(file = %aside.display(), %error, "cannot understand who asked for which ban; starting without, and keeping the file under this name");
            Book::default()
        })
    }

    /// Puts a new file in the old one's place, so that a crash leaves either whole.
    pub fn write(&self, book: &Book) -> Result<()> {
        let write = || -> io::Result<()> {
            let new = self.path.with_extension("new");
            // A crash may have left one behind.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(&serde_json::to_vec(book)?)?;
            file.sync_data()?;
            fs::rename(&new, &self.path)?;
            // The new name survives a power cut only with the directory.
            let directory = self.path.parent().unwrap_or(&self.path);
            File::open(directory)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}
