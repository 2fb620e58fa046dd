//! The rules of iptables, over nft and legacy, in the form of `nft -j list ruleset`: nft shows
//! neither the matches that it has no words for (multiport, conntrack) nor legacy tables.

use std::process::Command;

use serde_json::{Value, json};

/// Chains and rules of all tables filter. What nft shows of iptables is among them, too.
pub fn filters() -> Vec<Value> {
    let programs = [
        ("iptables-nft", "ip"),
        ("ip6tables-nft", "ip6"),
        ("iptables-legacy", "ip"),
        ("ip6tables-legacy", "ip6"),
    ];
    let read = |(program, family)| read(&filter(program).unwrap_or_default(), program, family);
    programs.into_iter().flat_map(read).collect()
}

/// The table filter in the words of `iptables-save`; `None` if the program is not here. `-S` and
/// `-t filter` would make the table where it is not there yet.
pub fn filter(program: &str) -> Option<String> {
    let saved = ["", "/usr/sbin/"].iter().find_map(|directory| {
        let save = format!("{directory}{program}-save");
        Command::new(save).output().ok()
    })?;
    let saved = String::from_utf8_lossy(&saved.stdout);
    let lines = saved.lines().skip_while(|line| *line != "*filter");
    let lines: Vec<_> = lines.take_while(|line| *line != "COMMIT").collect();
    Some(lines.join("\n"))
}

/// The program stands for the table, whose name is the same in nft and legacy.
fn read(saved: &str, program: &str, family: &str) -> Vec<Value> {
    let mut chains = Vec::new();
    let mut items = Vec::new();
    for line in saved.lines() {
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (Some(name), Some(policy)) = (words.next(), words.next()) else {
                continue;
            };
            chains.push(name.to_owned());
            let mut item = json!({"family": family, "table": program, "name": name});
            if matches!(name, "INPUT" | "FORWARD" | "OUTPUT") {
                item["type"] = "filter".into();
                item["hook"] = name.to_lowercase().into();
                item["policy"] = policy.to_lowercase().into();
                item["text"] = format!("{program} -P {name} {policy}").into();
            }
            items.push(json!({"chain": item}));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = split(rule);
            let chain = &words[0];
            let expr = statements(&words[1..], family, &chains);
            let text = format!("{program} {line}");
            items.push(json!({"rule": {
                "family": family, "table": program, "chain": chain, "text": text, "expr": expr
            }}));
        }
    }
    items
}

/// The words of a rule; those with blanks are in quotes.
fn split(rule: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in rule.chars() {
        let last = words.len() - 1;
        match c {
            _ if escaped => {
                words[last].push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words[last].push(c),
        }
    }
    words
}

/// What is not known here becomes `xt`, which may or may not fit.
fn statements(words: &[String], family: &str, chains: &[String]) -> Vec<Value> {
    let mut all = Vec::new();
    let mut words = words.iter().map(String::as_str);
    let mut op = "==";
    while let Some(option) = words.next() {
        if option == "!" {
            op = "!=";
            continue;
        }
        let mut is = |left: Value| {
            let right: Vec<Value> = words
                .next()
                .unwrap_or_default()
                .split(',')
                .map(value)
                .collect();
            json!({"match": {"op": op, "left": left, "right": right}})
        };
        let statement = match option {
            // The match's own options follow.
            "-m" | "--comment" | "--reject-with" | "--log-prefix" | "--log-level" => {
                words.next();
                continue;
            }
            "-i" => is(json!({"meta": {"key": "iifname"}})),
            "-p" => is(json!({"meta": {"key": "l4proto"}})),
            "-s" => is(json!({"payload": {"protocol": family, "field": "saddr"}})),
            "--dport" | "--dports" => is(json!({"payload": {"protocol": "th", "field": "dport"}})),
            "--ctstate" | "--state" => is(json!({"ct": {"key": "state"}})),
            "--dst-type" => is(json!({"fib": {"result": "type", "flags": ["daddr"]}})),
            "-j" | "-g" => verdict(option, words.next().unwrap_or_default(), chains),
            option if option.starts_with('-') => json!({"xt": option}),
            // The value of an unknown option.
            _ => continue,
        };
        op = "==";
        all.push(statement);
    }
    all
}

fn verdict(option: &str, target: &str, chains: &[String]) -> Value {
    match target {
        "ACCEPT" | "DROP" | "REJECT" | "RETURN" => json!({target.to_lowercase(): null}),
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TRACE" => json!({"log": null}),
        _ if !chains.iter().any(|chain| chain == target) => json!({"unknown": null}),
        _ if option == "-g" => json!({"goto": {"target": target}}),
        _ => json!({"jump": {"target": target}}),
    }
}

/// A port, a range of ports, an address, a network or a word.
fn value(text: &str) -> Value {
    if let Ok(port) = text.parse::<u16>() {
        return port.into();
    }
    let range = text
        .split_once(':')
        .and_then(|(first, last)| Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)));
    if let Some((first, last)) = range {
        return json!({"range": [first, last]});
    }
    match text
        .split_once('/')
        .map(|(addr, len)| (addr, len.parse::<u8>()))
    {
        Some((addr, Ok(len))) => json!({"prefix": {"addr": addr, "len": len}}),
        _ => text.to_lowercase().into(),
    }
}
