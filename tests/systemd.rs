//! What systemd hears from a service of Type=notify. The test plays systemd: it has the notify socket.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sd_notify::NotifyState;
use support::stage::{ADDRESSES, CLIENT};
use support::streams::assert_carries;
use support::{Backend, Ctl, DEADLINE, Lineage, Program, Running, Stage, TempDir};

/// The end of the notify socket that systemd has.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _files: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let files = TempDir::new();
        let path = files.path("notify");
        let socket = UnixDatagram::bind(&path).expect("bind the notify socket");
        Manager {
            socket,
            path: path.display().to_string(),
            _files: files,
        }
    }

    /// Sets the variable that names the socket, and others.
    fn environment(&self, others: &[&str]) -> Vec<String> {
        let own = format!("NOTIFY_SOCKET={}", self.path);
        let others = others.iter().map(|word| (*word).to_owned());
        ["env".to_owned(), own].into_iter().chain(others).collect()
    }

    fn stage(&self, variables: &[&str], flags: &[&str]) -> Stage {
        let wrapper = self.environment(variables);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        Stage::under(Program::Realpeer, &wrapper, flags)
    }

    /// The next message, if one comes in that time.
    fn next(&self, patience: Duration) -> Option<String> {
        self.socket
            .set_read_timeout(Some(patience))
            .expect("set a time-out");
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// The next message that is none of those that come again and again.
    #[track_caller]
    fn state(&self) -> String {
        self.wait_for("change of state", |message| {
            !message.starts_with("STATUS=") && !message.starts_with("WATCHDOG=")
        })
    }

    /// Waits for a message that `wanted` likes.
    #[track_caller]
    fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        while let Some(left) = DEADLINE.checked_sub(start.elapsed()) {
            match self.next(left.max(Duration::from_millis(1))) {
                Some(message) if wanted(&message) => return message,
                _ => {}
            }
        }
        panic!("waited {DEADLINE:?} in vain for a {what}");
    }

    #[track_caller]
    fn assert_reloads(&self, reload: impl FnOnce()) {
        let before = monotonic_usec();
        reload();
        let reloading = self.state();
        let time = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap_or_else(|| panic!("{reloading:?}"));
        let time: i128 = time.trim().parse().expect("a number");
        assert!((before..=monotonic_usec()).contains(&time), "{time}");
        assert_eq!(self.state(), "READY=1\n");
    }
}

fn monotonic_usec() -> i128 {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => now,
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_ready_once_everything_is_in_place_and_says_when_it_stops() {
    let (manager, ctl) = (Manager::new(), Ctl::new());
    let mut stage = manager.stage(&[], &["-control", &ctl.path()]);
    assert_eq!(manager.state(), "READY=1\n");
    assert!(stage.server.run(&["ip", "rule"]).contains("iif lo"));
    ctl.ok("status");
    let session = stage.session(CLIENT);
    manager.wait_for("status with the session", |message| {
        message == "STATUS=1 open, 1 accepted, 1 served, 0 refused, 0 banned\n"
    });
    ctl.ok("ban 198.51.100.9");
    manager.wait_for("status with the ban", |message| {
        message.contains("1 banned")
    });

    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(manager.state(), "STOPPING=1\n");
    assert_carries(&session.near, &session.far);
    drop(session);
    assert_eq!(stage.proxy.exit_code(), 0);
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let manager = Manager::new();
    let stage = Stage::new(&[]);
    let wrapper = manager.environment(&[]);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut second = Program::Realpeer.spawn(&wrapper, &stage.server, &ADDRESSES);
    assert_eq!(second.exit_code(), 1);
    assert_eq!(manager.next(Duration::from_millis(1)), None);
}

/// Type=notify-reload waits for both, with a time that is later than its SIGHUP.
#[test]
fn reloads_are_told_however_they_are_asked_for_and_whatever_comes_of_them() {
    let (manager, ctl, files) = (Manager::new(), Ctl::new(), TempDir::new());
    let list = files.file("denied", "198.51.100.0/24\n");
    let flags = ["-control", &ctl.path(), "-denied-clients", &list];
    let stage = manager.stage(&[], &flags);
    assert_eq!(manager.state(), "READY=1\n");
    manager.assert_reloads(|| stage.proxy.signal(Signal::SIGHUP));
    manager.assert_reloads(|| _ = ctl.ok("reload"));
    fs::write(&list, "nonsense\n").expect("write the list");
    manager.assert_reloads(|| stage.proxy.signal(Signal::SIGHUP));
    stage.proxy.wait_for_line("stay as they were");
    stage.assert_serves();
}

/// A thread that a debugger holds up does not answer.
#[test]
fn the_watchdog_hears_nothing_while_a_worker_hangs() {
    const TIME: Duration = Duration::from_secs(2);
    let manager = Manager::new();
    let usec = format!("WATCHDOG_USEC={}", TIME.as_micros());
    let stage = manager.stage(&[&usec], &["-workers", "2"]);
    let ping = || manager.wait_for("ping", |message| message == "WATCHDOG=1\n");
    ping();
    ping();

    let debugger = hold_up(&stage, "worker-1");
    stage.proxy.wait_for_line("a worker thread hangs");
    while manager.next(Duration::from_millis(1)).is_some() {}
    let start = Instant::now();
    while let Some(left) = TIME.checked_sub(start.elapsed()) {
        let message = manager.next(left.max(Duration::from_millis(1)));
        assert_ne!(message.as_deref(), Some("WATCHDOG=1\n"));
    }
    drop(debugger);
    ping();
    stage.assert_serves();
}

/// strace keeps one thread in its next system calls until it is ended.
fn hold_up(stage: &Stage, name: &str) -> Running {
    let tasks = format!("/proc/{}/task", stage.proxy.pid());
    let tasks = fs::read_dir(tasks).expect("the proxy has threads");
    let is = |path: &std::path::PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let thread = tasks
        .map(|task| task.expect("read the list").path())
        .find(is)
        .expect("the worker is there");
    let thread = thread.file_name().expect("a number").to_string_lossy();
    let words = "strace --trace=epoll_wait --inject=epoll_wait:delay_enter=600000000 -p";
    let words: Vec<&str> = words.split(' ').chain([&*thread]).collect();
    let debugger = stage.server.spawn(&words).ends_by(Signal::SIGTERM);
    debugger.wait_for_error("attached");
    debugger
}

/// systemd hears the main process only: the old one says who that is from now on, and is silent then.
#[test]
fn a_hand_over_tells_the_new_main_process_first() {
    let manager = Manager::new();
    let others = ["WATCHDOG_USEC=2000000"];
    let wrapper = manager.environment(&others);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let text = support::site::listener("a", "0.0.0.0:2222", "127.0.0.1:9000", "");
    let lineage = Lineage::under(&wrapper, &text, &[]);
    let backend = Backend::listen(&lineage.server, "127.0.0.1:9000");
    assert_eq!(manager.state(), "READY=1\n");
    let session = lineage.session("192.0.2.10:2222", &backend, CLIENT);
    for _ in 0..2 {
        let new = lineage.upgrade();
        assert_eq!(manager.state(), format!("MAINPID={new}\n"));
        assert_eq!(manager.state(), "READY=1\n");
        manager.wait_for("ping", |message| message == "WATCHDOG=1\n");
    }
    // What the new one has open is told, not what the old one has.
    let second = lineage.session("192.0.2.10:2222", &backend, "203.0.113.8:40001");
    manager.wait_for("status", |message| message.starts_with("STATUS=1 open"));
    assert_carries(&session.near, &session.far);
    assert_carries(&second.near, &second.far);
}
