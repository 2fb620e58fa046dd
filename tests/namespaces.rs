//! Targets in another network namespace (`-target-netns`).

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::datagrams::{self, every, open, receive};
use support::elsewhere::{BACKEND, PATH, routing};
use support::lineage::{end, runs};
use support::site::{AT_A, listener, udp};
use support::stage::{CLIENT, CLIENT6, PROXY};
use support::streams::{assert_carries, assert_reset, send};
use support::{
    Backend, Ctl, Diagnosis, Elsewhere, Host, Lineage, Program, Running, Site, addr, repository,
    wait_until,
};

const OTHER: &str = "203.0.113.8:40001";

/// "A restarted or recreated container is followed within a second."
const AT_ONCE: Duration = Duration::from_secs(1);

/// Starts a program as systemd does with the capabilities that these files of packaging/systemd give.
/// Root becomes the unprivileged user of a service, whose processes the container's are not.
fn as_unit(files: &[&str]) -> Vec<String> {
    let mut given = String::from("-all");
    for file in files {
        let text = fs::read_to_string(repository(&format!("packaging/systemd/{file}")));
        let text = text.unwrap_or_else(|e| panic!("{file}: {e}"));
        let ambient = |line: &str| Some(line.strip_prefix("AmbientCapabilities=")?.to_lowercase());
        let ambient = text.lines().find_map(ambient).expect("its capabilities");
        given += &format!(",{ambient}").replace("cap_", "+").replace(' ', ",");
    }
    let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"];
    let mut words = vec!["setpriv".to_owned(), "--no-new-privs".to_owned()];
    words.extend(sets.map(|set| format!("{set}={given}")));
    if nix::unistd::getuid().is_root() {
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        words.extend(user.map(str::to_owned));
    }
    words
}

/// Number 21, as /proc/PID/task/TID/status has it.
const SYS_ADMIN: u64 = 1 << 21;
const SYS_PTRACE: u64 = 1 << 19;

/// The names of a process's threads with a capability among those that they could have.
fn threads_with(process: &Running, capability: u64) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    let mut found = BTreeMap::new();
    for task in tasks.flatten() {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let sets = ["CapPrm:", "CapInh:", "CapAmb:"].map(|set| {
            let line = status.lines().find_map(|line| line.strip_prefix(set));
            line.map_or(0, |hex| u64::from_str_radix(hex.trim(), 16).expect("hex"))
        });
        if sets.iter().any(|set| set & capability != 0) {
            *found.entry(read("comm").trim().to_owned()).or_insert(0) += 1;
        }
    }
    found.into_keys().collect()
}

#[test]
fn backends_inside_see_the_client_and_the_host_keeps_its_routing() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    // Whoever listens on the same addresses of the host itself gets nothing.
    let here = Backend::listen(&scene.server, BACKEND);
    let (server, inside) = (routing(&scene.server), routing(&scene.inside));
    let mut proxy = scene.proxy(&[]);
    let sessions = [CLIENT, CLIENT6].map(|client| scene.session(&backends, client));
    here.assert_idle();
    assert_eq!(routing(&scene.server), server);
    assert_ne!(routing(&scene.inside), inside, "the way back is kept there");
    drop(sessions);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
    assert_eq!(routing(&scene.inside), inside, "and is taken away");
    assert_eq!(routing(&scene.server), server);
}

#[test]
fn any_address_inside_can_be_the_target() {
    let scene = Elsewhere::new();
    let inside = &scene.inside;
    inside.run(&["ip", "link", "add", "own", "type", "bridge"]);
    inside.run(&["ip", "link", "set", "own", "up"]);
    inside.add_address("172.30.0.2/24", "own");
    inside.add_address("fd00:30::2/64", "own");
    let before = routing(inside);
    let backends = ["172.30.0.2:9000", "[fd00:30::2]:9000"].map(|at| Backend::listen(inside, at));
    let mut proxy = scene.proxy(&["-4", "172.30.0.2:9000", "-6", "[fd00:30::2]:9000"]);
    for client in [CLIENT, CLIENT6] {
        scene.session(&backends, client);
    }
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
    assert_eq!(routing(inside), before, "the sysctl too");

    let _proxy = scene.proxy(&["-dynamic-destination"]);
    let near = scene.balancer.dial(PROXY);
    send(&near, support::header::v1(CLIENT, "172.30.0.2:9000"));
    let (far, from) = backends[0].accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
}

