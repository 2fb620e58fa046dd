//! A call over HTTP: who asks is checked before what is asked is read.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;
use tracing::field::display;

use super::book::End;
use super::call::{self, BanTime, Call, CallError, Mode};
use super::keeper::Keeper;
use super::rate::Rate;
use crate::addr::PeerAddr;
use crate::http::{self, Answer, PATIENCE};
use crate::networks::Networks;
use crate::report::Reporter;
use crate::sys;

/// Bytes of a body: far more than any address needs.
const LARGEST_BODY: usize = 1 << 10;

/// Characters of a call's path that the log shows.
const LOGGED_PATH: usize = 80;

/// What calls share.
#[derive(Debug)]
pub struct Relay {
    /// What callers must know.
    pub token: Vec<u8>,
    /// Who bans, for whom. Calls are carried out one after the other.
    pub keeper: Mutex<Keeper>,
    /// Told of each change, so that bans end in time.
    pub changed: Notify,
    /// The name of who bans.
    pub exec: String,
    /// How long a ban holds whose call does not say so.
    pub ban_time: Duration,
    /// How many calls a second.
    pub rate: Rate,
    /// What is logged of strangers.
    pub reporter: Reporter,
    /// Who may call, and is never banned.
    pub trusted: Networks,
}

/// Why a call is not carried out, and what is known of it.
struct Refusal {
    status: StatusCode,
    why: String,
    call: Option<Call>,
}

impl Refusal {
    fn new(status: StatusCode, why: impl fmt::Display) -> Refusal {
        Refusal {
            status,
            why: why.to_string(),
            call: None,
        }
    }

    fn of(call: Call, status: StatusCode, why: impl fmt::Display) -> Refusal {
        Refusal {
            call: Some(call),
            ..Refusal::new(status, why)
        }
    }

    fn answer(&self) -> Answer {
        let mut answer = answer(self.status, &json!({"ok": false, "error": self.why}));
        let header = match self.status {
            StatusCode::UNAUTHORIZED => (WWW_AUTHENTICATE, "Bearer"),
            StatusCode::TOO_MANY_REQUESTS => (RETRY_AFTER, "1"),
            StatusCode::METHOD_NOT_ALLOWED => (ALLOW, self.why.trim_end_matches(" only")),
            _ => return answer,
        };
        if let Ok(value) = HeaderValue::from_str(header.1) {
            answer.headers_mut().insert(header.0, value);
        }
        answer
    }
}

impl Relay {
    /// Answers a call, and has it in the log, whatever becomes of it.
    pub async fn answer(self: Arc<Relay>, request: Request<Incoming>, peer: PeerAddr) -> Answer {
        let path: String = request.uri().path().chars().take(LOGGED_PATH).collect();
        let asked = format!("{} {path}", request.method());
        match self.carry_out(request, peer).await {
            Ok(body) => answer(StatusCode::OK, &body),
            Err(refusal) => {
                let Refusal { status, why, call } = &refusal;
                let mode = call.map(|call| call.mode.name());
                let target = call.map(|call| display(call.target));
                let status = status.as_u16();
                tracing::warn!(frontendRemoteAddr = %peer, asked, mode, target, status, error = why, "call refused");
                refusal.answer()
            }
        }
    }

    async fn carry_out(
        self: Arc<Relay>,
        request: Request<Incoming>,
        peer: PeerAddr,
    ) -> Result<Value, Refusal> {
        if !self.knows_token(&request) {
            let why = "the bearer token is missing or wrong";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, why));
        }
        // Behind the token: strangers cannot use up the callers' rate.
        if !self.rate.pass() {
            let why = "too many calls a second (-rate)";
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, why));
        }
        let allowed = match (request.uri().path(), request.method()) {
            ("/", &Method::POST) => {
                let call = read(request).await?;
                return self.change(call, peer).await;
            }
            ("/bans", &Method::GET) => return self.list(peer).await,
            ("/", _) => "POST only",
            ("/bans", _) => "GET only",
            _ => {
                let why = "there are POST / and GET /bans";
                return Err(Refusal::new(StatusCode::NOT_FOUND, why));
            }
        };
        Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, allowed))
    }

    fn knows_token(&self, request: &Request<Incoming>) -> bool {
        let given = request.headers().get(AUTHORIZATION);
        let token = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        token.is_some_and(|token| bool::from(token.ct_eq(&self.token)))
    }

    async fn change(self: Arc<Relay>, call: Call, peer: PeerAddr) -> Result<Value, Refusal> {
        let own = sys::interfaces::addresses();
        if let Err(error) = call::judge(call, &own, &self.trusted) {
            return Err(Refusal::of(call, StatusCode::FORBIDDEN, error));
        }
        // A task of its own: a caller who goes away does not leave a call half done.
        let relay = Arc::clone(&self);
        let done = tokio::spawn(async move { relay.keep(call, peer).await });
        match done.await {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|why| Refusal::of(call, StatusCode::BAD_GATEWAY, why))
    }

    async fn keep(&self, call: Call, peer: PeerAddr) -> anyhow::Result<Value> {
        let Call { mode, target, time } = call;
        let mut keeper = self.keeper.lock().await;
        let (done, until) = match mode {
            Mode::Ban => {
                let end = match time {
                    Some(BanTime::Ever) => End::Never,
                    Some(BanTime::For(time)) => End::after(time),
                    None => End::after(self.ban_time),
                };
                (keeper.ban(target, peer.ip(), end).await?, Some(end))
            }
            Mode::Unban => (keeper.unban(target, peer.ip()).await?, None),
        };
        self.changed.notify_one();
        let until = until.map(|until| until.to_string());
        tracing::info!(frontendRemoteAddr = %peer, mode = mode.name(), %target, until, exec = self.exec, done, "call done");
        let mut said =
            json!({"ok": true, "mode": mode, "target": target, "done": done, "by": self.exec});
        if let Some(until) = until {
            said["until"] = until.into();
        }
        Ok(said)
    }

    async fn list(&self, peer: PeerAddr) -> Result<Value, Refusal> {
        let listed = self.keeper.lock().await.list().await;
        let bans = listed
            .map_err(|error| Refusal::new(StatusCode::BAD_GATEWAY, format_args!("{error:#}")))?;
        tracing::info!(frontendRemoteAddr = %peer, asked = "GET /bans", exec = self.exec, "call done");
        Ok(json!({"ok": true, "bans": bans}))
    }
}

async fn read(request: Request<Incoming>) -> Result<Call, Refusal> {
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect();
    let body = match timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the body is longer than {LARGEST_BODY} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(Err(error)) => return Err(Refusal::new(StatusCode::BAD_REQUEST, error)),
        Err(_) => {
            return Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took too long",
            ));
        }
    };
    call::parse(&body).map_err(|error: CallError| Refusal::new(StatusCode::BAD_REQUEST, error))
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    http::answer(status, "application/json", format!("{body}\n"))
}
