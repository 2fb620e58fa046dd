//! A hand-over that goes wrong: exactly one process serves, and nothing hangs.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::datagrams::open;
use support::lineage::{end, runs};
use support::site::{converse, listener, udp};
use support::stage::{CLIENT, Session};
use support::streams::assert_carries;
use support::{Backend, Lineage, Running, addr, wait_until};

const OTHER: &str = "203.0.113.8:40001";
const THIRD: &str = "203.0.113.9:40002";
const AT_A: &str = "192.0.2.10:2201";
const NINE: &str = "127.0.0.1:9000";

fn both() -> String {
    listener("a", "0.0.0.0:2201", NINE, "") + &udp("u", "0.0.0.0:2201", NINE, "")
}

/// A lineage, its backends, and what is open.
struct Scene {
    lineage: Lineage,
    backend: Backend,
    udp: std::net::UdpSocket,
    session: Session,
    near: std::net::UdpSocket,
    rules: String,
}

impl Scene {
    #[track_caller]
    fn new() -> Scene {
        let lineage = Lineage::new(&both());
        let backend = Backend::listen(&lineage.server, NINE);
        let udp = open(&lineage.server, NINE);
        let session = lineage.session(AT_A, &backend, CLIENT);
        let near = open(&lineage.balancer, "0.0.0.0:0");
        near.connect(addr(AT_A)).expect("connect");
        converse(&near, &udp, CLIENT);
        let rules = lineage.rules();
        Scene {
            lineage,
            backend,
            udp,
            session,
            near,
            rules,
        }
    }

    /// Everything that was open is open, and the routing is what it was.
    #[track_caller]
    fn assert_undisturbed(&self) {
        assert_carries(&self.session.near, &self.session.far);
        self.assert_serves();
    }

    #[track_caller]
    fn assert_serves(&self) {
        converse(&self.near, &self.udp, CLIENT);
        converse(&self.near, &self.udp, OTHER);
        self.lineage.session(AT_A, &self.backend, THIRD);
        assert_eq!(self.lineage.rules(), self.rules);
    }

    /// The process that serves is the only one.
    #[track_caller]
    fn assert_alone(&self) {
        wait_until("one process is left", || {
            self.lineage.processes().len() == 1
        });
        let pid = self.lineage.status()["pid"].clone();
        assert_eq!(pid, self.lineage.processes()[0]);
    }
}

#[test]
fn a_new_program_that_fails_leaves_the_old_one_serving_and_is_heard() {
    let scene = Scene::new();
    scene
        .lineage
        .replace("echo 'out of luck' >&2; printf '\\033[31m' >&2; exit 3");
    let said = scene.lineage.fail().stderr;
    for word in ["exit status: 3", "out of luck", "\\u{1b}[31m"] {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    scene.assert_undisturbed();
    scene
        .lineage
        .replace("echo {} >&2; exec $REAL -config /nowhere");
    let said = scene.lineage.fail().stderr;
    assert!(said.contains("/nowhere"), "{said}");
    fs::remove_file(scene.lineage.path("realpeer")).expect("remove the program");
    let said = scene.lineage.fail().stderr;
    assert!(said.contains("cannot start"), "{said}");

    // By a signal, the log tells.
    scene.lineage.first.signal(Signal::SIGUSR2);
    scene.lineage.first.wait_for_line("SIGUSR2: not upgraded");
    scene.assert_undisturbed();
    scene.assert_alone();
    scene.lineage.restore();
    scene.lineage.first.signal(Signal::SIGUSR2);
    let old = scene.lineage.first.pid();
    wait_until("another one serves", || {
        scene.lineage.status()["pid"] != old
    });
    scene.assert_undisturbed();
}

/// Mistakes in its configuration are the new program's to tell.
#[test]
fn a_file_with_a_mistake_is_told_and_changes_nothing() {
    let scene = Scene::new();
    scene.lineage.write("[[listener]]\nname = 7\n");
    let said = scene.lineage.fail().stderr;
    assert!(said.contains("realpeer.toml:2:8"), "{said}");
    scene
        .lineage
        .write(&listener("a", "192.0.2.99:1", NINE, ""));
    let said = scene.lineage.fail().stderr;
    assert!(said.contains("192.0.2.99:1"), "{said}");
    scene.assert_undisturbed();
    scene.assert_alone();
}

#[test]
fn a_new_program_that_hangs_is_given_ten_seconds() {
    let scene = Scene::new();
    scene.lineage.replace("touch \"$0.here\"; exec sleep 600");
    let start = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| scene.lineage.ctl.run("upgrade"));
        wait_until("it has begun", || {
            scene.lineage.path("realpeer.here").exists()
        });
        scene
            .lineage
            .ctl
            .refused("upgrade", "an upgrade is under way");
        scene.assert_undisturbed();
        let ended = first.join().expect("it ends");
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("within 10 s"), "{}", ended.stderr);
    });
    assert!(start.elapsed() >= Duration::from_secs(10));
    scene.assert_undisturbed();
    scene.assert_alone();
    scene.lineage.restore();
    scene.lineage.upgrade();
    scene.assert_undisturbed();
}

/// What the starter says late to one request is no answer to the next.
#[test]
fn a_starter_that_was_slow_starts_programs_again() {
    let scene = Scene::new();
    let starter = scene.lineage.starters()[0];
    end(starter, Signal::SIGSTOP);
    let said = scene.lineage.fail().stderr;
    assert!(said.contains("hangs"), "{said}");
    end(starter, Signal::SIGCONT);
    scene.lineage.upgrade();
    scene.assert_undisturbed();
}

