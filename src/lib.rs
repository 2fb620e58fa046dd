//! A transparent proxy that takes PROXY-protocol connections from a load balancer and passes them
//! on from the client's own address and port.
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
//! Targets in another network namespace are reached by sockets
//! that [`namespaces`] make there. Beside the way: [`control`] lets an administrator look at [`sessions`] and speak [`bans`], which
//! admission asks, as it asks [`claims`]; [`ban_relay`] is a program of its own, for the ingress. [`systemd`]
//! hears how the process is. Lines of the [`log`] go out by a thread of their own; what commands print
//! goes through [`output`].

#![cfg_attr(not(test), warn(clippy::unwrap_used))]
// They panic when nobody reads: `output` prints.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod addr;
pub mod admission;
pub mod ban_relay;
pub mod bans;
pub mod claims;
pub mod cli;
pub mod client_limits;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod destination;
pub mod doctor;
pub mod header;
pub mod limits;
pub mod listeners;
pub mod listening;
pub mod lock_file;
pub mod log;
pub mod namespaces;
pub mod networks;
pub mod output;
pub mod proxy;
pub mod refusal;
pub mod report;
pub mod routing;
pub mod service;
pub mod sessions;
pub mod stats;
pub mod suggest;
pub mod sys;
pub mod systemd;
pub mod tcp;
pub mod udp;
pub mod upstream;
pub mod yielding;
