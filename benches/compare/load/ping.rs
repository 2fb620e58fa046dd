//! Small messages to and fro, a fixed number of them in flight.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Done, nanoseconds, watch};

/// Sends messages of `size` bytes over connections to an echoing backend. `in_flight` of them wait
/// for their answer at any time; each answer sends a message on the connection that rested longest.
pub fn ping(streams: Vec<TcpStream>, in_flight: usize, size: usize, secs: u64) -> Done {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("make an epoll");
    let mut clients = Clients::new(&epoll, streams, size);
    for _ in 0..in_flight {
        clients.send_next();
    }
    let mut done = Done::default();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    let end = start + Duration::from_secs(secs);
    while Instant::now() < end {
        let ready = epoll.wait(&mut events, EpollTimeout::from(100u8));
        for event in &events[..ready.unwrap_or_default()] {
            clients.receive(event.data() as usize, &mut buffer, &mut done);
        }
    }
    done.seconds = start.elapsed().as_secs_f64();
    done
}

/// A connection, and the answer that it waits for.
struct Client {
    stream: TcpStream,
    received: usize,
    since: Instant,
}

struct Clients {
    /// By the number of the descriptor.
    all: Vec<Option<Client>>,
    /// Those that wait for no answer.
    resting: VecDeque<usize>,
    message: Vec<u8>,
}

impl Clients {
    fn new(epoll: &Epoll, streams: Vec<TcpStream>, size: usize) -> Clients {
        let (mut all, mut resting) = (Vec::new(), VecDeque::new());
        for stream in streams {
            stream.set_nonblocking(true).expect("make it non-blocking");
            watch(epoll, &stream, EpollFlags::EPOLLIN);
            let number = stream.as_raw_fd() as usize;
            all.resize_with(all.len().max(number + 1), || None);
            all[number] = Some(Client {
                stream,
                received: 0,
                since: Instant::now(),
            });
            resting.push_back(number);
        }
        Clients {
            all,
            resting,
            message: vec![b'P'; size],
        }
    }

    /// Sends a message on the connection that rested longest.
    fn send_next(&mut self) {
        let next = self.resting.pop_front();
        if let Some(client) = next.and_then(|number| self.all[number].as_mut()) {
            (client.received, client.since) = (0, Instant::now());
            // A connection that is broken shows it when it is read.
            let _ = client.stream.write(&self.message);
        }
    }

    fn receive(&mut self, number: usize, buffer: &mut [u8], done: &mut Done) {
        let Some(client) = &mut self.all[number] else {
            return;
        };
        match client.stream.read(buffer) {
            Ok(got @ 1..) => client.received += got,
            _ => {
                self.all[number] = None;
                done.lost += 1;
                return;
            }
        }
        if client.received >= self.message.len() {
            done.units += 1;
            done.latencies.push(nanoseconds(client.since.elapsed()));
            self.resting.push_back(number);
            self.send_next();
        }
    }
}
