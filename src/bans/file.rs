//! The files of the journal: how they are made, locked and kept from others.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// An empty file that only we may read and that takes lines at its end, in place of what a crash
/// left there.
pub fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Locks the file until this process closes it or ends, or tells who has it. The kernel knows the
/// owner of such a lock (fcntl(2), F_GETLK), so it need not be written anywhere.
pub fn lock(file: &File) -> io::Result<Option<String>> {
    let mut wanted = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_SETLK(&wanted)) {
        Ok(_) => return Ok(None),
        Err(Errno::EAGAIN | Errno::EACCES) => {}
        Err(e) => return Err(e.into()),
    }
    fcntl(file, FcntlArg::F_GETLK(&mut wanted))?;
    Ok(Some(match wanted.l_pid {
        pid if pid > 0 => format!("process {pid}"),
        _ => "a process of another container".to_owned(),
    }))
}

/// Makes the directory of this file, if there is none.
pub fn make_directory(file: &Path) -> Result<()> {
    let directory = directory(file);
    if directory.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.and_then(|()| directory.parent().map_or(Ok(()), sync))
        .with_context(|| format!("cannot make {}", directory.display()))?;
    tracing::info!(directory = %directory.display(), "created the directory that keeps bans (-state-dir)");
    Ok(())
}

/// A new name in a directory survives a power cut only with the directory.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Where this file is.
pub fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
