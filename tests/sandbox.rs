//! What the running proxy can no longer do, looked at from outside and from inside.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, geteuid};
use serde_json::{Value, json};
use support::stage::{ADDRESSES, CLIENT, PROXY};
use support::streams::assert_carries;
use support::{Ctl, Host, Program, Running, Stage, TempDir};

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// A user that every Debian has and that owns nothing.
const NOBODY: u32 = 65534;

/// The fields of /proc/PID/task/TID/status of each thread, by its name.
fn threads(proxy: &Running) -> BTreeMap<String, BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("the proxy has threads");
    let thread = |path: PathBuf| {
        let status = fs::read_to_string(path.join("status")).expect("read the status");
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        let fields: BTreeMap<_, _> = fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        (fields["Name"].clone(), fields)
    };
    tasks
        .map(|task| thread(task.expect("read the list").path()))
        .collect()
}

fn status(ctl: &Ctl) -> Value {
    let answer: Value = serde_json::from_str(&ctl.ok("-json status")).expect("JSON");
    answer["status"]["sandbox"].clone()
}

#[track_caller]
fn assert_keeps(flags: &[&str], kept: u64) {
    let stage = Stage::new(flags);
    // A new thread has the name of its maker until it runs.
    support::wait_until("the worker has its name", || {
        threads(&stage.proxy).contains_key("worker-0")
    });
    let threads = threads(&stage.proxy);
    assert!(threads.len() >= 3, "main, log and a worker: {threads:?}");
    for (name, status) in &threads {
        // Whoever only writes lines needs nothing.
        let kept = if name == "log" { 0 } else { kept };
        for (set, expected) in [
            ("CapPrm", kept),
            ("CapEff", kept),
            ("CapBnd", kept),
            ("CapInh", 0),
            ("CapAmb", 0),
        ] {
            let found = u64::from_str_radix(&status[set], 16).expect("hexadecimal");
            assert_eq!(found, expected, "{set} of {name} with {flags:?}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!(status["Seccomp"], "2", "{name}");
    }
}

#[test]
fn every_thread_keeps_the_capabilities_that_the_configuration_needs() {
    assert_keeps(&[], NET_RAW | NET_ADMIN | NET_BIND_SERVICE);
    assert_keeps(&["-source-port", "any"], NET_RAW | NET_ADMIN);
    assert_keeps(
        &["-routing", "off", "-source-port", "any", "-mark", "5"],
        NET_RAW,
    );
    let low = ["-l", "0.0.0.0:80", "-source-port", "any", "-routing", "off"];
    assert_keeps(&low, NET_RAW | NET_BIND_SERVICE);
}

/// `-routing off` with a mark: SO_MARK is left to CAP_NET_RAW only where that is enough.
#[test]
fn marks_are_set_with_what_is_kept() {
    let ctl = Ctl::new();
    let stage = Stage::new(&[
        "-routing",
        "off",
        "-mark",
        "291",
        "-source-port",
        "any",
        "-control",
        &ctl.path(),
    ]);
    for rule in [
        "ip rule add fwmark 291 lookup 77",
        "ip rule add from 127.0.0.1/8 iif lo table 77",
        "ip route add local 0.0.0.0/0 dev lo table 77",
    ] {
        stage.server.run(&rule.split(' ').collect::<Vec<_>>());
    }
    let near = stage.dial_and_send(support::header::v1(CLIENT, support::stage::VISITED));
    let (far, _) = stage.backend.accept();
    assert_carries(&near, &far);
    ctl.ok("reload");
}

#[test]
fn each_part_has_a_switch_and_is_in_the_status() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let state = status(&ctl);
    let on = json!({"capabilities": "on", "seccomp": "on", "landlock": "on", "no_new_privs": true});
    for (part, expected) in on.as_object().expect("an object") {
        assert_eq!(&state[part], expected, "{state}");
    }
    let kept = ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"];
    assert_eq!(state["kept"], json!(kept));
    let text = ctl.ok("status");
    for part in [kept[0], "seccomp on", "landlock on", "no_new_privs"] {
        assert!(text.contains(part), "{text}");
    }
    drop(stage);

    for part in ["capabilities", "seccomp", "landlock"] {
        let stage = Stage::new(&["-control", &ctl.path(), "-sandbox", part]);
        let state = status(&ctl);
        for other in ["capabilities", "seccomp", "landlock"] {
            let expected = if other == part { "on" } else { "off" };
            assert_eq!(state[other], expected, "{state}");
        }
        stage.assert_serves();
    }

    let stage = Stage::new(&["-control", &ctl.path(), "-sandbox", "off"]);
    let state = status(&ctl);
    assert_eq!(state["capabilities"], "off", "{state}");
    for status in threads(&stage.proxy).values() {
        assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("0", "0"));
    }
    stage.assert_serves();

    let wrong = Program::Realpeer.run(&Host::new("server"), &["-sandbox", "all"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("landlock"), "{}", wrong.stderr);
}

/// strace answers for a kernel that lacks what a part needs.
#[test]
fn a_kernel_that_lacks_a_part_is_a_warning_and_the_rest_holds() {
    for (inject, missing, other) in [
        (
            "landlock_create_ruleset:error=ENOSYS",
            "landlock",
            "seccomp",
        ),
        ("seccomp:error=EINVAL", "seccomp", "landlock"),
    ] {
        let (ctl, inject) = (Ctl::new(), format!("--inject={inject}"));
        let call = inject.split(['=', ':']).nth(1).expect("the name of a call");
        let trace = format!("--trace={call}");
        let wrapper = ["strace", "-D", "-f", "-o", "/dev/null", &trace, &inject];
        let flags = ["-control", &ctl.path()];
        let stage = Stage::under(Program::Realpeer, &wrapper, &flags);
        let state = status(&ctl);
        assert_eq!(state[missing], "unavailable", "{state}");
        assert_eq!(
            (&state[other], &state["capabilities"]),
            (&json!("on"), &json!("on"))
        );
        let lines = stage.proxy.stdout();
        let warnings = lines
            .iter()
            .filter(|line| line.contains("lacks a part of the sandbox"));
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), 1, "{lines:?}");
        assert!(warnings[0].contains(missing), "{warnings:?}");
        stage.assert_serves();
    }
}

