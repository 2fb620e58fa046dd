//! Files that stand for a lock. Whoever can open a file, even only to read it, or a directory, can
//! lock it and never let go: so these are for nobody else to open.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Opens the file, which is made where it is missing, and never one behind a link.
pub fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
