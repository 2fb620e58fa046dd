//! What commands print. Whoever reads may be gone (`realpeer doctor | head -1`): the command then
//! ends in silence, with the exit code that it would have had.

use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Prints to standard output. Fails where somebody misses it, as on a full disk.
pub fn print(text: impl fmt::Display) -> io::Result<()> {
    print_or_stop(text).map(drop)
}

/// As `print`, and tells whether somebody still reads.
pub fn print_or_stop(text: impl fmt::Display) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// As `complain`, for lines that name the program themselves.
pub fn complain_as_is(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a line to standard error; there is nobody to tell that it failed.
pub fn complain(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "realpeer: {text}");
}
