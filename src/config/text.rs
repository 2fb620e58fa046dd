//! A configuration as TOML: what is in force, or what a command line means.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Command};
use ipnet::IpNet;
use toml::Value;

use super::choice::{Choice, Control, Protocol};
use super::draft::{CrowdsecDraft, ListenerDraft, ProcessDraft};
use super::keys::{Kind, fits, key, kind};
use super::netns::TargetNetns;
use super::value::{Rate, addresses, allow_claims, boolean, integer};
use super::{Config, Crowdsec, ListenerConfig, Process};
use crate::networks::NetworkList;

/// What a listener is called that nobody has named.
const NAMELESS: &str = "main";

/// Everything that is in force, defaults too.
pub fn in_force(config: &Config) -> String {
    let mut out = String::new();
    rows(&mut out, process(&config.process));
    if let Some(engine) = &config.process.crowdsec {
        out += "\n[crowdsec]\n";
        rows(&mut out, crowdsec(engine));
    }
    for listener in &config.listeners {
        let name = listener.name.as_deref().unwrap_or(NAMELESS);
        let _ = writeln!(out, "\n[[listener]]\nname = {}", text(name));
        addresses_of(&mut out, listener);
        rows(&mut out, of_listener(listener));
    }
    out
}

/// What `realpeer config check` says of a good file.
pub fn good(path: &Path, config: &Config) -> String {
    let mut out = format!("{}: good\n", path.display());
    for listener in &config.listeners {
        let name = listener.name.as_deref().unwrap_or(NAMELESS);
        for addr in &listener.listen {
            let _ = writeln!(
                out,
                "{name}: would listen on {addr} ({})",
                listener.protocol.word()
            );
        }
    }
    out
}

/// Where it listens, and its targets. One that nobody named stays a comment: routing, doctor and log
/// make less of it.
fn addresses_of(out: &mut String, listener: &ListenerConfig) {
    let listen = listener.listen.iter().map(|addr| text(&addr.to_string()));
    let _ = writeln!(out, "listen = {}", Value::Array(listen.collect()));
    for (flag, (target, given)) in ["4", "6"].into_iter().zip(listener.targets.each()) {
        let (key, target) = (key(flag), text(&target.to_string()));
        let _ = match given {
            true => writeln!(out, "{key} = {target}"),
            false => writeln!(out, "# {key} = {target}, the default"),
        };
    }
}

/// What stands behind a key, or why there is nothing.
type Row = (&'static str, Result<Value, &'static str>);

fn rows(out: &mut String, rows: Vec<Row>) {
    for (flag, value) in rows {
        let _ = match value {
            Ok(value) => writeln!(out, "{} = {value}", key(flag)),
            Err(why) => writeln!(out, "# {}: {why}", key(flag)),
        };
    }
}

fn process(process: &Process) -> Vec<Row> {
    let control = match &process.control {
        Control::Usual => Err("below /run/realpeer, if that can be made"),
        Control::Off => Ok(text("off")),
        Control::At(path) => Ok(file(path)),
    };
    vec![
        ("workers", number(process.workers)),
        ("drain-timeout", time(process.drain_timeout)),
        (
            "upgrade-drain",
            process.upgrade_drain.map_or(Err("no limit"), time),
        ),
        ("routing", Ok(text(process.routing.word()))),
        ("name", process.name.as_deref().map(text).ok_or("none")),
        ("control", control),
        (
            "control-group",
            process.control_group.as_deref().map(text).ok_or("none"),
        ),
        (
            "state-dir",
            process
                .state_dir
                .as_deref()
                .map(file)
                .ok_or("none: bans end with the process"),
        ),
        ("v", number(process.verbosity.number())),
        (
            "log-format",
            process
                .log_format
                .map(|format| text(format.word()))
                .ok_or("journal if standard error goes there, text on a terminal, json elsewhere"),
        ),
        (
            "metrics",
            process
                .metrics
                .map(|addr| text(&addr.to_string()))
                .ok_or("off"),
        ),
        (
            "user",
            process
                .user
                .as_deref()
                .map(text)
                .ok_or("the one that started it"),
        ),
        ("sandbox", Ok(text(&process.sandbox.to_string()))),
    ]
}

