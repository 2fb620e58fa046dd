//! `realpeer doctor`: looks at the machine as it is and names what is wrong.
//!
//! The quick part reads the kernel's state. The full one also sends a stranger's packet through
//! the real path, and asks nft who dropped it when it is lost. For each target the first true
//! cause ends the search: what follows from it is no cause of its own.

mod backend;
mod check;
mod host;
mod listener;
mod policy;
mod probe;
mod probing;
mod processes;
mod remote;
mod rules;
mod trace;

use std::net::IpAddr;

use anyhow::{Context, Result};

pub use check::{Check, Status};
use serde::Serialize;

use crate::config::{Protocol, Routing, Settings};
use crate::routing::bound;
use crate::routing::kernel::Kernel;
use crate::routing::plan::{Family, Need, Place};
use crate::routing::survey;
use backend::Backend;
use host::Powers;
use policy::Diagnosis;

/// What `realpeer doctor` was asked beside the proxy's flags.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The load balancer to judge by the allowed-subnets file.
    pub from: Option<IpAddr>,
    /// Answer in JSON.
    pub json: bool,
    /// Probe targets that are not on this host too.
    pub probe_remote: bool,
}

/// One of the proxy's targets.
#[derive(Clone, Debug)]
pub struct Target {
    /// What its replies need.
    pub need: Need,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it is.
    pub place: Place,
    /// The interface towards a target that is not on this host.
    pub interface: Option<u32>,
    /// Its UDP backend is bound to the wildcard address.
    pub wildcard: bool,
}

/// What `-json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// Examines, prints, and returns whether no check failed.
pub fn command(settings: &Settings, options: &Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let checks = runtime.block_on(examine(settings, options))?;
    let ok = checks.iter().all(|check| check.status != Status::Failed);
    if options.json {
        let answer = Answer {
            ok,
            checks: &checks,
        };
        println!("{}", serde_json::to_string(&answer)?);
    } else {
        for check in &checks {
            println!("{check}");
        }
    }
    Ok(ok)
}

/// The quick part, for the start of the proxy: reads the kernel's state and contacts nobody.
/// A missing way back is left to the routing to tell, which has just tried to put it in.
pub async fn quick(settings: &Settings) -> Result<Vec<Check>> {
    let options = Options::default();
    let examination = Examination::new(settings, &options).await?;
    let mut checks = examination.surroundings();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(Some(backend)) = verdict {
            checks.push(backend::check(&target.0, &backend));
        }
    }
    if settings.routing == Routing::Auto {
        checks.retain(|check| !matches!(check.id, "no-rule" | "one-family-missing"));
    }
    Ok(checks)
}

/// The whole examination.
pub async fn examine(settings: &Settings, options: &Options) -> Result<Vec<Check>> {
    let examination = Examination::new(settings, options).await?;
    let mut checks = examination.surroundings();
    let mut open = Vec::new();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(backend) = verdict {
            open.push((&target.0, backend));
        }
    }
    checks.extend(probing::probe(&examination, open).await?);
    Ok(checks)
}

struct Examination<'a> {
    settings: &'a Settings,
    options: &'a Options,
    kernel: Kernel,
    powers: Powers,
    targets: Vec<(Target, Diagnosis)>,
}

/// What is left to do for a target.
enum Verdict {
    /// A probe will tell. What seems to listen, if the target is on this host.
    Open(Option<Backend>),
    /// The cause is found, or there is nothing to find.
    Closed,
}

