//! What the load balancer has to be told.

use std::net::{SocketAddr, UdpSocket};

use super::answers::Answers;
use crate::config::{Config, Protocol, UdpHeader};

/// Its lines, for the load balancers that people have.
pub fn lines(answers: &Answers, config: &Config) -> String {
    let listen = config
        .listeners
        .first()
        .and_then(|listener| listener.listen.first());
    let at = listen.map_or_else(String::new, |listen| reached(answers, *listen));
    let name = &answers.name;
    match (answers.protocol, answers.udp_header) {
        (Protocol::Tcp, _) => format!(
            "At the load balancer, send connections to {at} with a PROXY header:\n\n  \
             nginx, in the server of stream:\n      proxy_pass {at}; proxy_protocol on;\n  \
             HAProxy, the server line, with mode tcp:\n      server {name} {at} send-proxy-v2\n  \
             traefik, in the TCP service (YAML; from 3.5.2 on better by a serversTransport):\n      \
             loadBalancer: {{servers: [{{address: \"{at}\"}}], proxyProtocol: {{version: 2}}}}\n  \
             AWS NLB, Cloudflare Spectrum, Envoy, frp: see the pages in examples/ of realpeer's sources\n"
        ),
        (Protocol::Udp, UdpHeader::Every) => format!(
            "At the load balancer, send datagrams to {at}, each with a PROXY v2 header:\n\n  \
             dnsdist:\n      newServer({{address='{at}', useProxyProtocol=true}})\n"
        ),
        (Protocol::Udp, UdpHeader::First) => format!(
            "At the load balancer, send datagrams to {at}, the first of each client with a PROXY v2 header:\n\n  \
             frpc.toml, in the proxy:\n      transport.proxyProtocolVersion = \"v2\"\n"
        ),
        (Protocol::Udp, UdpHeader::Spp) => format!(
            "At the load balancer, send datagrams to {at}, each with a Simple Proxy Protocol header:\n\n  \
             Cloudflare Spectrum: proxy_protocol \"simple\", see examples/spectrum in realpeer's sources\n"
        ),
    }
}

/// Where a load balancer reaches the listener: for one on every address, the address of this host that
/// faces it. Nothing is sent to find it out.
fn reached(answers: &Answers, listen: SocketAddr) -> String {
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let facing = answers.from.first().and_then(|network| {
        let balancer = network.hosts().next()?;
        let any = if balancer.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect((balancer, 9)).ok()?;
        socket.local_addr().ok()
    });
    match facing {
        Some(addr) => SocketAddr::new(addr.ip(), listen.port()).to_string(),
        None => format!("THIS-HOST:{}", listen.port()),
    }
}