#[test]
fn datagrams_reach_backends_inside_and_come_back() {
    let scene = Elsewhere::new();
    let (server, inside) = (routing(&scene.server), routing(&scene.inside));
    let sockets = [BACKEND, "[::1]:9000"].map(|at| open(&scene.inside, at));
    let mut proxy = datagrams::start(&scene.server, &["-target-netns", PATH]);
    for (client, backend) in [CLIENT, CLIENT6].into_iter().zip(&sockets) {
        let near = balancers_socket(&scene);
        converse(&near, backend, client);
    }
    assert_eq!(routing(&scene.server), server);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
    assert_eq!(routing(&scene.inside), inside);
}

/// A UDP socket of the load balancer that speaks to the proxy.
fn balancers_socket(scene: &Elsewhere) -> std::net::UdpSocket {
    let near = open(&scene.balancer, "0.0.0.0:0");
    near.connect(addr(PROXY)).expect("connect a UDP socket");
    near
}

#[track_caller]
fn converse(near: &std::net::UdpSocket, backend: &std::net::UdpSocket, client: &str) {
    near.send(&every(client, b"there")).expect("send");
    let (payload, from) = receive(backend);
    assert_eq!((&payload[..], from), (&b"there"[..], addr(client)));
    backend.send_to(b"and back", from).expect("answer");
    assert_eq!(receive(near).0, b"and back");
}

/// A burst is larger than the stock of sockets that were made ahead.
#[test]
fn many_connections_at_once_wait_for_their_sockets() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let _proxy = scene.proxy(&[]);
    let clients: Vec<String> = (0..200)
        .map(|n| format!("203.0.113.7:{}", 40000 + n))
        .collect();
    let near: Vec<_> = clients.iter().map(|client| scene.begin(client)).collect();
    let mut seen: Vec<_> = near.iter().map(|_| backends[0].accept()).collect();
    seen.sort_by_key(|(_, from)| from.port());
    let seen: Vec<_> = seen.iter().map(|(_, from)| from.to_string()).collect();
    assert_eq!(seen, clients);
}

#[test]
fn only_the_threads_that_enter_hold_the_capability_and_only_where_it_is_asked_for() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let proxy = scene.proxy(&[]);
    scene.session(&backends, CLIENT);
    assert_eq!(threads_with(&proxy, SYS_ADMIN), ["gate"]);
    for capability in [SYS_ADMIN, SYS_PTRACE] {
        let holders = threads_with(&proxy, capability);
        assert!(
            !holders.iter().any(|name| name.starts_with("worker")),
            "{holders:?}"
        );
        assert!(!holders.contains(&"namespace".to_owned()), "{holders:?}");
    }
    drop(proxy);
    let flags = ["-l", "0.0.0.0:2222", "-4", BACKEND];
    let proxy = Program::Realpeer.start(&scene.server, &flags);
    assert_eq!(threads_with(&proxy, SYS_ADMIN), [""; 0]);
}

