//! A reload changes all that the file changes, or nothing; what stays is never disturbed.

mod support;

use nix::sys::signal::Signal;
use support::datagrams::{every, open, receive};
use support::header::v1;
use support::site::{AT_A, AT_B, NINE, NINE_TOO, OTHER, converse, listener, udp};
use support::stage::{CLIENT, PROXY, VISITED};
use support::streams::{assert_carries, assert_reset, assert_turned_away, send};
use support::{Backend, Ctl, Site, Stage, TempDir, addr, wait_until};

const AT_C: &str = "192.0.2.10:2203";

fn a() -> String {
    listener("a", "0.0.0.0:2201", NINE, "")
}

fn b() -> String {
    listener("b", "0.0.0.0:2202", NINE, "")
}

#[test]
fn what_stays_keeps_its_sockets_what_is_new_opens_and_what_is_gone_closes() {
    let (u, v) = (
        udp("u", "0.0.0.0:2201", NINE, "listeners = 2"),
        udp("v", "0.0.0.0:2202", NINE, ""),
    );
    let two = listener("two", "0.0.0.0:2204", NINE, "listeners = 2");
    let site = Site::new(&[a(), b(), u.clone(), v, two.clone()].concat());
    let backend = Backend::listen(&site.server, NINE);
    let udp_backend = open(&site.server, NINE);
    let sessions =
        [(AT_A, CLIENT), (AT_B, OTHER)].map(|(at, client)| site.session(at, &backend, client));
    let (near_u, near_v) = (site.socket(AT_A), site.socket(AT_B));
    converse(&near_u, &udp_backend, CLIENT);
    converse(&near_v, &udp_backend, OTHER);
    let before = [site.sockets(2201), site.sockets(2204)];
    assert_eq!([before[0].len(), before[1].len()], [3, 2]);

    let c = listener("c", "0.0.0.0:2203", NINE, "");
    site.reload(&[c, two, u, a()].concat());
    assert_eq!([site.sockets(2201), site.sockets(2204)], before);
    site.assert_refused(AT_B);
    for session in &sessions {
        assert_carries(&session.near, &session.far);
    }
    // Flows of both, though one listener is gone: the backend's socket is the same.
    converse(&near_u, &udp_backend, CLIENT);
    converse(&near_v, &udp_backend, OTHER);
    site.session(AT_C, &backend, "203.0.113.9:1");
    site.session(AT_A, &backend, "203.0.113.9:2");
    assert!(
        site.proxy
            .wait_for_line("listening no more")
            .contains(r#""listener":"b""#)
    );
    assert_eq!(site.listener("a")["counts"]["accepted"], 2);
}

/// The client that has a flow already goes on to the target that it had.
#[test]
fn new_sessions_go_to_the_new_target_and_open_ones_live_on() {
    let file =
        |target| listener("a", "0.0.0.0:2201", target, "") + &udp("u", "0.0.0.0:2201", target, "");
    let site = Site::new(&file(NINE));
    let backends = [NINE, NINE_TOO].map(|at| Backend::listen(&site.server, at));
    let udp_backends = [NINE, NINE_TOO].map(|at| open(&site.server, at));
    let session = site.session(AT_A, &backends[0], CLIENT);
    // Admitted, and its header has not come yet.
    let waiting = site.balancer.dial(AT_A);
    wait_until("both are taken", || site.listener("a")["open"] == 2);
    let near = site.socket(AT_A);
    converse(&near, &udp_backends[0], CLIENT);

    site.reload(&file(NINE_TOO));
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backends[0], CLIENT);
    send(&waiting, v1("203.0.113.9:1", VISITED));
    let (far, _) = backends[0].accept();
    assert_carries(&waiting, &far);
    site.session(AT_A, &backends[1], OTHER);
    converse(&near, &udp_backends[1], OTHER);
}

