//! What every story stands on: private network namespaces as hosts, real programs in them, and the
//! bytes of PROXY headers. Every wait has a deadline and says what it waited for.

// Each story uses a part of this, and is a crate of its own.
#![allow(dead_code, unused_imports)]

pub mod backend;
pub mod chromium;
pub mod confined;
pub mod crowdsec;
pub mod ctl;
pub mod datagrams;
pub mod diagnosis;
pub mod elsewhere;
pub mod engine;
pub mod fail2ban;
pub mod header;
pub mod host;
pub mod http;
pub mod image;
pub mod journal;
pub mod journald;
pub mod lineage;
pub mod nspawn;
pub mod pages;
pub mod program;
pub mod running;
pub mod servers;
pub mod site;
pub mod ssh_story;
pub mod stage;
pub mod streams;
pub mod tmux;
pub mod vitals;

pub use backend::Backend;
pub use confined::Confined;
pub use ctl::Ctl;
pub use diagnosis::Diagnosis;
pub use elsewhere::Elsewhere;
pub use engine::Engine;
pub use host::Host;
pub use journal::Journal;
pub use lineage::Lineage;
pub use program::Program;
pub use running::Running;
pub use site::Site;
pub use stage::{Session, Stage};
pub use tmux::Terminal;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up: long, for a loaded machine; nothing that
/// works waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, or panics with `what` after the deadline.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < DEADLINE,
            "waited {DEADLINE:?} in vain until {what}"
        );
        sleep(Duration::from_millis(5));
    }
}

/// The address and port that `text` says.
#[track_caller]
pub fn addr(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no address with a port"))
}

/// Runs a command to its end, which must be a success, and returns what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{errors}");
    said
}

/// A file of the repository, by its path from the top.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A directory of one test's own, removed when the test ends.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes an empty directory.
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("realpeer-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("make a temporary directory");
        TempDir(path)
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it and returns the file's path as text, for a command line.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("write a temporary file");
        path.to_str().expect("temporary paths are UTF-8").to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
