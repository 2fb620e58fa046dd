//! Memory asked for on the data path, counted: the proxy runs inside the test's own process, and
//! neither the client nor the backend that the test plays allocates while it counts.

mod support;

use std::alloc::System;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::program::start_here;
use support::{Host, addr, header};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PROXY: &str = "127.0.0.1:2222";
const BACKEND: &str = "127.0.0.1:9000";

/// What one connection asks for: its task, and the future that opens it (boxed, so that the task
/// stays small afterwards), an entry in the reactor for either socket and the list in which the
/// reactor keeps them until they are released, the bytes of its header, and the bytes that came
/// behind it.
const MOST_A_CONNECTION: usize = 7;

// One test, because the count is the whole process's.
#[test]
fn a_message_allocates_nothing_and_a_connection_little() {
    let host = Host::new("allocations");
    host.enter(|| {
        start_here(&["-l", PROXY, "-4", BACKEND]);
        host.wait_for_port(addr(PROXY).port());
        let backend = TcpListener::bind(BACKEND).expect("listen as the backend");
        count_connections(&backend);
        let kinds = [
            ("a message of 6 B", 6, 6, 1_000),
            ("a message of 1 KiB", 1 << 10, 1 << 10, 1_000),
            ("a message of 16 KiB", 16 << 10, 16 << 10, 1_000),
            ("64 MiB up", 64 << 20, 1, 3),
            ("64 MiB down", 1, 64 << 20, 3),
        ];
        for (number, (what, up, down, times)) in kinds.into_iter().enumerate() {
            let (near, far) = connect(&backend, &opening(1_000 + number));
            count_exchanges(what, near, far, (up, down), times);
        }
    });
}

/// Opens, uses and closes connections one after the other.
fn count_connections(backend: &TcpListener) {
    const TIMES: usize = 200;
    let mut openings = (0..2 * TIMES).map(opening).collect::<Vec<_>>().into_iter();
    let mut one = || {
        let opening = openings.next().expect("one for each");
        let (near, far) = connect(backend, &opening);
        exchange(&near, &far);
        drop(near);
        // The end comes when the proxy has seen the client's end.
        assert_eq!((&far).read(&mut [0]).expect("an orderly end"), 0);
    };
    (0..TIMES).for_each(|_| one());
    let region = Region::new(ALLOCATOR);
    (0..TIMES).for_each(|_| one());
    let asked = requests(&region);
    assert!(
        asked < MOST_A_CONNECTION * TIMES + TIMES / 10,
        "{TIMES} connections asked for memory {asked} times"
    );
}

fn exchange(near: &TcpStream, far: &TcpStream) {
    let mut word = [0; 4];
    receive(far, &mut word).expect("the client's word");
    send(far, &word);
    receive(near, &mut word).expect("the backend's word");
}

/// Exchanges `up` bytes for `down` bytes on one connection, again and again.
fn count_exchanges(
    what: &str,
    near: TcpStream,
    far: TcpStream,
    (up, down): (usize, usize),
    times: usize,
) {
    let mut buffer = vec![0; 256 << 10];
    receive(&far, &mut buffer[..4]).expect("the client's word");
    let answering = thread::spawn(move || answer(&far, up, down));
    let mut one = || {
        put(&near, up, &mut buffer);
        take(&near, down, &mut buffer).expect("the answer");
    };
    // The first ones may fetch what stays: pipes, room in tables.
    (0..times).for_each(|_| one());
    // What the proxy does besides (watching routes, say) may fall into one series, but not into
    // all of them, as what a message asks for would.
    let series = (0..5).map(|_| {
        let region = Region::new(ALLOCATOR);
        (0..times).for_each(|_| one());
        requests(&region)
    });
    let asked = series.min().unwrap_or_default();
    drop(near);
    answering.join().expect("the backend does not panic");
    // A transfer begins with reading and writing: what a slow sink leaves then is kept for it, once
    // or twice before splicing begins, not for each of its thousand reads.
    let most = if up.max(down) > 1 << 20 { 2 * times } else { 0 };
    assert!(asked <= most, "{asked} allocations in {times} times {what}");
}

/// How often memory was asked for since the region began.
fn requests(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.allocations + change.reallocations
}

/// A header with the client's first word behind it; no two numbers claim the same client.
fn opening(number: usize) -> Vec<u8> {
    let claimed = format!("203.0.{}.{}:40000", 113 + number / 250, 1 + number % 250);
    [header::v1(&claimed, "198.51.100.1:22"), b"ping".to_vec()].concat()
}

fn connect(backend: &TcpListener, opening: &[u8]) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(addr(PROXY)).expect("connect to the proxy");
    send(&near, opening);
    let (far, _) = backend.accept().expect("accept as the backend");
    (near, far)
}

/// Plays the backend until the client closes.
fn answer(far: &TcpStream, up: usize, down: usize) {
    let mut buffer = vec![0; 256 << 10];
    while take(far, up, &mut buffer).is_ok() {
        put(far, down, &mut buffer);
    }
}

fn put(stream: &TcpStream, total: usize, buffer: &mut [u8]) {
    for at in (0..total).step_by(buffer.len()) {
        let size = buffer.len().min(total - at);
        send(stream, &buffer[..size]);
    }
}

fn take(stream: &TcpStream, total: usize, buffer: &mut [u8]) -> io::Result<()> {
    (0..total).step_by(buffer.len()).try_for_each(|at| {
        let size = buffer.len().min(total - at);
        receive(stream, &mut buffer[..size])
    })
}

fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("send");
}

fn receive(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.read_exact(buffer)
}
