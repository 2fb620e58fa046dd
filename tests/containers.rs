//! OpenSSH in containers of real engines, behind the load balancer.

mod support;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::datagrams::{every, open, receive};
use support::elsewhere::routing;
use support::engine::Kind;
use support::header::v1;
use support::stage::{ADDRESSES, CLIENT, CLIENT6, PROXY, VISITED, VISITED6, wire};
use support::streams::{assert_reset, receive as receive_bytes, send};
use support::{Ctl, Engine, Host, Program, Running, addr, wait_until};

/// "A restarted or recreated container is followed within a second."
const AT_ONCE: Duration = Duration::from_secs(1);

const GONE: &str = "network namespace is gone";
const THERE: &str = "network namespace is there";

struct Scene<'a> {
    balancer: &'a Host,
    engine: Engine<'a>,
    proxy: Running,
    ctl: Ctl,
}

impl Scene<'_> {
    /// A connection of a client.
    #[track_caller]
    fn begin(&self, client: &str) -> TcpStream {
        let near = self.balancer.dial(PROXY);
        let visited = if addr(client).is_ipv4() {
            VISITED
        } else {
            VISITED6
        };
        send(&near, v1(client, visited));
        near
    }

    /// OpenSSH answers the client, and logs its address.
    #[track_caller]
    fn assert_serves(&self, client: &str) {
        self.engine.wait_for_sshd("gitea");
        assert_eq!(receive_bytes(&self.begin(client), 8), b"SSH-2.0-");
        self.engine.wait_for_client("gitea", client);
    }

    #[track_caller]
    fn wait_for(&self, line: &str, times: usize) {
        wait_until(&format!("{line}: {times} times"), || {
            let lines = self.proxy.stdout();
            lines.iter().filter(|l| l.contains(line)).count() >= times
        });
    }

    /// How long after the engine says that the container runs it is followed.
    #[track_caller]
    fn assert_follows(&self, times: usize, start: impl FnOnce()) {
        start();
        let started = Instant::now();
        self.wait_for(THERE, times);
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    }

    fn address(&self) -> String {
        let form = "{{.NetworkSettings.IPAddress}}";
        self.engine.ok(&["inspect", "-f", form, "gitea"])
    }
}