#[test]
fn the_capabilities_of_the_drop_in_suffice_and_those_of_the_unit_do_not() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let (unit, drop_in) = ("realpeer.service", "realpeer.service.d/containers.conf");
    let both = as_unit(&[unit, drop_in]);
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    let proxy = scene.proxy_under(&both, &[]);
    scene.session(&backends, CLIENT);
    drop(proxy);
    let sleeper = scene.inside.spawn(&["sleep", "1000"]);
    let pid = format!("pid:{}", in_namespace(&sleeper, &scene.inside));
    let proxy = scene.proxy_under(&both, &["-target-netns", &pid]);
    scene.session(&backends, OTHER);
    drop(proxy);
    let unit = as_unit(&[unit]);
    let unit: Vec<&str> = unit.iter().map(String::as_str).collect();
    let proxy = scene.proxy_under(&unit, &[]);
    proxy.wait_for_line("containers.conf");
    assert_reset(&scene.begin(CLIENT));
}

/// The process, once it is in the namespace: nsenter is elsewhere at first.
fn in_namespace(process: &Running, host: &Host) -> u32 {
    let wanted = host.enter(|| fs::read_link("/proc/thread-self/ns/net").expect("a namespace"));
    let path = format!("/proc/{}/ns/net", process.pid());
    wait_until("the process is in the namespace", || {
        fs::read_link(&path).is_ok_and(|is| is == wanted)
    });
    process.pid()
}

#[test]
fn a_process_is_followed_to_its_end_and_its_clients_are_refused_with_the_reason_and_counted() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let sleeper = scene.inside.spawn(&["sleep", "1000"]);
    let pid = in_namespace(&sleeper, &scene.inside);
    let (ctl, name) = (Ctl::new(), format!("pid:{pid}"));
    let proxy = scene.proxy(&["-target-netns", &name, "-v", "1", "-control", &ctl.path()]);
    let session = scene.session(&backends, CLIENT);
    drop(sleeper);
    let reason = format!("the process {pid} has ended");
    proxy.wait_for_line(&reason);
    assert_reset(&scene.begin(OTHER));
    proxy.wait_for("the refusal", |line| {
        line.contains("dropping connection") && line.contains(&name) && line.contains(&reason)
    });
    assert_eq!(ctl.count("targetGone"), 1);
    // Others live on there, and so do their sessions.
    assert_carries(&session.near, &session.far);
}

/// `ip netns delete` and `add`, with sessions of both protocols.
#[test]
fn a_namespace_that_is_replaced_is_followed_at_once() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let udp_backend = open(&scene.inside, BACKEND);
    let before = routing(&scene.inside);
    let proxy = scene.proxy(&["-v", "2"]);
    let udp_flags = ["-target-netns", PATH, "-v", "2", "-close-after", "0"];
    let udp_proxy = datagrams::start(&scene.server, &udp_flags);
    let session = scene.session(&backends, CLIENT);
    let near = balancers_socket(&scene);
    converse(&near, &udp_backend, CLIENT);

    scene.server.forget_netns(PATH);
    for proxy in [&proxy, &udp_proxy] {
        proxy.wait_for_line("network namespace is gone");
    }
    assert_reset(&scene.begin(OTHER));
    udp_proxy.wait_for_line("the network namespace of its target is gone");
    // What is open there goes on.
    assert_carries(&session.near, &session.far);

    let new = Elsewhere {
        inside: Host::new("new"),
        balancer: scene.balancer,
        server: scene.server,
    };
    let old = scene.inside;
    let (new_backends, new_udp_backend) = (new.backends(), open(&new.inside, BACKEND));
    new.server.name_netns(PATH, &new.inside);
    let came = Instant::now();
    for proxy in [&proxy, &udp_proxy] {
        wait_until("the new namespace is there", || {
            let there = |line: &&String| line.contains("network namespace is there");
            proxy.stdout().iter().filter(there).count() == 2
        });
    }
    assert!(came.elapsed() < AT_ONCE, "{:?}", came.elapsed());
    new.session(&new_backends, OTHER);
    converse(&near, &new_udp_backend, CLIENT);
    backends[0].assert_idle();
    assert_carries(&session.near, &session.far);
    drop(session);
    wait_until("the routing there goes with the last session", || {
        routing(&old) == before
    });
}

