//! The rows as a chart in SVG: bars from zero, a panel for each figure, every proxy in each. Elements
//! are written by maud, as on the status page; it escapes what it is given.

use maud::{Markup, html};

use crate::row::{DIRECT, Row, cell};

/// Panels in a line of the chart.
const COLUMNS: usize = 4;
const PANEL_WIDTH: f64 = 216.0;
/// Where bars begin, behind the names, and how long the longest is.
const BAR_LEFT: f64 = 76.0;
const BAR_LONGEST: f64 = 84.0;
const BAR_PITCH: f64 = 15.0;
const BAR_HEIGHT: f64 = 10.0;
const MARGIN: f64 = 12.0;
/// From a line's top to its first bar: the test's name, the figure's name.
const HEADINGS: f64 = 42.0;
/// What stands above the panels and below them.
const LEGEND: f64 = 34.0;
const NOTE: f64 = 17.0;

/// By the reader's light or dark scheme, on a ground of its own.
const STYLE: &str = r#"
text { font: 11px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.ground { fill: #ffffff; stroke: #d0d7de; }
.test { font-size: 13px; font-weight: 600; }
.note { fill: #59636e; }
.name { text-anchor: end; }
.best { font-weight: 700; }
.other { fill: #afb8c1; }
.wins { fill: #0969da; }
.loses { fill: #d4691e; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .ground { fill: #0d1117; stroke: #3d444d; }
  .note { fill: #b7bdc8; }
  .other { fill: #656c76; }
  .wins { fill: #4493f8; }
  .loses { fill: #e2803a; }
}
"#;

/// A chart of these rows, in the order of `names`, with `notes` below. The direct way is left out: it is
/// no proxy.
pub fn draw(names: &[&str], rows: &[Row], notes: &[String]) -> String {
    let tests: Vec<&[Row]> = rows.chunk_by(|one, next| one.test == next.test).collect();
    let proxies = names.iter().filter(|name| **name != DIRECT).count();
    let line = HEADINGS + proxies as f64 * BAR_PITCH + 10.0;
    let (places, lines) = places(&tests);
    let width = COLUMNS as f64 * PANEL_WIDTH + 2.0 * MARGIN;
    let below = LEGEND + lines as f64 * line;
    let height = below + notes.len() as f64 * NOTE + MARGIN;
    let at = |column: usize, row: usize| {
        let x = MARGIN + column as f64 * PANEL_WIDTH;
        translate(x, LEGEND + row as f64 * line)
    };
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } width=(width)
            height=(height) role="img" aria-label="realpeer beside other proxies, as bars" {
            style { (STYLE) }
            rect class="ground" x="0.5" y="0.5" width=(width - 1.0) height=(height - 1.0) rx="6" {}
            (legend())
            @for (test, (column, row)) in tests.iter().zip(places) {
                g transform=(at(column, row)) {
                    text class="test" y="14" { (test[0].test) }
                    @for (place, figure) in test.iter().enumerate() {
                        g class="panel" transform=(translate(place as f64 * PANEL_WIDTH, 0.0)) {
                            (panel(names, figure))
                        }
                    }
                }
            }
            @for (number, note) in notes.iter().enumerate() {
                text class="note" x=(MARGIN) y=(below + number as f64 * NOTE + 8.0) { (note) }
            }
        }
    }
    .into_string()
}

/// Column and line of each test, side by side as far as they fit, and the number of lines.
fn places(tests: &[&[Row]]) -> (Vec<(usize, usize)>, usize) {
    let (mut column, mut line) = (0, 0);
    let places = tests.iter().map(|test| {
        if column > 0 && column + test.len() > COLUMNS {
            (column, line) = (0, line + 1);
        }
        column += test.len();
        (column - test.len(), line)
    });
    (places.collect(), line + 1)
}

fn legend() -> Markup {
    let entries = [
        ("wins", "realpeer, the best or level with it"),
        ("loses", "realpeer, behind the best other"),
        ("other", "other proxies"),
    ];
    html! {
        @for (number, (class, text)) in entries.into_iter().enumerate() {
            g transform=(translate(MARGIN + number as f64 * PANEL_WIDTH, 12.0)) {
                rect class=(class) width="10" height="10" {}
                text x="16" y="9" { (text) }
            }
        }
        text x=(MARGIN + 3.0 * PANEL_WIDTH) y="21" class="best" { "bold: the best" }
    }
}

/// A bar for each proxy, from zero, the longest for the largest figure.
fn panel(names: &[&str], row: &Row) -> Markup {
    let better = if row.more_is_better { "more" } else { "less" };
    let proxies = names.iter().zip(&row.medians);
    let proxies: Vec<_> = proxies.filter(|(name, _)| **name != DIRECT).collect();
    let values = || proxies.iter().filter_map(|(_, median)| **median);
    let largest = values().fold(f64::MIN_POSITIVE, f64::max);
    let smallest = values().fold(f64::INFINITY, f64::min);
    let best = if row.more_is_better {
        largest
    } else {
        smallest
    };
    let ours = if row.loses(names) { "loses" } else { "wins" };
    html! {
        text class="note" y="31" { (row.figure) " (" (better) " is better)" }
        @for (number, (name, median)) in proxies.iter().enumerate() {
            @let y = HEADINGS + number as f64 * BAR_PITCH;
            text class="name" x=(BAR_LEFT - 5.0) y=(y + 9.0) { (name) }
            @if let Some(value) = median {
                @let length = value / largest * BAR_LONGEST;
                @let class = if **name == crate::row::OURS { ours } else { "other" };
                rect class={ "bar " (class) } x=(BAR_LEFT) y=(y) width={ (format!("{length:.2}")) }
                    height=(BAR_HEIGHT) {}
                text class=(if *value == best { "value best" } else { "value" })
                    x={ (format!("{:.2}", BAR_LEFT + length + 4.0)) } y=(y + 9.0) { (cell(*value)) }
            } @else {
                text class="value note" x=(BAR_LEFT) y=(y + 9.0) { "–" }
            }
        }
    }
}

fn translate(x: f64, y: f64) -> String {
    format!("translate({x} {y})")
}
