//! The status page for people. `maud` escapes every value.

use maud::{DOCTYPE, Markup, html};

use super::picture::Picture;
use crate::bans::{self, Ban};
use crate::control::{self, Listener};
use crate::stats::Count;

/// The whole page.
pub fn render(picture: &Picture) -> String {
    let status = &picture.status;
    let name = status.name.as_deref().unwrap_or("realpeer");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (name) " – realpeer" }
                link rel="stylesheet" href="style.css";
                script src="script.js" defer {}
            }
            body {
                main {
                    (head(picture, name))
                    (tiles(picture))
                    (notes("Not ready", "bad", &picture.not_ready))
                    (notes("Advice", "hint", &picture.advice))
                    (crowdsec(picture))
                    (older(picture))
                    (listeners(picture))
                    div.columns {
                        (clients(picture))
                        (newest_bans(picture))
                    }
                }
                footer {
                    "Rates are of the last seconds; bytes of a TCP session count when it ends. "
                    a href="metrics" { "metrics" } " · "
                    a href="status.json" { "status.json" } " · "
                    a href="readyz" { "readyz" }
                    span #stale hidden { "The proxy does not answer: this is old." }
                }
            }
        }
    };
    page.into_string()
}

fn head(picture: &Picture, name: &str) -> Markup {
    let status = &picture.status;
    let ready = picture.not_ready.is_empty();
    html! {
        header {
            h1 { (name) }
            span.badge.good[ready].bad[!ready] { @if ready { "ready" } @else { "not ready" } }
            p { "realpeer " (status.version) ", process " (status.pid) ", up for " (length(status.uptime)) }
        }
    }
}

fn tiles(picture: &Picture) -> Markup {
    let status = &picture.status;
    let count = |kind: Count| status.counts.get(kind.name()).copied().unwrap_or(0);
    let refused: u64 = Count::REFUSALS.iter().map(|kind| count(*kind)).sum();
    let rate = |of: fn(&super::rates::Rate) -> f64| picture.rates.values().map(of).sum::<f64>();
    html! {
        section.tiles {
            (tile("open", number(status.open as u64), "connections and UDP flows"))
            (tile("accepted", number(count(Count::Accepted)), &per_second(rate(|r| r.accepted))))
            (tile("served", number(count(Count::Served)), "reached the backend"))
            (tile("refused", number(refused), &per_second(rate(|r| r.refused))))
            (tile("bans", number(status.bans as u64), "in force"))
            @if let (Some(open), Some(limit)) = (picture.open_files, picture.open_files_limit) {
                (tile("open files", number(open), &format!("of {}", number(limit))))
            }
        }
    }
}

fn tile(name: &str, value: String, below: &str) -> Markup {
    html! {
        div { h2 { (name) } strong data-count=(name) { (value) } small { (below) } }
    }
}

fn notes(title: &str, kind: &str, notes: &[String]) -> Markup {
    html! {
        @if !notes.is_empty() {
            section.notes.(kind) {
                h2 { (title) }
                ul { @for note in notes { li { (note) } } }
            }
        }
    }
}

fn crowdsec(picture: &Picture) -> Markup {
    let told = picture.status.crowdsec.iter();
    let words: Vec<_> = told.map(|told| told.words.clone()).collect();
    notes("CrowdSec", "hint", &words)
}

fn older(picture: &Picture) -> Markup {
    let words = |older| format!("process {}", control::older_words(older));
    let older: Vec<_> = picture.status.older.iter().map(words).collect();
    notes("Older processes that still carry sessions", "hint", &older)
}

fn listeners(picture: &Picture) -> Markup {
    html! {
        section {
            h2 { "Listeners" }
            div.wide {
                table {
                    thead { tr {
                        th { "listener" } th { "address" } th { "state" }
                        th.number { "open" } th.number { "accepted" } th.number { "per second" }
                        th.number { "served" } th.number { "refused" }
                        th.number { "up" } th.number { "down" }
                    } }
                    tbody { @for listener in &picture.status.listeners { (row(picture, listener)) } }
                }
            }
        }
    }
}