/// Has a thread of the running proxy evaluate C expressions, by a debugger, and returns what it says.
fn inside(stage: &Stage, expressions: &[&str]) -> String {
    let pid = stage.proxy.pid().to_string();
    let mut words = vec!["gdb", "-batch", "-nx", "-p", &pid];
    words.extend([
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set auto-load off",
    ]);
    words.extend(["-ex", "handle SIGSYS nostop noprint pass"]);
    for expression in expressions {
        words.extend(["-ex", expression]);
    }
    let mut debugger = stage.server.spawn(&words);
    debugger.wait_for_exit();
    debugger.stdout().join("\n") + &debugger.stderr().join("\n")
}

const ERRNO: &str = "print *((int *(*)(void))__errno_location)()";

#[test]
fn from_inside_files_of_others_cannot_be_opened() {
    let (beside, elsewhere) = (TempDir::new(), TempDir::new());
    let list = beside.file("denied", "198.51.100.0/24\n");
    let neighbour = beside.file("neighbour", "");
    let secret = elsewhere.file("secret", "");
    let stage = Stage::new(&["-denied-clients", &list]);
    let open = |path: &str| format!("print (int)open64(\"{path}\", 0)");
    let (good, bad, shadow) = (open(&neighbour), open(&secret), open("/etc/shadow"));
    let write = format!("print (int)open64(\"{neighbour}\", 1)");
    let said = inside(&stage, &[&good, &bad, ERRNO, &shadow, ERRNO, &write, ERRNO]);
    let values = said.lines().filter_map(|line| line.split_once(" = "));
    let values: Vec<i32> = values.filter_map(|(_, value)| value.parse().ok()).collect();
    let [opened, denied @ ..] = &values[..] else {
        panic!("{said}");
    };
    assert!(*opened > 0, "{said}");
    let eacces = nix::libc::EACCES;
    assert_eq!(denied, [-1, eacces, -1, eacces, -1, eacces], "{said}");
    stage.assert_serves();
}

/// What a debugger has it do ends the proxy; returns what is left.
#[track_caller]
fn killed_by(expression: &str) -> Stage {
    let mut stage = Stage::new(&[]);
    let said = inside(&stage, &[expression]);
    let status = stage.proxy.wait_for_exit();
    assert_eq!(status.signal(), Some(Signal::SIGSYS as i32), "{said}");
    stage
}

