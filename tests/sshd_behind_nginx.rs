//! OpenSSH client → nginx `stream { proxy_protocol on; }` → realpeer → OpenSSH server, each on a
//! host of its own but the last two: sshd's log has the client's address and port.

mod support;

use support::servers::nginx;
use support::{repository, ssh_story};

#[test]
fn sshd_sees_the_ipv4_client_behind_nginx() {
    ssh_story::play(ssh_story::IPV4, |balancer| {
        nginx(balancer, &repository("examples/ingress/nginx.conf"), 22000)
    });
}

#[test]
fn sshd_sees_the_ipv6_client_behind_nginx() {
    ssh_story::play(ssh_story::IPV6, |balancer| {
        nginx(balancer, &repository("examples/ingress/nginx.conf"), 22000)
    });
}
