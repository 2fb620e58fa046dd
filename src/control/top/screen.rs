//! Draws what is known: the proxy, its listeners, the busiest clients, refusals by reason.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table, TableState};

use super::feed::Snapshot;
use super::state::{Deed, Mode, State};
use crate::control::protocol::{Listener, Sort};
use crate::control::table::{addresses, duration};
use crate::stats::Count;

/// Where listeners have room for all columns.
const WIDE: u16 = 70;

/// Where clients, which may have long addresses, and refusals have room side by side.
const VERY_WIDE: u16 = 100;

const HELP: &str = "q quit  up/down select  k kill  b ban  / filter  sort: o open n new a age";

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws the whole screen. What comes from outside has no control characters: ratatui leaves them
/// out of a cell.
pub fn draw(frame: &mut Frame<'_>, state: &State, colours: bool) {
    let alarm = match colours {
        true => BOLD.fg(Color::Red),
        false => BOLD,
    };
    let listeners = state
        .now
        .as_ref()
        .map_or(0, |now| now.status.listeners.len());
    let most = (frame.area().height / 3).max(2);
    let [head, top, _, rest, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length((listeners as u16).saturating_add(1).min(most)),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(header(state, alarm), head);
    frame.render_widget(footer(state, alarm), foot);
    let Some(now) = &state.now else {
        return;
    };
    let [clients_at, refusals_at] = match rest.width >= VERY_WIDE {
        true => Layout::horizontal([Constraint::Fill(3), Constraint::Length(34)])
            .spacing(2)
            .areas(rest),
        false => Layout::vertical([Constraint::Fill(2), Constraint::Fill(1)]).areas(rest),
    };
    frame.render_widget(listener_table(state, now, top), top);
    let mut selection = TableState::new().with_selected(state.selection());
    frame.render_stateful_widget(client_table(state, now), clients_at, &mut selection);
    frame.render_widget(refusal_table(state, now), refusals_at);
}

fn header<'a>(state: &'a State, alarm: Style) -> Line<'a> {
    match (&state.gone, &state.now) {
        (Some(why), _) => Line::styled(format!("{why}; trying again"), alarm),
        (None, None) => Line::raw("asking the proxy"),
        (None, Some(now)) => {
            let status = &now.status;
            let name = status.name.as_deref().unwrap_or("");
            Line::styled(
                format!(
                    "realpeer {name} pid {}  up {}  open {}  bans {}",
                    status.pid,
                    duration(status.uptime),
                    status.open,
                    status.bans
                ),
                BOLD,
            )
        }
    }
}

fn footer<'a>(state: &'a State, alarm: Style) -> Line<'a> {
    match &state.mode {
        Mode::Filtering => Line::raw(format!("filter: {}_", state.view.filter)),
        Mode::BanTime(client, text) => Line::raw(format!(
            "ban {client} for (empty: forever): {text}_ {}",
            state.message
        )),
        Mode::Sure(deed) => Line::styled(format!("{} y/n", question(deed)), alarm),
        Mode::Looking if !state.message.is_empty() => Line::raw(&state.message),
        Mode::Looking => Line::raw(HELP),
    }
}

fn question(deed: &Deed) -> String {
    match deed {
        Deed::Kill(client) => format!("end all sessions of {client}?"),
        Deed::Ban(client, None) => format!("ban {client} forever?"),
        Deed::Ban(client, Some(time)) => format!("ban {client} for {time:?}?"),
    }
}

