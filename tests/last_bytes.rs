//! The last bytes of a side that ends, breaks or sends urgent data: what it sent reaches the other.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use socket2::SockRef;
use support::header::v1;
use support::stage::{CLIENT, VISITED};
use support::streams::{
    assert_carries, finish_sending, is_ready, read, receive, receive_all, receive_to_any_end,
    receive_until_reset, reset, send,
};
use support::{Host, Program, Session, Stage, wait_until};

#[test]
fn a_slow_client_gets_all_of_a_backend_that_was_forgotten() {
    let stage = Stage::new(&["-v", "2"]);
    for (number, size) in [1, 200_000, 3_000_000].into_iter().enumerate() {
        // The kernel may keep the port of the one before for a while.
        let Session { near, far } = stage.session(&client(number));
        let taken = closes_behind(&stage.server, "sport = :9000", far, size, &near);
        // Nobody is there for it any more: the answer is a reset, as to a keep-alive probe.
        send(&near, "still there?");
        wait_until("the backend's side has been reset", || {
            count(&stage.server, "dport = :9000") == 0
        });
        assert_rest(&near, taken, size);
        drop(near);
        stage.proxy.wait_for("the end of the connection", |line| {
            line.contains(&format!("\"bytesDown\":{size},")) && line.contains("backend reset")
        });
    }
}

#[test]
fn a_slow_backend_gets_all_of_a_client_that_was_forgotten() {
    let stage = Stage::new(&[]);
    for (number, size) in [1, 200_000, 3_000_000].into_iter().enumerate() {
        // The kernel may keep the port of the one before for a while.
        let Session { near, far } = stage.session(&client(number));
        let taken = closes_behind(&stage.balancer, "dport = :2222", near, size, &far);
        send(&far, "still there?");
        wait_until("the client's side has been reset", || {
            count(&stage.server, "sport = :2222") == 0
        });
        assert_rest(&far, taken, size);
    }
}

/// `from` sends so many bytes and closes; `to` reads no more than it must for all of them to be in
/// the proxy's hands. Returns how many it has read.
fn closes_behind(
    host: &Host,
    filter: &str,
    mut from: TcpStream,
    size: usize,
    to: &TcpStream,
) -> usize {
    let mut taken = 0;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            from.write_all(&pattern(0, size)).expect("send bulk");
        });
        let closed = || {
            let closing = host.run(&["ss", "-Htn", "state", "fin-wait-1", filter]);
            sender.is_finished() && closing.is_empty()
        };
        while !closed() {
            if taken < size / 2 && is_ready(to, PollFlags::POLLIN, Duration::from_millis(10)) {
                taken += read_pattern(to, taken, 16 << 10);
            }
        }
    });
    taken
}

/// The bytes that are still to come must be right, and their end orderly.
#[track_caller]
fn assert_rest(to: &TcpStream, taken: usize, size: usize) {
    let rest = receive_all(to);
    assert_eq!(taken + rest.len(), size);
    assert!(rest == pattern(taken, rest.len()), "other bytes came");
}

/// Open TCP sockets of a host, but for those whose program is done with them.
fn count(host: &Host, filter: &str) -> usize {
    let states = ["established", "close-wait", "last-ack"];
    let of = |state| host.run(&["ss", "-Htn", "state", state, filter]);
    states.map(|state| of(state).lines().count()).iter().sum()
}

#[test]
fn an_answer_arrives_though_its_backend_resets_for_the_unread_request() {
    let stage = Stage::new(&[]);
    let answer = pattern(0, 100);
    for number in 0..100 {
        let Session { near, far } = stage.session(&client(number));
        send(&near, "a request that nobody reads");
        receive(&far, 1);
        send(&far, &answer);
        // Unread bytes turn this close into a reset.
        drop(far);
        // It may meet the reset, here as without a proxy.
        let _ = (&near).write_all(b"more of it");
        assert!(
            receive_to_any_end(&near) == answer,
            "of connection {number}"
        );
    }
}

#[test]
fn a_long_answer_arrives_while_the_request_is_stuck() {
    let stage = Stage::new(&[]);
    for (number, size) in [100, 70_000, 300_000, 1_000_000].into_iter().enumerate() {
        let Session { near, far } = stage.session(&client(number));
        thread::scope(|scope| {
            // A client that reads only when all of its request is written.
            let client = scope.spawn(|| {
                let _ = (&near).write_all(&pattern(0, 20 << 20));
                receive_to_any_end(&near)
            });
            receive(&far, 1);
            send(&far, pattern(0, size));
            let port = far.peer_addr().expect("the peer's address").port();
            wait_until("the answer is in the proxy's hands", || {
                stage
                    .server
                    .queues(9000, port)
                    .is_some_and(|(unacknowledged, _)| unacknowledged == 0)
            });
            drop(far);
            let came = client.join().expect("the client does not panic");
            assert_eq!(came.len(), size);
            assert!(came == pattern(0, size), "other bytes came");
        });
    }
}

