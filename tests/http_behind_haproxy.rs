//! HTTP client → HAProxy → realpeer → nginx: nginx's access log has the client's address and port.

mod support;

use std::fs;

use support::servers::{haproxy, nginx};
use support::stage::row;
use support::{Host, Program, TempDir, repository, wait_until};

#[test]
fn the_access_log_has_the_ipv4_client() {
    play(["203.0.113.7", "203.0.113.8"], "203.0.113.1");
}

#[test]
fn the_access_log_has_the_ipv6_client() {
    play(["2001:db8:c::7", "2001:db8:c::8"], "[2001:db8:c::1]");
}

/// Two clients take turns, so that a connection kept for the first and used for the second would
/// show.
fn play(clients: [&str; 2], balancer_address: &str) {
    let (client, balancer, server) = row();
    client.add_address("203.0.113.8/24", "to-balancer");
    client.add_address("2001:db8:c::8/64", "to-balancer");

    let directory = TempDir::new();
    let log = directory.path("access.log");
    let _nginx = nginx(&server, web_server(&directory).as_ref(), 80);
    let _proxy = Program::Realpeer.start(
        &server,
        &["-l", "0.0.0.0:8080", "-4", "127.0.0.1:80", "-6", "[::1]:80"],
    );
    let _haproxy = haproxy(
        &balancer,
        &repository("examples/ingress/haproxy-http.cfg"),
        8000,
    );

    let mut expected = Vec::new();
    for (visit, address) in [clients[0], clients[1], clients[0]].iter().enumerate() {
        let port = get(
            &client,
            address,
            &format!("http://{balancer_address}:8000/visit-{visit}"),
        );
        expected.push(format!("{address} {port} /visit-{visit}"));
        let logged = || fs::read_to_string(&log).unwrap_or_default();
        wait_until("the visit is logged", || {
            logged().lines().count() == expected.len()
        });
        assert_eq!(logged().lines().collect::<Vec<_>>(), expected);
    }
}

/// Fetches a page from this address and returns the port that curl used.
fn get(client: &Host, from: &str, url: &str) -> String {
    let printed = client.run(&[
        "curl",
        "-sS",
        "--globoff",
        "--fail",
        "--noproxy",
        "*",
        "--interface",
        from,
        "-w",
        " %{local_port}",
        url,
    ]);
    let (body, port) = printed
        .rsplit_once(' ')
        .expect("curl prints the page and the port");
    assert_eq!(body, "welcome\n");
    port.to_owned()
}

fn web_server(directory: &TempDir) -> String {
    let log = directory.path("access.log");
    let log = log.display();
    // The temporary paths are only there because an ordinary user may not use nginx's own.
    let place = |name| directory.path(name).display().to_string();
    directory.file(
        "web.conf",
        &format!(
            "events {{}}
            http {{
                log_format who '$remote_addr $remote_port $request_uri';
                access_log {log} who;
                client_body_temp_path {};
                proxy_temp_path {};
                fastcgi_temp_path {};
                uwsgi_temp_path {};
                scgi_temp_path {};
                server {{
                    listen 127.0.0.1:80;
                    listen [::1]:80;
                    location / {{ return 200 'welcome\\n'; }}
                }}
            }}",
            place("client"),
            place("proxy"),
            place("fastcgi"),
            place("uwsgi"),
            place("scgi"),
        ),
    )
}
