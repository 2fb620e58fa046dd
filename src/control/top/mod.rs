//! `realpeer ctl top`: a live screen of a running proxy, over the control socket alone.
//!
//! `feed` asks the proxy, on a thread of its own; `state` is what is known and what a key does, and
//! knows no terminal; `screen` draws it.

mod feed;
mod screen;
mod state;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::client::Failure;
use feed::Feed;
use state::State;

/// How long a signal or an answer may wait to be noticed.
const TICK: Duration = Duration::from_millis(50);

/// How long the screen has for an orderly end.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shows the proxy at that socket until the user quits. Fails without a terminal.
pub fn run(path: &Path) -> Result<(), Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::Refused(
            "ctl top needs a terminal: use 'ctl watch' or 'ctl status' in a script".into(),
        ));
    }
    // Before there are other threads, so that all hold them back.
    let ended = ended_by_signal()?;
    let feed = Feed::start(path.to_owned());
    // It also restores the terminal before a panic is told.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, &feed, &ended);
    let restored = ratatui::try_restore();
    Ok(result.and(restored)?)
}

/// Told when a signal wants the end.
fn ended_by_signal() -> io::Result<Arc<AtomicBool>> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block()?;
    let ended = Arc::new(AtomicBool::new(false));
    let telling = Arc::clone(&ended);
    thread::spawn(move || {
        let _ = signals.wait();
        telling.store(true, Ordering::Relaxed);
        // crossterm reads from a terminal that has hung up for ever, and never comes back.
        thread::sleep(PATIENCE);
        let _ = ratatui::try_restore();
        std::process::exit(0);
    });
    Ok(ended)
}

fn show(terminal: &mut DefaultTerminal, feed: &Feed, ended: &AtomicBool) -> io::Result<()> {
    let mut state = State::new();
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut changed = true;
    while !ended.load(Ordering::Relaxed) {
        if changed {
            terminal.draw(|frame| screen::draw(frame, &state, colours))?;
        }
        changed = event::poll(TICK)?;
        if changed
            && let Event::Key(key) = event::read()?
            && let Some(order) = state.press(key)
        {
            match order {
                state::Order::Quit => return Ok(()),
                state::Order::Ask(order) => feed.order(order),
            }
        }
        while let Some(news) = feed.news() {
            state.hear(news);
            changed = true;
        }
    }
    Ok(())
}