impl<'a> Examination<'a> {
    async fn new(settings: &'a Settings, options: &'a Options) -> Result<Examination<'a>> {
        let kernel = Kernel::connect()?;
        let mut targets = Vec::new();
        for need in survey::needs(&kernel, settings).await? {
            if need.family() == Family::V6 && host::is_ipv6_off() {
                continue;
            }
            let target = Target::locate(&kernel, settings, need).await?;
            let diagnosis = policy::diagnose(&kernel, &target).await?;
            targets.push((target, diagnosis));
        }
        let powers = host::powers();
        Ok(Examination {
            settings,
            options,
            kernel,
            powers,
            targets,
        })
    }

    /// The process, the host, the listener.
    fn surroundings(&self) -> Vec<Check> {
        let settings = self.settings;
        let mut checks = vec![host::capabilities(self.powers), listener::port(settings)];
        checks.extend(host::ipv6(settings));
        checks.extend(host::open_files(settings));
        checks.extend(listener::peer(settings, self.options.from));
        checks
    }

    /// What can be known of a target without touching it.
    async fn still(
        &self,
        (target, diagnosis): &(Target, Diagnosis),
    ) -> Result<(Vec<Check>, Verdict)> {
        let (need, here) = (&target.need, target.place != Place::Behind);
        if here && listener::is_listener(self.settings, need.target) {
            let check = need
                .given
                .then(|| listener::target(self.settings, need.target));
            return Ok((check.into_iter().collect(), Verdict::Closed));
        }
        let mut checks = Vec::new();
        if let (false, Diagnosis::SrcValidMark(_)) = (here, diagnosis) {
            return Ok((vec![self.way_back(target, diagnosis)], Verdict::Closed));
        }
        if !here && !self.options.probe_remote {
            let check = remote::check(&self.kernel, target).await?;
            if check.status != Status::Ok {
                return Ok((vec![check], Verdict::Closed));
            }
            checks.push(check);
        }
        let way = self.way_back(target, diagnosis);
        let way_is_fine = way.status == Status::Ok;
        checks.push(way);
        if !need.given || !way_is_fine {
            return Ok((checks, Verdict::Closed));
        }
        if !here {
            return Ok((checks, Verdict::Open(None)));
        }
        let backend = backend::look(target);
        if let Backend::DockerProxy(_) = backend {
            checks.push(backend::check(target, &backend));
            return Ok((checks, Verdict::Closed));
        }
        Ok((checks, Verdict::Open(Some(backend))))
    }

    fn way_back(&self, target: &Target, diagnosis: &Diagnosis) -> Check {
        if let Some(check) = policy::check(target, diagnosis) {
            return check;
        }
        let auto = self.settings.routing == Routing::Auto;
        let will = |when: &str| {
            let found = format!(
                "the proxy puts in the way back from {} ({} way) {when}",
                target.need.target, target.need.way
            );
            Check::ok("no-rule", found)
        };
        match (auto, self.powers) {
            (
                true,
                Powers {
                    administrate: true, ..
                },
            ) => will("at start, until it ends"),
            // That the capability is missing is told already.
            (true, Powers { claim: false, .. }) => will("once it has CAP_NET_ADMIN"),
            (true, _) => policy::missing(
                target,
                self.other_family_is_fine(target),
                ", and putting it in needs CAP_NET_ADMIN",
            ),
            (false, _) => policy::missing(target, self.other_family_is_fine(target), ""),
        }
    }

    fn other_family_is_fine(&self, target: &Target) -> bool {
        self.targets.iter().any(|(other, diagnosis)| {
            other.need.family() != target.need.family()
                && matches!(diagnosis, Diagnosis::InPlace(_))
        })
    }
}

impl Target {
    async fn locate(kernel: &Kernel, settings: &Settings, need: Need) -> Result<Target> {
        let at = need.target;
        let (place, interface) = kernel.locate(at.ip()).await?;
        let protocol = settings.protocol;
        let udp_here = protocol == Protocol::Udp && place != Place::Behind;
        let wildcard = udp_here && bound::is_wildcard(&bound::bound(protocol), at);
        Ok(Target {
            need,
            protocol,
            place,
            interface,
            wildcard,
        })
    }

    /// The flag that names it.
    fn flag(&self) -> &'static str {
        match self.need.family() {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// The command that puts its way back in, for good.
    fn up(&self) -> String {
        let mut command = format!("realpeer routing up {} {}", self.flag(), self.need.target);
        if self.need.target.ip().is_unspecified() {
            command = "realpeer routing up -dynamic-destination".into();
        }
        if self.protocol == Protocol::Udp {
            command += " -p udp";
        }
        if let Some(mark) = self.need.mark {
            command += &format!(" -mark {mark}");
        }
        command
    }
}
