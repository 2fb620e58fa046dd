//! What setup would write and do, checked before anybody is asked whether it may.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use toml::Value;

use super::answers::{Answers, Backend};
use super::marked::{Marked, State, state};
use super::{balancer, unit};
use crate::config::{self, Choice, Config, Protocol, overlap};
use crate::doctor::{self, Status};

/// Where the files of instances are.
pub const DIRECTORY: &str = "/etc/realpeer";

/// All that is to be done.
pub struct Plan {
    /// What it is for.
    pub answers: Answers,
    /// The instance's file.
    pub config: Marked,
    /// How it is started.
    pub start: Start,
    /// What to do at the load balancer.
    pub at_balancer: String,
}

/// How an instance is started.
pub enum Start {
    /// As a unit.
    Systemd {
        /// What the unit is called.
        unit: String,
        /// The unit's file, where there is no template of a package.
        file: Option<Marked>,
        /// That template.
        template: Option<PathBuf>,
    },
    /// There is no systemd.
    ByHand,
}

/// An instance that setup has written, as its file has it.
pub struct Instance {
    /// What it is called.
    pub name: String,
    /// Where it listens, as `-listen` takes it.
    pub listen: String,
}

impl Plan {
    /// Fails where something is in the way.
    pub fn new(answers: Answers) -> Result<Plan> {
        let config = Marked::new(path(&answers.name), &file(&answers));
        check_free(&config.path)?;
        let meant = config::understand(&config.path, config.text.as_bytes(), &[])?;
        check_ports(&meant, &answers.name)?;
        let start = match unit::is_systemd_here() {
            true => by_systemd(&answers.name, &config.path)?,
            false => Start::ByHand,
        };
        let at_balancer = balancer::lines(&answers, &meant);
        Ok(Plan {
            answers,
            config,
            start,
            at_balancer,
        })
    }

    /// All of it, to be agreed to.
    pub fn shown(&self) -> String {
        let mut out = format!(
            "\n{}:\n\n{}",
            self.config.path.display(),
            indented(&self.config.text)
        );
        match &self.start {
            Start::Systemd {
                unit,
                file: Some(file),
                ..
            } => {
                let _ = write!(
                    out,
                    "\n{}, which is enabled and started as {unit}:\n\n{}",
                    file.path.display(),
                    indented(&file.text)
                );
            }
            Start::Systemd { unit, template, .. } => {
                let template = template.as_deref().unwrap_or(Path::new("the template"));
                let _ = writeln!(
                    out,
                    "\nThe unit {unit}, by {}, is enabled and started.",
                    template.display()
                );
            }
            Start::ByHand => out += &self.by_hand(),
        }
        let _ = writeln!(out, "\n{}", self.at_balancer);
        out
    }

    /// What was done.
    pub fn done(&self) -> String {
        let mut out = format!("{} is written.\n", self.config.path.display());
        match &self.start {
            Start::Systemd { unit, file, .. } => {
                if let Some(file) = file {
                    let _ = writeln!(out, "{} is written.", file.path.display());
                }
                let _ = writeln!(out, "{unit} is enabled and runs.");
            }
            Start::ByHand => out += &self.by_hand(),
        }
        out
    }

    fn by_hand(&self) -> String {
        let (path, name) = (self.config.path.display(), &self.answers.name);
        format!(
            "\nThere is no systemd here. Start it by hand, or by your system's way, as root:\n    \
             realpeer -config {path} -name {name}\n\
             Then look whether all is well:\n    \
             realpeer doctor -config {path} -name {name}\n"
        )
    }
}

/// The file of an instance.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.toml"))
}

/// The instance that setup has written for this backend, if there is one.
pub fn instance_of(backend: &Backend, protocol: Protocol) -> Option<Instance> {
    let mut all = configurations().into_iter();
    all.find_map(|(path, config)| {
        let is_ours = matches!(state(&path), Ok(State::Ours | State::Edited));
        let listener = config.listeners.first()?;
        let mut targets = listener.targets.each().into_iter();
        let is_it =
            targets.any(|(target, given)| given && backend.addresses().any(|addr| addr == target));
        let listen: Vec<String> = listener.listen.iter().map(ToString::to_string).collect();
        (is_ours && is_it && listener.protocol == protocol).then(|| Instance {
            name: instance_name(&path),
            listen: listen.join(","),
        })
    })
}

/// The name, or that name with the backend's port or a number where it is taken.
pub fn free_name(name: &str, port: u16) -> String {
    let is_free = |name: &String| matches!(state(&path(name)), Ok(State::Absent));
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut names = [name.to_owned(), format!("{name}-{port}")]
        .into_iter()
        .chain(numbered);
    names.find(is_free).unwrap_or_else(|| name.to_owned())
}

