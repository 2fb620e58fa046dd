//! The programs that are compared: where they come from and how each is told to do the same.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::configurations;
use crate::run::{Stage, TARGET, TARGET_UDP};
use crate::scene::PROXY;
use crate::support::Program;

/// A program that is installed, or none.
pub struct Peer {
    pub name: &'static str,
    /// `None` for the direct way.
    program: Option<PathBuf>,
}

/// Those of `wanted` that can run here, and the names of the others.
pub fn installed(wanted: &[String]) -> (Vec<Peer>, Vec<&str>) {
    let known = known();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in wanted {
        match known.iter().find(|(known, _)| known == name) {
            Some(&("direct", _)) => found.push(Peer {
                name: "direct",
                program: None,
            }),
            Some((name, Some(path))) => found.push(Peer {
                name,
                program: Some(path.clone()),
            }),
            _ => missing.push(name.as_str()),
        }
    }
    (found, missing)
}

fn known() -> Vec<(&'static str, Option<PathBuf>)> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    vec![
        ("direct", None),
        ("realpeer", Some(Program::Realpeer.path().into())),
        ("go-mmproxy", in_path("go-mmproxy")),
        ("other-go-mmproxy", variable("GO_MMPROXY")),
        (
            "mmproxy-rs",
            variable("MMPROXY_RS").or_else(|| in_path("mmproxy")),
        ),
        ("haproxy", in_path("haproxy")),
        ("nginx", in_path("nginx")),
    ]
}

/// An ordinary user's PATH on Debian lacks the directories where HAProxy and nginx are.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let everywhere = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    everywhere
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

impl Peer {
    /// Without a proxy in between.
    pub fn is_direct(&self) -> bool {
        self.program.is_none()
    }

    /// HAProxy and nginx do not read headers in datagrams.
    pub fn carries_udp(&self) -> bool {
        !matches!(self.name, "haproxy" | "nginx")
    }

    /// Whether it can read its configuration anew without a restart.
    pub fn reloads(&self) -> bool {
        matches!(self.name, "realpeer" | "haproxy" | "nginx")
    }

    /// The signal that makes it read its configuration anew.
    pub fn reload(&self) -> Signal {
        match self.name {
            "haproxy" => Signal::SIGUSR2,
            _ => Signal::SIGHUP,
        }
    }

    /// The signal that puts a new process in its place. HAProxy and nginx do so at a reload.
    pub fn upgrade(&self) -> Signal {
        match self.name {
            "realpeer" => Signal::SIGUSR2,
            _ => self.reload(),
        }
    }

    /// The command that starts it.
    pub fn command(&self, stage: &Stage, udp: bool) -> Vec<String> {
        let program = self.program.as_ref().expect("a program");
        let mut words: Vec<String> = Vec::new();
        if self.name == "mmproxy-rs" {
            // It logs every connection otherwise, which the others do not.
            words.extend(["env".into(), "RUST_LOG=off".into()]);
        }
        words.push(program.to_str().expect("a path in UTF-8").to_owned());
        words.extend(match self.name {
            "haproxy" => configurations::haproxy(stage),
            "nginx" => configurations::nginx(stage),
            "realpeer" => [flags(udp), vec!["-drain-timeout".into(), "0".into()]].concat(),
            _ => flags(udp),
        });
        words
    }

    /// The version it says it is.
    pub fn version(&self) -> String {
        // mmproxy-rs does not tell its own.
        let program = match &self.program {
            Some(program) if self.name != "mmproxy-rs" => program,
            _ => return String::new(),
        };
        let mut command = match self.name {
            "go-mmproxy" => Command::new("dpkg-query"),
            _ => Command::new(program),
        };
        command.args(match self.name {
            "go-mmproxy" => &["-W", "-f", "${Version}", "go-mmproxy"][..],
            "realpeer" => &["-version"],
            _ => &["-v"],
        });
        let output = command.output().ok();
        let Some(output) = output.filter(|output| output.status.success()) else {
            return String::new();
        };
        // nginx says it on standard error.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let number = said
            .split_whitespace()
            .find(|word| word.contains(|c: char| c.is_ascii_digit()));
        number
            .unwrap_or_default()
            .trim_start_matches("nginx/")
            .to_owned()
    }
}

/// All that descend from Cloudflare's mmproxy share these.
fn flags(udp: bool) -> Vec<String> {
    let protocol = if udp { "udp" } else { "tcp" };
    let target = if udp { TARGET_UDP } else { TARGET };
    let flags = format!("-l {PROXY} -4 {target} -6 [::1]:9000 -p {protocol}");
    flags.split(' ').map(str::to_owned).collect()
}
