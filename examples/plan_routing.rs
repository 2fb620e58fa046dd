//! Prints the commands that bring a backend's replies back to a proxy on this host, without running
//! any of them and without privileges.
//!
//! ```sh
//! cargo run --example plan_routing tcp 127.0.0.1:22
//! ```

use std::error::Error;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use realpeer::routing::plan::{Need, Place, Protocol, choose};

/// Any unused number does, for the table and for the mark.
const TABLE: u32 = 8192;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, target] = &words[..] else {
        return Err("usage: plan_routing tcp|udp ADDRESS:PORT".into());
    };
    let protocol = match protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("{other} is neither tcp nor udp").into()),
    };
    let target: SocketAddr = target.parse()?;
    let wildcard = target.ip().is_unspecified();
    let need = Need {
        target,
        netns: None,
        given: true,
        way: choose(protocol, place(target.ip()), wildcard),
        mark: None,
        wildcard,
        // Any address of no host here.
        stranger: match target {
            SocketAddr::V4(_) => IpAddr::from([198, 18, 0, 1]),
            SocketAddr::V6(_) => IpAddr::from([0x2001, 2, 0, 0, 0, 0, 0, 1]),
        },
    };
    println!("# {} way", need.way);
    for step in need.steps(TABLE) {
        println!("{step}");
    }
    Ok(())
}

/// Only an address of this host can be bound.
fn place(ip: IpAddr) -> Place {
    if ip.is_loopback() {
        Place::Loopback
    } else if UdpSocket::bind((ip, 0)).is_ok() {
        Place::Own
    } else {
        Place::Behind
    }
}