/// The call of this number ends it, and its last line names the call.
#[track_caller]
fn assert_killed_for(expression: &str, call: &str) {
    let stage = killed_by(expression);
    let line = stage.proxy.stderr().pop().expect("a line");
    let line: Value = serde_json::from_str(&line).expect("as the log's lines");
    assert_eq!(
        (&line["level"], &line["call"]),
        (&json!("ERROR"), &json!(call))
    );
    assert!(line["msg"].as_str().expect("text").contains("seccomp"));
}

#[test]
fn from_inside_no_program_can_be_run() {
    // The C library holds back all signals meanwhile, so it is the kernel that tells.
    killed_by("print (int)system(\"true\")");
    // By number: the program has functions of its own that are called fork and clone.
    let clone = format!(
        "print (long)syscall({}, {}, 0, 0, 0, 0)",
        nix::libc::SYS_clone,
        nix::libc::SIGCHLD
    );
    assert_killed_for(&clone, "clone");
    assert_killed_for("print (int)execl(\"/bin/sh\", \"sh\", (char *)0)", "execve");
}

#[test]
fn from_inside_no_module_can_be_loaded() {
    let load = format!(
        "print (long)syscall({}, 0, \"\", 0)",
        nix::libc::SYS_finit_module
    );
    assert_killed_for(&load, "finit_module");
}

#[test]
fn from_inside_no_packets_can_be_listened_to() {
    let packet = format!("print (int)socket({}, 3, 768)", nix::libc::AF_PACKET);
    assert_killed_for(&packet, "socket");
}

/// Editors and package managers write a new file and rename it.
#[test]
fn a_reload_reads_files_that_were_replaced_and_says_which_it_may_not_read() {
    let (files, elsewhere, ctl) = (TempDir::new(), TempDir::new(), Ctl::new());
    let own = files.file("denied", "198.51.100.0/24\n");
    let other = elsewhere.file("denied", "198.51.100.0/24\n");
    let text = |list: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nlisten = \"0.0.0.0:2222\"\n\
             ipv4 = \"127.0.0.1:9000\"\nsource-port = \"any\"\ndenied-clients = \"{list}\"\n"
        )
    };
    let config = files.file("realpeer.toml", &text(&own));
    let server = Host::new("server");
    let mut proxy = Program::Realpeer.start_on(
        2222,
        &server,
        &["-config", &config, "-control", &ctl.path()],
    );
    let replace = |file: &str, text: &str| {
        let new = files.file("new", text);
        fs::rename(new, file).expect("replace the file");
    };
    replace(&own, "203.0.113.0/24\n");
    ctl.ok("reload");
    let moved = files.file("moved", "203.0.113.0/24\n");
    replace(&config, &text(&moved));
    ctl.ok("reload");

    replace(&config, &text(&other));
    let refused = ctl.run("reload");
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    for part in ["Landlock", "restart", &other] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    // Nobody needed the capability when it was given up.
    replace(&config, &text(&moved).replace(":2222", ":80"));
    ctl.refused("reload", "CAP_NET_BIND_SERVICE");
    ctl.refused("reload", "restart");
    // What cannot change is told, not tried.
    replace(
        &config,
        &(format!("sandbox = \"off\"\nuser = \"nobody\"\n{}", text(&moved))),
    );
    let said = ctl.run("reload");
    assert_eq!(said.code, 0);
    for key in ["sandbox needs a restart", "user needs a restart"] {
        proxy.wait_for_line(key);
    }
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
    assert!(!fs::exists(ctl.path()).expect("look"), "{}", ctl.path());
}

/// A file directly in a directory that is full of others' secrets is allowed by itself.
#[test]
fn a_list_in_a_shared_directory_does_not_open_the_directory() {
    let name = format!("realpeer-test-list-{}", std::process::id());
    let list = Path::new("/tmp").join(&name);
    fs::write(&list, "198.51.100.0/24\n").expect("write the list");
    let secret = Path::new("/tmp").join(format!("{name}-secret"));
    fs::write(&secret, "").expect("write a file");
    let ctl = Ctl::new();
    let path = list.to_str().expect("a path").to_owned();
    let stage = Stage::new(&["-control", &ctl.path(), "-denied-clients", &path]);
    fs::write(&list, "203.0.113.0/24\n").expect("write the list");
    ctl.ok("reload");
    let open = format!("print (int)open64(\"{}\", 0)", secret.display());
    let said = inside(&stage, &[&open]);
    assert!(said.contains("= -1"), "{said}");
    for file in [&list, &secret] {
        fs::remove_file(file).expect("remove a file");
    }
}

