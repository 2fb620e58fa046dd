//! What can be known without touching anything.

use anyhow::Result;

use super::backend::{self, Backend};
use super::check::{Check, Status};
use super::diagnosis::{self, Diagnosis};
use super::host::{self, Powers};
use super::running::{self, Running};
use super::target::Target;
use super::{Options, listener, loopback, policy, remote, words};
use crate::config::{Config, ListenerConfig, RouteTarget, Routing};
use crate::routing::family::Family;
use crate::routing::kernel::{Foreigner, Kernel};
use crate::routing::owner::SWITCH_TABLE;
use crate::routing::plan::Place;
use crate::routing::survey;

/// All that is known before anything is touched.
pub struct Examination<'a> {
    /// As asked for.
    pub config: &'a Config,
    /// The listener that is examined.
    pub listener: &'a ListenerConfig,
    /// As asked of the doctor.
    pub options: &'a Options,
    /// The way to the kernel.
    pub kernel: Kernel,
    /// What this process may do.
    pub powers: Powers,
    /// The targets, and what the policy does with their replies.
    pub targets: Vec<(Target, Diagnosis)>,
    /// The proxy is starting: nothing is said that only a probe could prove.
    at_start: bool,
    /// The proxy that runs already.
    pub running: Option<Running>,
    /// What the marks of other programs meet.
    marks: Option<Check>,
    /// What of somebody else's is in the table of `routing up`.
    switch_table: Option<Foreigner>,
}

/// What is left to do for a target.
pub enum Verdict {
    /// A probe will tell. What seems to listen, if the target is on this host.
    Open(Option<Backend>),
    /// The cause is found, or there is nothing to find.
    Closed,
}

impl<'a> Examination<'a> {
    /// Looks at the host and the targets, which are in the network namespace of the calling thread.
    pub async fn new(
        config: &'a Config,
        listener: &'a ListenerConfig,
        options: &'a Options,
        at_start: bool,
        targets: &[RouteTarget],
    ) -> Result<Examination<'a>> {
        let kernel = Kernel::connect()?;
        let mut found = Vec::new();
        let is_lo_fine = loopback::lo(listener).is_none();
        for need in survey::needs(&kernel, targets).await? {
            // That is told already, and all else follows from it.
            if !is_lo_fine || (need.family() == Family::V6 && host::is_ipv6_off(need.target.ip())) {
                continue;
            }
            let target = Target::locate(&kernel, listener.protocol, need).await?;
            let diagnosis = policy::diagnose(&kernel, &target).await?;
            found.push((target, diagnosis));
        }
        let switch_table = kernel.foreigner(SWITCH_TABLE).await?;
        let powers = host::powers();
        // Whether the guard is there can only be seen with the capability.
        let marks = match powers.administrate {
            true => policy::marks(&kernel, listener.mark).await?,
            false => None,
        };
        Ok(Examination {
            config,
            listener,
            options,
            kernel,
            powers,
            targets: found,
            at_start,
            running: (!at_start)
                .then(|| running::find(config, listener))
                .flatten(),
            marks,
            switch_table,
        })
    }

    /// The process, the host, the listener.
    pub fn surroundings(&self) -> Vec<Check> {
        let config = self.listener;
        let mut checks = match config.target_netns {
            None => Vec::from_iter(loopback::lo(config)),
            Some(_) => Vec::new(),
        };
        checks.push(host::capabilities(self.powers));
        if !self.at_start {
            // The proxy that starts has it.
            checks.extend(
                config
                    .listen
                    .iter()
                    .map(|addr| listener::port(config, *addr)),
            );
        }
        checks.extend(host::ipv6(config));
        checks.extend(match &self.running {
            Some(running) => running.nofile(self.config, config),
            None => host::open_files(self.config, config),
        });
        checks.extend(listener::unset_target(config));
        checks.extend(listener::peer(config, self.options.from));
        checks.extend(self.marks.clone());
        checks
    }

    /// What can be known of a target without touching it.
    pub async fn still(
        &self,
        (target, diagnosis): &(Target, Diagnosis),
    ) -> Result<(Vec<Check>, Verdict)> {
        let (need, here) = (&target.need, target.place != Place::Behind);
        if here && need.netns.is_none() && listener::is_listener(self.listener, need.target) {
            let check = need
                .given
                .then(|| listener::target(self.listener, need.target));
            return Ok((check.into_iter().collect(), Verdict::Closed));
        }
        let mut checks = Vec::new();
        if let (false, Diagnosis::SrcValidMark(_)) = (here, diagnosis) {
            return Ok((vec![self.way_back(target, diagnosis)], Verdict::Closed));
        }
        if !here && !self.options.probe_remote {
            let check = remote::check(&self.kernel, target, !self.at_start).await?;
            if check.status != Status::Ok {
                return Ok((vec![check], Verdict::Closed));
            }
            checks.push(check);
        }
        let way = match policy::running(&self.kernel, target).await? {
            Some(table) if self.is_left_to_the_proxy(diagnosis) => Check::ok(
                "no-rule",
                format!(
                    "the replies of {} come back by table {table}, of a realpeer that runs",
                    need.target
                ),
            ),
            _ => self.way_back(target, diagnosis),
        };
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

    fn is_left_to_the_proxy(&self, diagnosis: &Diagnosis) -> bool {
        self.config.process.routing == Routing::Auto && matches!(diagnosis, Diagnosis::Missing)
    }

    fn way_back(&self, target: &Target, diagnosis: &Diagnosis) -> Check {
        if let Some(check) = diagnosis::check(target, diagnosis) {
            return check;
        }
        let auto = self.config.process.routing == Routing::Auto;
        let will = |when: &str| {
            let found = format!(
                "nothing has to be set up: {when}, realpeer itself brings the replies of {} back ({} way)",
                target.need.target, target.need.way
            );
            Check::ok("no-rule", found)
        };
        let missing = |told_not_to| {
            diagnosis::missing(target, self.other_family_is_fine(target), told_not_to)
        };
        match (auto, self.powers) {
            (
                true,
                Powers {
                    administrate: true, ..
                },
            ) => will("while it runs"),
            // That the capability is missing is told already.
            (true, Powers { claim: false, .. }) => will("once it has CAP_NET_ADMIN and runs"),
            (true, _) => missing(false),
            (false, _) if self.switch_table.is_some() => self.switch_table_in_use(target),
            (false, _) => missing(true),
        }
    }

    fn switch_table_in_use(&self, target: &Target) -> Check {
        let what = match &self.switch_table {
            Some(Foreigner::Rule(rule)) => {
                format!("the rule \"{}\" leads there", words::rule(rule))
            }
            Some(Foreigner::Route(route)) => format!("it holds \"{}\"", words::route(route)),
            None => String::new(),
        };
        Check::wrong(
            "table-in-use",
            target.need.given,
            format!(
                "table {SWITCH_TABLE}, which realpeer routing up needs, serves something else: {what}"
            ),
        )
        .advice("give the other program another table, or run realpeer with -routing auto, which finds a free one")
    }

    fn other_family_is_fine(&self, target: &Target) -> bool {
        self.targets.iter().any(|(other, diagnosis)| {
            other.need.family() != target.need.family()
                && matches!(diagnosis, Diagnosis::InPlace(_))
        })
    }
}
