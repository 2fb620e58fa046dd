//! `realpeer ctl top` in a real terminal: what it shows, what its keys do, and how it leaves.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::site::{AT_A, AT_B, NINE, listener, start};
use support::streams::{assert_carries, assert_closed, assert_reset, send};
use support::{Backend, Ctl, Session, Site, TempDir, Terminal, wait_until};

const BUSY: &str = "203.0.113.7";
const CALM: &str = "198.51.100.8";

/// Two listeners; a client with three sessions at one, then another with one at the other.
struct Scene {
    site: Site,
    backend: Backend,
    busy: Vec<Session>,
    calm: Session,
}

impl Scene {
    #[track_caller]
    fn new() -> Scene {
        let file =
            listener("web", "0.0.0.0:2201", NINE, "") + &listener("mail", "0.0.0.0:2202", NINE, "");
        let site = Site::new(&file);
        let backend = Backend::listen(&site.server, NINE);
        let calm = site.session(AT_B, &backend, &format!("{CALM}:1"));
        // The calm one is the oldest by a second.
        wait_until("a second is over", || age(&site) >= 1);
        let busy = (1..4).map(|n| site.session(AT_A, &backend, &format!("{BUSY}:{n}")));
        let busy = busy.collect();
        Scene {
            site,
            backend,
            busy,
            calm,
        }
    }

    #[track_caller]
    fn top(&self, columns: u16, rows: u16) -> Terminal<'_> {
        let terminal = self.site.ctl.terminal(columns, rows);
        terminal.command(&self.site.ctl.line("top"));
        terminal.wait_for("open 4");
        terminal
    }
}

fn age(site: &Site) -> u64 {
    let listed = site.ctl.ok("-json connections");
    let first = listed.lines().next().expect("a connection");
    let first: serde_json::Value = serde_json::from_str(first).expect("JSON");
    first["connection"]["age"].as_u64().expect("seconds")
}

/// The words of the line that begins with this.
fn row<'a>(screen: &'a str, beginning: &str) -> Vec<&'a str> {
    let line = screen.lines().find(|line| line.starts_with(beginning));
    line.unwrap_or_default().split_whitespace().collect()
}

fn comes_before(screen: &str, first: &str, second: &str) -> bool {
    match (screen.find(first), screen.find(second)) {
        (Some(first), Some(second)) => first < second,
        _ => false,
    }
}

#[test]
fn it_shows_listeners_clients_and_refusals_and_they_move() {
    let scene = Scene::new();
    let terminal = scene.top(100, 30);
    let screen = terminal.wait_for(BUSY);
    assert_eq!(
        row(&screen, "web")[..5],
        ["web", "0.0.0.0:2201", "tcp", "open", "3"]
    );
    assert_eq!(row(&screen, BUSY)[..2], [BUSY, "3"]);
    assert_eq!(row(&screen, CALM)[..2], [CALM, "1"]);
    assert!(screen.contains("CLIENT (2)"), "{screen}");

    let _more = scene
        .site
        .session(AT_A, &scene.backend, &format!("{BUSY}:9"));
    terminal.wait_until("the count moves", |screen| {
        row(screen, "web").get(4) == Some(&"4") && row(screen, BUSY).get(1) == Some(&"4")
    });
    // Refusals go on until their rate is seen: at the listener, and by reason.
    terminal.wait_until("there are refusals each second", |screen| {
        let near = scene.site.balancer.dial(AT_A);
        send(&near, "GET / HTTP/1.1\r\n\r\n");
        assert_closed(&near);
        let moves = |rate: Option<&&str>| rate.is_some_and(|rate| !["0", "-"].contains(rate));
        let reason = screen.lines().find(|line| line.contains("headerAbsent"));
        let words: Vec<&str> = reason.unwrap_or_default().split_whitespace().collect();
        moves(row(screen, "web").last()) && moves(words.last())
    });
    assert_carries(&scene.calm.near, &scene.calm.far);
}