fn crowdsec(engine: &Crowdsec) -> Vec<Row> {
    let words = |list: &[String]| match list {
        [] => Err("all"),
        list => Ok(Value::Array(list.iter().map(|word| text(word)).collect())),
    };
    vec![
        ("url", Ok(text(&engine.url))),
        ("api-key-file", Ok(file(&engine.api_key_file))),
        ("update-frequency", time(engine.update_frequency)),
        ("scopes", words(&engine.scopes)),
        ("origins", words(&engine.origins)),
        ("scenarios-containing", words(&engine.scenarios_containing)),
        (
            "tls-ca-file",
            engine
                .tls_ca_file
                .as_deref()
                .map(file)
                .ok_or("the certificates of the system"),
        ),
    ]
}

fn of_listener(listener: &ListenerConfig) -> Vec<Row> {
    const CARRIED: &str = "what the open-file limit carries";
    const UNLIMITED: &str = "no limit";
    let rate = |rate: Rate| text(&rate.to_string());
    let all = vec![
        (
            "dynamic-destination",
            Ok(listener.dynamic_destination.into()),
        ),
        ("p", Ok(text(listener.protocol.word()))),
        ("mark", number(listener.mark.unwrap_or(0))),
        (
            "allowed-subnets",
            list(listener.allowed_subnets.as_ref(), "everybody"),
        ),
        ("allow-claims", Ok(networks(&listener.allow_claims))),
        ("untrusted", Ok(text(listener.untrusted.word()))),
        (
            "denied-clients",
            list(listener.denied_clients.as_ref(), "nobody"),
        ),
        (
            "allowed-clients",
            list(listener.allowed_clients.as_ref(), "everybody"),
        ),
        ("listeners", number(listener.listeners)),
        ("listen-transparent", Ok(listener.listen_transparent.into())),
        (
            "max-connections",
            listener.max_connections.map_or(Err(CARRIED), number),
        ),
        (
            "max-connections-per-client",
            listener
                .max_connections_per_client
                .map_or(Err(UNLIMITED), number),
        ),
        (
            "connection-rate-per-client",
            listener
                .connection_rate_per_client
                .map(rate)
                .ok_or(UNLIMITED),
        ),
        ("source-port", Ok(text(listener.source_port.word()))),
        ("header-timeout", time(listener.header_timeout)),
        ("connect-timeout", time(listener.connect_timeout)),
        (
            "idle-timeout",
            time(listener.idle_timeout.unwrap_or_default()),
        ),
        ("keepalive", time(listener.keepalive.unwrap_or_default())),
        (
            "close-after",
            time(listener.close_after.unwrap_or_default()),
        ),
        ("udp-header", Ok(text(listener.udp_header.word()))),
        ("max-flows", listener.max_flows.map_or(Err(CARRIED), number)),
        ("routing-mode", Ok(text(listener.routing_mode.word()))),
        (
            "target-netns",
            listener
                .target_netns
                .as_ref()
                .map(|netns| text(&netns.to_string()))
                .ok_or("this host's own"),
        ),
        (
            "docker-socket",
            match &listener.target_netns {
                Some(TargetNetns::Container { socket, .. }) => Ok(file(socket)),
                _ => Err("no container is named"),
            },
        ),
    ];
    let fitting = |(flag, _): &Row| fits(flag, listener.protocol);
    all.into_iter().filter(fitting).collect()
}

/// The file for a command line: `given` are its flags and their values, as typed and understood.
pub fn from_flags(given: &[(String, String)]) -> String {
    let of_process = ProcessDraft::augment_args(Command::new("process"));
    let of_listener = ListenerDraft::augment_args(Command::new("listener"));
    let value = |flag: &str| {
        given
            .iter()
            .rev()
            .find(|(name, _)| name == flag)
            .map(|(_, value)| value.as_str())
    };
    let protocol = value("p")
        .and_then(|word| Protocol::read(word).ok())
        .unwrap_or(Protocol::Tcp);
    let mut out = String::from("# A configuration for realpeer: realpeer -config FILE\n");
    commented(&mut out, &of_process, &value, |_| true);
    let of_engine = CrowdsecDraft::augment_args(Command::new("crowdsec"));
    let of_engine_typed = |key: &str| match key {
        "url" => value("crowdsec-url"),
        "api-key-file" => value("crowdsec-key-file"),
        _ => None,
    };
    if of_engine_typed("url").is_some() {
        out += "\n[crowdsec]\n";
        commented(&mut out, &of_engine, &of_engine_typed, |_| true);
    }
    let name = value("name").unwrap_or(NAMELESS);
    let _ = writeln!(
        out,
        "\n[[listener]]\n# Log lines, bans and realpeer ctl know it by this name\nname = {}",
        text(name)
    );
    commented(&mut out, &of_listener, &value, |flag| fits(flag, protocol));
    out
}

