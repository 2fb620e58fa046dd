//! Bans that many hosts share: realpeer as a remediation component ("bouncer") of a CrowdSec engine.
//! A thread of its own asks the engine's local API for changes and puts them among the [`bans`]
//! (<https://docs.crowdsec.net/docs/local_api/bouncers/>); no worker and no signal waits for it.
//!
//! [`bans`]: crate::bans

mod client;
mod state;
mod stream;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

pub use client::{Client, Failure, clock_ahead, is_open};
pub use state::{State, Told};
use stream::{Change, Item};

use crate::bans::{self, Decision, Decisions, UnixSeconds};
use crate::config::{self, Crowdsec};
use crate::listeners::Listeners;
use crate::networks;
use crate::protected::Protected;
use crate::proxy::Proxy;
use crate::sessions::EndedBy;
use crate::stats::Count;

/// The wait after a first failure, and the longest one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Decisions that are kept; more are not taken.
const MOST: usize = 5_000_000;

/// Refused networks that are remembered, so that each is told once.
const MOST_TOLD: usize = 1000;

/// How often use is reported.
const REPORT: Duration = Duration::from_secs(15 * 60);

/// Starts to read the engine's decisions, for as long as the process runs.
pub fn start(config: Crowdsec, listeners: Arc<Listeners>) -> io::Result<()> {
    let Some(state) = listeners.proxy.crowdsec.clone() else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    thread::Builder::new()
        .name("crowdsec".into())
        .spawn(move || {
            let protected = runtime.block_on(Protected::now(&listeners));
            let mut reader = Reader {
                client: None,
                round: 0,
                whole: true,
                protected,
                told: HashSet::new(),
                usage: Usage::new(),
                key_is_open: false,
                config,
                listeners,
                state,
            };
            reader.run(|listeners| runtime.block_on(Protected::now(listeners)));
        })?;
    Ok(())
}

struct Reader {
    config: Crowdsec,
    listeners: Arc<Listeners>,
    state: Arc<State>,
    client: Option<Client>,
    /// The number of the last full answer that was asked for.
    round: u32,
    /// The next answer must be a full one: changes may have been missed.
    whole: bool,
    protected: Protected,
    told: HashSet<IpNet>,
    usage: Usage,
    key_is_open: bool,
}

/// What an answer brought.
#[derive(Debug, Default)]
struct Sum {
    new: u64,
    deleted: u64,
    too_many: u64,
}

impl Reader {
    fn run(&mut self, protected: impl Fn(&Listeners) -> Protected) {
        let mut failed = 0;
        while !self.proxy().draining.load(Ordering::Relaxed) {
            let now = protected(&self.listeners);
            // Who is protected may have changed: all decisions are judged again.
            self.whole |= !now.is_as(&self.protected);
            self.protected = now;
            self.warn_of_open_key();
            let wait = match self.update() {
                Ok(()) => {
                    failed = 0;
                    self.config.update_frequency
                }
                Err(failure) => {
                    self.note(&failure);
                    let wait = FIRST_WAIT * 2u32.pow(failed);
                    failed = (failed + 1).min(10);
                    wait.min(LONGEST_WAIT)
                }
            };
            thread::sleep(wait);
        }
    }

    fn proxy(&self) -> &Proxy {
        &self.listeners.proxy
    }

    fn decisions(&self) -> &Decisions {
        &self.proxy().bans.decisions
    }

    fn warn_of_open_key(&mut self) {
        let is_open = client::is_open(&self.config.api_key_file);
        if is_open && !self.key_is_open {
            tracing::warn!(
                file = %self.config.api_key_file.display(),
                "everybody on this host may read the CrowdSec API key: take that away by chmod o-r"
            );
        }
        self.key_is_open = is_open;
    }

    fn note(&mut self, failure: &Failure) {
        // What is over is over, whatever the engine says.
        self.decisions().expire(bans::now());
        let words = failure.to_string();
        if self.state.failed(&words) {
            tracing::error!(error = words, "no decisions of CrowdSec for now");
        }
        self.whole = true;
    }

