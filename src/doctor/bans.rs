//! Firewall rules that look at the client's address: bans, lists of bogus networks, lists of the only
//! clients that are wanted. No accept is ever offered in front of one: it would end them all.

use super::check::Check;
use super::dropped::{ByAddress, Direction, Dropped};
use super::target::Target;

/// `firewall-input` and `firewall-output`, where every probe met such a rule.
pub fn check(target: &Target, drop: &Dropped, by: ByAddress) -> Check {
    let (at, stranger) = (target.need.target, target.need.stranger);
    let (id, what) = match drop.direction {
        Direction::Request => (
            "firewall-input",
            format!("what {stranger}, the probe's address, sends to {at}"),
        ),
        Direction::Reply => (
            "firewall-output",
            format!("the replies of {at} to {stranger}, the probe's address"),
        ),
    };
    let rule = drop.describe();
    match by {
        // Nothing is known to be wrong.
        ByAddress::Named => Check::wrong(
            id,
            false,
            format!("{rule} drops or rejects {what}; other clients may pass"),
        )
        .advice(
            "nothing, if the rule is for banned clients or for networks that no client has; is a client refused, look whether the rule names its address",
        ),
        ByAddress::Others => Check::wrong(
            id,
            true,
            format!("{rule} drops or rejects {what}, as of every client that it does not name"),
        )
        .advice(
            "if it is not meant for the clients that realpeer passes on, name them in it, or restrict it to the interfaces that it is meant for",
        ),
    }
}