#[test]
fn open_sessions_keep_the_rules_that_admitted_them_but_for_bans() {
    let denying = |list: &str| {
        let more = format!("denied-clients = [{list}]");
        listener("a", "0.0.0.0:2201", NINE, &more) + &udp("u", "0.0.0.0:2201", NINE, &more)
    };
    let site = Site::new(&denying(""));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);

    site.reload(&denying("\"203.0.113.7\""));
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backend, CLIENT);
    let refused = site.balancer.dial(AT_A);
    send(&refused, v1("203.0.113.7:2", VISITED));
    assert_reset(&refused);
    near.send(&every("203.0.113.7:2", b"in vain"))
        .expect("send");
    wait_until("both are refused", || {
        ["a", "u"].map(|name| site.listener(name)["counts"]["clientDenied"].as_u64())
            == [Some(1), Some(1)]
    });

    site.ctl.ok("ban 203.0.113.7");
    assert_reset(&session.near);
    wait_until("the flow ends", || site.listener("u")["open"] == 0);
}

/// The load balancer that is taken off the list goes on with what it has.
#[test]
fn open_sessions_outlive_the_trust_in_their_load_balancer() {
    let trusting = |list: &str| {
        let more = format!("allowed-subnets = [\"{list}\"]");
        let first = format!("{more}\nudp-header = \"first\"");
        listener("a", "0.0.0.0:2201", NINE, &more)
            + &udp("u", "0.0.0.0:2201", NINE, &more)
            + &udp("f", "0.0.0.0:2202", NINE, &first)
    };
    let site = Site::new(&trusting("192.0.2.5"));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let (near, first) = (site.socket(AT_A), site.socket(AT_B));
    converse(&near, &udp_backend, CLIENT);
    converse(&first, &udp_backend, OTHER);

    site.reload(&trusting("192.0.2.6"));
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backend, CLIENT);
    first.send(b"bare").expect("send");
    assert_eq!(receive(&udp_backend), (b"bare".to_vec(), addr(OTHER)));
    // Nothing new, and no other socket of it.
    near.send(&every("203.0.113.9:1", b"in vain"))
        .expect("send");
    site.socket(AT_A)
        .send(&every("203.0.113.9:1", b"in vain"))
        .expect("send");
    site.socket(AT_B)
        .send(&every("203.0.113.9:1", b"in vain"))
        .expect("send");
    wait_until("they are refused", || {
        ["u", "f"].map(|name| site.listener(name)["counts"]["peerNotAllowed"].as_u64())
            == [Some(2), Some(1)]
    });
}

/// Sockets, routing, rules and the data path are what they were, and the answer says why.
#[test]
fn what_fails_changes_nothing() {
    let site = Site::new(&(a() + &b() + &udp("u", "0.0.0.0:2201", NINE, "")));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    let _taken = (
        Backend::listen(&site.server, "127.0.0.1:2205"),
        open(&site.server, "127.0.0.1:2205"),
    );
    let before = (site.kernel(), site.ctl.ok("-json status"));
    let list = site.list("clients", "203.0.113.0/24\nno address\n");

    // Each would close b, move a and u, and open d, if it did not fail behind them.
    let good = [
        listener("a", "192.0.2.10:2201", "192.0.2.10:9001", ""),
        udp("u", "192.0.2.10:2201", "192.0.2.10:9001", ""),
        listener("d", "0.0.0.0:2204", "127.0.0.2:9001", ""),
    ]
    .concat();
    let bad_list = format!("denied-clients = \"{list}\"");
    for (bad, why) in [
        ("[[listener]\n".to_owned(), "realpeer.toml:"),
        (
            listener("e", "0.0.0.0:2206", NINE, "nonsense = 1"),
            "nonsense",
        ),
        (listener("e", "0.0.0.0:2206", NINE, &bad_list), "no address"),
        (
            listener("e", "0.0.0.0:2205", NINE, ""),
            "listener e: cannot listen on 0.0.0.0:2205",
        ),
        (
            udp("e", "0.0.0.0:2205", NINE, ""),
            "another program has the port",
        ),
    ] {
        site.write(&(good.clone() + &bad));
        site.ctl.refused("reload", why);
        site.ctl.refused("reload", "nothing was changed");
        site.proxy.wait_for("line that says why", |line| {
            line.contains("the configuration stays as it was") && line.contains(why)
        });
        // Whole lines of counts: nothing was refused or reset meanwhile.
        let now = (site.kernel(), site.ctl.ok("-json status"));
        assert_eq!(without_time(&now.1), without_time(&before.1), "{why}");
        assert_eq!(now.0, before.0, "{why}");
        assert_carries(&session.near, &session.far);
    }
    converse(&near, &udp_backend, CLIENT);
    site.session(AT_A, &backend, OTHER);
    site.session(AT_B, &backend, OTHER);
}

