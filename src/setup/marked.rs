//! Files that setup writes. Their first line has a checksum of the rest: so they are told from files
//! of others, and from those that somebody has edited since, without a list kept elsewhere.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const MARK: &str = "# Written by 'realpeer setup'; 'realpeer setup -undo' removes it. Checksum: ";

/// A file to write, or written.
#[derive(Clone, Debug)]
pub struct Marked {
    /// Where it is.
    pub path: PathBuf,
    /// All of it, with the mark.
    pub text: String,
}

/// What is where a file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Absent,
    /// A file that setup has written.
    Ours,
    /// One that setup has written and somebody has changed.
    Edited,
    /// Something else.
    Foreign,
}

impl Marked {
    /// Puts the mark above a text.
    pub fn new(path: PathBuf, body: &str) -> Marked {
        let text = format!("{MARK}{:08x}\n{body}", crc32c::crc32c(body.as_bytes()));
        Marked { path, text }
    }

    /// Writes it: whole or not at all, and over nothing but a file of setup's.
    pub fn write(&self) -> io::Result<()> {
        let new = draft(&self.path);
        let written = self.write_at(&new);
        let _ = fs::remove_file(&new);
        written
    }

    fn write_at(&self, new: &Path) -> io::Result<()> {
        // Left by one that was killed.
        let _ = fs::remove_file(new);
        let mut file = OpenOptions::new().write(true).create_new(true).open(new)?;
        file.write_all(self.text.as_bytes())?;
        // The service has a user of its own, whatever the umask is.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
        match state(&self.path)? {
            // Unlike a rename, a link replaces nothing.
            State::Absent => fs::hard_link(new, &self.path)?,
            State::Ours => fs::rename(new, &self.path)?,
            State::Edited | State::Foreign => return Err(ErrorKind::AlreadyExists.into()),
        }
        sync_directory(&self.path)
    }
}

/// Removes a file, and what a killed setup may have left beside it.
pub fn remove(path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(draft(path));
    fs::remove_file(path)?;
    sync_directory(path)
}

/// Looks at what is there.
pub fn state(path: &Path) -> io::Result<State> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Absent),
        Err(error) => return Err(error),
        Ok(found) if !found.is_file() => return Ok(State::Foreign),
        Ok(_) => {}
    }
    let bytes = fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((checksum, body)) = text
        .strip_prefix(MARK)
        .and_then(|rest| rest.split_once('\n'))
    else {
        return Ok(State::Foreign);
    };
    let own = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
    Ok(match checksum == own {
        true => State::Ours,
        false => State::Edited,
    })
}

fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.setup"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
