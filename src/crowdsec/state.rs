//! How the reading goes, for those who show it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bans::{Cause, Decisions, UnixSeconds, now};
use crate::config::Crowdsec;

/// Causes that are told apart; an engine has hundreds.
const MOST_CAUSES: usize = 20_000;

/// Kinds of decisions that are not bans, told apart.
const MOST_KINDS: usize = 32;

/// Bytes of a scenario, an origin and other words of the engine.
const LONGEST: usize = 256;

/// What is known of the reading of decisions.
#[derive(Debug)]
pub struct State {
    url: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_update: Option<UnixSeconds>,
    failures: u64,
    /// Why the last attempt failed.
    trouble: Option<String>,
    /// Decisions that are no bans of addresses, by their type or scope.
    ignored: BTreeMap<String, u64>,
    causes: HashMap<(String, String), Arc<Cause>>,
}

/// The state at a moment, as `realpeer ctl status` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// All of it in a sentence.
    pub words: String,
    /// The engine's local API.
    pub url: String,
    /// Decisions in force, by their origin.
    pub decisions: BTreeMap<String, u64>,
    /// Clients refused because of them since the start, by their origin.
    pub refused: BTreeMap<String, u64>,
    /// When an answer was last read to its end, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<UnixSeconds>,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Why the last attempt failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Decisions that are no bans of addresses, by their type or scope, since the start.
    pub ignored: BTreeMap<String, u64>,
}

impl State {
    /// Nothing read yet.
    pub fn of(config: &Crowdsec) -> Arc<State> {
        Arc::new(State {
            url: config.url.clone(),
            inner: Mutex::default(),
        })
    }

    /// The state now, with what it says of these decisions.
    pub fn told(&self, decisions: &Decisions) -> Told {
        let inner = self.inner();
        let mut told = Told {
            words: self.words(&inner, decisions.len()),
            url: self.url.clone(),
            last_update: inner.last_update,
            failures: inner.failures,
            trouble: inner.trouble.clone(),
            ignored: inner.ignored.clone(),
            ..Told::default()
        };
        for cause in inner.causes.values() {
            let (active, refused) = cause.counts();
            *told.decisions.entry(origin(cause)).or_default() += active;
            *told.refused.entry(origin(cause)).or_default() += refused;
        }
        told
    }

    fn words(&self, inner: &Inner, count: usize) -> String {
        let age = inner.last_update.map(|then| now().saturating_sub(then));
        match (&inner.trouble, age) {
            (None, Some(age)) => format!("{count} decisions of {}, updated {age}s ago", self.url),
            (None, None) => format!("no answer of {} yet", self.url),
            (Some(trouble), Some(age)) => {
                format!("{trouble}; the {count} decisions of {age}s ago hold until their own end")
            }
            (Some(trouble), None) => trouble.clone(),
        }
    }

    /// Notes an answer that was read to its end; tells whether the attempt before had failed.
    pub(super) fn succeeded(&self) -> bool {
        let mut inner = self.inner();
        inner.last_update = Some(now());
        inner.trouble.take().is_some()
    }

    /// Notes a failure; tells whether it is another one than before.
    pub(super) fn failed(&self, why: &str) -> bool {
        let mut inner = self.inner();
        inner.failures += 1;
        let is_new = inner.trouble.as_deref() != Some(why);
        inner.trouble = Some(why.to_owned());
        is_new
    }

    /// Counts a decision that is no ban of an address.
    pub(super) fn ignored(&self, kind: &str) {
        let mut inner = self.inner();
        let kind = match inner.ignored.len() < MOST_KINDS || inner.ignored.contains_key(kind) {
            true => short(kind),
            false => "other",
        };
        *inner.ignored.entry(kind.to_owned()).or_default() += 1;
    }

    /// The cause of these words, one for all its decisions.
    pub(super) fn cause(&self, origin: &str, scenario: &str) -> Arc<Cause> {
        let mut inner = self.inner();
        let key = (short(origin).to_owned(), short(scenario).to_owned());
        if let Some(known) = inner.causes.get(&key) {
            return Arc::clone(known);
        }
        if inner.causes.len() >= MOST_CAUSES {
            inner.causes.retain(|_, cause| cause.counts().0 > 0);
        }
        let key = match inner.causes.len() < MOST_CAUSES {
            true => key,
            false => ("other".to_owned(), "other".to_owned()),
        };
        let new = || Arc::new(Cause::new(&key.0, &key.1));
        Arc::clone(inner.causes.entry(key.clone()).or_insert_with(new))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list that the engine has subscribed to is known by its name, which stands in the scenario.
fn origin(cause: &Cause) -> String {
    match &*cause.origin {
        "lists" => format!("lists:{}", cause.scenario),
        origin => origin.to_owned(),
    }
}

fn short(text: &str) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=LONGEST.min(text.len())).rev().find(fits);
    &text[..end.unwrap_or(0)]
}