fn without_time(status: &str) -> String {
    let mut status: serde_json::Value = serde_json::from_str(status).expect("JSON");
    status["status"]["uptime"] = 0.into();
    // Bytes of open sessions are counted when they are read.
    for key in ["bytesUp", "bytesDown"] {
        status["status"]["counts"][key] = 0.into();
        let all = status["status"]["listeners"]
            .as_array_mut()
            .expect("a list");
        all.iter_mut()
            .for_each(|listener| listener["counts"][key] = 0.into());
    }
    status.to_string()
}

#[test]
fn a_process_started_by_flags_rereads_its_lists() {
    let (files, ctl) = (TempDir::new(), Ctl::new());
    let subnets = files.file("subnets", "192.0.2.6\n");
    let stage = Stage::new(&["-allowed-subnets", &subnets, "-control", &ctl.path()]);
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    files.file("subnets", "192.0.2.0/24\n");
    stage.proxy.signal(Signal::SIGHUP);
    stage
        .proxy
        .wait_for_line("the lists of clients were read again");
    let session = stage.session(CLIENT);

    files.file("subnets", "192.0.2.6\n");
    ctl.ok("reload");
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    assert_carries(&session.near, &session.far);
    files.file("subnets", "nonsense\n");
    ctl.refused("reload", "nonsense");
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
}

#[test]
fn what_needs_a_restart_says_so_and_the_rest_applies() {
    let site = Site::new(&("workers = 1\n".to_owned() + &a()));
    let backend = Backend::listen(&site.server, NINE_TOO);
    let more = "listeners = 3";
    let said = site.reload(
        &("workers = 2\nlog-format = \"json\"\nrouting = \"off\"\n".to_owned()
            + &listener("a", "0.0.0.0:2201", NINE_TOO, more)),
    );
    for key in [
        "workers needs a restart",
        "log-format",
        "routing",
        "listeners of \"a\"",
    ] {
        assert!(said.contains(key), "{key}: {said}");
        site.proxy
            .wait_for_line(key.split('"').next().expect("a word"));
    }
    assert_eq!(site.sockets(2201).len(), 1);
    site.session(AT_A, &backend, CLIENT);
}

/// Of both protocols at once, there and back: the new socket is bound beside the old one.
#[test]
fn an_address_that_overlaps_the_old_one_takes_its_place() {
    let file = |listen| listener("a", listen, NINE, "") + &udp("u", listen, NINE, "");
    let site = Site::new(&file("0.0.0.0:2201"));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let near = site.socket(AT_A);
    let mut sessions = Vec::new();
    for listen in [
        "192.0.2.10:2201",
        "0.0.0.0:2201",
        "[::]:2201",
        "192.0.2.10:2201",
    ] {
        sessions.push(site.session(AT_A, &backend, CLIENT_OF[sessions.len()]));
        converse(&near, &udp_backend, CLIENT);
        site.reload(&file(listen));
        assert_eq!(site.sockets(2201).len(), 2, "{listen}");
        for session in &sessions {
            assert_carries(&session.near, &session.far);
        }
        converse(&near, &udp_backend, CLIENT);
        converse(&near, &udp_backend, OTHER);
        // Alone again: nobody else gets in beside it.
        for kind in [
            "TCP4-LISTEN:2201,bind=192.0.2.10,reuseaddr",
            "UDP4-RECV:2201,bind=192.0.2.10,reuseaddr",
        ] {
            let words = [
                "sh",
                "-c",
                "! timeout 5 socat -u \"$1\" OPEN:/dev/null 2>&1",
                "sh",
                kind,
            ];
            let said = site.server.run(&words);
            assert!(
                said.contains("Address already in use"),
                "{listen} {kind}: {said}"
            );
        }
    }
}

