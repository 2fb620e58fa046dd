//! What a check says.

use std::fmt;

use serde::Serialize;

use super::outside::{printable, quote};
use crate::config::TargetNetns;

/// The names of all checks, as the manual has them.
pub const IDS: [&str; 33] = [
    "backend-down",
    "backend-other-address",
    "crowdsec-clock",
    "crowdsec-key",
    "crowdsec-unreachable",
    "docker-proxy",
    "empty-table",
    "firewall-input",
    "firewall-listener",
    "firewall-output",
    "fwmark-accept-off",
    "ipv6-disabled",
    "lo-accepted",
    "lo-down",
    "mark-accept",
    "mark-changed",
    "no-capability",
    "no-rule",
    "nofile-too-low",
    "not-local-route",
    "one-family-missing",
    "peer-not-allowed",
    "port-in-use",
    "probe",
    "refused",
    "rule-shadowed",
    "src-valid-mark",
    "table-in-use",
    "target-default",
    "target-gone",
    "target-is-listener",
    "target-not-local",
    "udp-wildcard-backend",
];

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Warning,
    /// The proxy cannot do its work.
    Failed,
}

/// One cause that was looked for, and the cure if it was found. The fields are private so that
/// no control character gets into any of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The cause that was looked for.
    pub id: &'static str,
    /// The listener that it is about, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    /// Whether it was found.
    pub status: Status,
    found: String,
    run: String,
    advice: String,
}

impl Check {
    /// All is well.
    pub fn ok(id: &'static str, found: impl AsRef<str>) -> Check {
        Check::new(id, Status::Ok, found)
    }

    /// Something is wrong: failed if `blame` is, else a warning.
    pub fn wrong(id: &'static str, blame: bool, found: impl AsRef<str>) -> Check {
        let status = if blame {
            Status::Failed
        } else {
            Status::Warning
        };
        Check::new(id, status, found)
    }

    fn new(id: &'static str, status: Status, found: impl AsRef<str>) -> Check {
        debug_assert!(IDS.contains(&id), "{id} is not in IDS, nor in the manual");
        Check {
            id,
            listener: None,
            status,
            found: printable(found.as_ref()),
            run: String::new(),
            advice: String::new(),
        }
    }

    /// One line of bash that mends it when it is pasted as it is. Words that come from outside
    /// must have gone through `outside::quote`.
    pub fn run(mut self, command: impl AsRef<str>) -> Check {
        self.run = printable(command.as_ref());
        self
    }

    /// What cannot be pasted: what else to do, or what to know about the command.
    pub fn advice(mut self, advice: impl AsRef<str>) -> Check {
        self.advice = printable(advice.as_ref());
        self
    }

    /// Says which listener it is about.
    pub fn of(mut self, listener: Option<&str>) -> Check {
        self.listener = listener.map(str::to_owned);
        self
    }

    /// Says that it is about a target's network namespace, where its command has to run.
    pub fn inside(mut self, netns: &TargetNetns) -> Check {
        self.found = format!("in {}: {}", printable(&netns.to_string()), self.found);
        if !self.run.is_empty() && !self.run.starts_with("realpeer ") {
            let enter = match netns {
                TargetNetns::Path(path) => format!("--net={}", quote(&path.to_string_lossy())),
                TargetNetns::Process(pid) => format!("-t {pid} -n"),
                TargetNetns::Container { engine, name, .. } => format!(
                    "-t \"$({} inspect -f '{{{{.State.Pid}}}}' {name})\" -n",
                    engine.word()
                ),
            };
            self.run = format!("nsenter {enter} -- sh -c {}", quote(&self.run));
        }
        self
    }

    /// True if a rule of the firewall is to blame.
    pub fn is_of_firewall(&self) -> bool {
        matches!(
            self.id,
            "firewall-input" | "firewall-output" | "mark-changed"
        )
    }

    /// Appends the command of `other` to this one's, so that one paste does both.
    pub fn take_over(&mut self, other: &mut Check) {
        if self.run.is_empty() || other.run.is_empty() {
            return;
        }
        self.run += " && ";
        self.run += &std::mem::take(&mut other.run);
        other.advice = format!(
            "the command of {} above fixes this too; {}",
            self.id, other.advice
        );
    }

    /// What was found.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Command and advice on one line, for the log; empty if all is well.
    pub fn fix(&self) -> String {
        let parts: Vec<_> = self
            .parts()
            .map(|(name, text)| name.to_owned() + text)
            .collect();
        parts.join("; ")
    }

    fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("run: ", &*self.run), ("advice: ", &*self.advice)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<21} ", self.status, self.id)?;
        if let Some(listener) = &self.listener {
            write!(f, "{listener}: ")?;
        }
        f.write_str(&self.found)?;
        for (name, text) in self.parts() {
            write!(f, "\n         {name}{text}")?;
        }
        Ok(())
    }
}