/// The name of an instance, by its file.
pub fn instance_name(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The configuration files that are there and good, whoever wrote them.
fn configurations() -> Vec<(PathBuf, Config)> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    paths.sort();
    let good = paths.into_iter().filter_map(|path| {
        let config = config::load(&path, &[]).ok()?;
        Some((path, config))
    });
    good.collect()
}

/// Fails where a file is not one that setup has written, or was edited since.
fn check_free(path: &Path) -> Result<()> {
    match state(path) {
        Ok(State::Absent | State::Ours) => Ok(()),
        Ok(State::Foreign) => bail!(
            "{} is there already, and not by setup: choose another name with -name",
            path.display()
        ),
        Ok(State::Edited) => bail!(
            "{} was edited since setup wrote it, and stays as it is: edit it again, choose another name with -name, or remove it with realpeer setup -undo",
            path.display()
        ),
        Err(error) => bail!("cannot look at {}: {error}", path.display()),
    }
}

/// Fails where a port is taken, but for what the instance itself has.
fn check_ports(meant: &Config, name: &str) -> Result<()> {
    let others = configurations();
    for listener in &meant.listeners {
        for addr in &listener.listen {
            let taken = others.iter().find(|(path, config)| {
                let mut listeners = config
                    .listeners
                    .iter()
                    .filter(|other| other.protocol == listener.protocol);
                *path != self::path(name)
                    && listeners
                        .any(|other| other.listen.iter().any(|theirs| overlap(*theirs, *addr)))
            });
            if let Some((path, _)) = taken {
                bail!(
                    "{addr} is where {} listens: choose another address with -listen",
                    path.display()
                );
            }
            let check = doctor::listener::port(listener, *addr);
            if check.status == Status::Failed {
                bail!("{}: choose another address with -listen", check.found());
            }
        }
    }
    Ok(())
}

fn by_systemd(name: &str, config: &Path) -> Result<Start> {
    let unit = unit::name(name);
    let path = Path::new(unit::DIRECTORY).join(&unit);
    let template = unit::template();
    // One that setup wrote before there was a package stays.
    let file = match (&template, state(&path)?) {
        (Some(_), State::Absent) => None,
        _ => Some(Marked::new(
            path,
            &unit::text(name, config, &unit::program()?),
        )),
    };
    if let Some(file) = &file {
        check_free(&file.path)?;
    }
    Ok(Start::Systemd {
        unit,
        file,
        template,
    })
}

/// The instance's file, without its mark.
fn file(answers: &Answers) -> String {
    let text = |text: String| Value::String(text);
    let list = |list: Vec<String>| match <[String; 1]>::try_from(list) {
        Ok([one]) => text(one),
        Err(many) => Value::Array(many.into_iter().map(text).collect()),
    };
    let listen = answers.listen.0.iter().map(ToString::to_string).collect();
    let from = answers
        .from
        .iter()
        .map(|network| Value::String(network_text(network)));
    let mut out = format!(
        "# realpeer.toml(5) explains each key. After a change:\n\
         #     realpeer ctl -name {name} reload\n\n\
         [[listener]]\n\
         name = {}\n\
         # Where the load balancer connects to.\n\
         listen = {}\n",
        text(answers.name.clone()),
        list(listen),
        name = answers.name,
    );
    if answers.protocol == Protocol::Udp {
        let _ = writeln!(
            out,
            "protocol = \"udp\"\n# Where the header stands: in \"every\" or the \"first\" datagram (PROXY v2), or \"spp\"."
        );
        let _ = writeln!(
            out,
            "udp-header = {}",
            text(answers.udp_header.word().to_owned())
        );
    }
    out += "# The server, for IPv4 clients and for IPv6 clients.\n";
    let Backend { v4, v6 } = answers.backend;
    for (key, addr) in [("ipv4", v4), ("ipv6", v6)] {
        if let Some(addr) = addr {
            let _ = writeln!(out, "{key} = {}", text(addr.to_string()));
        }
    }
    out += &only_family(&answers.backend);
    out += "# The load balancers. Whoever is listed may claim to be any client.\n";
    let _ = writeln!(out, "allowed-subnets = {}", Value::Array(from.collect()));
    out
}

/// Without it, clients of a family that has no backend would go to that family's default.
fn only_family(backend: &Backend) -> String {
    let (missing, network) = match (backend.v4, backend.v6) {
        (Some(_), None) => ("IPv6", "0.0.0.0/0"),
        (None, Some(_)) => ("IPv4", "::/0"),
        _ => return String::new(),
    };
    format!(
        "# The server has no {missing} address: {missing} clients are refused.\nallowed-clients = [\"{network}\"]\n"
    )
}

/// An address without a length, as people write it.
fn network_text(network: &ipnet::IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

fn indented(text: &str) -> String {
    let line = |line: &str| match line {
        "" => "\n".to_owned(),
        line => format!("    {line}\n"),
    };
    text.lines().map(line).collect()
}
