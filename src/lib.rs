//! A transparent proxy that takes PROXY-protocol connections from a load balancer and passes them
//! on from the client's own address and port.
//!
//! As a library, it reads headers ([`header`]), opens sockets in a client's name ([`upstream`]) and
//! says what routing the replies need ([`routing::plan`]). [`program`] is all of it, by command line.
//!
//! The way of a connection, and of the reader:
//!
//! ```text
//! tcp::listener ─▶ admission ─▶ header ─▶ destination ─▶ upstream ─▶ tcp::relay ─▶ stats
//! (accept)         (may this    (bytes →  (whom to claim, (socket in  (bytes both  (what
//!                   peer speak?) client)   where to go)    that name)  ways)        happened)
//! ```
//!
//! UDP goes the same way, by the batch: see [`udp`].
//!
//! A module may use what stands to its right, and nothing to its left. What is asked for becomes a
//! [`config`], whoever asks; [`daemon`] starts and stops everything and is the only one that knows
//! everybody:
//!
//! ```text
//! cli ─▶ config ─▶ daemon ─▶ listeners ─▶ listening ─▶ service ─▶ proxy
//!                            (all, and    (sockets of  (rules and  (what all
//!                             reloads)     an address)  counters)   share)
//! ```
//!
//! A connection holds the [`service`] that admitted it; a reload puts another one in its place.
//!
//! Beside the way:
//!
//! - [`control`] lets an administrator look at [`sessions`], watch [`events`] and set [`bans`], which
//!   admission asks, as it asks [`claims`]. [`crowdsec`] adds an engine's decisions to them, on a thread
//!   of its own; [`protected`] says whom neither may ban.
//! - [`systemd`] hears how the process is, [`metrics`] tells it to whoever asks over HTTP. Lines of the
//!   [`log`] go out by a thread of their own; what commands print goes through [`output`].
//! - Targets in another network namespace are reached by sockets that the threads of [`namespaces`] make
//!   there.
//! - [`sandbox`] takes away what the process does not need. At an upgrade the [`starter`], forked before
//!   that, executes a new process, which takes over by [`handover`]; its listeners find their sockets
//!   among the [`sockets`] that it was given.
//! - [`setup`] writes a configuration and starts its unit, for a newcomer, and takes both back.
//! - [`ban_relay`] is a program of its own, for the ingress.

// The map above is for those who change the program, too: `cargo doc --document-private-items`.
#![allow(rustdoc::private_intra_doc_links)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
// They panic when nobody reads: `output` prints.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod addr;
pub(crate) mod admission;
pub(crate) mod ban_relay;
pub(crate) mod bans;
pub(crate) mod claims;
pub(crate) mod cli;
pub(crate) mod client_limits;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod crowdsec;
pub(crate) mod daemon;
pub(crate) mod demo;
pub(crate) mod destination;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod handover;
pub mod header;
pub(crate) mod histogram;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod listeners;
pub(crate) mod listening;
pub(crate) mod lock_file;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod namespaces;
pub(crate) mod networks;
pub(crate) mod output;
pub mod program;
pub(crate) mod protected;
pub(crate) mod proxy;
pub(crate) mod refusal;
pub(crate) mod report;
pub mod routing;
pub(crate) mod sandbox;
pub(crate) mod service;
pub(crate) mod sessions;
pub(crate) mod setup;
pub(crate) mod sockets;
pub(crate) mod starter;
pub(crate) mod stats;
pub(crate) mod suggest;
pub(crate) mod sys;
pub(crate) mod systemd;
pub(crate) mod tcp;
pub(crate) mod udp;
pub mod upstream;
pub(crate) mod yielding;
