//! UDP: datagrams from load balancers to the backend, each from its client's own address, and the
//! answers back. The way of a datagram:
//!
//! ```text
//! listener ─▶ reader ─▶ flows ─▶ outbox ─▶ backend        up.rs
//! (a batch)   (header → (client's (runs leave
//!              client)   socket)   together)
//!
//! load balancer ◀─ outbox ◀─ flows ◀─ backend             down.rs
//! ```
//!
//! Each listening socket lives on one worker, with the flows of the clients that reach it: nothing
//! is shared on the way of a datagram. A flow is a client and a target, and costs one socket.

pub mod listener;
pub(crate) mod luggage;

mod bindings;
mod down;
mod flows;
mod journal;
mod lru;
mod outbox;
mod poller;
mod reader;
mod steering;
mod up;
