//! OpenSSH client → HAProxy `send-proxy` or `send-proxy-v2` → realpeer → OpenSSH server, each on a
//! host of its own but the last two: sshd's log has the client's address and port.

mod support;

use support::servers::haproxy;
use support::{repository, ssh_story};

#[test]
fn sshd_sees_the_ipv4_client_behind_send_proxy() {
    ssh_story::play(ssh_story::IPV4, |balancer| {
        haproxy(
            balancer,
            &repository("examples/ingress/haproxy-send-proxy.cfg"),
            22000,
        )
    });
}

#[test]
fn sshd_sees_the_ipv6_client_behind_send_proxy() {
    ssh_story::play(ssh_story::IPV6, |balancer| {
        haproxy(
            balancer,
            &repository("examples/ingress/haproxy-send-proxy.cfg"),
            22000,
        )
    });
}

#[test]
fn sshd_sees_the_ipv4_client_behind_send_proxy_v2() {
    ssh_story::play(ssh_story::IPV4, |balancer| {
        haproxy(
            balancer,
            &repository("examples/ingress/haproxy-send-proxy-v2.cfg"),
            22000,
        )
    });
}

#[test]
fn sshd_sees_the_ipv6_client_behind_send_proxy_v2() {
    ssh_story::play(ssh_story::IPV6, |balancer| {
        haproxy(
            balancer,
            &repository("examples/ingress/haproxy-send-proxy-v2.cfg"),
            22000,
        )
    });
}