fn commented<'a>(
    out: &mut String,
    flags: &Command,
    value: &impl Fn(&str) -> Option<&'a str>,
    fits: impl Fn(&str) -> bool,
) {
    for flag in flags.get_arguments() {
        let name = flag.get_long().unwrap_or_default();
        let Some(typed) = value(name) else { continue };
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines() {
            let _ = writeln!(out, "# {line}");
        }
        let _ = match fits(name) {
            true => writeln!(out, "{} = {}", key(name), from_typed(typed, kind(flag))),
            false => writeln!(
                out,
                "# {} {typed} has no meaning for this protocol",
                key(name)
            ),
        };
    }
}

/// A flag's value, which was understood before, as TOML.
fn from_typed(typed: &str, kind: Kind) -> Value {
    match kind {
        Kind::Boolean => boolean(typed).map(Value::Boolean),
        Kind::Integer => integer(typed).map(Value::Integer),
        Kind::Time => integer(typed).map(Value::Integer),
        Kind::Addresses => addresses(typed).map(|list| match &list.0[..] {
            [one] => text(&one.to_string()),
            many => Value::Array(many.iter().map(|addr| text(&addr.to_string())).collect()),
        }),
        Kind::Claims => allow_claims(typed).map(|list| match list {
            NetworkList::Here(list) => networks(&list),
            NetworkList::File(path) => file(&path),
        }),
        Kind::Text | Kind::Networks | Kind::Words => Ok(text(typed)),
    }
    .unwrap_or_else(|_| text(typed))
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn file(path: &Path) -> Value {
    text(&path.to_string_lossy())
}

fn number<N: TryInto<i64>>(number: N) -> Result<Value, &'static str> {
    Ok(Value::Integer(number.try_into().unwrap_or(i64::MAX)))
}

fn time(time: Duration) -> Result<Value, &'static str> {
    let part = |number, unit| match time.as_secs() {
        0 => text(&format!("{number}{unit}")),
        seconds => text(&format!("{seconds}s{number}{unit}")),
    };
    Ok(match time.subsec_nanos() {
        0 => text(&format!("{}s", time.as_secs())),
        nanos if nanos % 1_000_000 == 0 => part(nanos / 1_000_000, "ms"),
        nanos if nanos % 1000 == 0 => part(nanos / 1000, "us"),
        nanos => part(nanos, "ns"),
    })
}

