//! The tests: which load, before which backend, and which figures come of it.

use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;

use crate::load::{self, Direction, Done, Flows};
use crate::peers::Peer;
use crate::run::{Run, Stage};
use crate::usage::Usage;

/// Connections of the test `idle`: as many as a proxy with six descriptors each can carry.
const IDLE: usize = 3_000;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Test {
    Up,
    Down,
    Ping,
    Ping1,
    Ping16k,
    Churn,
    Idle,
    Udp,
    Udp1k,
    Reload,
    Upgrade,
}

/// Something measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// What, and in which unit.
    pub name: &'static str,
    pub value: f64,
    /// More is better; else less.
    pub more_is_better: bool,
}

fn less(name: &'static str, value: f64) -> Figure {
    Figure {
        name,
        value,
        more_is_better: false,
    }
}

fn more(name: &'static str, value: f64) -> Figure {
    Figure {
        name,
        value,
        more_is_better: true,
    }
}

impl Test {
    /// Whether it is about datagrams.
    pub fn is_udp(self) -> bool {
        matches!(self, Test::Udp | Test::Udp1k)
    }

    /// What its rows in the table are called.
    pub fn title(self) -> &'static str {
        match self {
            Test::Up => "bulk up, 2 connections",
            Test::Down => "bulk down, 2 connections",
            Test::Ping => "6 B to and fro, 50 connections",
            Test::Ping1 => "6 B to and fro, 1 connection",
            Test::Ping16k => "16 KiB to and fro, 50 connections",
            Test::Churn => "short connections, 8 at a time",
            Test::Idle => "idle connections",
            Test::Udp => "datagrams of 64 B, 16 flows",
            Test::Udp1k => "datagrams of 1,200 B, 16 flows",
            Test::Reload => "a reload under load",
            Test::Upgrade => "a new process under load",
        }
    }

    /// Runs it once with a proxy of its own.
    pub fn run(self, stage: &Stage, peer: &Peer, secs: u64) -> Vec<Figure> {
        match self {
            Test::Up => bulk(&Run::start(stage, peer, "sink"), Direction::Up, secs),
            Test::Down => bulk(&Run::start(stage, peer, "source"), Direction::Down, secs),
            Test::Ping => ping(&Run::start(stage, peer, "echo"), 50, 6, secs),
            Test::Ping1 => ping(&Run::start(stage, peer, "echo"), 1, 6, secs),
            Test::Ping16k => ping(&Run::start(stage, peer, "echo"), 50, 16 << 10, secs),
            Test::Churn => churn(&Run::start(stage, peer, "echo"), secs),
            Test::Idle => idle(&Run::start(stage, peer, "echo")),
            Test::Udp => datagrams(&Run::start(stage, peer, "udp"), 64, secs),
            Test::Udp1k => datagrams(&Run::start(stage, peer, "udp"), 1_200, secs),
            Test::Reload | Test::Upgrade if !peer.reloads() => Vec::new(),
            Test::Reload => pauses(&Run::start(stage, peer, "echo"), peer.reload(), secs),
            Test::Upgrade => {
                let run = Run::start(stage, peer, "echo");
                let figures = pauses(&run, peer.upgrade(), secs);
                run.end_successor();
                figures
            }
        }
    }
}

fn bulk(run: &Run, direction: Direction, secs: u64) -> Vec<Figure> {
    let (done, cpu) = loaded(run, || load::bulk(run, direction, 2, secs));
    let gigabytes = done.units as f64 / 1e9;
    let mut figures = vec![more("Gbit/s", done.rate() * 8.0 / 1e9)];
    figures.extend(cpu.map(|cpu| less("CPU ms/GB", cpu * 1e3 / gigabytes)));
    figures
}

fn ping(run: &Run, connections: usize, size: usize, secs: u64) -> Vec<Figure> {
    let (mut done, cpu) = loaded(run, || {
        let streams = load::open(run, connections);
        load::ping(streams, connections, size, secs)
    });
    let mut figures = vec![
        more("messages/s", done.rate()),
        less("median, µs", done.percentile(0.5)),
        less("99%, µs", done.percentile(0.99)),
    ];
    figures.extend(cpu.map(|cpu| less("CPU µs/message", cpu * 1e6 / done.units as f64)));
    figures
}

fn churn(run: &Run, secs: u64) -> Vec<Figure> {
    let (mut done, cpu) = loaded(run, || load::churn(run, 8, secs));
    let mut figures = vec![
        more("connections/s", done.rate()),
        less("median, µs", done.percentile(0.5)),
        less("99%, µs", done.percentile(0.99)),
    ];
    figures.extend(cpu.map(|cpu| less("CPU µs/connection", cpu * 1e6 / done.units as f64)));
    figures
}

fn idle(run: &Run) -> Vec<Figure> {
    let before = run.usage();
    let open = load::open(run, IDLE);
    let (Some(before), Some(after)) = (before, run.usage()) else {
        return Vec::new();
    };
    let count = open.len() as f64;
    vec![
        more("connections open", count),
        less("KiB/connection", (after.memory - before.memory) / count),
        less(
            "descriptors/connection",
            (after.descriptors - before.descriptors) / count,
        ),
    ]
}

fn datagrams(run: &Run, size: usize, secs: u64) -> Vec<Figure> {
    let mut flows = Flows::new(run, 16, size);
    let (done, cpu) = loaded(run, || load::datagrams(&mut flows, secs));
    let mut figures = vec![more("datagrams/s", done.rate())];
    figures.extend(cpu.map(|cpu| less("CPU µs/datagram", cpu * 1e6 / done.units as f64)));
    figures
}

/// The longest that a connection and a message take while the proxy gets `order` once. Ten
/// connections stay open, and eight clients open others one after the other.
fn pauses(run: &Run, order: Signal, secs: u64) -> Vec<Figure> {
    let streams = load::open(run, 10);
    let (mut short, mut messages) = thread::scope(|scope| {
        let short = scope.spawn(|| load::churn(run, 8, secs));
        let messages = scope.spawn(|| load::ping(streams, 10, 6, secs));
        thread::sleep(Duration::from_secs(secs) / 2);
        run.signal(order);
        let short = short.join().expect("a client does not panic");
        (short, messages.join().expect("a client does not panic"))
    });
    vec![
        less("longest connection, ms", short.percentile(1.0) / 1e3),
        less("longest message, ms", messages.percentile(1.0) / 1e3),
        less("failed", (short.lost + messages.lost) as f64),
    ]
}

/// Runs a load, and says what processor time the proxy took meanwhile.
fn loaded(run: &Run, load: impl FnOnce() -> Done) -> (Done, Option<f64>) {
    let cpu = |usage: Usage| usage.cpu;
    let before = run.usage().map(cpu);
    let done = load();
    let after = run.usage().map(cpu);
    if done.lost > 0 {
        eprintln!(
            "  {} of {} came to nothing",
            done.lost,
            done.units + done.lost
        );
    }
    (
        done,
        after.zip(before).map(|(after, before)| after - before),
    )
}
