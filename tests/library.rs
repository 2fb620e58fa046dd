//! The programs in examples/, which use the library, and what it promises: each public module shows
//! how it is used.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use support::streams::send;
use support::{Backend, Host, Program, Running, addr, repository};

/// The program of `examples/NAME.rs`. `cargo test --test library` alone does not build it.
fn example(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let program = Path::new(env!("CARGO_BIN_EXE_realpeer"));
    let directory = program.parent().expect("it is in a directory");
    BUILT.call_once(|| {
        let profile = match directory.ends_with("debug") {
            true => "dev",
            false => "release",
        };
        let words = ["build", "--quiet", "--locked", "--examples", "--profile"];
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(words).arg(profile);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().expect("start cargo").success());
    });
    directory.join("examples").join(name)
}

fn read_header(pieces: &[&[u8]]) -> Output {
    let mut child = Command::new(example("read_header"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the example");
    let mut stdin = child.stdin.take().expect("it is piped");
    for piece in pieces {
        // It may have had enough after an earlier piece.
        let _ = stdin.write_all(piece);
    }
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_header_is_read_from_a_stream_in_pieces_and_no_byte_more() {
    let whole = b"PROXY TCP6 2001:db8::9 2001:db8::1 51234 22\r\nhello\nworld";
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    for pieces in [&bytes[..], &[&whole[..]]] {
        let output = read_header(pieces);
        let said = String::from_utf8_lossy(&output.stdout);
        let wanted = "[2001:db8::9]:51234 connected to [2001:db8::1]:22\nhello\nworld";
        assert_eq!((said.as_ref(), output.status.success()), (wanted, true));
    }
    let output = read_header(&[b"GET / HTTP/1.1\r\n\r\n"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Absent"));
}

#[test]
fn a_socket_is_opened_in_a_clients_name() {
    let server = Host::new("server");
    let backend = Backend::listen(&server, "127.0.0.1:22");
    let up = Program::Realpeer.run(&server, &["routing", "up", "-4", "127.0.0.1:22"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    let path = example("connect_as").display().to_string();
    let mut running: Running = server.spawn(&[&path, "203.0.113.9:40000", "127.0.0.1:22"]);
    let (far, from) = backend.accept();
    assert_eq!(from, addr("203.0.113.9:40000"));
    send(&far, b"SSH-2.0-test\r\n");
    assert_eq!(running.exit_code(), 0, "{:?}", running.stderr());
    assert_eq!(
        running.stdout(),
        [
            "connected to 127.0.0.1:22 as 203.0.113.9:40000",
            "SSH-2.0-test"
        ]
    );
}

/// What it prints is what `realpeer routing up` would do, and works when it is typed in.
#[test]
fn routing_is_planned_as_data() {
    let server = Host::new("server");
    let plan = |protocol: &str, target: &str| {
        let path = example("plan_routing").display().to_string();
        server.run(&[&path, protocol, target])
    };
    let commands = plan("tcp", "127.0.0.1:22");
    assert!(commands.starts_with("# loopback way\n"), "{commands}");
    server.run(&["sh", "-ec", &commands]);
    let shown = Program::Realpeer.run(&server, &["routing", "show", "-4", "127.0.0.1:22"]);
    assert!(
        shown
            .stdout
            .contains("127.0.0.1:22: loopback way, in place"),
        "{}",
        shown.stdout
    );

    server.add_address("192.0.2.10/32", "lo");
    for (protocol, target, way) in [
        ("tcp", "192.0.2.10:22", "mark"),
        ("tcp", "198.51.100.7:22", "socket"),
        ("udp", "0.0.0.0:53", "udp-port"),
        ("tcp", "[::1]:22", "loopback"),
    ] {
        let said = plan(protocol, target);
        assert!(said.starts_with(&format!("# {way} way\n")), "{said}");
    }
}

/// A module that lib.rs, or a public module, makes public has an example above its items.
#[test]
fn every_public_module_shows_how_it_is_used() {
    let mut public = vec![];
    for (file, directory) in [
        ("src/lib.rs", "src"),
        ("src/header/mod.rs", "src/header"),
        ("src/routing/mod.rs", "src/routing"),
    ] {
        let text = read(file);
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod "));
        public.extend(names.map(|name| format!("{directory}/{}", name.trim_end_matches(';'))));
    }
    assert!(public.len() > 5, "{public:?}");
    for module in public {
        let [file, folder] = [format!("{module}.rs"), format!("{module}/mod.rs")];
        let path = if repository(&file).exists() {
            file
        } else {
            folder
        };
        let text = read(&path);
        let docs = text.lines().take_while(|line| line.starts_with("//!"));
        let starts = |line: &str| matches!(line, "//! ```" | "//! ```no_run");
        assert!(
            docs.clone().filter(|line| starts(line)).count() >= 2 || path.ends_with("program.rs"),
            "{path} has no example"
        );
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
