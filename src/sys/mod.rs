//! Every raw system call that no safe wrapper offers. Nothing else in the crate is `unsafe`.

#![allow(unsafe_code)]

pub mod datagram;
pub mod icmp;
pub mod interfaces;
pub mod netns;
pub mod passing;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod systemd;
