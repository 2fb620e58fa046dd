//! Datagrams to and fro, a window of them in flight.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Done;
use crate::run::Run;

/// Sockets of the load balancer, and datagrams that each has in flight.
const SOCKETS: usize = 16;
const WINDOW: usize = 16;

/// Clients whose datagrams come through the load balancer's sockets.
pub struct Flows(Vec<Sender>);

/// One socket, and the datagrams of the clients behind it.
struct Sender {
    socket: UdpSocket,
    datagrams: Vec<Vec<u8>>,
    next: usize,
}

impl Flows {
    /// `count` clients, each with a payload of `size` bytes behind its header.
    pub fn new(run: &Run, count: usize, size: usize) -> Flows {
        let mut senders: Vec<Sender> = (0..count.min(SOCKETS)).map(|_| Sender::new(run)).collect();
        for number in 0..count {
            let datagram = [&run.opening_of_datagrams()[..], &vec![b'u'; size]].concat();
            senders[number % SOCKETS].datagrams.push(datagram);
        }
        Flows(senders)
    }

    /// From now on only the first `count` clients send: at least one by each socket.
    pub fn silence_all_but(&mut self, count: usize) {
        for (number, sender) in self.0.iter_mut().enumerate() {
            let theirs = (number..count).step_by(SOCKETS).len();
            sender.datagrams.truncate(theirs);
            sender.next = 0;
        }
    }
}

impl Sender {
    fn new(run: &Run) -> Sender {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("open a socket");
        socket.connect(run.to()).expect("connect a socket");
        socket.set_nonblocking(true).expect("make it non-blocking");
        Sender {
            socket,
            datagrams: Vec::new(),
            next: 0,
        }
    }

    /// Sends the datagram of the next client; how many were sent.
    fn send(&mut self) -> u64 {
        let datagram = &self.datagrams[self.next];
        self.next = (self.next + 1) % self.datagrams.len();
        self.socket.send(datagram).map_or(0, |_| 1)
    }
}

/// Keeps the windows full for some seconds. Each answer sends another datagram.
pub fn datagrams(flows: &mut Flows, secs: u64) -> Done {
    let senders = &mut flows.0;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("make an epoll");
    for (number, sender) in senders.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
        epoll.add(&sender.socket, event).expect("watch a socket");
    }
    let (mut sent, mut received) = (0, 0);
    for sender in senders.iter_mut() {
        sent += (0..WINDOW).map(|_| sender.send()).sum::<u64>();
    }
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0; 65_536];
    let start = Instant::now();
    let end = start + Duration::from_secs(secs);
    while Instant::now() < end {
        let ready = epoll
            .wait(&mut events, EpollTimeout::from(20u8))
            .unwrap_or_default();
        if ready == 0 {
            // Everything in flight was lost.
            sent += senders.iter_mut().map(Sender::send).sum::<u64>();
        }
        for event in &events[..ready] {
            let sender = &mut senders[event.data() as usize];
            while sender.socket.recv(&mut buffer).is_ok() {
                received += 1;
                sent += sender.send();
            }
        }
    }
    let in_flight = (senders.len() * WINDOW) as u64;
    Done {
        units: received,
        lost: sent.saturating_sub(received + in_flight),
        seconds: start.elapsed().as_secs_f64(),
        latencies: Vec::new(),
    }
}
