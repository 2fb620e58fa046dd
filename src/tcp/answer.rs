//! Waits for a backend that did not answer at once, and tells a firewall's reject from a closed
//! port: the one comes as an ICMP message, the other as a reset.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::stream::Stream;
use crate::addr::{ClientAddr, TargetAddr};
use crate::sys::icmp;
use crate::sys::interfaces::is_local;
use crate::upstream::{self, UpstreamError};

/// An error that the kernel holds back is looked at again so often.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the connection is there, or fails with what went wrong. Returns the error of one that
/// was there and is broken already.
pub async fn wait(
    backend: &Stream,
    client: ClientAddr,
    target: TargetAddr,
) -> Result<Option<io::Error>, UpstreamError> {
    let rejected = || UpstreamError::Rejected {
        target,
        here: is_local(target.ip()),
    };
    // It only helps to find words: without it a reject looks like a closed port.
    let _ = icmp::keep_errors(backend, target.ip(), true);
    // A reject of our own host came while connect(2) held the socket: the kernel then keeps the
    // error aside, sends the SYN again a second later, and tells the error only if asked.
    match backend.take_error() {
        Ok(()) => {}
        Err(e) if upstream::had_answered(&e) => return Ok(Some(e)),
        Err(_) => return Err(rejected()),
    }
    let mut woken = false;
    loop {
        // The error of a socket is told once: nobody else may ask here.
        match backend.send(&[]) {
            Ok(_) => break,
            Err(e) if upstream::had_answered(&e) => return Ok(Some(e)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) if icmp::was_rejected(backend) => return Err(rejected()),
            Err(e) => return Err(upstream::failure(client, target, e)),
        }
        // Woken by an error that is none of ours: the reactor would wake us without end.
        if woken {
            sleep(PAUSE).await;
        }
        let ready = std::future::poll_fn(|cx| backend.poll_writable(cx)).await;
        ready.map_err(|e| upstream::failure(client, target, e))?;
        if icmp::was_rejected(backend) {
            return Err(rejected());
        }
        woken = true;
    }
    let _ = icmp::keep_errors(backend, target.ip(), false);
    Ok(None)
}
