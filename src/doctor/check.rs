//! What a check says.

use std::fmt;

use serde::Serialize;

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

/// One line of the doctor's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The cause that was looked for.
    pub id: &'static str,
    /// Whether it was found.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// The command, or the deed, that mends it; empty if all is well.
    pub fix: String,
}

impl Check {
    /// All is well.
    pub fn ok(id: &'static str, found: impl Into<String>) -> Check {
        Check::new(id, Status::Ok, found, "")
    }

    /// Something is wrong: failed if `blame` is, else a warning.
    pub fn wrong(
        id: &'static str,
        blame: bool,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        let status = if blame {
            Status::Failed
        } else {
            Status::Warning
        };
        Check::new(id, status, found, fix)
    }

    fn new(
        id: &'static str,
        status: Status,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check {
            id,
            status,
            found: found.into(),
            fix: fix.into(),
        }
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
        write!(f, "{:<8} {:<21} {}", self.status, self.id, self.found)?;
        if self.fix.is_empty() {
            return Ok(());
        }
        write!(f, "; to mend it: {}", self.fix)
    }
}
