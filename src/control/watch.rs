//! `realpeer ctl watch`: prints what happens until somebody ends it.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::client::{Failure, no_proxy, request, send};
use super::protocol::{End, Line};
use super::table;
use crate::cli::CtlFlags;
use crate::output;

/// Prints events until SIGINT, or until nobody reads them. Fails when the proxy goes away.
pub fn run(path: &Path, flags: &CtlFlags) -> Result<(), Failure> {
    let gone = |error: io::Error| no_proxy(path, &error);
    let (mut stream, mut sent) = begin(path, flags).map_err(gone)?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A thread of its own, for it may wait for who reads, and SIGINT ends it all the same.
    let (done, is_done) = oneshot::channel();
    let (path, flags) = (path.to_owned(), flags.clone());
    thread::spawn(move || {
        loop {
            match print(stream, flags.json) {
                Err(Ending::Succeeded) => match begin(&path, &flags) {
                    Ok(begun) => (stream, sent) = begun,
                    Err(error) => return done.send((Err(Ending::Broke(error)), Ok(()))),
                },
                ended => return done.send((ended, sent)),
            }
        }
    });
    runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => Ok(()),
            Ok((result, sent)) = is_done => match result {
                Ok(()) | Err(Ending::Succeeded) => sent.map_err(gone),
                Err(Ending::Said(why)) => Err(why),
                Err(Ending::Broke(error)) => Err(gone(error)),
            },
        }
    })
}

/// Connects and asks. A proxy that has too many clients answers without reading.
fn begin(path: &Path, flags: &CtlFlags) -> io::Result<(UnixStream, io::Result<()>)> {
    let mut stream = UnixStream::connect(path)?;
    let sent = send(&mut stream, &request(flags));
    Ok((stream, sent))
}

/// Why there are no more events.
enum Ending {
    /// Something that is told as it is.
    Said(Failure),
    /// The connection to the proxy.
    Broke(io::Error),
    /// Another process serves.
    Succeeded,
}

/// Prints what comes; ends well when nobody reads it any more.
fn print(stream: UnixStream, json: bool) -> Result<(), Ending> {
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(Ending::Broke)?;
        let text = match serde_json::from_str(&line) {
            Ok(Line::End(End { ok: true, .. })) => return Err(Ending::Succeeded),
            Ok(Line::End(End { error, .. })) => {
                return Err(Ending::Said(Failure::Refused(error.unwrap_or_default())));
            }
            Ok(Line::Event(_)) if json => format!("{line}\n"),
            Ok(Line::Event(told)) => table::event(&told),
            Ok(_) => continue,
            Err(error) => return Err(Ending::Broke(error.into())),
        };
        match output::print_or_stop(text) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(Ending::Said(error.into())),
        }
    }
    Err(Ending::Broke(io::ErrorKind::UnexpectedEof.into()))
}
