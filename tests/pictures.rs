//! The pictures of the README: the chart draws the figures that it is given, and every picture can be
//! read, in light and dark.

#[path = "../benches/compare/chart.rs"]
mod chart;
#[path = "../benches/compare/row.rs"]
mod row;
mod support;

use std::fs;

use row::Row;
use roxmltree::{Document, Node};
use support::chromium::chromium;
use support::{Host, TempDir, repository};

const NAMES: [&str; 4] = ["direct", "realpeer", "HAProxy", "<nginx>"];
const PICTURES: [&str; 2] = ["examples/packet-path.svg", "examples/benchmark.svg"];

fn row(figure: &'static str, more_is_better: bool, medians: [Option<f64>; 4]) -> Row {
    Row {
        test: "a test & more",
        figure,
        more_is_better,
        medians: medians.into(),
    }
}

/// What a panel shows of a proxy: its name, the value's text, the bar's length and its class.
type Bar = (String, String, Option<f64>, String);

fn class<'a>(node: &Node<'a, '_>) -> &'a str {
    node.attribute("class").unwrap_or_default()
}

fn text(node: &Node) -> String {
    node.text().unwrap_or_default().to_owned()
}

/// The heading and the bars of each panel. A bar stands between its name and its value.
fn panels(chart: &str) -> Vec<(String, Vec<Bar>)> {
    let document = Document::parse(chart).expect("well-formed XML");
    let panels = document.descendants().filter(|node| class(node) == "panel");
    let read = |panel: Node| {
        let mut heading = String::new();
        let mut bars: Vec<Bar> = vec![];
        for node in panel.children() {
            match class(&node) {
                "note" => heading = text(&node),
                "name" => bars.push((text(&node), String::new(), None, String::new())),
                drawn => {
                    let bar = bars.last_mut().expect("a name is first");
                    match node.attribute("width") {
                        None => bar.1 = text(&node),
                        Some(width) => bar.2 = width.parse().ok(),
                    }
                    bar.3 += drawn;
                    bar.3.push(' ');
                }
            }
        }
        (heading, bars)
    };
    panels.map(read).collect()
}

#[test]
fn the_chart_draws_the_figures_that_it_is_given() {
    let rows = [
        row("Gbit/s", true, [Some(90.0), Some(40.0), Some(20.0), None]),
        row("CPU", false, [None, Some(12.34), Some(6.17), Some(24.68)]),
        row("failed", false, [None, Some(0.0), Some(0.0), Some(0.0)]),
    ];
    let chart = chart::draw(&NAMES, &rows, &["on a <machine>".into()]);
    let shown = panels(&chart);
    let headings: Vec<&str> = shown.iter().map(|(heading, _)| heading.as_str()).collect();
    let expected =
        ["Gbit/s (more", "CPU (less", "failed (less"].map(|one| format!("{one} is better)"));
    assert_eq!(headings, expected);
    let bar = |name: &str, value: &str, length: Option<f64>, class: &str| -> Bar {
        (name.into(), value.into(), length, class.into())
    };
    // The direct way is no proxy; what a proxy cannot do has no bar.
    assert_eq!(
        shown[0].1,
        [
            bar("realpeer", "40.0", Some(84.0), "bar wins value best "),
            bar("HAProxy", "20.0", Some(42.0), "bar other value "),
            bar("<nginx>", "–", None, "value note "),
        ]
    );
    // Where another one is better, it says so.
    assert_eq!(
        shown[1].1,
        [
            bar("realpeer", "12.3", Some(42.0), "bar loses value "),
            bar("HAProxy", "6.17", Some(21.0), "bar other value best "),
            bar("<nginx>", "24.7", Some(84.0), "bar other value "),
        ]
    );
    assert!(shown[2].1.iter().all(|bar| bar.2 == Some(0.0)), "{shown:?}");
    let document = Document::parse(&chart).expect("well-formed XML");
    let texts: Vec<String> = document.descendants().map(|node| text(&node)).collect();
    for text in ["a test & more", "on a <machine>"] {
        assert!(texts.iter().any(|one| one == text), "{texts:?}");
    }
}

