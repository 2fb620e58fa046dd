//! A new process takes over from a running one: what goes on, and what everybody sees meanwhile.

mod support;

use nix::sys::signal::Signal;
use support::datagrams::{every, open, receive};
use support::lineage::runs;
use support::site::{converse, listener, udp};
use support::stage::CLIENT;
use support::streams::{assert_carries, assert_reset};
use support::{Backend, Lineage, addr, wait_until};

const OTHER: &str = "203.0.113.8:40001";
const THIRD: &str = "203.0.113.9:40002";
const AT_A: &str = "192.0.2.10:2201";
const NINE: &str = "127.0.0.1:9000";

/// TCP and UDP at the same port.
fn both() -> String {
    listener("a", "0.0.0.0:2201", NINE, "listeners = 2")
        + &udp("u", "0.0.0.0:2201", NINE, "listeners = 2")
}

#[test]
fn sessions_stay_flows_go_along_and_the_old_process_leaves_with_its_last_session() {
    let mut lineage = Lineage::new(&both());
    let (backend, udp_backend) = (
        Backend::listen(&lineage.server, NINE),
        open(&lineage.server, NINE),
    );
    let session = lineage.session(AT_A, &backend, CLIENT);
    let near = open(&lineage.balancer, "0.0.0.0:0");
    near.connect(addr(AT_A)).expect("connect");
    converse(&near, &udp_backend, CLIENT);
    let rules = lineage.rules();

    let old = lineage.first.pid();
    let new = lineage.upgrade();
    assert_ne!(old, new);
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backend, CLIENT);
    converse(&near, &udp_backend, OTHER);
    let second = lineage.session(AT_A, &backend, THIRD);
    assert_eq!(lineage.rules(), rules);
    let status = lineage.status();
    assert_eq!(status["older"][0]["pid"], old, "{status}");
    assert_eq!(
        status["older"][0]["open"], 1,
        "the flow has moved: {status}"
    );
    let connections = lineage.connections();
    assert_eq!(connections.len(), 4, "{connections:?}");
    let of_old = connections.iter().filter(|c| c["pid"] == old);
    assert_eq!(of_old.count(), 1);

    drop(session);
    wait_until("the old process leaves", || lineage.first.has_ended());
    assert!(runs(new));
    wait_until("nobody is older", || lineage.status()["older"].is_null());
    assert_carries(&second.near, &second.far);
    assert_eq!(lineage.rules(), rules);
    converse(&near, &udp_backend, CLIENT);
    lineage.session(AT_A, &backend, OTHER);
}