#[test]
fn an_answer_arrives_from_a_backend_that_broke_before_the_first_bytes_went() {
    // Time for the backend to do so between connect(2) and send(2).
    let strace = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=connect",
        "-e",
        "inject=connect:delay_exit=300000",
    ];
    let stage = Stage::under(Program::Realpeer, &strace, &[]);
    for orderly in [false, true] {
        let near = stage.dial_and_send([v1(CLIENT, VISITED), b"request".to_vec()].concat());
        let (far, _) = stage.backend.accept();
        send(&far, "no");
        if orderly {
            drop(far)
        } else {
            reset(far)
        }
        assert_eq!(receive_to_any_end(&near), b"no");
    }
}

#[test]
fn an_answer_arrives_from_a_backend_that_broke_while_it_was_waited_for() {
    let stage = Stage::new(&[]);
    let drop_syns = "add table inet t; add chain inet t in { type filter hook input priority 0; }; \
        add rule inet t in tcp dport 9000 counter drop";
    stage.server.run(&["nft", drop_syns]);
    let near = stage.dial_and_send([v1(CLIENT, VISITED), b"request".to_vec()].concat());
    wait_until("a SYN is dropped", || {
        let counted = stage.server.run(&["nft", "list", "table", "inet", "t"]);
        !counted.contains("packets 0")
    });
    stage.proxy.signal(Signal::SIGSTOP);
    stage.server.run(&["nft", "delete", "table", "inet", "t"]);
    let (far, _) = stage.backend.accept();
    send(&far, "no");
    reset(far);
    stage.proxy.signal(Signal::SIGCONT);
    assert_eq!(receive_until_reset(&near), b"no");
}

#[test]
fn a_request_arrives_though_its_client_breaks_behind_it() {
    let stage = Stage::new(&[]);
    for (number, size) in [100, 70_000, 300_000, 1_000_000].into_iter().enumerate() {
        let Session { near, far } = stage.session(&client(number));
        let port = near.local_addr().expect("our own address").port();
        send(&near, pattern(0, size));
        wait_until("the request is in the proxy's hands", || {
            let queues = stage.balancer.queues(port, 2222);
            queues.is_some_and(|(unacknowledged, _)| unacknowledged == 0)
        });
        reset(near);
        wait_until("the client's side is gone", || {
            count(&stage.server, "sport = :2222") == 0
        });
        let came = receive_until_reset(&far);
        assert_eq!(came.len(), size);
        assert!(came == pattern(0, size), "other bytes came");
    }
}

#[test]
fn an_urgent_byte_keeps_its_place_and_holds_up_nothing() {
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    for (from, to) in [(&near, &far), (&far, &near), (&near, &far)] {
        // All of it waits when the proxy reads.
        stage.proxy.signal(Signal::SIGSTOP);
        send(from, "ab");
        send_urgent(from, b"c!");
        send(from, "de");
        stage.proxy.signal(Signal::SIGCONT);
        assert_eq!(receive(to, 6), b"abc!de");
        assert_carries(&near, &far);
    }
}

#[test]
fn an_urgent_byte_may_follow_the_header_at_once() {
    let stage = Stage::new(&[]);
    let near = stage.dial();
    stage.proxy.signal(Signal::SIGSTOP);
    send(&near, v1(CLIENT, VISITED));
    send_urgent(&near, b"a!");
    send(&near, "b");
    send_urgent(&near, b"c!");
    finish_sending(&near);
    stage.proxy.signal(Signal::SIGCONT);
    let (far, _) = stage.backend.accept();
    assert_eq!(receive_all(&far), b"a!bc!");
}

#[test]
fn urgent_bytes_in_bulk_keep_their_places() {
    const PIECE: usize = 700_001;
    let stage = Stage::new(&[]);
    let Session { near, far } = stage.session(CLIENT);
    for (from, to) in [(&near, &far), (&far, &near)] {
        thread::scope(|scope| {
            scope.spawn(|| {
                for piece in 0..10 {
                    send(from, pattern(piece * PIECE, PIECE - 1));
                    send_urgent(from, &pattern((piece + 1) * PIECE - 1, 1));
                }
                finish_sending(from);
            });
            assert_rest(to, 0, 10 * PIECE);
        });
    }
}

fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    let sent = SockRef::from(stream).send_out_of_band(bytes);
    assert_eq!(sent.expect("send urgent data"), bytes.len());
}

fn client(number: usize) -> String {
    format!("203.0.113.7:{}", 40_000 + number)
}

/// Reads some bytes and checks that they are those that stand there.
#[track_caller]
fn read_pattern(stream: &TcpStream, at: usize, most: usize) -> usize {
    let mut buffer = vec![0; most];
    let n = read(stream, &mut buffer).expect("read bulk");
    assert!(buffer[..n] == pattern(at, n), "other bytes came");
    n
}

/// The bytes from this place on of a stream that repeats itself only after a prime length.
fn pattern(at: usize, count: usize) -> Vec<u8> {
    (at..at + count)
        .map(|place| {
            let place = (place % 1_000_003) as u32;
            (place.wrapping_mul(2_654_435_761) >> 24) as u8
        })
        .collect()
}
