//! Bytes both ways: nothing lost, nothing reordered, ends and resets passed on, little held.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;
use support::header::v1;
use support::stage::{CLIENT, VISITED};
use support::streams::{
    assert_carries, assert_closed, assert_reset, finish_sending, is_ready, read, receive,
    receive_all, reset, send,
};
use support::{Program, Session, Stage, TempDir, vitals, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn over_a_hundred_megabytes_pass_both_ways_at_once() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    exchange(&near, &far, 128 * MIB);
}

#[test]
fn many_connections_carry_bulk_at_once() {
    let stage = Stage::new(&[]);
    let sessions: Vec<Session> = (0..40)
        .map(|number| stage.session(&format!("203.0.113.7:{}", 40_000 + number)))
        .collect();
    thread::scope(|scope| {
        for session in &sessions {
            scope.spawn(|| exchange(&session.near, &session.far, 4 * MIB));
        }
    });
}

#[test]
fn bulk_passes_where_no_pipe_can_be_had() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    assert_carries(&near, &far);
    vitals::forbid_descriptors(&stage.server, &stage.proxy);
    exchange(&near, &far, 32 * MIB);
}

#[test]
fn bulk_passes_where_pipes_run_out_in_the_middle() {
    let stage = Stage::new(&[]);
    let sessions: Vec<Session> = (0..8)
        .map(|number| stage.session(&format!("203.0.113.7:{}", 40_000 + number)))
        .collect();
    // Room for one pipe, for sixteen directions.
    vitals::set_soft_limit(
        &stage.server,
        &stage.proxy,
        vitals::first_free(&stage.proxy) + 2,
    );
    thread::scope(|scope| {
        for session in &sessions {
            scope.spawn(|| exchange(&session.near, &session.far, 8 * MIB));
        }
    });
}

#[test]
fn bulk_is_spliced_and_small_messages_are_not() {
    let directory = TempDir::new();
    let trace = directory.path("trace").display().to_string();
    let strace = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-e",
        "trace=splice",
        "-o",
        &trace,
    ];
    let stage = Stage::under(Program::Realpeer, &strace, &[]);
    let Session { near, far } = stage.session(CLIENT);
    let splices = || {
        fs::read_to_string(&trace)
            .expect("strace writes")
            .matches("splice(")
            .count()
    };
    for _ in 0..100 {
        assert_carries(&near, &far);
    }
    assert_eq!(splices(), 0);
    exchange(&near, &far, 4 * MIB);
    wait_until("splices are traced", || splices() > 0);
}

#[test]
fn messages_of_all_sizes_pass_in_order() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    let mut bytes = Stream::new(7);
    for size in (0..18).flat_map(|power| [(1usize << power) - 1, 1 << power, (1 << power) + 1]) {
        let message = bytes.take(size);
        for (from, to) in [(&near, &far), (&far, &near)] {
            thread::scope(|scope| {
                scope.spawn(|| send(from, &message));
                assert!(
                    receive(to, size) == message,
                    "a message of {size} bytes arrived otherwise"
                );
            });
        }
    }
}

#[test]
fn the_client_may_finish_first_and_still_be_answered() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    send(&near, "request");
    finish_sending(&near);
    assert_eq!(receive_all(&far), b"request");
    one_way(&far, &near, 8 * MIB);
    drop(far);
    assert_eq!(receive_all(&near), b"");
}

#[test]
fn the_backend_may_finish_first_and_still_be_told() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    send(&far, "greeting");
    finish_sending(&far);
    assert_eq!(receive_all(&near), b"greeting");
    one_way(&near, &far, 8 * MIB);
    drop(near);
    assert_eq!(receive_all(&far), b"");
}

#[test]
fn a_client_that_finishes_behind_its_header_is_answered() {
    let stage = Stage::new(&[]);
    let near = stage.dial_and_send([v1(CLIENT, VISITED), b"request".to_vec()].concat());
    finish_sending(&near);
    let (far, _) = stage.backend.accept();
    assert_eq!(receive_all(&far), b"request");
    send(&far, "answer");
    drop(far);
    assert_eq!(receive_all(&near), b"answer");
}

#[test]
fn when_both_have_finished_nothing_is_left_open() {
    let stage = Stage::new(&[]);
    stage.assert_serves();
    wait_until("the first session is over", || {
        stage.server.established(2222) == 0
    });
    let before = vitals::descriptors(&stage.proxy);
    for number in 0..20 {
        let Session { near, far } = stage.session(&format!("203.0.113.7:{}", 40_000 + number));
        let (first, second) = if number % 2 == 0 {
            (near, far)
        } else {
            (far, near)
        };
        finish_sending(&first);
        assert_eq!(receive_all(&second), b"");
        finish_sending(&second);
        assert_eq!(receive_all(&first), b"");
    }
    wait_until("all descriptors are closed", || {
        vitals::descriptors(&stage.proxy) == before
    });
}

