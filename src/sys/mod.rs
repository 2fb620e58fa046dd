//! Every raw system call that no safe wrapper offers. Nothing else in the crate is `unsafe`.

#![allow(unsafe_code)]

pub mod capabilities;
pub mod datagram;
pub mod icmp;
pub mod interfaces;
pub mod netns;
pub mod socket;
pub mod systemd;
