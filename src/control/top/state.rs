//! What the screen knows, and what a key does.

use std::net::IpAddr;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::feed::{self, News, Snapshot, View};
use crate::config::timeout;
use crate::control::protocol::{Listener, Network, Request, Sort};

/// What a ban lasts unless the user says otherwise.
const USUAL_BAN: &str = "1h";

/// Characters that may be typed.
const LONGEST_INPUT: usize = 60;

/// All that is shown.
pub struct State {
    /// The proxy now, once it has answered.
    pub now: Option<Snapshot>,
    before: Option<Snapshot>,
    /// Which clients are shown.
    pub view: View,
    selected: Option<IpAddr>,
    /// What the keys mean.
    pub mode: Mode,
    /// What came of the last thing that was done.
    pub message: String,
    /// Why there is no proxy for now.
    pub gone: Option<String>,
}

/// What the keys mean.
pub enum Mode {
    /// Commands.
    Looking,
    /// The filter is typed.
    Filtering,
    /// How long a ban is to last is typed.
    BanTime(IpAddr, String),
    /// Yes or no.
    Sure(Deed),
}

/// What is done at a yes.
#[derive(Clone)]
pub enum Deed {
    /// Its sessions end.
    Kill(IpAddr),
    /// It is banned, for ever without a time.
    Ban(IpAddr, Option<Duration>),
}

/// What a key wants of others.
pub enum Order {
    /// The end.
    Quit,
    /// Of the proxy.
    Ask(feed::Order),
}

impl State {
    /// Nothing is known yet.
    pub fn new() -> State {
        State {
            now: None,
            before: None,
            view: View::default(),
            selected: None,
            mode: Mode::Looking,
            message: String::new(),
            gone: None,
        }
    }

    /// Takes in what the proxy says.
    pub fn hear(&mut self, news: News) {
        match news {
            News::Snapshot(snapshot) => {
                self.gone = None;
                // A look out of turn, after a key, is too short for rates.
                let due = self.before.as_ref().is_none_or(|before| {
                    snapshot.at.duration_since(before.at) > Duration::from_millis(1500)
                });
                let last = self.now.replace(*snapshot);
                if due || self.before.is_none() {
                    self.before = last;
                }
            }
            News::Done(Ok(done)) => self.message = done,
            News::Done(Err(error)) => self.message = format!("not done: {error}"),
            News::Gone(why) => {
                self.gone = Some(why);
                self.before = None;
            }
        }
    }

    /// Which row of the clients is selected.
    pub fn selection(&self) -> Option<usize> {
        let clients = &self.now.as_ref()?.clients;
        let found = clients
            .iter()
            .position(|client| Some(client.address) == self.selected);
        found.or((!clients.is_empty()).then_some(0))
    }

    /// How much a count of a listener grows a second.
    pub fn rate(&self, listener: &Listener, count: &dyn Fn(&Listener) -> u64) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        // After a restart the counts begin anew.
        if now.status.pid != before.status.pid {
            return None;
        }
        let mut earlier = before.status.listeners.iter();
        let earlier = earlier.find(|earlier| {
            (&earlier.name, &earlier.listen, &earlier.protocol)
                == (&listener.name, &listener.listen, &listener.protocol)
        })?;
        let grown = count(listener).saturating_sub(count(earlier));
        Some(grown as f64 / now.at.duration_since(before.at).as_secs_f64())
    }

    /// What a key does.
    pub fn press(&mut self, key: KeyEvent) -> Option<Order> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Order::Quit);
        }
        match std::mem::replace(&mut self.mode, Mode::Looking) {
            Mode::Looking => self.command(key.code),
            Mode::Filtering => self.filter(key.code),
            Mode::BanTime(client, text) => {
                self.ban_time(client, text, key.code);
                None
            }
            Mode::Sure(deed) => self.answer(deed, key.code),
        }
    }

    fn command(&mut self, key: KeyCode) -> Option<Order> {
        self.message.clear();
        match key {
            KeyCode::Char('q') => return Some(Order::Quit),
            KeyCode::Char('o') => return self.sort(Sort::Open),
            KeyCode::Char('n') => return self.sort(Sort::New),
            KeyCode::Char('a') => return self.sort(Sort::Age),
            KeyCode::Char('/') => self.mode = Mode::Filtering,
            KeyCode::Esc => {
                self.view.filter.clear();
                return self.look();
            }
            KeyCode::Up => self.select(-1),
            KeyCode::Down => self.select(1),
            KeyCode::Char('k') => {
                if let Some(client) = self.client() {
                    self.mode = Mode::Sure(Deed::Kill(client));
                }
            }
            KeyCode::Char('b') => {
                if let Some(client) = self.client() {
                    self.mode = Mode::BanTime(client, USUAL_BAN.to_owned());
                }
            }
            _ => {}
        }
        None
    }

    fn sort(&mut self, sort: Sort) -> Option<Order> {
        self.view.sort = sort;
        self.look()
    }

    fn look(&self) -> Option<Order> {
        Some(Order::Ask(feed::Order::Look(self.view.clone())))
    }

    fn client(&self) -> Option<IpAddr> {
        let at = self.selection()?;
        Some(self.now.as_ref()?.clients[at].address)
    }

    fn select(&mut self, step: isize) {
        if let (Some(now), Some(at)) = (&self.now, self.selection()) {
            let last = now.clients.len() - 1;
            self.selected = Some(now.clients[at.saturating_add_signed(step).min(last)].address);
        }
    }

    fn filter(&mut self, key: KeyCode) -> Option<Order> {
        match edited(&mut self.view.filter, key) {
            Typed::Done => return None,
            Typed::Given => self.view.filter.clear(),
            Typed::More => {}
        }
        if key != KeyCode::Esc {
            self.mode = Mode::Filtering;
        }
        self.look()
    }

    fn ban_time(&mut self, client: IpAddr, mut text: String, key: KeyCode) {
        match edited(&mut text, key) {
            Typed::Given => {}
            Typed::More => self.mode = Mode::BanTime(client, text),
            Typed::Done if text.is_empty() => self.mode = Mode::Sure(Deed::Ban(client, None)),
            Typed::Done => match timeout(&text) {
                Ok(time) => self.mode = Mode::Sure(Deed::Ban(client, Some(time))),
                Err(error) => {
                    self.message = error;
                    self.mode = Mode::BanTime(client, text);
                }
            },
        }
    }

    /// Only a yes is a yes.
    fn answer(&mut self, deed: Deed, key: KeyCode) -> Option<Order> {
        if !matches!(key, KeyCode::Char('y' | 'Y')) {
            self.message = "nothing was done".to_owned();
            return None;
        }
        Some(Order::Ask(feed::Order::Do(match deed {
            Deed::Kill(client) => Request::Kill {
                id: None,
                client: Some(Network(client.into())),
            },
            Deed::Ban(client, time) => Request::Ban {
                network: Network(client.into()),
                length: time.map(|time| time.as_secs_f64()),
                reason: "realpeer ctl top".to_owned(),
                listener: None,
                force: false,
            },
        })))
    }
}

enum Typed {
    /// It goes on.
    More,
    /// Enter.
    Done,
    /// Esc: given up.
    Given,
}

fn edited(text: &mut String, key: KeyCode) -> Typed {
    match key {
        KeyCode::Enter => return Typed::Done,
        KeyCode::Esc => return Typed::Given,
        KeyCode::Backspace => _ = text.pop(),
        KeyCode::Char(c) if text.len() < LONGEST_INPUT && !c.is_control() => text.push(c),
        _ => {}
    }
    Typed::More
}
