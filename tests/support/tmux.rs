//! A real pseudo-terminal: tmux with a shell in it, whose screen a test reads and whose keys it
//! presses.

use std::process::Command;

use nix::sys::signal::Signal;

use super::{Host, Running, TempDir, wait_until};

/// What the shell says when it waits for a command.
const PROMPT: &str = "ready>";

/// A terminal of its own server, which ends with it.
pub struct Terminal<'a> {
    host: &'a Host,
    directory: TempDir,
    _server: Running,
}

impl<'a> Terminal<'a> {
    /// A terminal of that size on a host, at a shell's prompt.
    #[track_caller]
    pub fn new(host: &'a Host, columns: u16, rows: u16) -> Terminal<'a> {
        let directory = TempDir::new();
        let socket = directory.path("tmux").display().to_string();
        let server = ["tmux", "-f", "/dev/null", "-u", "-S", &socket, "-D"];
        let server = host.spawn(&server).ends_by(Signal::SIGTERM);
        let terminal = Terminal {
            host,
            directory,
            _server: server,
        };
        wait_until("tmux listens", || {
            let tried = terminal.tmux(&["start-server"]).output();
            tried.is_ok_and(|output| output.status.success())
        });
        let size = [columns.to_string(), rows.to_string()];
        let shell = format!("exec env PS1='{PROMPT} ' sh");
        terminal.run(&["new-session", "-d", "-x", &size[0], "-y", &size[1], &shell]);
        terminal.wait_for(PROMPT);
        terminal
    }

    /// Types a command line.
    #[track_caller]
    pub fn command(&self, line: &str) {
        self.text(line);
        self.key("Enter");
    }

    /// Types text.
    #[track_caller]
    pub fn text(&self, text: &str) {
        self.run(&["send-keys", "-l", text]);
    }

    /// Presses a key by tmux's name, such as `Enter` or `C-c`.
    #[track_caller]
    pub fn key(&self, key: &str) {
        self.run(&["send-keys", key]);
    }

    /// Makes it another size.
    #[track_caller]
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = [columns.to_string(), rows.to_string()];
        self.run(&["resize-window", "-x", &size[0], "-y", &size[1]]);
    }

    /// What it shows.
    #[track_caller]
    pub fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// The title that a program may give it.
    #[track_caller]
    pub fn title(&self) -> String {
        let title = self.run(&["display-message", "-p", "#{pane_title}"]);
        title.trim_end().to_owned()
    }

    /// As `screen`, with the escape sequences for colours.
    #[track_caller]
    pub fn colours(&self) -> String {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// Waits until it shows this, and returns all that it shows.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(&format!("the screen has {text:?}"), |screen| {
            screen.contains(text)
        })
    }

    /// Waits until the screen is as `wanted`.
    #[track_caller]
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let waiting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || {
                screen = self.screen();
                wanted(&screen)
            });
        }));
        assert!(waiting.is_ok(), "in vain until {what}:\n{screen}");
        screen
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let output = self.tmux(words).output().expect("tmux is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let mut command = self.host.command("tmux");
        command
            .args(["-N", "-u", "-S"])
            .arg(self.directory.path("tmux"));
        command.args(words);
        command
    }
}