/// Nothing of what a container could put under the path leads to the host, or anywhere.
#[test]
fn a_hostile_path_leads_nowhere() {
    let scene = Elsewhere::new();
    let here = Backend::listen(&scene.server, BACKEND);
    let server = &scene.server;
    let (inside, own) = ("/run/container", "/run/own");
    server.run(&["mkdir", inside]);
    server.name_netns(own, server);
    server.run(&["mkfifo", "/run/container/fifo"]);
    server.run(&["touch", "/run/container/file"]);
    server.run(&["ln", "-s", own, "/run/container/link"]);
    server.run(&["ln", "-s", "/proc/1/ns/net", "/run/container/proc"]);
    server.run(&["ln", "-s", "/run", "/run/container/run"]);
    server.run(&["ln", "-s", "/proc/self/ns/uts", "/run/container/uts"]);
    server.run(&["touch", "/run/container/mounted"]);
    let uts = [
        "mount",
        "-c",
        "--bind",
        "/proc/self/ns/uts",
        "/run/container/mounted",
    ];
    server.run(&uts);
    for (path, why) in [
        ("/run/container/fifo", "no network namespace"),
        ("/run/container/file", "no network namespace"),
        ("/run/container/mounted", "no network namespace"),
        ("/run/container/nothing", "cannot open it"),
        ("/run/container/link", "symbolic link"),
        ("/run/container/proc", "symbolic link"),
        ("/run/container/uts", "symbolic link"),
        ("/run/container/run/own", "symbolic link"),
        ("/proc/self/ns/net", "symbolic link"),
        (own, "this host's own network"),
        ("pid:2147483647", "there is no process"),
    ] {
        let proxy = scene.proxy(&["-v", "1", "-target-netns", path]);
        assert_reset(&scene.begin(CLIENT));
        let line = proxy.wait_for_line("dropping connection");
        assert!(line.contains(path) && line.contains(why), "{path}: {line}");
        here.assert_idle();
    }
}

/// What stands under the path is swapped while realpeer runs: for a link to the host's own network,
/// and for the host's own network itself.
#[test]
fn a_namespace_that_is_swapped_for_the_hosts_own_is_not_entered() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let here = Backend::listen(&scene.server, BACKEND);
    let server = &scene.server;
    server.name_netns("/run/own", server);
    let before = routing(server);
    let proxy = scene.proxy(&["-v", "1"]);
    scene.session(&backends, CLIENT);
    server.forget_netns(PATH);
    proxy.wait_for_line("network namespace is gone");
    server.run(&["ln", "-s", "/run/own", PATH]);
    assert_reset(&scene.begin(CLIENT));
    server.run(&["rm", PATH]);
    server.name_netns(PATH, server);
    wait_until("the reason is the new one", || {
        assert_reset(&scene.begin(OTHER));
        let told = |line: &String| line.contains("this host's own network");
        proxy.stdout().iter().any(told)
    });
    here.assert_idle();
    assert_eq!(routing(server), before);
}

/// The process shows what it likes in its own mount namespace; its number means nothing there.
#[test]
fn a_process_with_a_proc_of_its_own_leads_nowhere_else() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let here = Backend::listen(&scene.server, BACKEND);
    let script = "mount -t tmpfs none /proc && mkdir -p /proc/1/ns /proc/self/ns && \
                  touch /proc/self/ns/net && echo ready && exec sleep 1000";
    let hostile = scene
        .inside
        .spawn(&["unshare", "--mount", "sh", "-c", script]);
    hostile.wait_for_line("ready");
    let pid = format!("pid:{}", hostile.pid());
    let _proxy = scene.proxy(&["-target-netns", &pid]);
    scene.session(&backends, CLIENT);
    here.assert_idle();
}

