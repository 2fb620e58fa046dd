//! What is counted and logged about datagrams and flows.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::flows::Flow;
use super::outbox::Trouble;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr, canonical};
use crate::events::Event;
use crate::refusal::Refusal;
use crate::report::Subject;
use crate::service::Service;
use crate::stats::Count;
use crate::upstream::UpstreamError;

/// Why a flow ended.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// `-close-after` without a datagram either way.
    Silent,
    /// It made room for a new flow.
    Evicted,
    /// Its client was banned.
    Banned,
    /// An administrator ended it.
    Killed,
    /// The proxy stops.
    Stopped,
    /// Its socket could not be watched.
    Unwatched,
    /// Its target's network namespace is gone, or another one in its place.
    TargetGone,
    /// Another process has it now.
    HandedOver,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ending::Silent => "silent for -close-after",
            Ending::Evicted => "made room for a new flow",
            Ending::Banned => "client banned",
            Ending::Killed => "ended by realpeer ctl kill",
            Ending::Stopped => "realpeer stops",
            Ending::Unwatched => "its socket could not be watched",
            Ending::TargetGone => "the network namespace of its target is gone",
            Ending::HandedOver => "handed over",
        })
    }
}

/// A datagram is dropped.
pub fn refused(
    service: &Service,
    worker: usize,
    peer: SocketAddr,
    target: Option<TargetAddr>,
    refusal: &Refusal,
) {
    let kind = refusal.count();
    service.add(worker, kind, 1);
    service.tell_refused(PeerAddr(canonical(peer)), refusal, None, target);
    let (record, ip) = (&service.record, canonical(peer).ip());
    record
        .reporter
        .note(kind, Some(ip), record.count(Count::Served));
    service.note_unreachable(refusal);
    let subject = Subject {
        reason: Some(refusal.reason()),
        target,
    };
    if let Some(held_back) = service.record.reporter.due(kind, subject) {
        tracing::warn!(
            listener = service.label(),
            error = %service.destinations.explain(refusal),
            frontendRemoteAddr = %PeerAddr(canonical(peer)),
            targetAddr = target.map(tracing::field::display),
            heldBack = held_back,
            "dropping datagram"
        );
    }
}

/// A datagram came cut off.
pub fn truncated(service: &Service, worker: usize) {
    let kind = Count::DatagramTruncated;
    service.add(worker, kind, 1);
    if let Some(held_back) = service.record.reporter.due(kind, Subject::default()) {
        tracing::warn!(
            listener = service.label(),
            heldBack = held_back,
            "dropping a datagram that is longer than 65,536 bytes"
        );
    }
}

/// The client's port is in use, so its flow has another one.
pub fn port_replaced(service: &Service, worker: usize, client: ClientAddr, target: TargetAddr) {
    let kind = Count::PortReplaced;
    service.add(worker, kind, 1);
    if let Some(held_back) = service.record.reporter.due(kind, about(target)) {
        tracing::info!(listener = service.label(), clientAddr = %client, heldBack = held_back, "the client's port is taken on this host: using a free one");
    }
}

/// A flow makes room.
pub fn evicted(service: &Service, worker: usize, open: usize) {
    let kind = Count::FlowEvicted;
    service.add(worker, kind, 1);
    if let Some(held_back) = service.record.reporter.due(kind, Subject::default()) {
        tracing::warn!(
            listener = service.label(),
            open = open as u64,
            heldBack = held_back,
            "too many flows: closing the one that was idle the longest for a new one; see -max-flows and LimitNOFILE"
        );
    }
}

/// The kernel told an error of a flow's upstream socket: an ICMP message, mostly, about a datagram
/// sent before. The flow goes on.
pub fn upstream_error(service: &Service, worker: usize, flow: &Flow, error: &io::Error) {
    let Flow { client, target, .. } = *flow;
    let error = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => UpstreamError::Refused(target),
        _ => UpstreamError::Failed {
            client,
            target,
            source: copy(error),
        },
    };
    refused(service, worker, flow.back.peer, Some(target), &error.into());
}

/// Something went wrong with what a flow sends; tells nothing of messages that must not be cut.
pub fn trouble(service: &Service, worker: usize, flow: &Flow, trouble: &Trouble<'_>) {
    match trouble {
        Trouble::Uncut(_) => {}
        Trouble::Earlier(error) => upstream_error(service, worker, flow, error),
        Trouble::Lost(count, error) => {
            let kind = Count::DatagramLost;
            service.add(worker, kind, *count as u64);
            if let Some(held_back) = service.record.reporter.due(kind, about(flow.target)) {
                tracing::warn!(
                    listener = service.label(),
                    error = %error,
                    clientAddr = %flow.client,
                    frontendRemoteAddr = %canonical(flow.back.peer),
                    targetAddr = %flow.target,
                    heldBack = held_back,
                    "cannot send datagrams; they are lost"
                );
            }
        }
    }
}

/// A flow has its socket.
pub fn opened(service: &Service, flow: &Flow) {
    service.tell(|| Event::Opened {
        id: flow.id,
        listener: service.name(),
        client: flow.client.0,
        peer: canonical(flow.back.peer),
        target: flow.target.0,
    });
}

/// A flow is over.
pub fn ended(service: &Service, flow: &Flow, why: Ending) {
    // It goes on elsewhere, which tells its end.
    if matches!(why, Ending::HandedOver) {
        return;
    }
    service.tell(|| Event::Closed {
        id: Some(flow.id),
        listener: service.name(),
        client: Some(flow.client.0),
        peer: canonical(flow.back.peer),
        target: Some(flow.target.0),
        bytes_up: flow.up.bytes,
        bytes_down: flow.down.bytes,
        age: flow.began.elapsed().as_secs_f64(),
        end: why.to_string(),
    });
    if !service.record.reporter.says_all() {
        return;
    }
    tracing::info!(
        listener = service.label(),
        clientAddr = %flow.client,
        frontendRemoteAddr = %canonical(flow.back.peer),
        targetAddr = %flow.target,
        bytesUp = flow.up.bytes,
        bytesDown = flow.down.bytes,
        datagramsUp = flow.up.datagrams,
        datagramsDown = flow.down.datagrams,
        durationMs = flow.began.elapsed().as_millis() as u64,
        end = %why,
        "flow closed"
    );
}

fn about(target: TargetAddr) -> Subject {
    Subject {
        reason: None,
        target: Some(target),
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}