const CLIENT_OF: [&str; 4] = [
    "203.0.113.1:1",
    "203.0.113.2:1",
    "203.0.113.3:1",
    "203.0.113.4:1",
];

#[test]
fn routing_follows_the_targets_and_the_old_goes_with_the_last_session() {
    let file = |target| listener("a", "0.0.0.0:2201", target, "");
    let site = Site::new(&file(NINE));
    let near_site = Site::new(&file("192.0.2.10:9001"));
    let rules = |site: &Site| {
        site.server.run(&["ip", "rule"]) + &site.server.run(&["nft", "list", "ruleset"])
    };
    let (old, new) = (rules(&site), rules(&near_site));
    assert_ne!(old, new);
    let backends = [NINE, "192.0.2.10:9001"].map(|at| Backend::listen(&site.server, at));
    let session = site.session(AT_A, &backends[0], CLIENT);
    let waiting = site.balancer.dial(AT_A);
    wait_until("both are taken", || site.listener("a")["open"] == 2);
    // The rules that only the old target needs.
    let needed: Vec<&str> = old.lines().filter(|line| !new.contains(line)).collect();
    assert!(!needed.is_empty(), "{old}{new}");
    let all_there = |site: &Site| {
        let now = rules(site);
        needed.iter().all(|line| now.contains(line))
    };

    site.reload(&file("192.0.2.10:9001"));
    assert!(all_there(&site));
    site.session(AT_A, &backends[1], OTHER);
    // Two looks of the tidying later they still stand.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(all_there(&site));
    assert_carries(&session.near, &session.far);
    drop(session);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    // One that was admitted by then has yet to say whose it is.
    assert!(all_there(&site));
    send(&waiting, v1("203.0.113.9:1", VISITED));
    let (far, _) = backends[0].accept();
    assert_carries(&waiting, &far);
    drop((waiting, far));
    wait_until("the old rules are gone", || {
        let now = rules(&site);
        needed.iter().all(|line| !now.contains(line))
    });
    // But for the priorities: each rule was put in front of those that were there.
    let sorted = |rules: &str| {
        let rules = rules.lines();
        let mut rules: Vec<_> = rules
            .map(|line| line.rsplit('\t').next().expect("a rule").to_owned())
            .collect();
        rules.sort();
        rules
    };
    assert_eq!(sorted(&rules(&site)), sorted(&new));
}

#[test]
fn many_reloads_at_once_come_one_after_the_other() {
    let site = Site::new(&(a() + &b()));
    let backend = Backend::listen(&site.server, NINE);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| site.ctl.ok("reload"));
        }
        for (number, text) in [a(), a() + &b(), a()].into_iter().enumerate() {
            site.write(&text);
            site.proxy.signal(Signal::SIGHUP);
            // The kernel may keep the port of the one before for a while.
            let client = format!("203.0.113.7:{}", 40_000 + number);
            site.session(AT_A, &backend, &client);
        }
    });
    site.ctl.ok("reload");
    let names: Vec<_> = site.status()["listeners"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|listener| listener["name"].clone())
        .collect();
    assert_eq!(names, ["a"]);
    site.assert_refused(AT_B);
    assert_eq!(site.sockets(2201).len(), 1);
}

