//! TCP: one connection is one task, from accept to the last byte.

pub mod listener;

mod answer;
mod connection;
mod idle;
mod pipes;
mod pump;
mod relay;
mod stream;
mod tail;

pub use pipes::MOST as PIPES_A_WORKER;
