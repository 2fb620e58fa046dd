//! The CrowdSec engine that bans are taken from.

use super::check::Check;
use super::outside::quote;
use crate::config::Crowdsec;
use crate::crowdsec::{Client, Failure, clock_ahead, is_open};

/// Clocks that are further apart than this, in seconds, are told: decisions would be dated wrongly in
/// the logs of either host, and certificates may not be valid yet.
const APART: u64 = 30;

/// Whether its local API answers, takes our key, and has our time. It is asked something that takes
/// no change away from a proxy that runs.
pub fn check(config: &Crowdsec) -> Vec<Check> {
    let answer = Client::new(config).and_then(|client| client.look());
    let mut checks = vec![match &answer {
        Ok(_) => Check::ok(
            "crowdsec-unreachable",
            format!("the CrowdSec engine at {} answers", config.url),
        ),
        Err(failure @ (Failure::WrongKey { .. } | Failure::NoKey(_))) => key(config, failure),
        Err(failure) => Check::wrong("crowdsec-unreachable", true, failure.to_string())
            .run(format!("curl -v {}/v1/decisions", quote(&config.url)))
            .advice("an answer of 403 to this means that it can be reached"),
    }];
    if is_open(&config.api_key_file) {
        let file = config.api_key_file.display().to_string();
        let found = format!("everybody on this host may read the CrowdSec API key in {file}");
        checks.push(
            Check::wrong("crowdsec-key", false, found).run(format!("chmod o-r {}", quote(&file))),
        );
    }
    let ahead = answer.ok().and_then(|headers| clock_ahead(&headers));
    checks.extend(ahead.map(clock));
    checks
}

fn key(config: &Crowdsec, failure: &Failure) -> Check {
    let file = config.api_key_file.display().to_string();
    Check::wrong("crowdsec-key", true, failure.to_string()).advice(format!(
        "on the engine's host: cscli bouncers add realpeer -o raw; write what it prints to {file}, which realpeer reads again by itself"
    ))
}

fn clock(ahead: i64) -> Check {
    if ahead.unsigned_abs() <= APART {
        return Check::ok(
            "crowdsec-clock",
            format!(
                "the engine's clock and this host's are {} s apart",
                ahead.abs()
            ),
        );
    }
    let which = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!(
        "the CrowdSec engine's clock is {} s {which} this host's",
        ahead.abs()
    );
    Check::wrong("crowdsec-clock", false, found)
        .run("timedatectl set-ntp true")
        .advice("on both hosts; `timedatectl` shows which of them is wrong")
}
