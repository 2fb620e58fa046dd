//! Bans that were answered `ok` are there after a restart, whatever the disk did; and no disk keeps
//! the proxy from starting.

mod support;

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::ctl::ask;
use support::header::v1;
use support::stage::{CLIENT, VISITED};
use support::streams::{assert_carries, assert_reset};
use support::{Ctl, Host, Program, Stage, TempDir};

/// The scene, with a control socket and bans in `ctl.state()`.
fn stage(ctl: &Ctl, wrapper: &[&str]) -> Stage {
    let state = ctl.state();
    let state = state.to_str().expect("a path");
    let flags = ["-control", &ctl.path(), "-state-dir", state];
    Stage::under(Program::Realpeer, wrapper, &flags)
}

/// The scene on a disk of 16 KiB that only its server has.
fn stage_on_small_disk(ctl: &Ctl) -> Stage {
    fs::create_dir_all(ctl.state()).expect("make a directory");
    let mount = mounting(ctl, "mount -t tmpfs -o size=16k none");
    stage(ctl, &["sh", "-c", &mount])
}

/// Mounts on the state directory, on one host, before the program starts.
fn mounting(ctl: &Ctl, mount: &str) -> String {
    format!("{mount} {} && exec \"$0\" \"$@\"", ctl.state().display())
}

/// Starts the proxy again on the same host, after a crash.
fn restart(ctl: &Ctl, stage: &mut Stage) {
    stage.proxy.signal(Signal::SIGKILL);
    stage.proxy.wait_for_exit();
    let state = ctl.state();
    let state = state.to_str().expect("a path");
    let more = ["-control", &ctl.path(), "-state-dir", state];
    let flags = [&support::stage::ADDRESSES, &more[..]].concat();
    stage.proxy = Program::Realpeer.start(&stage.server, &flags);
}

fn ban(network: &str) -> String {
    json!({"do": "ban", "network": network, "reason": "x".repeat(500)}).to_string()
}

fn is_whole(answer: &Value) -> bool {
    assert_eq!(answer["ok"], true, "{answer}");
    answer.get("warning").is_none()
}

fn fill(stage: &Stage, ctl: &Ctl) {
    let fill = format!("cat /dev/zero > {}/fill", ctl.state().display());
    stage.server.run(&["sh", "-c", &format!("! {fill}")]);
}

fn make_room(stage: &Stage, ctl: &Ctl) {
    let fill = ctl.state().join("fill");
    stage.server.run(&["rm", fill.to_str().expect("a path")]);
}

/// Bans, on a full disk, until one is cut by it; tells how many there are.
fn ban_until_cut(ctl: &Ctl) -> u32 {
    let mut administrator = BufReader::new(ctl.connect());
    (1..)
        .find(|n| !is_whole(&ask(&mut administrator, &ban(&format!("203.0.113.{n}")))))
        .expect("a disk is full at last")
}

#[test]
fn a_ban_after_a_full_disk_is_kept_and_so_is_the_one_that_it_cut() {
    let ctl = Ctl::new();
    let mut stage = stage_on_small_disk(&ctl);
    fill(&stage, &ctl);
    let cut = ban_until_cut(&ctl);
    make_room(&stage, &ctl);
    let mut administrator = BufReader::new(ctl.connect());
    let later = "198.51.100.9";
    assert!(is_whole(&ask(&mut administrator, &ban(later))));

    restart(&ctl, &mut stage);
    let bans = ctl.ok("bans");
    for network in (1..=cut).map(|n| format!("203.0.113.{n}/32")) {
        assert!(bans.contains(&network), "{network} of {cut} is lost");
    }
    assert!(bans.contains(later), "{bans}");
}

/// Also one after which nobody is banned.
#[test]
fn a_ban_that_a_full_disk_cut_is_written_when_there_is_room() {
    let ctl = Ctl::new();
    let mut stage = stage_on_small_disk(&ctl);
    fill(&stage, &ctl);
    let cut = ban_until_cut(&ctl);
    make_room(&stage, &ctl);
    stage.proxy.wait_for_line("the bans are written down again");
    restart(&ctl, &mut stage);
    assert!(ctl.ok("bans").contains(&format!("203.0.113.{cut}/32")));
}

