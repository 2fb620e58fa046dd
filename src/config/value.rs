//! Values of flags and keys, read as Go's `flag` and `time` packages read them.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::num::IntErrorKind;
use std::time::Duration;

use crate::claims;
use crate::networks::NetworkList;

/// Where a listener listens: one address at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(pub Vec<HostPort>);

/// Connections in a time (`10/s`). So many may come at once, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// A second, a minute or an hour.
    pub period: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// Words of a list, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Words separated by commas.
pub fn words(text: &str) -> Result<Words, String> {
    let words: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
    match words.iter().any(String::is_empty) {
        true => Err("write one word or several, separated by commas".into()),
        false => Ok(Words(words)),
    }
}

/// What CrowdSec's decisions may be about, as far as it can be banned.
pub fn scopes(text: &str) -> Result<Words, String> {
    let scopes = words(text)?;
    let is_known = |word: &String| ["ip", "range"].contains(&word.to_lowercase().as_str());
    match scopes.0.iter().all(is_known) {
        true => Ok(scopes),
        false => Err("write ip, range or both".into()),
    }
}

/// `http://HOST[:PORT][/PATH]`, or https. No slash stands at its end.
pub fn http_url(text: &str) -> Result<String, String> {
    let url: hyper::Uri = text.parse().map_err(|_| NO_URL)?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    if !is_http || url.query().is_some() || url.host().is_none_or(str::is_empty) {
        return Err(NO_URL.into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

const NO_URL: &str = "write a URL such as http://127.0.0.1:8080 or https://engine.example:8080";

/// A host name or address literal with a port, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// 0 to 65535.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `host:port`, `1.2.3.4:port`, `[v6]:port`; `:port` means every address, IPv4 and IPv6.
pub fn host_port(text: &str) -> Result<HostPort, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("the port is missing: write ADDRESS:PORT")?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("the closing ] is missing")?,
        None if host.contains(':') => return Err("write an IPv6 address as [ADDRESS]:PORT".into()),
        None if host.is_empty() => "::",
        None => host,
    };
    if host.is_empty() {
        return Err("the address is missing".into());
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or("the port must be a number from 0 to 65535")?;
    Ok(HostPort {
        host: host.to_owned(),
        port,
    })
}

/// The value of `-4`: an IPv4 address or a name.
pub fn target_v4(text: &str) -> Result<HostPort, String> {
    let addr = target(text)?;
    if addr.host.parse::<Ipv6Addr>().is_ok() {
        return Err("write an IPv4 address; for IPv6 there is -6 (in a file: ipv6)".into());
    }
    Ok(addr)
}

/// The value of `-6`: an IPv6 address or a name.
pub fn target_v6(text: &str) -> Result<HostPort, String> {
    let addr = target(text)?;
    if addr.host.parse::<std::net::Ipv4Addr>().is_ok() {
        return Err("write an IPv6 address; for IPv4 there is -4 (in a file: ipv4)".into());
    }
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped().is_some();
    if addr.host.parse().is_ok_and(mapped) {
        return Err(
            "this is an IPv4 address in IPv6 form; for IPv4 there is -4 (in a file: ipv4)".into(),
        );
    }
    Ok(addr)
}

/// An address or a name with a port that can be connected to.
pub fn target(text: &str) -> Result<HostPort, String> {
    if text.starts_with(':') {
        return Err("the address is missing: write ADDRESS:PORT".into());
    }
    match host_port(text)? {
        HostPort { port: 0, .. } => Err("port 0 cannot be connected to".into()),
        addr => Ok(addr),
    }
}

/// An address with a port, such as 127.0.0.1:9150.
pub fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an address and a port, such as 127.0.0.1:9150 or [::1]:9150".into())
}

/// Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// Go's `strconv.ParseInt` with base 0: `10`, `0x7b`, `0o17`, `017`, `0b1`, `1_000`.
pub fn integer(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, rest) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // An underscore may stand only between digits, or between the prefix and a digit.
    let misplaced = rest.ends_with('_')
        || rest.contains("__")
        || (rest.starts_with('_') && radix == 10)
        || rest.starts_with(['+', '-']);
    if misplaced {
        return Err("not a number".into());
    }
    let magnitude =
        u64::from_str_radix(&rest.replace('_', ""), radix).map_err(|error| match error.kind() {
            IntErrorKind::PosOverflow => "the number is too large".to_owned(),
            _ => "not a number".to_owned(),
        })?;
    let signed = i128::from(magnitude) * if negative { -1 } else { 1 };
    i64::try_from(signed).map_err(|_| "the number is too large".into())
}

/// An integer from `least` to `most`.
pub fn integer_in(text: &str, least: i64, most: i64) -> Result<i64, String> {
    let n = integer(text)?;
    if (least..=most).contains(&n) {
        Ok(n)
    } else if most == i64::MAX {
        Err(format!("the least is {least}"))
    } else {
        Err(format!("it must be from {least} to {most}"))
    }
}

/// Go's `time.ParseDuration` (`1h15m`, `1.5s`, `300ms`); a bare number means seconds.
/// Negative durations are refused: no flag has a use for one.
pub fn duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "write a duration such as 10s, 1m30s or 500ms";
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.starts_with('-') {
        return Err("it cannot be negative".into());
    }
    if text.is_empty() {
        return Err(HELP.into());
    }
    if let Ok(seconds) = integer(text) {
        return u64::try_from(seconds)
            .ok()
            .map(Duration::from_secs)
            .filter(|total| *total < YEAR * 100)
            .ok_or_else(|| "the duration is too long".into());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_len = span(rest, |c| c.is_ascii_digit() || c == '.');
        let number: f64 = rest[..number_len].parse().map_err(|_| HELP)?;
        rest = &rest[number_len..];
        let unit_len = span(rest, |c| !c.is_ascii_digit() && c != '.');
        let seconds = match &rest[..unit_len] {
            "" if number_len == text.len() => 1.0, // 2.5
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(HELP.into()),
        };
        rest = &rest[unit_len..];
        total = Duration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total < YEAR * 100)
            .ok_or("the duration is too long")?;
    }
    Ok(total)
}