#[test]
fn an_end_in_the_midst_of_reloads_is_an_orderly_one() {
    for _ in 0..5 {
        let mut site = Site::new(&(a() + &b()));
        let backend = Backend::listen(&site.server, NINE);
        let session = site.session(AT_A, &backend, CLIENT);
        let idle = Site::rules_of(&site.balancer);
        for text in [
            a(),
            a() + &b(),
            listener("c", "0.0.0.0:2203", "192.0.2.10:9001", ""),
        ] {
            site.write(&text);
            site.proxy.signal(Signal::SIGHUP);
        }
        site.proxy.signal(Signal::SIGTERM);
        site.proxy.wait_for_line(r#""stopping""#);
        for port in [2201, 2202, 2203] {
            wait_until("nobody listens", || site.sockets(port).is_empty());
        }
        // A hangup that comes now finds nobody to reload.
        site.proxy.signal(Signal::SIGHUP);
        assert_carries(&session.near, &session.far);
        drop(session);
        assert_eq!(site.proxy.exit_code(), 0);
        assert!(
            [2201, 2202, 2203]
                .iter()
                .all(|port| site.sockets(*port).is_empty())
        );
        assert_eq!(Site::rules_of(&site.server), idle);
    }
}

/// Its socket is open for its flows only; the same address is asked for again.
#[test]
fn a_removed_udp_listener_comes_back_with_its_flows() {
    let u = |name, target| udp(name, "0.0.0.0:2201", target, "listeners = 2");
    let site = Site::new(&(b() + &u("u", NINE)));
    let backends = [NINE, NINE_TOO].map(|at| open(&site.server, at));
    let near = site.socket(AT_A);
    converse(&near, &backends[0], CLIENT);
    let before = site.sockets(2201);
    site.reload(&b());
    near.send(&every(OTHER, b"in vain")).expect("send");
    converse(&near, &backends[0], CLIENT);
    for (name, target) in [("u", NINE), ("w", NINE_TOO)] {
        site.reload(&b());
        site.reload(&(b() + &u(name, target)));
        assert_eq!(site.sockets(2201), before, "{name}");
        converse(&near, &backends[0], CLIENT);
    }
    converse(&near, &backends[1], OTHER);

    site.reload(&b());
    assert_eq!(site.sockets(2201), before);
    site.ctl.ok("kill 203.0.113.7");
    site.ctl.ok("kill 203.0.113.8");
    wait_until("the last flow takes the socket along", || {
        site.sockets(2201).is_empty()
    });
    site.reload(&(b() + &u("u", NINE)));
    converse(&near, &backends[0], CLIENT);
    // Without a flow it closes at once.
    site.ctl.ok("kill 203.0.113.7");
    wait_until("it ends", || site.status()["open"] == 0);
    site.reload(&b());
    assert!(site.sockets(2201).is_empty());
}

#[test]
fn a_new_name_at_the_same_address_keeps_the_sockets() {
    let file = |a, u| listener(a, "0.0.0.0:2201", NINE, "") + &udp(u, "0.0.0.0:2201", NINE, "");
    let site = Site::new(&file("a", "u"));
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, CLIENT);
    let before = site.sockets(2201);
    site.reload(&file("b", "v"));
    assert_eq!(site.sockets(2201), before);
    assert_carries(&session.near, &session.far);
    converse(&near, &udp_backend, CLIENT);
    site.session(AT_A, &backend, OTHER);
    converse(&near, &udp_backend, OTHER);
    site.ctl.ok("kill 203.0.113.7");
    site.ctl.ok("kill 203.0.113.8");
    wait_until("all have ended", || site.status()["open"] == 0);
    for name in ["b", "v"] {
        let of = site.listener(name);
        assert_eq!(
            (&of["open"], &of["counts"]["accepted"]),
            (&0.into(), &1.into()),
            "{of}"
        );
    }
    // Under the old name again its counts go on, for it still had sessions then.
    site.reload(&file("a", "u"));
    assert_eq!(site.listener("a")["open"], 0);
}

#[test]
fn the_protocol_may_change_at_the_same_address() {
    let tcp = listener("a", "0.0.0.0:2201", NINE, "");
    let datagrams = udp("a", "0.0.0.0:2201", NINE, "");
    let site = Site::new(&tcp);
    let (backend, udp_backend) = (
        Backend::listen(&site.server, NINE),
        open(&site.server, NINE),
    );
    let session = site.session(AT_A, &backend, CLIENT);
    site.reload(&datagrams);
    site.assert_refused(AT_A);
    assert_carries(&session.near, &session.far);
    let near = site.socket(AT_A);
    converse(&near, &udp_backend, OTHER);
    let of = site.listener("a");
    assert_eq!((&of["protocol"], &of["open"]), (&"udp".into(), &1.into()));
    site.reload(&tcp);
    site.session(AT_A, &backend, OTHER);
    converse(&near, &udp_backend, OTHER);
    assert_eq!(site.listener("a")["counts"]["accepted"], 2);
}