#[test]
fn a_clients_reset_reaches_the_backend() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    assert_carries(&near, &far);
    reset(near);
    assert_reset(&far);
}

#[test]
fn a_backends_reset_reaches_the_client() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    assert_carries(&near, &far);
    reset(far);
    assert_reset(&near);
}

#[test]
fn a_backend_that_resets_whom_it_has_just_accepted_resets_the_client() {
    let stage = Stage::new(&[]);
    for number in 0..20 {
        let Session { near, far } = stage.session(&format!("203.0.113.7:{}", 40_000 + number));
        reset(far);
        assert_reset(&near);
    }
}

#[test]
fn a_reset_behind_a_finish_is_passed_on() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    finish_sending(&near);
    assert_eq!(receive_all(&far), b"");
    reset(near);
    wait_until("the backend's sending breaks", || sending_breaks(&far));
}

#[test]
fn a_reset_in_the_middle_of_bulk_is_passed_on() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    send(&near, Stream::new(1).take(MIB as usize));
    reset(near);
    let mut read = Vec::new();
    let end = (&far)
        .read_to_end(&mut read)
        .expect_err("no orderly end: bytes may be missing");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert!(
        Stream::new(1).take(read.len()) == read,
        "what came is not what was sent"
    );
}

#[test]
fn a_clients_reset_is_noticed_while_the_backend_does_not_read() {
    let stage = small_buffers(Stage::new(&[]));
    let Session { near, far } = stage.session(CLIENT);
    fill(&near, 64 * MIB);
    reset(near);
    wait_until("the backend's connection is gone", || {
        stage.server.established(9000) == 0
    });
    drop(far);
}

#[test]
fn a_backends_reset_is_noticed_while_the_client_does_not_read() {
    let stage = small_buffers(Stage::new(&[]));
    let Session { near, far } = stage.session(CLIENT);
    fill(&far, 64 * MIB);
    reset(far);
    wait_until("the client's connection is gone", || {
        stage.server.established(2222) == 0
    });
    drop(near);
}

#[test]
fn a_client_that_went_away_stops_the_backends_sending() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    drop(near);
    assert_eq!(receive_all(&far), b"");
    wait_until("the backend's sending breaks", || sending_breaks(&far));
}

#[test]
fn a_backend_that_does_not_read_stops_the_client() {
    let stage = small_buffers(Stage::new(&[]));
    let Session { near, far } = stage.session(CLIENT);
    held_back(&stage, &near, &far);
}

#[test]
fn a_client_that_does_not_read_stops_the_backend() {
    let stage = small_buffers(Stage::new(&[]));
    let Session { near, far } = stage.session(CLIENT);
    held_back(&stage, &far, &near);
}

/// `to` does not read: `from` must stall with little in flight and little memory used, other
/// clients must not notice, and when `to` reads all must come.
#[track_caller]
fn held_back(stage: &Stage, from: &TcpStream, to: &TcpStream) {
    stage.assert_serves();
    let before = vitals::memory(&stage.proxy);
    let taken = fill(from, 64 * MIB);
    assert!(taken < 8 * MIB, "{taken} bytes are in flight");
    let grown = vitals::memory(&stage.proxy).saturating_sub(before) as u64;
    assert!(grown < 4 * MIB, "{grown} bytes of memory hold them");
    stage.assert_serves();

    from.set_nonblocking(false).expect("make a stream blocking");
    thread::scope(|scope| {
        scope.spawn(|| finish_sending(from));
        let all = receive_all(to);
        assert_eq!(all.len() as u64, taken);
        assert!(
            Stream::new(1).take(all.len()) == all,
            "what came is not what was sent"
        );
    });
}

/// Lets the kernel buffer less, so that what the proxy buffers shows.
fn small_buffers(stage: Stage) -> Stage {
    for host in [&stage.balancer, &stage.server] {
        host.sysctl("ipv4/tcp_rmem", "4096 131072 262144");
        host.sysctl("ipv4/tcp_wmem", "4096 131072 262144");
    }
    stage
}

/// Sends until nothing more is taken for a second, and returns how much was; gives up at `most`.
fn fill(mut stream: &TcpStream, most: u64) -> u64 {
    stream
        .set_nonblocking(true)
        .expect("make a stream non-blocking");
    let mut source = Stream::new(1);
    let mut taken = 0;
    while taken < most {
        let piece = source.clone().take(64 << 10);
        match stream.write(&piece) {
            Ok(count) => {
                source.position += count;
                taken += count as u64;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if !is_ready(&stream, PollFlags::POLLOUT, Duration::from_secs(1)) {
                    break;
                }
            }
            Err(e) => panic!("cannot send: {e}"),
        }
    }
    taken
}