/// Like `duration`, but zero is refused.
pub fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than zero".into()),
        d => Ok(d),
    }
}

/// The value of `-keepalive`: 0, or what the kernel takes as TCP_KEEPIDLE (tcp(7)).
pub fn keepalive(text: &str) -> Result<Duration, String> {
    /// MAX_TCP_KEEPIDLE of include/net/tcp.h, in seconds.
    const LONGEST: u64 = 32767;
    match duration(text)? {
        d if d.subsec_nanos() == 0 && d.as_secs() <= LONGEST => Ok(d),
        _ => Err(format!("it must be whole seconds, at most {LONGEST}")),
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The length in bytes of the leading part of `text` whose characters satisfy `keep`.
fn span(text: &str, keep: impl Fn(char) -> bool) -> usize {
    text.find(|c| !keep(c)).unwrap_or(text.len())
}

/// The value of `-mark`.
pub fn mark(text: &str) -> Result<u32, String> {
    count(text, 0, i64::from(u32::MAX))
}

/// The value of `-listeners`.
pub fn sockets(text: &str) -> Result<usize, String> {
    count(text, 1, 1024)
}

/// The value of `-workers`.
pub fn workers(text: &str) -> Result<usize, String> {
    count(text, 1, 1024)
}

/// The value of `-max-connections` and `-max-flows`.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    count(text, 1, i64::MAX)
}

fn count<N: TryFrom<i64>>(text: &str, least: i64, most: i64) -> Result<N, String> {
    N::try_from(integer_in(text, least, most)?).map_err(|_| "the number is too large".into())
}

/// The value of `-name`: it becomes a part of file names.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > 32 || text.starts_with('.') || !text.chars().all(plain) {
        return Err("use up to 32 letters, digits, - _ and .".into());
    }
    Ok(text.to_owned())
}

/// The value of `-l`: addresses with commas between.
pub fn addresses(text: &str) -> Result<Addresses, String> {
    text.split(',')
        .map(|part| host_port(part.trim()))
        .collect::<Result<_, _>>()
        .map(Addresses)
}

/// The value of `-allow-claims`: networks with commas between.
pub fn allow_claims(text: &str) -> Result<NetworkList, String> {
    claims::parse_allowed(text).map(NetworkList::Here)
}

/// The value of `-max-connections-per-client`.
pub fn per_client(text: &str) -> Result<u32, String> {
    count(text, 1, i64::from(u32::MAX))
}

/// The value of `-connection-rate-per-client`.
pub fn rate(text: &str) -> Result<Rate, String> {
    const HELP: &str = "write a number and a time such as 10/s, 100/m or 1000/h";
    let (number, unit) = text.split_once('/').ok_or(HELP)?;
    let period = match unit.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(HELP.into()),
    };
    let count = count(number.trim(), 1, 1_000_000)?;
    Ok(Rate { count, period })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_gos() {
        for (text, n) in [
            ("5", 5),
            ("+5", 5),
            ("-5", -5),
            ("0x7b", 123),
            ("0X7B", 123),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("0", 0),
            ("1_000", 1000),
            ("0x_ff", 255),
        ] {
            assert_eq!(integer(text), Ok(n), "{text}");
        }
        for text in [
            "", "-", "0x", "1__0", "_1", "1_", "08", "--1", "+-1", "1e3", " 1", "0x+1",
        ] {
            assert!(integer(text).is_err(), "{text:?}");
        }
        assert!(integer("9223372036854775808").is_err());
    }

    #[test]
    fn durations_are_gos_and_a_bare_number_means_seconds() {
        for (text, ms) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1.5s", 1500),
            (".5s", 500),
            ("300ms", 300),
            ("10", 10_000),
            ("0x3c", 60_000),
            ("2.5", 2_500),
            ("0", 0),
            ("2000us", 2),
            ("2000µs", 2),
            ("+1s", 1000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "s",
            "1x",
            "-1s",
            "1s2",
            "1..2s",
            "1e400h",
            "99999999999h",
            "1 s",
            "inf",
            "nan",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert!(timeout("0s").is_err());
    }

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Ok(true));
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Ok(false));
        }
        assert!(boolean("yes").is_err());
    }

    #[test]
    fn addresses_need_a_port_and_their_family() {
        let at = |host: &str, port| {
            Ok(HostPort {
                host: host.into(),
                port,
            })
        };
        assert_eq!(host_port("0.0.0.0:8443"), at("0.0.0.0", 8443));
        assert_eq!(host_port("[::]:8443"), at("::", 8443));
        assert_eq!(host_port(":8443"), at("::", 8443));
        assert_eq!(host_port("localhost:22"), at("localhost", 22));
        for text in [
            "", "8443", "::1:22", "[::1:22", "[]:1", "a:", "a:65536", "a:-1", "a:+1", "a:0x16",
        ] {
            assert!(host_port(text).is_err(), "{text:?}");
        }
        assert!(target_v4("[::1]:22").is_err());
        assert!(target_v6("127.0.0.1:22").is_err());
        assert!(target_v6("[::ffff:127.0.0.1]:22").is_err());
        assert!(target_v4("127.0.0.1:0").is_err());
        assert!(target_v4(":22").is_err());
        assert_eq!(target_v6("[fe80::1%lo]:22"), at("fe80::1%lo", 22));
    }
}
