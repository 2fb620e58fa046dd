//! The programs that are compared: where they come from and how each is told to do the same.

use std::path::PathBuf;
use std::process::Command;

use crate::run::{Stage, TARGET, TARGET_UDP};
use crate::scene::PROXY;
use crate::support::Program;

/// Threads of the programs that do not choose for themselves.
const THREADS: usize = 2;

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

/// realpeer alone.
pub fn realpeer() -> Peer {
    Peer {
        name: "realpeer",
        program: Some(Program::Realpeer.path().into()),
    }
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

    /// The command that starts it.
    pub fn command(&self, stage: &Stage, udp: bool) -> Vec<String> {
        let program = self
            .program
            .as_ref()
            .expect("the direct way starts nothing");
        let mut words: Vec<String> = Vec::new();
        if self.name == "mmproxy-rs" {
            // It logs every connection otherwise, which the others do not.
            words.extend(["env".into(), "RUST_LOG=off".into()]);
        }
        words.push(program.to_str().expect("a path in UTF-8").to_owned());
        let protocol = if udp { "udp" } else { "tcp" };
        let target = if udp { TARGET_UDP } else { TARGET };
        let flags = [
            "-l",
            PROXY,
            "-4",
            target,
            "-6",
            "[::1]:9000",
            "-p",
            protocol,
        ];
        let own = match self.name {
            "haproxy" => vec!["-f".into(), stage.file("haproxy.cfg", &haproxy())],
            "nginx" => nginx(stage),
            "realpeer" => [&flags[..], &["-drain-timeout", "0"]]
                .concat()
                .iter()
                .map(|&w| w.into())
                .collect(),
            _ => flags.iter().map(|&word| word.into()).collect(),
        };
        words.extend(own);
        words
    }

    /// The version it says it is.
    pub fn version(&self) -> String {
        let Some(program) = &self.program else {
            return String::new();
        };
        let mut command = match self.name {
            "go-mmproxy" => Command::new("dpkg-query"),
            _ => Command::new(program),
        };
        command.args(match self.name {
            "go-mmproxy" => &["-W", "-f", "${Version}", "go-mmproxy"][..],
            "realpeer" => &["-version"],
            "mmproxy-rs" => &["--version"],
            "other-go-mmproxy" => &["-version"],
            _ => &["-v"],
        });
        let output = command.output().ok();
        // mmproxy-rs does not know it.
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

fn haproxy() -> String {
    format!(
        "global
  nbthread {THREADS}
  maxconn 6000
  tune.pipesize 1048576
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-auto
frontend f
  bind {PROXY} accept-proxy
  default_backend b
backend b
  source 0.0.0.0 usesrc client
  server s {TARGET}
"
    )
}

fn nginx(stage: &Stage) -> Vec<String> {
    let (pid, log) = (stage.file("nginx.pid", ""), stage.file("nginx.log", ""));
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
{user} pid {pid}; error_log {log}; worker_processes {THREADS}; worker_rlimit_nofile 19000;
events {{ worker_connections 9000; }}
stream {{
  server {{
    listen {PROXY} proxy_protocol reuseport;
    set_real_ip_from 127.0.0.0/8;
    proxy_bind $remote_addr:$remote_port transparent;
    proxy_timeout 1h;
    proxy_pass {TARGET};
  }}
}}
"
    );
    [
        "-e".into(),
        log,
        "-g".into(),
        "daemon off;".into(),
        "-c".into(),
        stage.file("nginx.conf", &config),
    ]
    .into()
}
