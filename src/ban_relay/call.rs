//! What a call asks for, and whether it may. Pure.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::networks::Networks;

/// A hundred years; more is a mistake.
const MOST_SECONDS: i64 = 100 * 365 * 24 * 3600;

/// Ban or unban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Let no packet of the target through.
    Ban,
    /// Let them through again.
    Unban,
}

impl Mode {
    /// As a call has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Ban => "ban",
            Mode::Unban => "unban",
        }
    }
}

/// A call that was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub mode: Mode,
    /// To whom. Never IPv4-mapped.
    pub target: IpAddr,
    /// For how long, if the call says so.
    pub time: Option<BanTime>,
}

/// How long a ban is to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanTime {
    /// So long.
    For(Duration),
    /// Until an unban.
    Ever,
}

/// Why a call is not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It is not the JSON that was agreed upon.
    #[error(
        "{0}: send {{\"mode\":\"ban\"|\"unban\",\"target\":\"ADDRESS\",\"seconds\":N}}, the last for a ban only and if you like"
    )]
    Malformed(String),
    /// The target is no single address.
    #[error("the target is no address: give one IPv4 or IPv6 address, without a port or a prefix")]
    NoAddress,
    /// The time makes no sense.
    #[error("a ban lasts 1 to {MOST_SECONDS} seconds, or forever with -1; an unban has no time")]
    NoTime,
    /// Banning it would harm us.
    #[error("{0} is {1}: never banned")]
    Protected(IpAddr, &'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    mode: Mode,
    target: String,
    seconds: Option<i64>,
}

/// Reads a call's body.
pub fn parse(body: &[u8]) -> Result<Call, CallError> {
    let Body {
        mode,
        target,
        seconds,
    } = serde_json::from_slice(body).map_err(|e| CallError::Malformed(e.to_string()))?;
    let target: IpAddr = target.parse().map_err(|_| CallError::NoAddress)?;
    let time = match (mode, seconds) {
        (_, None) => None,
        (Mode::Ban, Some(-1)) => Some(BanTime::Ever),
        (Mode::Ban, Some(seconds @ 1..=MOST_SECONDS)) => {
            Some(BanTime::For(Duration::from_secs(seconds.unsigned_abs())))
        }
        _ => return Err(CallError::NoTime),
    };
    Ok(Call {
        mode,
        target: target.to_canonical(),
        time,
    })
}

/// Whether the call may be carried out: nobody is banned whom we need. An unban always may.
pub fn judge(call: Call, own: &[IpAddr], trusted: &Networks) -> Result<(), CallError> {
    let ip = call.target;
    // Link-local addresses are those of routers and neighbours, which this host depends on.
    let near = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let why = if own.contains(&ip) || ip.is_loopback() {
        "an address of this host"
    } else if trusted.contains(ip) {
        "in the allowed-subnets file"
    } else if ip.is_unspecified() || ip.is_multicast() || near {
        "no client's address"
    } else {
        return Ok(());
    };
    match call.mode {
        Mode::Ban => Err(CallError::Protected(ip, why)),
        Mode::Unban => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agreed_form_and_single_addresses_are_understood() {
        let target =
            |text: &str| parse(format!(r#"{{"mode":"ban","target":"{text}"}}"#).as_bytes());
        let call = target("::ffff:203.0.113.9").unwrap();
        assert_eq!(
            (call.mode, call.target.to_string()),
            (Mode::Ban, "203.0.113.9".into())
        );
        for text in [
            "",
            "203.0.113.9/32",
            "0.0.0.0/0",
            "203.0.113.9; reboot",
            "$(reboot)",
            "-h",
            "203.0.113.9\\n",
            "example.org",
            "203.0.113.009",
            "fe80::1%eth0",
        ] {
            assert_eq!(target(text), Err(CallError::NoAddress), "{text}");
        }
        for body in [
            "",
            "{}",
            "[]",
            r#"{"mode":"ban"}"#,
            r#"{"mode":"Ban","target":"203.0.113.9"}"#,
            r#"{"mode":"ban","target":["203.0.113.9"]}"#,
            r#"{"mode":"ban","target":"203.0.113.9","x":1}"#,
        ] {
            assert!(
                matches!(parse(body.as_bytes()), Err(CallError::Malformed(_))),
                "{body}"
            );
        }
    }

    #[test]
    fn a_ban_may_say_its_time() {
        let time = |mode: &str, seconds: &str| {
            let body = format!(r#"{{"mode":"{mode}","target":"203.0.113.9","seconds":{seconds}}}"#);
            parse(body.as_bytes()).map(|call| call.time)
        };
        assert_eq!(time("ban", "-1"), Ok(Some(BanTime::Ever)));
        let ten = BanTime::For(Duration::from_secs(10));
        assert_eq!(time("ban", "10"), Ok(Some(ten)));
        for (mode, seconds) in [
            ("ban", "0"),
            ("ban", "-2"),
            ("ban", "3153600001"),
            ("unban", "10"),
        ] {
            assert_eq!(time(mode, seconds), Err(CallError::NoTime), "{seconds}");
        }
        for seconds in ["1e999", "\"10\"", "1.5", "99999999999999999999"] {
            let refused = time("ban", seconds);
            assert!(matches!(refused, Err(CallError::Malformed(_))), "{seconds}");
        }
    }

    #[test]
    fn own_and_trusted_addresses_are_never_banned() {
        let own = ["192.0.2.1".parse().unwrap()];
        let mut trusted = Networks::default();
        trusted.insert("10.0.0.0/8".parse().unwrap());
        let judge = |mode, target: &str| {
            let call = Call {
                mode,
                target: target.parse().unwrap(),
                time: None,
            };
            judge(call, &own, &trusted).is_ok()
        };
        for target in [
            "192.0.2.1",
            "10.1.2.3",
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "169.254.0.1",
            "fe80::1",
        ] {
            assert!(!judge(Mode::Ban, target), "{target}");
            assert!(judge(Mode::Unban, target), "{target}");
        }
        assert!(judge(Mode::Ban, "203.0.113.9") && judge(Mode::Ban, "2001:db8::9"));
    }
}