#[test]
fn clients_are_sorted_and_filtered() {
    let scene = Scene::new();
    let terminal = scene.top(80, 24);
    terminal.wait_until("the busiest is first", |screen| {
        comes_before(screen, BUSY, CALM)
    });
    terminal.text("a");
    terminal.wait_until("the oldest is first", |screen| {
        comes_before(screen, CALM, BUSY) && screen.contains("AGE*")
    });
    terminal.text("n");
    terminal.wait_until("the newest is first", |screen| {
        comes_before(screen, BUSY, CALM) && screen.contains("NEW*")
    });
    terminal.text("/198.51");
    terminal.wait_until("one is left", |screen| {
        screen.contains("filter: 198.51_") && screen.contains(CALM) && !screen.contains(BUSY)
    });
    terminal.key("Enter");
    terminal.wait_for("CLIENT (1) /198.51");
    terminal.key("Escape");
    terminal.wait_for(BUSY);
    // By a listener's name.
    terminal.text("/web");
    terminal.wait_until("its clients are left", |screen| {
        screen.contains(BUSY) && !screen.contains(CALM) && row(screen, "mail").is_empty()
    });
}

#[test]
fn kill_and_ban_ask_first() {
    let scene = Scene::new();
    let terminal = scene.top(80, 24);
    terminal.wait_for(CALM);
    terminal.key("Down");
    terminal.text("k");
    terminal.wait_for(&format!("end all sessions of {CALM}? y/n"));
    terminal.text("n");
    terminal.wait_for("nothing was done");
    assert_carries(&scene.calm.near, &scene.calm.far);
    // What is no yes is a no.
    terminal.text("k");
    terminal.wait_for("y/n");
    terminal.key("Enter");
    terminal.wait_for("nothing was done");
    assert_carries(&scene.calm.near, &scene.calm.far);
    terminal.text("k");
    terminal.wait_for("y/n");
    terminal.text("y");
    terminal.wait_for("done: sessions ended: 1");
    assert_reset(&scene.calm.near);

    terminal.wait_until("it is gone", |screen| !screen.contains(CALM));
    terminal.text("b");
    terminal.wait_for(&format!("ban {BUSY} for (empty: forever): 1h_"));
    for _ in 0..2 {
        terminal.key("BSpace");
    }
    terminal.text("soon");
    terminal.key("Enter");
    // It is no time, and the question stays.
    terminal.wait_for("): soon_ ");
    for _ in 0..4 {
        terminal.key("BSpace");
    }
    terminal.text("10m");
    terminal.key("Enter");
    terminal.wait_for(&format!("ban {BUSY} for 600s? y/n"));
    assert_eq!(scene.site.ctl.ok("bans").lines().count(), 1, "not yet");
    terminal.text("y");
    terminal.wait_for("done: sessions ended: 3");
    terminal.wait_for("bans 1");
    let bans = scene.site.ctl.ok("bans");
    let left = ["10m", "9m5"].iter().any(|left| bans.contains(left));
    assert!(bans.contains(BUSY) && left, "{bans}");
    for session in &scene.busy {
        assert_reset(&session.near);
    }
}

/// Whoever ends it, the terminal is what it was: the shell's screen, its cursor, its echo.
#[test]
fn the_terminal_is_restored_whoever_ends_it() {
    let scene = Scene::new();
    let terminal = scene.site.ctl.terminal(80, 24);
    for ending in ["q", "C-c", "TERM", "INT", "HUP"] {
        terminal.command("clear; echo a line from before");
        terminal.command(&scene.site.ctl.line("top"));
        let screen = terminal.wait_for("open 4");
        assert!(!screen.contains("a line from before"), "{screen}");
        match ending {
            "q" => terminal.text("q"),
            "C-c" => terminal.key("C-c"),
            signal => {
                let signal = format!("SIG{signal}").parse::<Signal>().expect("a signal");
                kill(pid(&scene.site.ctl), signal).expect("it runs");
            }
        }
        terminal.wait_for("a line from before");
        terminal.command("echo code=$?; stty -a | grep -o ' icanon\\| echo '");
        let screen = terminal.wait_until("the terminal has its echo", |screen| {
            screen.contains("\n icanon") && screen.contains("\n echo")
        });
        assert!(screen.contains("code=0"), "{ending}: {screen}");
    }
}

#[test]
fn it_ends_with_its_terminal() {
    let scene = Scene::new();
    let terminal = scene.top(80, 24);
    let pid = pid(&scene.site.ctl);
    drop(terminal);
    wait_until("it has ended", || kill(pid, None).is_err());
}

/// The process that shows the screen.
#[track_caller]
fn pid(ctl: &Ctl) -> Pid {
    let words = format!("ctl\0-control\0{}\0top\0", ctl.path());
    let found = std::fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).ends_with(&words))
        });
    Pid::from_raw(found.expect("it runs"))
}

