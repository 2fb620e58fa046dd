//! Connections that come, say four bytes, hear them back, and go.

use std::io::{self, Read};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use super::{Done, nanoseconds};
use crate::run::Run;
use crate::scene::client;

/// `clients` at a time, each opening one connection after the other.
pub fn churn(run: &Run, clients: usize, secs: u64) -> Done {
    let start = Instant::now();
    let end = start + Duration::from_secs(secs);
    let mut done = Done::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| one_client(run, end)))
            .collect();
        for thread in threads {
            let part = thread.join().expect("a client does not panic");
            done.units += part.units;
            done.lost += part.lost;
            done.latencies.extend(part.latencies);
        }
    });
    done.seconds = start.elapsed().as_secs_f64();
    done
}

fn one_client(run: &Run, end: Instant) -> Done {
    let mut done = Done::default();
    while Instant::now() < end {
        let start = Instant::now();
        match one_connection(run) {
            Ok(()) => {
                done.units += 1;
                done.latencies.push(nanoseconds(start.elapsed()));
            }
            Err(_) => done.lost += 1,
        }
    }
    done
}

fn one_connection(run: &Run) -> io::Result<()> {
    let mut stream = client::dial(run.to())?;
    let opening = [&run.opening()[..], b"ping"].concat();
    client::try_send(&stream, &opening)?;
    client::receive(&stream, &mut [0; 4])?;
    stream.shutdown(Shutdown::Write)?;
    // The end comes when the backend has seen ours.
    stream.read(&mut [0; 4]).map(drop)
}
