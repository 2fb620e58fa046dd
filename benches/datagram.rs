//! One datagram with its header to the backend, and its answer back.

mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::UdpSocket;

use criterion::Criterion;
use scene::{BACKEND, PROXY, Way, client};
use support::{Host, datagrams};

fn main() {
    scene::run(to_and_fro);
}

fn to_and_fro(criterion: &mut Criterion, host: &Host) {
    let backend = UdpSocket::bind(BACKEND).expect("listen as the backend");
    let _proxy = datagrams::start(host, &["-l", PROXY, "-4", BACKEND]);
    for size in [64, 1_200] {
        let mut group = criterion.benchmark_group(format!("a datagram of {size} B to and fro"));
        for (way, name) in Way::BOTH {
            let near = UdpSocket::bind("127.0.0.1:0").expect("open a socket");
            near.connect(if way == Way::Direct { BACKEND } else { PROXY })
                .expect("connect a socket");
            let datagram = datagram(way, size);
            group.bench_function(name, |b| b.iter(|| one(&near, &backend, &datagram, size)));
        }
    }
}

fn datagram(way: Way, size: usize) -> Vec<u8> {
    let mut datagram = match way {
        Way::Direct => Vec::new(),
        Way::Proxied | Way::Inside => client::header_v2_datagram(client::next_claimed()),
    };
    datagram.resize(datagram.len() + size, b'u');
    datagram
}

/// One thread plays both the load balancer and the backend, for they take turns.
fn one(near: &UdpSocket, backend: &UdpSocket, datagram: &[u8], size: usize) {
    let mut buffer = [0; 2048];
    near.send(datagram).expect("send to the proxy");
    let (got, from) = backend
        .recv_from(&mut buffer)
        .expect("receive as the backend");
    assert_eq!(got, size);
    backend.send_to(&buffer[..got], from).expect("answer");
    assert_eq!(near.recv(&mut buffer).expect("the answer"), size);
}
