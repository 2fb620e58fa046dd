//! The story that every load balancer in front of sshd has in common.

use std::net::SocketAddr;

use super::servers::Sshd;
use super::stage::row;
use super::{Host, Program, Running};

/// A client's address, and the load balancer's as that client knows it.
#[derive(Clone, Copy)]
pub struct Ends {
    client: &'static str,
    balancer: &'static str,
}

pub const IPV4: Ends = Ends {
    client: "203.0.113.7",
    balancer: "203.0.113.1",
};
pub const IPV6: Ends = Ends {
    client: "2001:db8:c::7",
    balancer: "2001:db8:c::1",
};

/// A client logs in through the load balancer; sshd must log that client's address and port, and
/// tell the session the same. `start_balancer` starts one that listens on port 22000.
#[track_caller]
pub fn play<T>(ends: Ends, start_balancer: impl FnOnce(&Host) -> T) {
    let flags = ["-l", "0.0.0.0:2222", "-4", "127.0.0.1:22", "-6", "[::1]:22"];
    let start_proxy = |server: &Host| Program::Realpeer.start(server, &flags);
    play_behind(ends, start_proxy, start_balancer);
}

/// As `play`, with a proxy on port 2222 that the test starts.
#[track_caller]
pub fn play_behind<T>(
    ends: Ends,
    start_proxy: impl FnOnce(&Host) -> Running,
    start_balancer: impl FnOnce(&Host) -> T,
) {
    let (client, balancer, server) = row();
    let sshd = Sshd::start(&server);
    let _proxy = start_proxy(&server);
    let _balancer = start_balancer(&balancer);

    let mut login = sshd.client(&client, ends.balancer, 22000);
    // cat keeps the session open until we have looked at the client's own end of it.
    login.arg("echo SSH_CONNECTION=$SSH_CONNECTION; exec cat");
    let mut session = Running::start("ssh", login);
    let told = session.wait_for_line("SSH_CONNECTION=");
    let own = own_address(&client);
    assert_eq!(own.ip().to_string(), ends.client);

    let (ip, port) = (own.ip(), own.port());
    sshd.running.wait_for_error(&format!(
        "Accepted publickey for {} from {ip} port {port} ssh2",
        user()
    ));
    assert!(
        told.starts_with(&format!("SSH_CONNECTION={ip} {port} ")),
        "{told}"
    );
    drop(session.stdin());
    assert_eq!(session.exit_code(), 0);
}

/// The client's end of its only connection, as its own host knows it.
fn own_address(client: &Host) -> SocketAddr {
    let connections = client.connections(22000);
    assert_eq!(connections.len(), 1, "{connections:?}");
    connections[0].0
}

fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("read the user database");
    user.expect("we have a name").name
}