fn on_stage(kind: Kind, story: impl FnOnce(&Scene<'_>, &Host)) {
    let (balancer, server) = wire();
    let Some(engine) = Engine::start(kind, &server) else {
        return;
    };
    engine.run_sshd("gitea", &[]);
    let word = match kind {
        Kind::Docker => "docker:gitea",
        Kind::Podman => "podman:gitea",
    };
    let before = routing(&server);
    let ctl = Ctl::new();
    let (socket, control) = (engine.socket(), ctl.path());
    let flags = [
        "-l",
        "0.0.0.0:2222",
        "-4",
        "127.0.0.1:22",
        "-6",
        "[::1]:22",
        "-v",
        "1",
        "-target-netns",
        word,
        "-docker-socket",
        &socket,
        "-control",
        &control,
    ];
    let proxy = Program::Realpeer.start(&server, &flags);
    assert_eq!(routing(&server), before, "the host keeps its routing");
    let scene = Scene {
        balancer: &balancer,
        engine,
        proxy,
        ctl,
    };
    story(&scene, &server);
}

/// Through restart, removal and creation under the same name.
fn the_story(scene: &Scene<'_>) {
    let Scene { engine, .. } = scene;
    scene.assert_serves(CLIENT);
    scene.assert_serves(CLIENT6);
    let restart = || _ = engine.ok(&["restart", "-t", "1", "gitea"]);
    scene.assert_follows(2, restart);
    scene.assert_serves("203.0.113.7:40002");
    let before = scene.address();
    engine.ok(&["rm", "-f", "gitea"]);
    scene.wait_for(GONE, 2);
    assert_reset(&scene.begin("203.0.113.7:40003"));
    assert_eq!(scene.ctl.count("targetGone"), 1);
    // Somebody else has the address by now.
    engine.run_sshd("other", &[]);
    scene.assert_follows(3, || engine.run_sshd("gitea", &[]));
    assert_ne!(scene.address(), before);
    scene.assert_serves("203.0.113.7:40004");
    scene.assert_serves("[2001:db8:c::7]:40004");
    let refused = scene.proxy.wait_for_line("dropping connection");
    let why = ["the container gitea ", "no container gitea"];
    assert!(why.iter().any(|why| refused.contains(why)), "{refused}");
}

#[test]
fn openssh_in_a_docker_container_logs_the_client_through_restart_and_recreation() {
    on_stage(Kind::Docker, |scene, _| the_story(scene));
}

#[test]
fn openssh_in_a_podman_container_logs_the_client_through_restart_and_recreation() {
    on_stage(Kind::Podman, |scene, _| the_story(scene));
}

/// The name passes to another container, without an end of either.
#[test]
fn a_renamed_container_is_followed_by_its_name() {
    on_stage(Kind::Docker, |scene, _| {
        let engine = &scene.engine;
        engine.run_sshd("next", &[]);
        engine.ok(&["rename", "gitea", "old"]);
        scene.wait_for(GONE, 1);
        scene.assert_follows(2, || _ = engine.ok(&["rename", "next", "gitea"]));
        scene.assert_serves(CLIENT);
    });
}

#[test]
fn datagrams_reach_a_docker_container_and_come_back() {
    on_stage(Kind::Docker, |scene, server| {
        for at in [
            "UDP4-RECVFROM:9000,bind=127.0.0.1",
            "UDP6-RECVFROM:9000,bind=[::1]",
        ] {
            let at = format!("{at},fork");
            // It reads first: what cannot be written to it has socat end without the answer.
            let answer = "SYSTEM:head -c 9 >/dev/null; echo $SOCAT_PEERADDR";
            scene
                .engine
                .ok(&["exec", "-d", "gitea", "socat", &at, answer]);
        }
        scene.engine.ok(&["exec", "gitea", "sh", "-c",
            "until [ $(grep -c :2328 /proc/net/udp /proc/net/udp6 | grep -c :1) = 2 ]; do sleep 0.05; done"]);
        let socket = scene.engine.socket();
        let inside = [
            "-p",
            "udp",
            "-target-netns",
            "docker:gitea",
            "-docker-socket",
            &socket,
        ];
        let flags = [&ADDRESSES[..], &inside].concat();
        let proxy = Program::Realpeer.spawn(&[], server, &flags);
        proxy.wait_for_line("listening");
        let near = open(scene.balancer, "0.0.0.0:0");
        near.connect(addr(PROXY)).expect("connect a UDP socket");
        for (client, seen) in [
            (CLIENT, "203.0.113.7"),
            (CLIENT6, "2001:0db8:000c:0000:0000:0000:0000:0007"),
        ] {
            near.send(&every(client, b"who am I?")).expect("send");
            let answer = String::from_utf8(receive(&near).0).expect("text");
            assert_eq!(answer.trim().trim_matches(['[', ']']), seen);
        }
    });
}

#[test]
fn an_engine_that_restarts_is_followed_and_one_that_is_down_is_told() {
    let (balancer, server) = wire();
    let Some(mut engine) = Engine::start(Kind::Docker, &server) else {
        return;
    };
    engine.run_sshd("gitea", &["--restart", "always"]);
    engine.stop_daemon();
    let (ctl, socket) = (Ctl::new(), engine.socket());
    let control = ctl.path();
    let flags = [
        "-l",
        "0.0.0.0:2222",
        "-4",
        "127.0.0.1:22",
        "-v",
        "1",
        "-target-netns",
        "docker:gitea",
        "-docker-socket",
        &socket,
        "-control",
        &control,
    ];
    let proxy = Program::Realpeer.start(&server, &flags);
    proxy.wait_for("why", |line| line.contains(GONE) && line.contains(&socket));
    let doctor = support::Diagnosis::of(&server, &flags[..10]);
    assert!(doctor.found("target-gone").contains(&socket));
    engine.start_daemon();
    let mut scene = Scene {
        balancer: &balancer,
        engine,
        proxy,
        ctl,
    };
    scene.wait_for(THERE, 1);
    scene.assert_serves(CLIENT);
    scene.engine.stop_daemon();
    scene.wait_for(GONE, 2);
    scene.engine.start_daemon();
    scene.wait_for(THERE, 2);
    scene.assert_serves("203.0.113.7:40001");
}

/// A container that shares the host's network would lead to the host.
#[test]
fn a_container_with_the_hosts_network_is_refused() {
    on_stage(Kind::Docker, |scene, server| {
        let here = support::Backend::listen(server, "127.0.0.1:22");
        scene.engine.ok(&["rm", "-f", "gitea"]);
        let words = [
            "run",
            "-d",
            "--name",
            "gitea",
            "--network",
            "host",
            "-v",
            "/usr:/usr:ro",
            "image",
            "/bin/sleep",
            "1000",
        ];
        scene.engine.ok(&words);
        wait_until("the reason is told", || {
            assert_reset(&scene.begin(CLIENT));
            let told = |line: &String| line.contains("this host's own network");
            scene.proxy.stdout().iter().any(told)
        });
        here.assert_idle();
    });
}