#[test]
fn an_idle_connection_holds_two_descriptors() {
    const SESSIONS: usize = 50;
    let stage = Stage::new(&[]);
    let before = vitals::descriptors(&stage.proxy);
    let sessions = idle_sessions(&stage, 40_000, SESSIONS);
    wait_until("each connection holds two descriptors", || {
        vitals::descriptors(&stage.proxy) == before + 2 * SESSIONS
    });
    // Bulk needs a pipe, which may stay for the next bulk, but not one a connection.
    for session in &sessions {
        exchange(&session.near, &session.far, MIB);
    }
    wait_until("the pipes are given back", || {
        vitals::descriptors(&stage.proxy) <= before + 2 * SESSIONS + 20
    });
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    const SESSIONS: usize = 400;
    vitals::allow_many_descriptors();
    let stage = Stage::new(&[]);
    drop(idle_sessions(&stage, 50_000, 10));
    let before = vitals::memory(&stage.proxy);
    let sessions = idle_sessions(&stage, 40_000, SESSIONS);
    for session in &sessions {
        exchange(&session.near, &session.far, MIB / 4);
    }
    // Far less than one 64 KiB buffer for each.
    wait_until("a connection costs less than 8 KiB", || {
        vitals::memory(&stage.proxy).saturating_sub(before) < SESSIONS * 8 * 1024
    });
}

/// Sessions of clients that no other test line uses, from this port of theirs on.
fn idle_sessions(stage: &Stage, first_port: usize, count: usize) -> Vec<Session> {
    let open = |number| {
        let session = stage.session(&format!("203.0.113.7:{}", first_port + number));
        assert_carries(&session.near, &session.far);
        session
    };
    (0..count).map(open).collect()
}

#[test]
fn a_closed_backend_ends_the_clients_connection() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    send(&near, "more than the backend reads");
    wait_until("it has come", || far.peek(&mut [0]).is_ok());
    // Unread bytes turn this close into a reset.
    drop(far);
    assert_closed(&near);
}

/// Sends so many bytes both ways at once and checks every one.
#[track_caller]
fn exchange(near: &TcpStream, far: &TcpStream, count: u64) {
    thread::scope(|scope| {
        let up = scope.spawn(|| one_way(near, far, count));
        one_way(far, near, count);
        up.join().expect("the other direction is right");
    });
}

/// Sends so many bytes one way and compares checksums.
#[track_caller]
fn one_way(mut from: &TcpStream, to: &TcpStream, count: u64) {
    const PIECE: usize = 64 << 10;
    let (sent, received) = thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let (mut source, mut sum, mut left) = (Stream::new(count as usize), 0, count);
            while left > 0 {
                let piece = source.take(left.min(PIECE as u64) as usize);
                from.write_all(&piece).expect("send bulk");
                sum = crc32c::crc32c_append(sum, &piece);
                left -= piece.len() as u64;
            }
            sum
        });
        let (mut buffer, mut sum, mut left) = (vec![0; PIECE], 0, count);
        while left > 0 {
            let most = left.min(PIECE as u64) as usize;
            let got = read(to, &mut buffer[..most]).expect("receive bulk");
            assert!(got > 0, "the stream ended {left} bytes too early");
            sum = crc32c::crc32c_append(sum, &buffer[..got]);
            left -= got as u64;
        }
        (sender.join().expect("the sender is done"), sum)
    });
    assert_eq!(
        sent, received,
        "{count} bytes arrived otherwise than they were sent"
    );
}

/// Whether sending to a connection fails because the other side has reset it.
fn sending_breaks(mut stream: &TcpStream) -> bool {
    stream
        .write_all(b"anybody there?")
        .is_err_and(|e| matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset))
}

/// Endless bytes without a pattern that a proxy's buffers could share: one random block of a
/// prime length again and again.
#[derive(Clone)]
struct Stream {
    position: usize,
}

impl Stream {
    /// Where in the block it begins.
    fn new(position: usize) -> Stream {
        Stream { position }
    }

    /// The next bytes.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let rest = &random_block()[self.position % BLOCK..];
            let piece = &rest[..rest.len().min(count - bytes.len())];
            bytes.extend(piece);
            self.position += piece.len();
        }
        bytes
    }
}

const BLOCK: usize = 1_000_003;

fn random_block() -> &'static [u8] {
    static RANDOM: OnceLock<Vec<u8>> = OnceLock::new();
    RANDOM.get_or_init(|| {
        // xorshift64
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..BLOCK).map(|_| next()).collect()
    })
}
