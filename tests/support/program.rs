//! The program under test, and the one it replaces.

use std::thread;

use realpeer::program::internals::{self, Command, Environment};

use super::{Host, Running, TempDir, wait_until};

/// A proxy that understands go-mmproxy's command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Program {
    /// The crate's own binary, or what `REALPEER_TEST_PROGRAM` names.
    Realpeer,
    /// The same with the file that `config from-flags` prints for its flags.
    RealpeerByFile,
    /// Debian's package.
    GoMmproxy,
}

impl Program {
    /// Its path.
    pub fn path(self) -> String {
        match self {
            Program::Realpeer | Program::RealpeerByFile => std::env::var("REALPEER_TEST_PROGRAM")
                .unwrap_or_else(|_| env!("CARGO_BIN_EXE_realpeer").to_owned()),
            Program::GoMmproxy => "/usr/bin/go-mmproxy".to_owned(),
        }
    }

    /// Starts it on a host and waits until it listens on the port of its `-l`.
    #[track_caller]
    pub fn start(self, host: &Host, flags: &[&str]) -> Running {
        self.start_under(&[], host, flags)
    }

    /// As `start`, under a wrapper that ends in exec, such as `prlimit --nofile=64`.
    #[track_caller]
    pub fn start_under(self, wrapper: &[&str], host: &Host, flags: &[&str]) -> Running {
        let listen = flags
            .iter()
            .rposition(|flag| *flag == "-l")
            .expect("-l is given");
        let port = super::addr(flags[listen + 1]).port();
        self.await_port(port, host, self.spawn(wrapper, host, flags))
    }

    /// As `start`, for flags that spell `-l` in another way.
    #[track_caller]
    pub fn start_on(self, port: u16, host: &Host, flags: &[&str]) -> Running {
        self.await_port(port, host, self.spawn(&[], host, flags))
    }

    #[track_caller]
    fn await_port(self, port: u16, host: &Host, mut running: Running) -> Running {
        self.place_rules(host);
        wait_until(&format!("{self:?} listens on port {port}"), || {
            assert!(
                !running.has_ended(),
                "{self:?} ended: {:?}",
                running.stderr()
            );
            host.listeners(port) > 0
        });
        if self.path().ends_with("realpeer") {
            // It has the port before everything else, so that a start that fails changes nothing.
            running.wait_for_line("listening");
        }
        running
    }

    /// Starts it and waits for nothing: for command lines that end it.
    pub fn spawn(self, wrapper: &[&str], host: &Host, flags: &[&str]) -> Running {
        let path = self.path();
        // No test may find another's control socket; one that is about it says -control again.
        let is_proxy = flags.first().is_some_and(|flag| flag.starts_with('-'));
        let apart: &[&str] = match is_proxy && path.ends_with("realpeer") {
            true => &["-control", "off"],
            false => &[],
        };
        if is_proxy && self == Program::RealpeerByFile {
            return by_file(wrapper, host, &path, &[apart, flags].concat());
        }
        host.spawn(&[wrapper, &[&path], apart, flags].concat())
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self, host: &Host, flags: &[&str]) -> Ended {
        let mut running = self.spawn(&[], host, flags);
        let code = running.exit_code();
        Ended {
            code,
            stdout: running.stdout().join("\n"),
            stderr: running.stderr().join("\n"),
        }
    }

    /// go-mmproxy leaves the routing of replies to its users; realpeer sees to it itself.
    fn place_rules(self, host: &Host) {
        let by_itself = !self.path().ends_with("go-mmproxy");
        if by_itself || host.run(&["ip", "rule"]).contains("lookup 123") {
            return;
        }
        for rule in [
            "ip rule add from 127.0.0.1/8 iif lo table 123",
            "ip route add local 0.0.0.0/0 dev lo table 123",
            "ip -6 rule add from ::1/128 iif lo table 123",
            "ip -6 route add local ::/0 dev lo table 123",
        ] {
            host.run(&rule.split(' ').collect::<Vec<_>>());
        }
    }
}

/// Starts the proxy by a file that means the same as the flags. What is no command line of a proxy is
/// left to `config from-flags` to answer.
fn by_file(wrapper: &[&str], host: &Host, path: &str, flags: &[&str]) -> Running {
    let translate = [&[path, "config", "from-flags"], flags].concat();
    let output = host.command(translate[0]).args(&translate[1..]).output();
    let file = String::from_utf8(output.expect("the program is there").stdout);
    let file = file.expect("TOML is UTF-8");
    if !file.starts_with("# A configuration for realpeer") {
        return host.spawn(&translate);
    }
    let directory = TempDir::new();
    let file = directory.file("realpeer.toml", &file);
    let words = [wrapper, &[path, "-config", &file]].concat();
    host.spawn(&words).with(directory)
}

/// Starts the proxy on threads of this very process, in the network of the calling thread; it ends
/// with the process. For tests that look at what happens inside.
pub fn start_here(flags: &[&str]) {
    // The test itself goes on with what it needs.
    let words = [&["-sandbox", "off"], flags].concat();
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let Ok(Command::Proxy(source)) = internals::parse(&words) else {
        panic!("{words:?} start the proxy");
    };
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("start a runtime");
        runtime
            .block_on(internals::run(source, Environment::default()))
            .expect("the proxy runs");
    });
}

/// What a program left behind.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}
