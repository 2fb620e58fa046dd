//! Small messages to and fro, a fixed number of them in flight.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Done, nanoseconds, watch};

/// A connection, and the answer that it waits for.
struct Client {
    stream: TcpStream,
    received: usize,
    since: Instant,
}

/// Sends messages of `size` bytes over connections to an echoing backend. `in_flight` of them wait
/// for their answer at any time; each answer sends a message on the connection that rested longest.
pub fn ping(streams: Vec<TcpStream>, in_flight: usize, size: usize, secs: u64) -> Done {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("make an epoll");
    let mut resting: VecDeque<usize> = VecDeque::with_capacity(streams.len());
    let mut clients: Vec<Option<Client>> = Vec::new();
    let start = Instant::now();
    for stream in streams {
        stream.set_nonblocking(true).expect("make it non-blocking");
        watch(&epoll, &stream, EpollFlags::EPOLLIN);
        let number = stream.as_raw_fd() as usize;
        clients.resize_with(clients.len().max(number + 1), || None);
        clients[number] = Some(Client {
            stream,
            received: 0,
            since: start,
        });
        resting.push_back(number);
    }
    let message = vec![b'P'; size];
    let mut done = Done::default();
    for number in resting
        .drain(..in_flight.min(resting.len()))
        .collect::<Vec<_>>()
    {
        send(&mut clients[number], &message);
    }
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 1 << 20];
    let end = start + Duration::from_secs(secs);
    while Instant::now() < end {
        let ready = epoll.wait(&mut events, EpollTimeout::from(100u8));
        for event in &events[..ready.unwrap_or_default()] {
            let number = event.data() as usize;
            let Some(client) = &mut clients[number] else {
                continue;
            };
            match client.stream.read(&mut buffer) {
                Ok(got @ 1..) => client.received += got,
                _ => {
                    clients[number] = None;
                    done.lost += 1;
                    continue;
                }
            }
            if client.received >= size {
                done.units += 1;
                done.latencies.push(nanoseconds(client.since.elapsed()));
                resting.push_back(number);
                let next = resting.pop_front().expect("one was just put in");
                send(&mut clients[next], &message);
            }
        }
    }
    done.seconds = start.elapsed().as_secs_f64();
    done
}

fn send(client: &mut Option<Client>, message: &[u8]) {
    if let Some(client) = client {
        (client.received, client.since) = (0, Instant::now());
        // A connection that is broken shows it when it is read.
        let _ = client.stream.write(message);
    }
}