#[test]
fn the_addresses_of_the_container_cannot_be_claimed() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let inside = &scene.inside;
    inside.run(&["ip", "link", "add", "own", "type", "bridge"]);
    inside.run(&["ip", "link", "set", "own", "up"]);
    inside.add_address("172.30.0.2/24", "own");
    let ctl = Ctl::new();
    let _proxy = scene.proxy(&["-control", &ctl.path()]);
    for client in ["172.30.0.2:4000", "172.30.0.0:4000", "172.30.0.255:4000"] {
        let near = scene.begin(client);
        support::streams::assert_closed(&near);
        backends[0].assert_idle();
    }
    assert_eq!(ctl.count("bogusClient"), 3);
    // A change is noticed.
    inside.add_address("172.31.0.2/24", "own");
    wait_until("the new address is refused", || {
        let _near = scene.begin("172.31.0.2:4000");
        ctl.count("bogusClient") > 3
    });
    support::streams::assert_closed(&scene.begin("172.31.0.2:4000"));
}

#[test]
fn the_listeners_own_port_is_a_good_target_inside() {
    let scene = Elsewhere::new();
    let backend = Backend::listen(&scene.inside, "127.0.0.1:2222");
    let backends = [backend, Backend::listen(&scene.inside, "[::1]:2222")];
    let _proxy = scene.proxy(&["-4", "127.0.0.1:2222", "-6", "[::1]:2222"]);
    scene.session(&backends, CLIENT);
    scene.session(&backends, CLIENT6);
}

#[test]
fn each_listener_of_a_file_has_its_own_and_a_reload_follows() {
    let (blue, green) = (Host::new("blue"), Host::new("green"));
    let at = |name: &str, port: u16| {
        let more = format!("target-netns = \"/run/{name}\"");
        listener(name, &format!("0.0.0.0:{port}"), BACKEND, &more)
    };
    let plain = listener("plain", "0.0.0.0:2203", BACKEND, "");
    let site = Site::prepared(&[at("blue", 2201), plain.clone()].concat(), |server| {
        server.name_netns("/run/blue", &blue);
        server.name_netns("/run/green", &green);
    });
    let hosts = [&blue, &green, &site.server];
    let backends = hosts.map(|host| Backend::listen(host, BACKEND));
    let before = hosts.map(routing);
    site.session("192.0.2.10:2201", &backends[0], CLIENT);
    site.session("192.0.2.10:2203", &backends[2], CLIENT);
    site.reload(&[at("green", 2202), plain.clone()].concat());
    site.session("192.0.2.10:2202", &backends[1], CLIENT);
    site.session("192.0.2.10:2203", &backends[2], OTHER);
    wait_until("the routing of the first is taken away", || {
        routing(&blue) == before[0]
    });
    assert_eq!(routing(&site.server), before[2]);
}

#[test]
fn a_reload_cannot_bring_the_capability_back() {
    let plain = listener("plain", "0.0.0.0:2203", BACKEND, "");
    let site = Site::new(&plain);
    let more = "target-netns = \"/run/blue\"";
    let new = listener("blue", "0.0.0.0:2201", BACKEND, more);
    site.refused_reload(&[plain, new].concat(), "target-netns needs a restart");
}