/// As root a user without any rights; where there is but one user, that one.
#[test]
fn it_becomes_another_user_and_everything_works() {
    let (ctl, list) = (Ctl::new(), TempDir::new());
    let list = list.file("denied", "198.51.100.0/24\n");
    let user = match geteuid().is_root() {
        true => Uid::from_raw(NOBODY),
        false => geteuid(),
    };
    let control = ctl.path();
    let directory = Path::new(&control).parent().expect("a directory");
    chown(directory, Some(user.as_raw()), None).expect("give the directory away");
    let (name, state) = (user.to_string(), ctl.state());
    let state = state.to_str().expect("a path");
    let flags = [
        "-user",
        &name,
        "-control",
        &control,
        "-state-dir",
        state,
        "-denied-clients",
        &list,
        "-4",
        "192.0.2.10:9000",
    ];
    let mut stage = Stage::new(&flags);
    let uids = [
        user.to_string(),
        user.to_string(),
        user.to_string(),
        user.to_string(),
    ];
    for (name, status) in threads(&stage.proxy) {
        let found: Vec<&str> = status["Uid"].split_whitespace().collect();
        assert_eq!(found, uids, "{name}");
        if geteuid().is_root() {
            assert!(
                !status["Groups"].split(' ').any(|group| group == "0"),
                "{name}"
            );
        }
    }
    let expected = nix::unistd::User::from_uid(user)
        .expect("look up")
        .map(|user| user.name);
    assert_eq!(
        status(&ctl)["user"],
        json!(expected.unwrap_or(name.clone()))
    );
    // A mark, and so the sysctl, was put in for it.
    let backend = support::Backend::listen(&stage.server, "192.0.2.10:9000");
    let near = stage.dial_and_send(support::header::v1(CLIENT, support::stage::VISITED));
    let (far, from) = backend.accept();
    assert_eq!(from, support::addr(CLIENT));
    assert_carries(&near, &far);
    let sysctl = ["cat", "/proc/sys/net/ipv4/tcp_fwmark_accept"];
    assert_eq!(stage.server.run(&sysctl).trim(), "1");
    ctl.ok("reload");
    ctl.ok("ban 198.51.100.9");
    let bans = fs::metadata(ctl.state().join("realpeer.bans")).expect("the bans are there");
    assert_eq!(bans.uid(), user.as_raw());
    drop((near, far));

    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert!(!fs::exists(ctl.path()).expect("look"));
    assert_eq!(stage.server.run(&sysctl).trim(), "0");
    let left = stage.server.run(&["ip", "rule"]);
    assert!(
        !left.contains("fwmark") && !left.contains("iif lo"),
        "{left}"
    );
    stage.proxy = Program::Realpeer.start(&stage.server, &[&ADDRESSES, &flags[..]].concat());
    assert!(ctl.ok("bans").contains("198.51.100.9"));
}

#[test]
fn a_user_that_cannot_be_or_cannot_write_is_told_at_the_start() {
    let (server, files) = (Host::new("server"), TempDir::new());
    let run = |flags: &[&str]| {
        let ended = Program::Realpeer.run(&server, &[&["-l", PROXY], flags].concat());
        assert_eq!(ended.code, 1, "{flags:?}");
        ended.stderr
    };
    let said = run(&["-user", "no-such-user"]);
    assert!(said.contains("there is no user no-such-user"), "{said}");
    let directory = files.path("state");
    fs::create_dir(&directory).expect("make a directory");
    let directory = directory.to_str().expect("a path");
    // A user namespace has one user, whatever its capabilities.
    let (other, expected) = match geteuid().is_root() {
        true => (NOBODY, format!("chown -R {NOBODY} {directory}")),
        false => (0, "cannot become 0".to_owned()),
    };
    let said = run(&["-user", &other.to_string(), "-state-dir", directory]);
    assert!(said.contains(&expected), "{said}");
}
