//! realpeer
pub mod addr;
pub mod cli;
pub mod config;
pub mod header;