/// A listener of each protocol. TCP's target needs marks.
#[test]
fn a_new_process_takes_over_the_routing_inside() {
    const TARGET: &str = "172.30.0.2:9000";
    let inside = Host::new("inside");
    inside.run(&["ip", "link", "add", "own", "type", "bridge"]);
    inside.run(&["ip", "link", "set", "own", "up"]);
    inside.add_address("172.30.0.2/24", "own");
    let before = routing(&inside);
    let more = format!("target-netns = \"{PATH}\"");
    let text =
        listener("a", "0.0.0.0:2201", TARGET, &more) + &udp("u", "0.0.0.0:2201", BACKEND, &more);
    let mut lineage = Lineage::prepared(&text, |server| {
        server.run(&["mkdir", "/run/netns"]);
        server.name_netns(PATH, &inside);
    });
    let backends = (Backend::listen(&inside, TARGET), open(&inside, BACKEND));
    let session = lineage.session(AT_A, &backends.0, CLIENT);
    let near = open(&lineage.balancer, "0.0.0.0:0");
    near.connect(addr(AT_A)).expect("connect");
    converse(&near, &backends.1, CLIENT);
    let kept = routing(&inside);
    assert_ne!(kept, before);

    let new = lineage.upgrade();
    assert_carries(&session.near, &session.far);
    converse(&near, &backends.1, CLIENT);
    let second = lineage.session(AT_A, &backends.0, OTHER);
    drop(session);
    wait_until("the old process leaves", || lineage.first.has_ended());
    assert_eq!(routing(&inside), kept, "the same is kept on");
    assert_carries(&second.near, &second.far);
    converse(&near, &backends.1, CLIENT);
    drop(second);
    end(new, Signal::SIGTERM);
    wait_until("the new process leaves", || !runs(new));
    assert_eq!(routing(&inside), before, "it is taken away");
}

/// What the sandbox leaves to the threads that enter, and takes from the others.
#[test]
fn the_sandbox_holds_for_all_threads_and_namespaces_are_followed_in_it() {
    let scene = Elsewhere::new();
    let backends = scene.backends();
    let proxy = scene.proxy(&[]);
    scene.session(&backends, CLIENT);
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
    for task in tasks.flatten() {
        let status = fs::read_to_string(task.path().join("status")).expect("a thread");
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            assert!(status.lines().any(|l| l == line), "{status}");
        }
    }
    let strange = |line: &String| line.contains("outside of the sandbox");
    assert!(!proxy.stdout().iter().any(strange));
}

#[test]
fn routing_up_show_and_down_work_inside() {
    let scene = Elsewhere::new();
    let (server, before) = (routing(&scene.server), routing(&scene.inside));
    let run = |action: &str| {
        let words = ["routing", action, "-4", BACKEND, "-target-netns", PATH];
        let ended = Program::Realpeer.run(&scene.server, &words);
        assert_eq!(ended.code, 0, "{action}: {}", ended.stderr);
        ended.stdout
    };
    let name = format!("{BACKEND} in {PATH}");
    assert!(run("show").contains(&format!("{name}: loopback way, missing")));
    assert!(run("up").contains(&format!("{name}: put in")));
    assert_ne!(routing(&scene.inside), before);
    assert!(run("show").contains(&format!("{name}: loopback way, in place")));
    let backends = scene.backends();
    let proxy = scene.proxy(&["-routing", "off"]);
    scene.session(&backends, CLIENT);
    drop(proxy);
    assert!(run("down").contains("taken away"));
    assert_eq!(routing(&scene.inside), before);
    assert_eq!(routing(&scene.server), server);
}

#[test]
fn the_doctor_looks_inside() {
    let scene = Elsewhere::new();
    let flags = ["-l", "0.0.0.0:2222", "-4", BACKEND, "-target-netns", PATH];
    let down = Diagnosis::of(&scene.server, &flags);
    down.assert_only("backend-down", "failed", &["in /run/netns/inside", BACKEND]);
    let _backends = scene.backends();
    Diagnosis::of(&scene.server, &flags).assert_healthy();
    scene.inside.run(&["ip", "link", "set", "lo", "down"]);
    let lo = Diagnosis::of(&scene.server, &flags);
    let check = lo.assert_only("lo-down", "failed", &["in /run/netns/inside"]);
    let run = check["run"].as_str().expect("a command");
    scene.server.run(&["bash", "-c", run]);
    Diagnosis::of(&scene.server, &flags).assert_healthy();
    scene.server.forget_netns(PATH);
    let gone = Diagnosis::of(&scene.server, &flags);
    gone.assert_only("target-gone", "failed", &[PATH, "cannot open it"]);
}