#[test]
fn a_full_disk_keeps_nobody_from_starting_with_the_bans_in_force() {
    let ctl = Ctl::new();
    let mut stage = stage_on_small_disk(&ctl);
    ctl.ok("ban 203.0.113.7");
    fill(&stage, &ctl);
    restart(&ctl, &mut stage);
    let warning = stage
        .proxy
        .wait_for_line("the bans on disk are in force, but");
    assert!(warning.contains("No space left"), "{warning}");
    assert_reset(&stage.dial_and_send(v1(CLIENT, VISITED)));
    stage.assert_serves();

    make_room(&stage, &ctl);
    ctl.ok("ban 203.0.113.8");
    restart(&ctl, &mut stage);
    let bans = ctl.ok("bans");
    assert!(bans.contains("203.0.113.7/32") && bans.contains("203.0.113.8/32"));
}

#[test]
fn a_read_only_disk_keeps_nobody_from_starting_with_the_bans_in_force() {
    let ctl = Ctl::new();
    let first = stage(&ctl, &[]);
    ctl.ok("ban 203.0.113.7");
    drop(first);
    let state = ctl.state();
    let bind = format!(
        "mount --bind {0} {0} && mount -o remount,bind,ro",
        state.display()
    );
    let second = stage(&ctl, &["sh", "-c", &mounting(&ctl, &bind)]);
    let warning = second
        .proxy
        .wait_for_line("the bans on disk are in force, but");
    assert!(
        warning.contains("WARN") && warning.contains("Read-only"),
        "{warning}"
    );
    assert_reset(&second.dial_and_send(v1(CLIENT, VISITED)));
    let mut administrator = BufReader::new(ctl.connect());
    let answer = ask(&mut administrator, &ban("203.0.113.8"));
    let warning = answer["warning"].as_str().expect("a warning");
    assert!(warning.contains("until realpeer ends"), "{warning}");
}

