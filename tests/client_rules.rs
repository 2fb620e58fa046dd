//! `-denied-clients` and `-allowed-clients`: files that judge the client of the header.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use support::datagrams::{Scene, assert_silent, receive};
use support::header::{LOCAL, UNSPEC, V2, v1};
use support::stage::{OTHER_BALANCER, PROXY, VISITED, VISITED6};
use support::streams::{assert_carries, assert_reset, send};
use support::{Ctl, Host, Program, Stage, TempDir};

#[test]
fn denied_clients_are_reset_before_the_backend_is_touched() {
    let files = TempDir::new();
    let denied = files.file("denied", "203.0.113.0/25 # bots\n2001:db8:bad::/48\n");
    let stage = Stage::new(&["-denied-clients", &denied, "-v", "1"]);
    for (client, visited) in [
        ("203.0.113.7:40000", VISITED),
        ("[2001:db8:bad::7]:40000", VISITED6),
    ] {
        assert_reset(&stage.dial_and_send(v1(client, visited)));
    }
    stage.proxy.wait_for_line("in the denied-clients file");
    stage.session("203.0.113.200:40000");
    stage.session("[2001:db8:c::7]:40000");
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
}

#[test]
fn where_clients_are_listed_only_they_are_served() {
    let files = TempDir::new();
    let allowed = files.file("allowed", "203.0.113.0/24\n");
    let denied = files.file("denied", "203.0.113.7\n");
    let ctl = Ctl::new();
    let control = ctl.path();
    let flags = ["-allowed-clients", &allowed, "-denied-clients", &denied];
    let stage = Stage::new(&[&flags[..], &["-control", &control]].concat());
    for client in ["198.51.100.9:40000", "203.0.113.7:40000"] {
        assert_reset(&stage.dial_and_send(v1(client, VISITED)));
    }
    stage.session("203.0.113.8:40000");
    stage.backend.assert_idle();
    assert_eq!(ctl.count("clientNotAllowed"), 1);
    assert_eq!(ctl.count("clientDenied"), 1);
}

fn of_nobody() -> [Vec<u8>; 2] {
    let local = V2::new(LOCAL, UNSPEC, Vec::new()).bytes();
    [local, b"PROXY UNKNOWN\r\n".to_vec()]
}

/// A load balancer's health check has no client: no rule about clients may end it.
#[test]
fn local_and_unknown_of_a_load_balancer_are_judged_by_the_peer_alone() {
    let files = TempDir::new();
    let denied = files.file("denied", "0.0.0.0/0\n::/0\n");
    let allowed = files.file("allowed", "198.51.100.0/24\n");
    let balancers = files.file("balancers", "192.0.2.5\n");
    let ctl = Ctl::new();
    let control = ctl.path();
    let lists = ["-denied-clients", &denied, "-allowed-clients", &allowed];
    let flags = ["-allowed-subnets", &balancers, "-control", &control];
    let stage = Stage::new(&[&lists[..], &flags].concat());
    ctl.ok("ban 192.0.2.5 -force");
    for header in of_nobody() {
        let near = stage.dial_and_send(header);
        let (far, from) = stage.backend.accept();
        assert_eq!(from.ip().to_string(), "192.0.2.5");
        assert_carries(&near, &far);
        ctl.ok("ban 192.0.2.0/24 -force");
        assert_carries(&near, &far);
    }
}

/// Where nobody says who the load balancers are, or where the list covers clients, a client that
/// connects directly must not shake off its ban by naming nobody.
#[test]
fn local_and_unknown_of_others_are_judged_as_clients() {
    let files = TempDir::new();
    let denied = files.file("denied", "192.0.2.6\n");
    let near_it = files.file("near-it", "192.0.2.0/24\n");
    let everybody = files.file("everybody", "0.0.0.0/0\n");
    for subnets in [None, Some(&near_it), Some(&everybody)] {
        let ctl = Ctl::new();
        let control = ctl.path();
        let mut flags = vec!["-control", &control, "-denied-clients", &denied, "-v", "1"];
        flags.extend(
            subnets
                .iter()
                .flat_map(|file| ["-allowed-subnets", file.as_str()]),
        );
        let stage = Stage::new(&flags);
        for header in of_nobody() {
            let near = stage.dial_and_send(&header);
            let (far, from) = stage.backend.accept();
            assert_eq!(from.ip().to_string(), "192.0.2.5");
            assert_carries(&near, &far);
            // In force at once, for what is open, too.
            ctl.ok("ban 192.0.2.5 -force");
            assert_reset(&near);
            assert_reset(&stage.dial_and_send(&header));
            ctl.ok("unban 192.0.2.5");

            let other = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
            send(&other, &header);
            assert_reset(&other);
        }
        stage.backend.assert_idle();
        assert_eq!(ctl.count("banned"), 2, "{subnets:?}");
        assert_eq!(ctl.count("clientDenied"), 2, "{subnets:?}");
    }
}

