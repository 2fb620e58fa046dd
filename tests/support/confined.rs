//! The program as a container engine starts it: as a user who is not root, with a few capabilities.

use nix::unistd::geteuid;

use super::{Host, Program, Running, TempDir};

/// The user of the image.
const USER: &str = "65532";

/// Starts the program on one host.
pub struct Confined<'a> {
    host: &'a Host,
    configuration: TempDir,
    program: String,
}

impl<'a> Confined<'a> {
    /// `configuration` is what the container has at /etc/realpeer.
    pub fn new(host: &'a Host, configuration: TempDir) -> Confined<'a> {
        // As the image has it, with capabilities of its file; an ordinary user cannot give any, and
        // starts it with ambient ones.
        let program = match geteuid().is_root() {
            true => "/mnt/realpeer".to_owned(),
            false => Program::Realpeer.path(),
        };
        if geteuid().is_root() {
            host.run(&["mount", "-t", "tmpfs", "none", "/mnt"]);
            host.run(&["install", "-m", "755", &Program::Realpeer.path(), &program]);
            host.run(&[
                "setcap",
                "cap_net_admin,cap_net_raw,cap_net_bind_service+p",
                &program,
            ]);
            host.run(&["install", "-d", "-o", USER, "/run/realpeer"]);
            host.run(&[
                "chmod",
                "-R",
                "a+rX",
                &configuration.path("").display().to_string(),
            ]);
        }
        Confined {
            host,
            configuration,
            program,
        }
    }

    /// Starts it with these capabilities, by their names as containers have them (NET_RAW).
    pub fn run(&self, capabilities: &[String], arguments: &[String]) -> Running {
        let names = capabilities
            .iter()
            .map(|name| format!(",+{}", name.to_lowercase()));
        let set = format!("-all{}", names.collect::<String>());
        let place = self.configuration.path("").display().to_string();
        let place = place.trim_end_matches('/');
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| word.replace("/etc/realpeer", place))
            .collect();
        let user: &[&str] = match geteuid().is_root() {
            true => &[
                "--reuid",
                USER,
                "--regid",
                USER,
                "--clear-groups",
                "--inh-caps",
                "-all",
            ],
            false => &["--inh-caps", &set, "--ambient-caps", &set],
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let words = [
            &["setpriv", "--bounding-set", &set],
            user,
            &[&self.program],
            &arguments,
        ];
        self.host.spawn(&words.concat())
    }
}
