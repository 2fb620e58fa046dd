//! SIGTERM, SIGINT and SIGQUIT: nobody new, time for those who are there, exit 0; a second one ends it.

mod support;

use std::io::ErrorKind;
use std::thread;

use nix::sys::signal::Signal;
use support::header::v1;
use support::stage::{CLIENT, PROXY, VISITED};
use support::streams::{assert_carries, assert_closed, finish_sending, receive_all, send};
use support::{Session, Stage, wait_until};

const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

#[test]
fn without_sessions_it_ends_at_once() {
    for signal in ENDING {
        let mut stage = Stage::new(&["-drain-timeout", "1h"]);
        stage.proxy.signal(signal);
        assert_eq!(stage.proxy.exit_code(), 0);
    }
}

#[test]
fn open_sessions_may_finish_and_new_ones_are_refused() {
    for signal in ENDING {
        let mut stage = Stage::new(&["-drain-timeout", "1h"]);
        let first = stage.session(CLIENT);
        let second = stage.session("203.0.113.8:40000");
        stage.proxy.signal(signal);
        wait_until("nobody listens", || stage.server.listeners(2222) == 0);
        let refused = stage
            .balancer
            .try_dial(None, PROXY)
            .expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        assert_carries(&first.near, &first.far);
        drop(first);
        // The other one is still there, so the program must be, too.
        assert_carries(&second.near, &second.far);
        assert!(!stage.proxy.has_ended());
        drop(second);
        assert_eq!(stage.proxy.exit_code(), 0);
    }
}

#[test]
fn bulk_in_flight_is_finished() {
    let mut stage = Stage::new(&["-drain-timeout", "1h"]);
    let Session { near, far } = stage.session(CLIENT);
    let bulk: Vec<u8> = (0..4_000_000u32).flat_map(u32::to_le_bytes).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&near, &bulk);
            finish_sending(&near);
        });
        wait_until("it is on its way", || {
            far.peek(&mut [0]).is_ok_and(|count| count > 0)
        });
        stage.proxy.signal(Signal::SIGTERM);
        wait_until("nobody listens", || stage.server.listeners(2222) == 0);
        assert!(receive_all(&far) == bulk, "the bytes differ");
    });
    drop((near, far));
    assert_eq!(stage.proxy.exit_code(), 0);
}

#[test]
fn a_session_that_goes_on_is_cut_when_its_time_is_over() {
    let mut stage = Stage::new(&["-drain-timeout", "300ms"]);
    let Session { near, far } = stage.session(CLIENT);
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert_closed(&near);
    assert_closed(&far);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for first in ENDING {
        for second in ENDING {
            let mut stage = Stage::new(&["-drain-timeout", "1h"]);
            let Session { near, far } = stage.session(CLIENT);
            stage.proxy.signal(first);
            wait_until("nobody listens", || stage.server.listeners(2222) == 0);
            stage.proxy.signal(second);
            stage.proxy.wait_for_exit();
            assert_closed(&near);
            assert_closed(&far);
        }
    }
}

#[test]
fn a_peer_that_still_owes_its_header_does_not_stay_for_ever() {
    let mut stage = Stage::new(&["-drain-timeout", "300ms", "-header-timeout", "1h"]);
    let near = stage.dial_and_send(&v1(CLIENT, VISITED)[..10]);
    stage.wait_until_read(&near);
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert_closed(&near);
}

#[test]
fn the_stop_is_logged() {
    let mut stage = Stage::new(&[]);
    stage.proxy.signal(Signal::SIGTERM);
    stage.proxy.wait_for_line("SIGTERM");
    assert_eq!(stage.proxy.exit_code(), 0);
}