    fn update(&mut self) -> Result<(), Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::new(&self.config)?,
        };
        let result = self.take_in(&client);
        if result.is_ok() {
            self.report(&client);
        }
        self.client = Some(client);
        result
    }

    /// Reads one answer and puts it in force.
    fn take_in(&mut self, client: &Client) -> Result<(), Failure> {
        let whole = self.whole;
        let answer = client.stream(whole)?;
        self.round += u32::from(whole);
        let mut sum = Sum::default();
        let now = bans::now();
        let read = stream::read(answer.into_body().into_reader(), |change| {
            self.apply(change, whole, now, &mut sum);
        });
        if read.is_ok() && whole {
            let allowed = |network: &IpNet| self.protected.refuse(network).is_ok();
            sum.deleted += self.decisions().keep(self.round, allowed) as u64;
        }
        let expired = self.decisions().expire(bans::now()) as u64;
        let killed = if sum.new > 0 { self.end_sessions() } else { 0 };
        if sum.too_many > 0 {
            tracing::warn!(
                left_out = sum.too_many,
                "CrowdSec: at most {MOST} decisions are kept"
            );
        }
        if sum.new + sum.deleted > 0 {
            let total = self.decisions().len() as u64;
            tracing::info!(
                new = sum.new,
                deleted = sum.deleted,
                expired,
                total,
                killed = killed as u64,
                "decisions of CrowdSec are in force"
            );
        }
        read.map_err(|error| client.bad(error))?;
        self.whole = false;
        if self.state.succeeded() {
            tracing::info!(url = self.config.url, "the CrowdSec engine answers again");
        }
        Ok(())
    }

    fn apply(&mut self, change: Change, whole: bool, now: UnixSeconds, sum: &mut Sum) {
        match change {
            // A full answer tells what is there; what is not will go.
            Change::Deleted(_) if whole => {}
            Change::Deleted(item) => {
                if let Some(network) = networks::parse(&item.value) {
                    self.told.remove(&network);
                    sum.deleted += u64::from(self.decisions().remove(item.id, &network));
                }
            }
            Change::New(item) => self.add(&item, now, sum),
        }
    }

    fn add(&mut self, item: &Item, now: UnixSeconds, sum: &mut Sum) {
        let is_scope = |scope| item.scope.eq_ignore_ascii_case(scope);
        if !item.kind.eq_ignore_ascii_case("ban") {
            return self.state.ignored(&item.kind);
        }
        if !is_scope("ip") && !is_scope("range") {
            return self.state.ignored(&item.scope);
        }
        let length = config::duration(&item.duration).ok();
        let (Some(network), Some(length)) = (networks::parse(&item.value), length) else {
            return self.state.ignored("unreadable");
        };
        let until = now + length.as_secs() + u64::from(length.subsec_nanos() > 0);
        if until <= now {
            return;
        }
        if let Err(why) = self.protected.refuse(&network) {
            if self.told.len() < MOST_TOLD && self.told.insert(network) {
                tracing::warn!(
                    scenario = item.scenario,
                    origin = item.origin,
                    "a decision of CrowdSec is not put in force: {why}"
                );
            }
            return;
        }
        if self.decisions().len() >= MOST {
            sum.too_many += 1;
            return;
        }
        let cause = self.state.cause(&item.origin, &item.scenario);
        let decision = Decision {
            network,
            until,
            cause,
        };
        let is_new = self.decisions().insert(item.id, self.round, decision);
        sum.new += u64::from(is_new);
    }

    /// Ends the open sessions of all who are banned, in one pass over the sessions.
    fn end_sessions(&self) -> usize {
        let now = bans::now();
        self.proxy().kill(EndedBy::Ban, |_, session| {
            let route = session.route;
            let found = route.and_then(|route| self.decisions().find(route.client.ip(), now));
            found.is_some_and(|decision| !self.protected.spares(session, &decision.network))
        })
    }

    fn report(&mut self, client: &Client) {
        if !self.usage.is_due() {
            return;
        }
        let told = self.state.told(self.decisions());
        let accepted = |service: &crate::service::Service| service.record.count(Count::Accepted);
        let processed = self.protected.services().map(accepted).sum();
        let report = self.usage.report(&told, processed);
        match client.report(&report) {
            Ok(is_known) => self.usage.sent(told, processed, is_known),
            Err(error) => tracing::debug!(%error, "the report of use was not taken"),
        }
    }
}

/// What the engine was told of our use of its decisions
/// (<https://docs.crowdsec.net/docs/next/contributing/specs/bouncer_metrics_specs/>).
struct Usage {
    began: UnixSeconds,
    last: Instant,
    /// Not yet asked, or the engine knows such reports. Those before 1.6.3 do not.
    is_known: bool,
    next: Instant,
    told: Told,
    processed: u64,
}

impl Usage {
    fn new() -> Usage {
        Usage {
            began: bans::now(),
            last: Instant::now(),
            is_known: true,
            next: Instant::now(),
            told: Told::default(),
            processed: 0,
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.is_known && Instant::now() >= self.next;
        if is_due {
            self.next = Instant::now() + REPORT;
        }
        is_due
    }

    fn report(&self, told: &Told, processed: u64) -> Value {
        let item = |name: &str, value: u64, unit: &str, labels: Value| json!({"name": name, "value": value, "unit": unit, "labels": labels});
        let mut items = vec![item(
            "processed",
            processed.saturating_sub(self.processed),
            "request",
            json!({}),
        )];
        for (origin, count) in &told.decisions {
            items.push(item(
                "active_decisions",
                *count,
                "ip",
                json!({"origin": origin}),
            ));
        }
        for (origin, count) in &told.refused {
            let before = self.told.refused.get(origin).copied().unwrap_or(0);
            let labels = json!({"origin": origin, "remediation": "ban"});
            items.push(item(
                "dropped",
                count.saturating_sub(before),
                "request",
                labels,
            ));
        }
        json!({"remediation_components": [{
            "type": "realpeer",
            "version": concat!("v", env!("CARGO_PKG_VERSION")),
            "feature_flags": [],
            "utc_startup_timestamp": self.began,
            "metrics": [{
                "meta": {
                    "window_size_seconds": self.last.elapsed().as_secs(),
                    "utc_now_timestamp": bans::now(),
                },
                "items": items,
            }],
        }]})
    }

    fn sent(&mut self, told: Told, processed: u64, is_known: bool) {
        self.is_known = is_known;
        self.last = Instant::now();
        (self.told, self.processed) = (told, processed);
    }
}
