//! Log lines as entries of the systemd journal, by its native protocol:
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
//!
//! The crates that speak it send from the thread that logs, which then waits for a slow journal.

use std::env;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::stat::fstat;
use tracing::Level;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Bytes of a value. Longer ones are cut, so that an entry fits into one datagram: the kernel takes
/// 208 KiB (net.core.wmem_default).
const LONGEST_VALUE: usize = 16 << 10;

/// What stands for the rest of a value that was cut.
const CUT: &str = " ... (cut)";

/// Whether standard error goes to the journal: systemd names its device and inode in
/// JOURNAL_STREAM, see systemd.exec(5).
pub fn is_stream(stderr: BorrowedFd<'_>) -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(stderr).is_ok_and(|found| named == format!("{}:{}", found.st_dev, found.st_ino))
}

/// The way to journald.
pub struct Journal(UnixDatagram);

impl Journal {
    /// Fails if no journald listens.
    pub fn open() -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        Ok(Journal(socket))
    }

    /// Sends entries, each behind its length, and tells how many could not be sent.
    pub fn send(&self, mut entries: &[u8]) -> u64 {
        let mut lost = 0;
        while let Some((length, rest)) = entries.split_first_chunk() {
            let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
            let (entry, rest) = rest.split_at(length);
            // By its name each time: it may be another socket when journald was restarted.
            lost += u64::from(self.0.send_to(entry, SOCKET).is_err());
            entries = rest;
        }
        lost
    }
}

/// The fields of an entry.
#[derive(Default)]
pub struct Entry(Vec<u8>);

impl Entry {
    /// Adds a field for a key of a log line: `clientAddr` becomes CLIENT_ADDR.
    pub fn add(&mut self, key: &str, value: &str) {
        self.field(&name(key), value);
    }

    /// The whole entry, behind its length, as `Journal::send` takes it.
    pub fn finish(mut self, level: Level, message: &str) -> Vec<u8> {
        // As syslog(3) counts.
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        self.field("PRIORITY", priority);
        self.field("SYSLOG_IDENTIFIER", "realpeer");
        self.field("MESSAGE", message);
        let length = self.0.len() as u32;
        [&length.to_le_bytes(), &self.0[..]].concat()
    }

    /// A value with a line break goes behind its length, so that it cannot make up fields.
    fn field(&mut self, name: &str, value: &str) {
        let most = value.len().min(LONGEST_VALUE);
        let cut = (0..=most).rev().find(|at| value.is_char_boundary(*at));
        let (value, rest) = value.split_at(cut.unwrap_or(0));
        let rest = if rest.is_empty() { "" } else { CUT };
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            let length = (value.len() + rest.len()) as u64;
            self.0.extend_from_slice(&length.to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.extend_from_slice(rest.as_bytes());
        self.0.push(b'\n');
    }
}

/// Names of fields have capitals, digits and underscores. Those that begin with an underscore are
/// journald's own.
fn name(key: &str) -> String {
    let mut name = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(match c.is_ascii_alphanumeric() {
            true => c.to_ascii_uppercase(),
            false => '_',
        });
    }
    name.trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_names() {
        assert_eq!(
            ["clientAddr", "listener", "durationMs", "log.line", "_pid"].map(name),
            ["CLIENT_ADDR", "LISTENER", "DURATION_MS", "LOG_LINE", "PID"]
        );
    }

    #[test]
    fn a_line_break_makes_no_field() {
        let mut entry = Entry::default();
        entry.add("end", "x\nPRIORITY=0");
        let entry = entry.finish(Level::WARN, "m");
        let expected = b"END\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\nPRIORITY=4\nSYSLOG_IDENTIFIER=realpeer\nMESSAGE=m\n";
        assert_eq!(entry[4..], expected[..]);
        assert_eq!(entry[..4], (expected.len() as u32).to_le_bytes());
    }

    #[test]
    fn a_long_value_is_cut() {
        for text in ["é", "é\n"] {
            let mut entry = Entry::default();
            entry.add("end", &text.repeat(100_000));
            let entry = entry.finish(Level::INFO, "m");
            assert!(entry.len() < LONGEST_VALUE + 200, "{}", entry.len());
            let cut = CUT.as_bytes();
            assert!(entry.windows(cut.len()).any(|part| part == cut));
        }
    }
}