#[test]
fn it_fits_where_there_is_little_room() {
    let scene = Scene::new();
    let terminal = scene.top(80, 24);
    let screen = terminal.wait_for(CALM);
    assert_eq!(screen.lines().filter(|line| line.len() > 80).count(), 0);
    terminal.wait_for("q quit");
    for (columns, rows) in [(40, 12), (200, 60), (20, 6), (3, 2), (80, 24)] {
        terminal.resize(columns, rows);
        let parts: &[&str] = match columns {
            3 => &[],
            20 => &["web"],
            _ => &["web", BUSY, "q quit"],
        };
        terminal.wait_until(&format!("all is there at {columns}x{rows}"), |screen| {
            parts.iter().all(|part| screen.contains(part))
        });
    }
    terminal.text("q");
    terminal.wait_for("ready>");
}

#[test]
fn a_proxy_that_goes_away_is_told_and_awaited() {
    let mut scene = Scene::new();
    let file = std::fs::read_to_string(scene.site.file()).expect("its file");
    let ctl = &scene.site.ctl;
    let terminals = ["NO_COLOR=1", "NO_COLOR="].map(|environment| {
        let terminal = ctl.terminal(120, 24);
        terminal.command(&format!("{environment} {}", ctl.line("top")));
        terminal.wait_for("open 4");
        terminal
    });
    scene.site.proxy.signal(Signal::SIGKILL);
    scene.site.proxy.wait_for_exit();
    let red = terminals.each_ref().map(|terminal| {
        terminal.wait_for("trying again");
        let screen = terminal.colours();
        ["[31m", "38;5;1m"].iter().any(|red| screen.contains(red))
    });
    assert_eq!(red, [false, true]);
    scene.site.proxy = start(
        &scene.site.server,
        &scene.site.ctl,
        &scene.site.files,
        &file,
    );
    for terminal in &terminals {
        terminal.wait_for("open 0");
    }
}

#[test]
fn without_a_terminal_it_says_so() {
    let ended = Ctl::new().run("top");
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("needs a terminal"),
        "{}",
        ended.stderr
    );
}

/// A proxy that has been taken over cannot reach the administrator's terminal.
#[test]
fn what_the_proxy_says_has_no_control_characters() {
    let (ctl, _files) = (Ctl::new(), TempDir::new());
    let socket = UnixListener::bind(ctl.path()).expect("listen as a proxy");
    thread::spawn(move || {
        for stream in socket.incoming() {
            let mut stream = BufReader::new(stream.expect("a client"));
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                let answer = match &line {
                    line if line.contains("status") => EVIL_STATUS,
                    line if line.contains("clients") => EVIL_CLIENTS,
                    _ => EVIL_ERROR,
                };
                let _ = stream.get_mut().write_all(answer.as_bytes());
                line.clear();
            }
        }
    });
    let terminal = ctl.terminal(100, 24);
    terminal.command(&ctl.line("top"));
    terminal.wait_for("203.0.113.7");
    let screen = terminal.wait_for("evil");
    assert!(screen.contains("q quit"), "{screen}");
    assert_ne!(terminal.title(), "taken");
    terminal.text("ky");
    // Nor can its errors.
    let screen = terminal.wait_for("not done");
    assert!(screen.contains("203.0.113.7"), "{screen}");
    assert_ne!(terminal.title(), "taken");
}

const EVIL_STATUS: &str = concat!(
    r#"{"ok":true,"status":{"version":"1","name":"evil\u001b]2;taken\u0007\u001b[2J","pid":1,"uptime":1,"#,
    r#""open":1,"bans":0,"counts":{},"listeners":[{"name":"\u009b2J\u001b]2;taken\u0007evil","listen":[],"#,
    r#""protocol":"\u001b[2J","accepting":true,"open":1,"counts":{}}]}}"#,
    "\n"
);

const EVIL_CLIENTS: &str = concat!(
    r#"{"client":{"address":"203.0.113.7","open":1,"new":1,"oldest":1,"listeners":["\u001b]2;taken\u0007"]}}"#,
    "\n{\"ok\":true,\"count\":1}\n"
);

const EVIL_ERROR: &str = concat!(
    r#"{"ok":false,"error":"\u001b]2;taken\u0007\u001b[2Jno"}"#,
    "\n"
);