/// Nobody could see or end their sessions any more.
#[test]
fn old_processes_end_with_the_one_that_serves() {
    let scene = Scene::new();
    let new = scene.lineage.upgrade();
    assert_eq!(scene.lineage.processes().len(), 2);
    end(new, Signal::SIGKILL);
    wait_until("the old process has ended", || {
        scene.lineage.processes().iter().all(|pid| !runs(*pid))
    });
}

/// It dies before each of its three messages, and hangs there.
#[test]
fn the_new_process_may_die_or_hang_at_any_step() {
    let scene = Scene::new();
    for signal in ["SIGKILL", "SIGSTOP"] {
        for step in 1..=3 {
            let trace = format!(
                "exec strace -D -f -o /dev/null -e trace=sendmsg -e inject=sendmsg:error=EIO:signal={signal}:when={step} $REAL \"$@\""
            );
            scene.lineage.replace(&trace);
            let said = scene.lineage.fail().stderr;
            let why = match (signal, step) {
                ("SIGKILL", _) => "signal: 9",
                (_, 1) => "within 10 s",
                // Datagrams wait by now.
                _ => "within 2 s",
            };
            assert!(said.contains(why), "{signal} {step}: {said}");
            scene.assert_undisturbed();
        }
    }
    scene.assert_alone();
    scene.lineage.restore();
    scene.lineage.upgrade();
    scene.assert_undisturbed();
}

/// Killed before each message that it sends. The first only starts the other process.
#[test]
fn the_old_process_may_die_at_any_step() {
    for step in 2..30 {
        let mut scene = Scene::new();
        let old = scene.lineage.first.pid();
        let debugger = kill_at(&scene.lineage, step);
        if scene.lineage.ctl.run("upgrade").code == 0 {
            assert!(step > 6, "there are more messages than {step}");
            // Later ones answer what the new process asks.
            drop(debugger);
            assert_ne!(scene.lineage.status()["pid"], old);
            return scene.assert_undisturbed();
        }
        wait_until("the old process is gone", || {
            scene.lineage.first.has_ended()
        });
        wait_until("the new one answers", || {
            scene.lineage.ctl.run("status").code == 0
        });
        scene.assert_serves();
        drop(debugger);
        scene.assert_alone();
        let last = scene.lineage.status()["pid"].clone();
        assert_ne!(scene.lineage.upgrade(), last);
        scene.assert_serves();
    }
    panic!("it never succeeds");
}

fn kill_at(lineage: &Lineage, step: u32) -> Running {
    let inject = format!("inject=sendmsg:error=EIO:signal=SIGKILL:when={step}");
    let pid = lineage.first.pid().to_string();
    let words = [
        "strace",
        "-o",
        "/dev/null",
        "-e",
        "trace=sendmsg",
        "-e",
        &inject,
        "-p",
        &pid,
    ];
    let debugger = lineage.server.spawn(&words).ends_by(Signal::SIGTERM);
    debugger.wait_for_error("attached");
    debugger
}

/// The old one is stopped before it hears that the new one is ready: the new one waits, and serves
/// when the old one is killed.
#[test]
fn an_old_process_that_hangs_is_waited_for_until_somebody_ends_it() {
    let mut scene = Scene::new();
    let old = scene.lineage.first.pid();
    scene
        .lineage
        .replace("until test -e \"$0.go\"; do sleep 0.01; done; exec $REAL \"$@\"");
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| scene.lineage.ctl.run("upgrade"));
        wait_until("it has begun", || scene.lineage.processes().len() == 2);
        end(old, Signal::SIGSTOP);
        fs::write(scene.lineage.path("realpeer.go"), "").expect("let it go");
        end(old, Signal::SIGKILL);
        assert_ne!(upgrade.join().expect("it ends").code, 0);
    });
    wait_until("the old process is gone", || {
        scene.lineage.first.has_ended()
    });
    wait_until("the new one serves", || {
        scene.lineage.ctl.run("status").code == 0
    });
    scene.assert_serves();
    scene.assert_alone();
}

#[test]
fn an_upgrade_waits_for_the_reload_that_is_under_way() {
    let scene = Scene::new();
    let file = scene.lineage.path("realpeer.toml");
    let good = fs::read_to_string(&file).expect("the file");
    fs::remove_file(&file).expect("remove it");
    mkfifo(&file, Mode::S_IRWXU).expect("make a pipe");
    thread::scope(|scope| {
        let reload = scope.spawn(|| scene.lineage.ctl.run("reload"));
        // Opens once the proxy reads it.
        let mut pipe = OpenOptions::new().write(true).open(&file).expect("open");
        let upgrades = [(); 2].map(|()| scope.spawn(|| scene.lineage.ctl.run("upgrade")));
        // One of them waits, and so the other is refused.
        wait_until("one has an answer", || {
            upgrades.iter().any(|upgrade| upgrade.is_finished())
        });
        assert_eq!(scene.lineage.processes().len(), 1, "nothing was started");
        scene.lineage.write(&good);
        pipe.write_all(good.as_bytes()).expect("write");
        drop(pipe);
        assert_eq!(reload.join().expect("it ends").code, 0);
        let mut codes = upgrades.map(|upgrade| {
            let ended = upgrade.join().expect("it ends");
            assert!(
                ended.code == 0 || ended.stderr.contains("under way"),
                "{}",
                ended.stderr
            );
            ended.code
        });
        codes.sort_unstable();
        assert_eq!(codes, [0, 1]);
    });
    scene.assert_undisturbed();
}