#[test]
fn a_second_instance_in_the_directory_says_who_has_it_and_takes_nothing() {
    let ctl = Ctl::new();
    let mut stage = stage(&ctl, &[]);
    ctl.ok("ban 203.0.113.7");
    let state = ctl.state();
    let state = state.to_str().expect("a path");
    let other = Host::new("other");
    let ended = Program::Realpeer.run(&other, &["-l", "127.0.0.1:2223", "-state-dir", state]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    let holder = format!("in use by process {}", stage.proxy.pid());
    assert!(ended.stderr.contains(&holder), "{}", ended.stderr);
    assert!(!other.run(&["ip", "rule"]).contains("iif lo"));
    // One of another name has bans of its own.
    let named = [
        "-l",
        "127.0.0.1:2224",
        "-state-dir",
        state,
        "-name",
        "other",
    ];
    Program::Realpeer.start(&other, &named);

    ctl.ok("ban 203.0.113.8");
    restart(&ctl, &mut stage);
    let bans = ctl.ok("bans");
    assert!(bans.contains("203.0.113.7/32") && bans.contains("203.0.113.8/32"));
}

#[test]
fn a_second_start_on_the_same_port_changes_nothing() {
    let ctl = Ctl::new();
    let mut stage = stage(&ctl, &[]);
    ctl.ok("ban 203.0.113.7");
    let session = stage.session("203.0.113.9:1");
    let (bans, state) = (ctl.state().join("realpeer.bans"), ctl.state());
    let inode = |path: &str| fs::metadata(path).expect("it is there").ino();
    let files = || (inode(&ctl.path()), inode(bans.to_str().expect("a path")));
    let before = files();
    let ruleset = || stage.server.run(&["nft", "list", "ruleset"]);
    let tables = ruleset();
    let watch = stage.server.spawn(&["ip", "monitor", "rule"]);
    let marker = |what, table| {
        let words = ["ip", "rule", what, "pref", "30000", "table", table];
        stage.server.run(&words);
    };
    support::wait_until("the routing is watched", || {
        marker("add", "76");
        marker("del", "76");
        !watch.stdout().is_empty()
    });

    // The same directory and socket, other ones, and another target, which needs routing.
    let fresh = TempDir::new();
    let (state, fresh_state) = (state.display().to_string(), fresh.path("state"));
    let (fresh_state, socket) = (fresh_state.display().to_string(), fresh.path("socket"));
    let same = ["-control", &ctl.path(), "-state-dir", &state];
    let socket = socket.display().to_string();
    let other = ["-control", &socket, "-state-dir", &fresh_state];
    for more in [&same, &other] {
        let target = ["-l", "0.0.0.0:2222", "-4", "192.0.2.10:9001"];
        let ended = Program::Realpeer.run(&stage.server, &[&target, &more[..]].concat());
        assert_eq!(ended.code, 1, "{}", ended.stdout);
        assert!(ended.stderr.contains("already in use"), "{}", ended.stderr);
    }
    for path in [&socket, &fresh_state] {
        assert!(!fs::exists(path).expect("look"), "{path} was made");
    }
    assert_eq!((files(), ruleset()), (before, tables));
    marker("add", "77");
    watch.wait_for_line("lookup 77");
    let foreign = |line: &String| !line.contains("lookup 76") && !line.contains("lookup 77");
    let foreign: Vec<String> = watch.stdout().into_iter().filter(foreign).collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    assert_carries(&session.near, &session.far);
    ctl.ok("ban 203.0.113.8");
    restart(&ctl, &mut stage);
    assert!(ctl.ok("bans").contains("203.0.113.8/32"));
}

#[test]
fn the_file_is_ours_alone_and_never_behind_a_link() {
    let ctl = Ctl::new();
    let files = TempDir::new();
    let precious = files.file("precious", "precious");
    fs::create_dir_all(ctl.state()).expect("make a directory");
    symlink(&precious, ctl.state().join("realpeer.new")).expect("make a link");
    let _stage = stage(&ctl, &[]);
    ctl.ok("ban 203.0.113.7");
    assert_eq!(fs::read_to_string(&precious).expect("read it"), "precious");
    let bans = ctl.state().join("realpeer.bans");
    let found = fs::symlink_metadata(&bans).expect("it is there");
    assert!(found.is_file());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
}

/// The order of system calls, since no test can cut the power.
#[test]
fn a_ban_is_on_disk_before_its_answer_and_the_file_before_its_name() {
    let ctl = Ctl::new();
    let traces = TempDir::new();
    let trace = traces.path("trace");
    let calls = "trace=write,sendto,rename,fsync,fdatasync,open,openat";
    let output = trace.to_str().expect("a path");
    let wrapper = ["strace", "-D", "-f", "-s", "300", "-e", calls, "-o", output];
    let _stage = stage(&ctl, &wrapper);
    ctl.ok("ban 203.0.113.7");
    let mut text = String::new();
    // The tracer writes when it likes.
    support::wait_until("the answer is traced", || {
        text = fs::read_to_string(&trace).expect("the trace");
        text.contains(r#"{\"ok\":true"#)
    });
    let lines: Vec<&str> = text.lines().filter(|l| !l.contains("/proc/")).collect();
    let text = lines.join("\n");
    let after = |from: usize, part: &str| {
        let found = lines[from..].iter().position(|line| line.contains(part));
        from + found.unwrap_or_else(|| panic!("no {part} behind line {from} of {text}"))
    };
    let made = after(0, "realpeer.new\", O_");
    assert!(lines[made].contains("O_EXCL|O_APPEND|O_NOFOLLOW"), "{text}");
    let synced = after(made, "fsync");
    let renamed = after(made, "realpeer.bans\") = 0");
    assert!(synced < renamed, "{text}");
    let directory = after(renamed, "state\", O_");
    let directory_synced = after(directory, "fsync");
    let line = after(renamed, r#"{\"ban\":{\"network\":\"203.0.113.7/32"#);
    assert!(directory_synced < line, "{text}");
    let line_synced = after(line, "fdatasync");
    let answer = after(line, r#"{\"ok\":true"#);
    assert!(line_synced < answer, "{text}");
}
