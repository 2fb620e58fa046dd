//! Connections that are opened, used once, and then only kept.

use std::io;
use std::net::TcpStream;

use crate::run::Run;
use crate::scene::client;

/// A proxy that is full mostly stays so, and each failure may last as long as a client's patience.
const MOST_FAILURES: usize = 2;

/// Opens up to `count` connections that each carry a word to the backend and back. Fewer, if the
/// proxy takes no more of them.
pub fn open(run: &Run, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    let mut failed = 0;
    while streams.len() + failed < count && failed < MOST_FAILURES {
        match one(run) {
            Ok(stream) => streams.push(stream),
            Err(_) => failed += 1,
        }
    }
    streams
}

fn one(run: &Run) -> io::Result<TcpStream> {
    let stream = client::dial(run.to())?;
    let opening = [&run.opening()[..], b"ping"].concat();
    client::try_send(&stream, &opening)?;
    client::receive(&stream, &mut [0; 4])?;
    Ok(stream)
}
