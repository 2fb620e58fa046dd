//! Several listening sockets: the kernel shall give all datagrams of a client to the same one.
//!
//! By itself it chooses by the load balancer's address and port, so a client that comes by two
//! load-balancer sockets would have two flows, of which only one could have its port. A classic
//! BPF program reads the claimed client from the header and chooses by that. With `-untrusted serve`
//! it must not: a peer that is served as itself sends what it likes, and is one flow all the same.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use libc::{
    BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MISC, BPF_MOD, BPF_MUL,
    BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR, sock_filter,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::config::{ListenerConfig, UdpHeader, Untrusted};

/// What BPF_RET takes from the accumulator (linux/filter.h); libc does not name it.
const BPF_A: u32 = 0x10;

/// A number that no socket has: the kernel then chooses by the sender, as without a program.
const BY_SENDER: u32 = u32::MAX;

/// Odd numbers with well-mixed bits (MurmurHash3's).
const MIX: [u32; 2] = [0xcc9e_2d51, 0x85eb_ca6b];

/// Makes sockets that share an address choose by the claimed client, where all peers send headers.
/// A datagram without a whole
/// header goes to the first socket: it is dropped there as well as anywhere.
pub fn by_client(sockets: &[Arc<OwnedFd>], config: &ListenerConfig) -> io::Result<()> {
    let Ok(count) = u32::try_from(sockets.len()) else {
        return Ok(());
    };
    let mut program = match (config.untrusted, config.udp_header) {
        // Only a sender's first datagram names its client, so the sender must decide.
        (_, UdpHeader::First) => return Ok(()),
        // After a reload, this takes the place of another program.
        (Untrusted::Serve, _) => vec![step(BPF_RET | BPF_K, BY_SENDER)],
        (Untrusted::Refuse, UdpHeader::Every) => proxy_v2(count),
        (Untrusted::Refuse, UdpHeader::Spp) => client_at([2, 6, 10, 14], 34, count),
    };
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(
        &*sockets[0],
        sockopt::AttachReusePortCbpf,
        &program,
    )?)
}

/// Byte 12 is the command (0x21: PROXY), byte 13 the family (0x12, 0x22: UDP over IPv4, IPv6).
fn proxy_v2(sockets: u32) -> Vec<sock_filter> {
    let v4 = client_at([16], 24, sockets);
    let v6 = client_at([16, 20, 24, 28], 48, sockets);
    let mut program = vec![
        step(BPF_LD | BPF_B | BPF_ABS, 12),
        // LOCAL names nobody: on to the last step.
        skip_unless(0x21, 2 + v6.len() + 1 + v4.len()),
        step(BPF_LD | BPF_B | BPF_ABS, 13),
        skip_unless(0x22, v6.len()),
    ];
    program.extend(v6);
    program.push(skip_unless(0x12, v4.len()));
    program.extend(v4);
    program.push(step(BPF_RET | BPF_K, BY_SENDER));
    program
}

/// Chooses by the words of an address and by a port that stand at these offsets.
fn client_at<const N: usize>(words: [u32; N], port: u32, sockets: u32) -> Vec<sock_filter> {
    let mut program = vec![step(BPF_LD | BPF_H | BPF_ABS, port)];
    for word in words {
        program.extend([
            step(BPF_ALU | BPF_MUL | BPF_K, MIX[0]),
            step(BPF_MISC | BPF_TAX, 0),
            step(BPF_LD | BPF_W | BPF_ABS, word),
            step(BPF_ALU | BPF_XOR | BPF_X, 0),
        ]);
    }
    program.extend([
        step(BPF_ALU | BPF_MUL | BPF_K, MIX[1]),
        step(BPF_ALU | BPF_RSH | BPF_K, 16),
        step(BPF_ALU | BPF_MOD | BPF_K, sockets),
        step(BPF_RET | BPF_A, 0),
    ]);
    program
}

fn step(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Goes on if the accumulator has this value, and past `steps` steps otherwise.
fn skip_unless(value: u32, steps: usize) -> sock_filter {
    sock_filter {
        jf: steps as u8,
        ..step(BPF_JMP | BPF_JEQ | BPF_K, value)
    }
}
