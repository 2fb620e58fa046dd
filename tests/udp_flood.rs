//! 100,000 forged clients in ten seconds: new clients are served all the same, and memory stays
//! bounded.

mod support;

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use support::datagrams::{Scene, every, receive};
use support::vitals::{descriptors, memory};
use support::wait_until;

const FORGED: u32 = 100_000;
const LASTS: Duration = Duration::from_secs(10);
const SERVED_WITHIN: Duration = Duration::from_millis(100);
/// Ends the backend.
const OVER: &[u8] = b"over";
const MEMORY: usize = 200 << 20;

#[test]
fn a_flood_of_forged_clients_stops_nobody() {
    support::vitals::allow_many_descriptors();
    let scene = Scene::new(&[]);
    let (flooder, near) = (scene.socket(), scene.socket());
    scene.converse(&near, "203.0.113.1:1");
    hold_bursts(&scene.backend);
    let (mut waits, mut most_memory) = (Vec::new(), 0);
    thread::scope(|scope| {
        let backend = scene.backend.try_clone().unwrap();
        let echo = scope.spawn(move || echo(&backend));
        let flood = scope.spawn(|| flood(&flooder));
        while !flood.is_finished() {
            waits.push(serve(&near, waits.len() as u32));
            most_memory = most_memory.max(memory(&scene.proxy));
            thread::sleep(LASTS / 200); // the pace of the new clients, not a wait for anything
        }
        let lasted = flood.join().unwrap();
        wait_until("the backend has ended", || {
            near.send(&every("203.0.113.1:1", OVER)).unwrap();
            echo.is_finished()
        });
        assert!(
            lasted < LASTS + LASTS / 5,
            "the flood took {lasted:?}: this machine is too busy to tell"
        );
    });
    waits.sort();
    let worst = waits[waits.len() - 1];
    println!(
        "{} new clients during the flood: median {:?}, worst {worst:?}; \
         memory {} KiB, descriptors {}",
        waits.len(),
        waits[waits.len() / 2],
        most_memory / 1024,
        descriptors(&scene.proxy),
    );
    assert!(
        waits.len() >= 20,
        "{} new clients is too few to tell",
        waits.len()
    );
    assert!(worst < SERVED_WITHIN, "a new client waited {worst:?}");
    assert!(most_memory < MEMORY, "{most_memory} bytes of memory");
    scene.proxy.signal(Signal::SIGTERM);
    let line = scene.proxy.wait_for_line("\"stopped\"");
    println!("{line}");
}

/// Sends the forged clients' datagrams at an even pace, and tells how long that took.
fn flood(socket: &UdpSocket) -> Duration {
    let start = Instant::now();
    for number in 0..FORGED {
        let [_, a, b, c] = number.to_be_bytes();
        let client = format!("10.{a}.{b}.{c}:{}", 1024 + number % 60_000);
        // What the network drops is the flood's own loss.
        let _ = socket.send(&every(&client, b"forged"));
        let due = start + LASTS * number / FORGED;
        if number % 20 == 0
            && let Some(early) = due.checked_duration_since(Instant::now())
        {
            thread::sleep(early);
        }
    }
    start.elapsed()
}

/// A client never seen before asks; tells how long its answer took.
fn serve(near: &UdpSocket, number: u32) -> Duration {
    let [_, a, b, c] = number.to_be_bytes();
    let payload = number.to_be_bytes();
    let start = Instant::now();
    near.send(&every(&format!("11.{a}.{b}.{c}:53"), &payload))
        .unwrap();
    assert_eq!(receive(near).0, payload);
    start.elapsed()
}

/// The backend shall lose nothing while its thread waits for a turn.
fn hold_bursts(backend: &UdpSocket) {
    let size = 8 << 20;
    if setsockopt(backend, sockopt::RcvBufForce, &size).is_err() {
        setsockopt(backend, sockopt::RcvBuf, &size).unwrap();
    }
}

/// Answers every datagram with itself, until one says that it is over.
fn echo(backend: &UdpSocket) {
    loop {
        let (payload, from) = receive(backend);
        if payload == OVER {
            return;
        }
        let _ = backend.send_to(&payload, from);
    }
}