#[test]
fn local_and_unknown_of_who_is_not_an_allowed_client_are_refused() {
    let files = TempDir::new();
    let allowed = files.file("allowed", "192.0.2.6\n");
    let stage = Stage::new(&["-allowed-clients", &allowed]);
    for header in of_nobody() {
        assert_reset(&stage.dial_and_send(&header));
        let other = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
        send(&other, &header);
        let (far, _) = stage.backend.accept();
        assert_carries(&other, &far);
        // A peer of this host speaks for the host.
        let here = stage.server.dial("127.0.0.1:2222");
        send(&here, &header);
        let (far, _) = stage.backend.accept();
        assert_carries(&here, &far);
    }
}

#[test]
fn datagrams_of_nobody_are_judged_as_the_peers_own() {
    for style in ["every", "first"] {
        let ctl = Ctl::new();
        let control = ctl.path();
        let scene = Scene::new(&["-udp-header", style, "-control", &control, "-v", "2"]);
        let local = V2::new(LOCAL, UNSPEC, Vec::new()).bytes();
        let datagram = [&local, &b"alive?"[..]].concat();
        let near = scene.socket();
        near.send(&datagram).unwrap();
        assert_eq!(receive(&scene.backend).0, b"alive?");
        ctl.ok("ban 192.0.2.5 -force");
        // The flow ends, and a new one does not begin.
        scene.proxy.wait_for_line("client banned");
        near.send(&datagram).unwrap();
        scene.proxy.wait_for_line("the client 192.0.2.5:");
        assert_silent(&scene.backend);
    }
}

#[test]
fn sighup_reads_the_files_again_and_a_bad_one_changes_nothing() {
    let files = TempDir::new();
    let denied = files.file("denied", "203.0.113.7\n");
    let stage = Stage::new(&["-denied-clients", &denied]);
    let open = stage.session("203.0.113.8:40000");

    fs::write(&denied, "203.0.113.8\n").expect("write the list");
    stage.proxy.signal(Signal::SIGHUP);
    stage
        .proxy
        .wait_for_line("the lists of clients were read again");
    stage.session("203.0.113.7:40001");
    assert_reset(&stage.dial_and_send(v1("203.0.113.8:40002", VISITED)));
    assert_carries(&open.near, &open.far);

    fs::write(&denied, "203.0.113.9\nrubbish\n").expect("write the list");
    stage.proxy.signal(Signal::SIGHUP);
    let line = stage
        .proxy
        .wait_for_line("the lists of clients stay as they were");
    for part in ["-denied-clients", "line 2", "rubbish"] {
        assert!(line.contains(part), "{line}");
    }
    stage.session("203.0.113.9:40003");
    assert_reset(&stage.dial_and_send(v1("203.0.113.8:40004", VISITED)));
}

#[test]
fn a_list_that_cannot_be_read_keeps_the_proxy_from_starting() {
    let host = Host::new("server");
    let files = TempDir::new();
    let empty = files.file("empty", "# nobody\n");
    for (flag, file, why) in [
        ("-denied-clients", "/nonexistent/list", "/nonexistent/list"),
        ("-allowed-clients", "/nonexistent/list", "/nonexistent/list"),
        ("-allowed-clients", &empty, "nobody could connect"),
    ] {
        let ended = Program::Realpeer.run(&host, &["-routing", "off", flag, file]);
        assert_eq!(ended.code, 1);
        assert!(
            ended.stderr.contains(flag) && ended.stderr.contains(why),
            "{}",
            ended.stderr
        );
    }
}