/// Bars of the shipped chart are as long as the figures beside them say, and none is missing.
#[test]
fn the_shipped_chart_is_true_to_its_figures() {
    let file = fs::read_to_string(repository("examples/benchmark.svg")).expect("the chart");
    let panels = panels(&file);
    assert!(panels.len() > 15, "{}", panels.len());
    for (heading, bars) in panels {
        let proxies: Vec<&str> = bars.iter().map(|bar| bar.0.as_str()).collect();
        let all = ["realpeer", "go-mmproxy", "mmproxy-rs", "haproxy", "nginx"];
        assert_eq!(proxies, all, "{heading}");
        let figures: Vec<(f64, f64)> = bars
            .iter()
            .filter_map(|bar| Some((bar.1.parse().ok()?, bar.2?)))
            .collect();
        let largest = figures.iter().map(|figure| figure.0).fold(0.0, f64::max);
        for (value, length) in figures {
            // The figures have three digits.
            let drawn = length / 84.0 * largest;
            assert!(
                (drawn - value).abs() <= largest / 100.0,
                "{heading}: {value} {drawn}"
            );
        }
    }
}

/// In a browser: no text leaves the picture or covers another one, and each scheme has its colours.
#[test]
fn every_picture_can_be_read() {
    for picture in PICTURES {
        let svg = fs::read_to_string(repository(picture)).expect(picture);
        Document::parse(&svg).unwrap_or_else(|e| panic!("{picture}: {e}"));
        for dark in [false, true] {
            let faults = look(&svg, dark);
            assert_eq!(faults, "none", "{picture}, dark: {dark}");
        }
    }
}

/// What is wrong with the picture in light or dark.
fn look(svg: &str, dark: bool) -> String {
    let (host, files) = (Host::new("reader"), TempDir::new());
    let script = r#"
        const boxes = [...document.querySelectorAll('text')].map(text =>
            [text.textContent, text.getBoundingClientRect()]);
        const all = document.querySelector('svg').getBoundingClientRect();
        const faults = [];
        for (const [i, [text, box]] of boxes.entries()) {
            if (box.left < all.left || box.right > all.right || box.bottom > all.bottom)
                faults.push(`${text} leaves the picture`);
            for (const [other, its] of boxes.slice(i + 1))
                if (box.left < its.right && its.left < box.right &&
                    box.top + 2 < its.bottom - 2 && its.top + 2 < box.bottom - 2)
                    faults.push(`${text} covers ${other}`);
        }
        const light = element => {
            const parts = getComputedStyle(element).fill.match(/\d+/g);
            return parts[0] * .3 + parts[1] * .6 + parts[2] * .1;
        };
        const ground = light(document.querySelector('svg > rect'));
        if ((ground < 128) !== DARK) faults.push(`the ground is ${ground}`);
        for (const text of document.querySelectorAll('text'))
            if (Math.abs(light(text) - ground) < 90) faults.push(`${text.textContent} is faint`);
        document.title = boxes.length > 10 ? faults.join('; ') || 'none' : 'no text';
    "#;
    let script = script.replace("DARK", &dark.to_string());
    let page = format!("<!DOCTYPE html><meta charset=utf-8>{svg}<script>{script}</script>");
    let page = format!("file://{}", files.file("page.html", &page));
    // 0 is dark, 1 is light.
    let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
    let output = chromium(&host, &files, &[&scheme, "--dump-dom", &page]).output();
    let output = output.expect("chromium is there");
    let said = String::from_utf8_lossy(&output.stdout);
    let title = said
        .split_once("<title>")
        .map(|(_, rest)| rest.split("</title>"));
    let title = title.and_then(|mut parts| parts.next());
    title
        .unwrap_or_else(|| panic!("no title: {said}"))
        .to_owned()
}