fn listener_table<'a>(state: &'a State, now: &'a Snapshot, area: Rect) -> Table<'a> {
    let wide = area.width >= WIDE;
    let filter = &state.view.filter;
    let shown = now.status.listeners.iter().filter(|listener| {
        let name = listener.name.as_deref().unwrap_or_default();
        // A filter for clients leaves all listeners.
        !name.is_empty() && name.contains(filter) || !named(now, filter)
    });
    let rows = shown.map(|listener| {
        let count = |count: Count| move |of: &Listener| of.count(count);
        let refused = |of: &Listener| Count::REFUSALS.iter().map(|kind| of.count(*kind)).sum();
        let rate = |count: &dyn Fn(&Listener) -> u64| state.rate(listener, count);
        let name = listener.name.clone().unwrap_or_else(|| "-".to_owned());
        let mut cells = vec![name];
        if wide {
            let state = if listener.accepting {
                "open"
            } else {
                "drained"
            };
            cells.extend([
                addresses(listener),
                listener.protocol.clone(),
                state.to_owned(),
            ]);
        }
        cells.extend([
            listener.open.to_string(),
            number(rate(&count(Count::Accepted))),
            number(rate(&count(Count::BytesUp))),
            number(rate(&count(Count::BytesDown))),
            number(rate(&refused)),
        ]);
        Row::new(cells)
    });
    let (head, widths) = match wide {
        true => (
            &[
                "LISTENER",
                "ADDRESS",
                "PROTO",
                "STATE",
                "OPEN",
                "NEW/s",
                "UP/s",
                "DOWN/s",
                "REFUSED/s",
            ][..],
            &[10, 14, 5, 7, 6, 6, 6, 6, 9][..],
        ),
        false => (
            &["LISTENER", "OPEN", "NEW/s", "UP/s", "DOWN/s", "REFUSED/s"][..],
            &[8, 5, 6, 6, 6, 9][..],
        ),
    };
    table(head, widths, rows)
}

/// Whether the filter is a part of a listener's name.
fn named(now: &Snapshot, filter: &str) -> bool {
    let mut names = now
        .status
        .listeners
        .iter()
        .filter_map(|l| l.name.as_deref());
    names.any(|name| name.contains(filter))
}

fn client_table<'a>(state: &'a State, now: &'a Snapshot) -> Table<'a> {
    let rows = now.clients.iter().map(|client| {
        Row::new([
            client.address.to_string(),
            client.open.to_string(),
            client.new.to_string(),
            duration(client.oldest),
            client.listeners.join(","),
        ])
    });
    let mark = |sort, text: &str| match sort == state.view.sort {
        true => format!("{text}*"),
        false => text.to_owned(),
    };
    let filter = match state.view.filter.as_str() {
        "" => String::new(),
        filter => format!(" /{filter}"),
    };
    let head = [
        format!("CLIENT ({}){filter}", now.all),
        mark(Sort::Open, "OPEN"),
        mark(Sort::New, "NEW"),
        mark(Sort::Age, "AGE"),
        "AT".to_owned(),
    ];
    let head = head.each_ref().map(String::as_str);
    table(&head, &[15, 6, 5, 7, 4], rows)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

fn refusal_table<'a>(state: &'a State, now: &'a Snapshot) -> Table<'a> {
    let listeners = &now.status.listeners;
    let sum = |kind: Count| -> u64 { listeners.iter().map(|of| of.count(kind)).sum() };
    let mut kinds: Vec<(Count, u64)> = Count::REFUSALS
        .iter()
        .map(|kind| (*kind, sum(*kind)))
        .filter(|(_, count)| *count > 0)
        .collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rows = kinds.into_iter().map(|(kind, count)| {
        let rates = listeners
            .iter()
            .filter_map(|listener| state.rate(listener, &|of| of.count(kind)));
        let rate = rates.reduce(|sum, rate| sum + rate);
        Row::new([kind.name().to_owned(), count.to_string(), number(rate)])
    });
    table(&["REFUSED", "COUNT", "/s"], &[18, 8, 6], rows)
}

/// The first column takes what room there is.
fn table<'a>(head: &[&str], widths: &[u16], rows: impl Iterator<Item = Row<'a>>) -> Table<'a> {
    let head = Row::new(head.iter().map(|cell| (*cell).to_owned())).style(BOLD);
    let widths = widths.iter().enumerate().map(|(at, width)| match at {
        0 => Constraint::Min(*width),
        _ => Constraint::Length(*width),
    });
    Table::new(rows, widths).header(head)
}

/// `12`, `1.5k`, `3.4M`; `-` if it is not known yet.
fn number(value: Option<f64>) -> String {
    let Some(mut value) = value else {
        return "-".to_owned();
    };
    let mut unit = "";
    for next in ["k", "M", "G", "T"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    match value < 10.0 && value.fract() > 0.0 {
        true => format!("{value:.1}{unit}"),
        false => format!("{value:.0}{unit}"),
    }
}
