//! Reads a PROXY header, version 1 or 2, from standard input and prints whom it names; what follows
//! the header goes to standard output unchanged. The header may arrive in any number of pieces.
//!
//! ```sh
//! printf 'PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\r\nhello\n' | cargo run --example read_header
//! ```

use std::error::Error;
use std::io::{self, Read, Write};

use realpeer::header::{Claim, Header, Progress, Transport, parse};

fn main() -> Result<(), Box<dyn Error>> {
    let mut stream = io::stdin().lock();
    let header = read_header(&mut stream)?;
    let mut out = io::stdout().lock();
    match header.claim {
        Claim::Client {
            source,
            destination,
        } => writeln!(out, "{source} connected to {destination}")?,
        Claim::RealEndpoints => writeln!(out, "no client: the connection is the peer's own")?,
    }
    io::copy(&mut stream, &mut out)?;
    Ok(())
}

/// Takes exactly the header from the stream: never more than is missing, so that the next read
/// returns the client's first byte.
fn read_header(stream: &mut impl Read) -> Result<Header, Box<dyn Error>> {
    let mut bytes = Vec::new();
    loop {
        match parse(&bytes, Transport::Stream)? {
            Progress::Complete(header) => return Ok(header),
            Progress::NeedMore(missing) => {
                let begin = bytes.len();
                bytes.resize(begin + missing, 0);
                stream.read_exact(&mut bytes[begin..])?;
            }
        }
    }
}
