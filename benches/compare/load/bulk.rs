//! As many bytes as go through, in one direction.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};

use super::Done;
use crate::run::Run;
use crate::scene::client;

/// Which way the bytes go.
#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

/// Fills `connections` for some seconds. The units are bytes that this side sent or received.
pub fn bulk(run: &Run, direction: Direction, connections: usize, secs: u64) -> Done {
    let (bytes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let streams: Vec<TcpStream> = (0..connections).map(|_| open(run)).collect();
    thread::scope(|scope| {
        let start = Instant::now();
        for stream in &streams {
            let (bytes, stop) = (&bytes, &stop);
            scope.spawn(move || {
                let mut buffer = vec![7; 1 << 20];
                while !stop.load(Relaxed) {
                    let Some(moved) = step(stream, direction, &mut buffer) else {
                        break;
                    };
                    bytes.fetch_add(moved as u64, Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_secs(secs));
        stop.store(true, Relaxed);
        Done {
            units: bytes.load(Relaxed),
            seconds: start.elapsed().as_secs_f64(),
            ..Done::default()
        }
    })
}

fn open(run: &Run) -> TcpStream {
    let stream = client::dial(run.to()).expect("connect");
    client::send(&stream, &run.opening());
    stream
}

fn step(mut stream: &TcpStream, direction: Direction, buffer: &mut [u8]) -> Option<usize> {
    let moved = match direction {
        Direction::Up => stream.write(&buffer[..256 << 10]).ok(),
        // What comes is thrown away without copying it.
        Direction::Down => recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC).ok(),
    };
    moved.filter(|moved| *moved > 0)
}