fn row(picture: &Picture, listener: &Listener) -> Markup {
    let count = |kind: Count| listener.counts.get(kind.name()).copied().unwrap_or(0);
    let reasons: Vec<_> = Count::REFUSALS
        .iter()
        .map(|kind| (kind.name(), count(*kind)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let refused: u64 = reasons.iter().map(|(_, count)| count).sum();
    let address = listener.listen.first().map(ToString::to_string);
    let label = listener.name.clone().or(address).unwrap_or_default();
    let rate = picture.rates.get(&label).copied().unwrap_or_default();
    html! {
        tr {
            td { b { (listener.name.as_deref().unwrap_or("–")) } }
            td.address { @for address in &listener.listen { div { (address) } } small { (listener.protocol) } }
            td { span.badge.good[listener.accepting].bad[!listener.accepting] {
                @if listener.accepting { "accepting" } @else { "drained" }
            } }
            td.number { (number(listener.open as u64)) }
            td.number { (number(count(Count::Accepted))) }
            td.number { (format!("{:.1}", rate.accepted)) }
            td.number { (number(count(Count::Served))) }
            td.number { (number(refused)) }
            td.number { (bytes(count(Count::BytesUp))) }
            td.number { (bytes(count(Count::BytesDown))) }
        }
        @if !reasons.is_empty() {
            tr.reasons { td colspan="10" {
                "refused: "
                @for (reason, count) in reasons { span.reason { (reason) " " b { (number(count)) } } " " }
            } }
        }
    }
}

fn clients(picture: &Picture) -> Markup {
    html! {
        section {
            h2 { "Busiest clients" }
            @if picture.clients.is_empty() { p.none { "Nobody is connected." } } @else {
                div.wide { table {
                    thead { tr { th { "client" } th.number { "open" } th.number { "oldest" } } }
                    tbody { @for client in &picture.clients {
                        tr {
                            td.address { (client.address) }
                            td.number { (number(client.open as u64)) }
                            td.number { (length(client.oldest)) }
                        }
                    } }
                } }
            }
        }
    }
}

fn newest_bans(picture: &Picture) -> Markup {
    let now = bans::now();
    let left = |ban: &Ban| match ban.until {
        Some(until) => length(until.saturating_sub(now)),
        None => "forever".to_owned(),
    };
    html! {
        section {
            h2 { "Newest bans" }
            @if picture.newest_bans.is_empty() { p.none { "Nobody is banned." } } @else {
                div.wide { table {
                    thead { tr { th { "client" } th { "reason" } th { "listener" } th.number { "ends in" } } }
                    tbody { @for ban in &picture.newest_bans {
                        tr {
                            td.address { (ban.network) }
                            td.text { (ban.reason) }
                            td { (ban.listener.as_deref().unwrap_or("all")) }
                            td.number { (left(ban)) }
                        }
                    } }
                } }
            }
        }
    }
}

/// With a thin space between the thousands.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn per_second(rate: f64) -> String {
    format!("{rate:.1} per second")
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "B" => format!("{count} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// The two largest units of a time in seconds.
fn length(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size);
    let Some(first) = first else {
        return "0 s".to_owned();
    };
    let (size, unit) = units[first];
    let mut text = format!("{} {unit}", seconds / size);
    if let Some((smaller, unit)) = units.get(first + 1)
        && seconds % size / smaller > 0
    {
        text += &format!(" {} {unit}", seconds % size / smaller);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let numbers = [0, 999, 1000, 1_234_567].map(number);
        assert_eq!(
            numbers,
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        let sizes = [0, 1023, 1024, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "16777216.0 TiB"]
        );
        let lengths = [0, 59, 60, 61, 3600, 90_000].map(length);
        assert_eq!(
            lengths,
            ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"]
        );
    }
}