fn list(list: Option<&NetworkList>, none: &'static str) -> Result<Value, &'static str> {
    match list {
        None => Err(none),
        Some(NetworkList::File(path)) => Ok(file(path)),
        Some(NetworkList::Here(list)) => Ok(networks(list)),
    }
}

fn networks(list: &[IpNet]) -> Value {
    Value::Array(
        list.iter()
            .map(|network| text(&network.to_string()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::load;
    use crate::config::keys::keys_of;

    /// Every key, none with its default.
    const PROCESS: &str = r#"
workers = 3
drain-timeout = "1s500ms"
upgrade-drain = "1h"
routing = "off"
name = "edge"
control = "/run/edge.sock"
control-group = "admin"
state-dir = "/var/lib/edge"
metrics = "127.0.0.1:9150"
verbosity = 2
log-format = "json"
user = "nobody"
sandbox = "seccomp,landlock"

[crowdsec]
url = "https://engine.example:8080"
api-key-file = "/etc/realpeer/crowdsec.key"
update-frequency = "30s"
scopes = ["ip", "range"]
origins = ["CAPI"]
scenarios-containing = ["ssh", "http"]
tls-ca-file = "/etc/realpeer/engine.pem"
"#;
    const BOTH: &str = r#"
ipv4 = "127.0.0.2:22"
ipv6 = "[2001:db8::1]:22"
dynamic-destination = true
mark = 5
allowed-subnets = ["10.0.0.0/8"]
allow-claims = ["169.254.0.0/16"]
untrusted = "serve"
denied-clients = []
allowed-clients = ["203.0.113.0/24", "2001:db8::7/128"]
listeners = 2
listen-transparent = true
max-connections-per-client = 7
connection-rate-per-client = "100/m"
source-port = "strict"
routing-mode = "mark"
target-netns = "podman:gitea"
docker-socket = "/run/user/1000/podman/podman.sock"
"#;
    const TCP: &str = r#"
[[listener]]
name = "ssh"
listen = [":2222", "127.0.0.9:23"]
protocol = "tcp"
max-connections = 9
header-timeout = 3
connect-timeout = "7ms"
"#;
    const UDP: &str = r#"
[[listener]]
name = "dns"
listen = ":5300"
protocol = "udp"
close-after = "1us"
udp-header = "spp"
max-flows = 11
"#;

    fn read(text: &str) -> Config {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("realpeer-text-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let read = load(&path, &[]);
        std::fs::remove_file(&path).unwrap();
        read.unwrap_or_else(|bad| panic!("{bad}\n{text}"))
    }

    fn full() -> String {
        [PROCESS, TCP, BOTH, UDP, BOTH].concat()
    }

    fn flags() -> [Command; 3] {
        let bare = Command::new("test");
        [
            ProcessDraft::augment_args(bare.clone()),
            ListenerDraft::augment_args(bare.clone()),
            CrowdsecDraft::augment_args(bare),
        ]
    }

    #[test]
    fn what_is_printed_means_the_same() {
        for file in [full(), "[[listener]]\nname = \"a\"".into()] {
            let config = read(&file);
            assert_eq!(read(&in_force(&config)), config, "{file}");
        }
        // A target that was not named would lead back to the listener, if it were.
        let config = read("[[listener]]\nname = \"a\"\nlisten = \":443\"\nipv6 = \"[::1]:22\"");
        assert_eq!(read(&in_force(&config)), config);
    }

    #[test]
    fn every_flag_is_printed_set_or_not() {
        let of = |config: &Config| in_force(config);
        let bare = "[crowdsec]\nurl = \"http://[::1]:8080\"\napi-key-file = \"k\"\n[[listener]]\nname = \"a\"\n[[listener]]\nname = \"b\"\nprotocol = \"udp\"";
        let (full, bare) = (of(&read(&full())), of(&read(bare)));
        for command in flags() {
            for key in keys_of(&command) {
                let set = format!("\n{key} = ");
                let printed = format!("\n{full}").contains(&set);
                assert!(printed, "{key} is missing from\n{full}");
                let (comment, unset) = (format!("\n# {key}: "), format!("\n# {key} = "));
                let bare = format!("\n{bare}");
                let told = [set, comment, unset].iter().any(|line| bare.contains(line));
                assert!(told, "{key} is missing from\n{bare}");
            }
        }
    }

    #[test]
    fn times_are_exact() {
        for nanos in [0, 1, 1_500, 7_000_000, 1_000_000_000, 60_000_000_001] {
            let length = Duration::from_nanos(nanos);
            let Ok(Value::String(printed)) = time(length) else {
                panic!("a time is a string")
            };
            assert_eq!(crate::config::value::duration(&printed), Ok(length));
        }
    }

    #[test]
    fn flags_are_translated_with_comments() {
        let given = |words: &[(&str, &str)]| {
            let own = |(flag, value): &(&str, &str)| ((*flag).to_owned(), (*value).to_owned());
            from_flags(&words.iter().map(own).collect::<Vec<_>>())
        };
        let file = given(&[
            ("l", "0.0.0.0:2222,[::1]:2222"),
            ("mark", "0x7b"),
            ("close-after", "60"),
            ("header-timeout", "2.5"),
            ("allow-claims", "169.254.0.0/16, 240.0.0.1"),
            ("listen-transparent", "T"),
            ("v", "1"),
        ]);
        for line in [
            "verbosity = 1",
            "name = \"main\"",
            "mark = 123",
            "header-timeout = \"2.5\"",
            "allow-claims = [\"169.254.0.0/16\", \"240.0.0.1/32\"]",
            "listen-transparent = true",
            "# close-after 60 has no meaning for this protocol",
        ] {
            assert!(file.lines().any(|l| l == line), "{line}:\n{file}");
        }
        // Each key has its help above it.
        let lines: Vec<&str> = file.lines().collect();
        let keys = lines.windows(2).filter(|pair| pair[1].contains(" = "));
        assert!(keys.clone().count() > 6);
        assert!(keys.clone().all(|pair| pair[0].starts_with("# ")), "{file}");
    }
}
