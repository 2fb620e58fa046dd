//! A call over HTTP: who asks is checked before what is asked is read.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::backend::Backend;
use super::call::{self, Call, CallError, Mode};
use super::rate::Rate;
use crate::addr::PeerAddr;
use crate::networks::Networks;
use crate::report::Reporter;
use crate::sys;

/// How long the head and the body of a call may take to arrive, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a head. hyper takes no less than 8 KiB.
const LARGEST_HEAD: usize = 8 << 10;

/// Bytes of a body: far more than any address needs.
const LARGEST_BODY: usize = 1 << 10;

/// What calls share.
#[derive(Debug)]
pub struct Relay {
    /// What callers must know.
    pub token: Vec<u8>,
    /// Who bans.
    pub backend: Backend,
    /// How long an nft ban holds.
    pub ban_time: Duration,
    /// How many calls a second.
    pub rate: Rate,
    /// What is logged of strangers.
    pub reporter: Reporter,
    /// Who may call, and is never banned.
    pub trusted: Networks,
}

type Answer = Response<Full<Bytes>>;

/// Answers one call on a connection.
pub async fn converse(stream: TcpStream, peer: PeerAddr, relay: Arc<Relay>) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let relay = Arc::clone(&relay);
        async move { Ok::<Answer, Infallible>(relay.answer(request, peer).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Relay {
    async fn answer(&self, request: Request<Incoming>, peer: PeerAddr) -> Answer {
        if !self.knows_token(&request) {
            let mut answer = no(
                StatusCode::UNAUTHORIZED,
                "the bearer token is missing or wrong",
            );
            let kind = hyper::header::HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, kind);
            return answer;
        }
        // Behind the token: strangers cannot use up the callers' rate.
        if !self.rate.pass() {
            let mut answer = no(
                StatusCode::TOO_MANY_REQUESTS,
                "too many calls a second (-rate)",
            );
            answer.headers_mut().insert(RETRY_AFTER, 1.into());
            return answer;
        }
        let allowed = match (request.uri().path(), request.method()) {
            ("/", &Method::POST) => return self.change(request, peer).await,
            ("/bans", &Method::GET) => return self.list().await,
            ("/", _) => "POST",
            ("/bans", _) => "GET",
            _ => return no(StatusCode::NOT_FOUND, "there are POST / and GET /bans"),
        };
        let mut answer = no(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("only {allowed} here"),
        );
        let allowed = hyper::header::HeaderValue::from_static(allowed);
        answer.headers_mut().insert(ALLOW, allowed);
        answer
    }

    fn knows_token(&self, request: &Request<Incoming>) -> bool {
        let given = request.headers().get(AUTHORIZATION);
        let token = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        token.is_some_and(|token| bool::from(token.ct_eq(&self.token)))
    }

    async fn change(&self, request: Request<Incoming>, peer: PeerAddr) -> Answer {
        let call = match read(request).await {
            Ok(call) => call,
            Err(answer) => return answer,
        };
        let Call { mode, target } = call;
        let own = sys::interfaces::addresses();
        if let Err(error) = call::judge(call, &own, &self.trusted) {
            tracing::warn!(%target, frontendRemoteAddr = %peer, %error, "ban refused");
            return no(StatusCode::FORBIDDEN, error);
        }
        let changed = match mode {
            Mode::Ban => self.backend.ban(target, self.ban_time).await,
            Mode::Unban => self.backend.unban(target).await,
        };
        match changed {
            Ok(changed) => {
                let done = match (mode, changed) {
                    (Mode::Ban, true) => "banned",
                    (Mode::Ban, false) => "was banned already",
                    (Mode::Unban, true) => "unbanned",
                    (Mode::Unban, false) => "was not banned",
                };
                tracing::info!(%target, frontendRemoteAddr = %peer, exec = %self.backend, done, "call done");
                let by = self.backend.to_string();
                answer(
                    StatusCode::OK,
                    &json!({"ok": true, "mode": mode, "target": target, "done": done, "by": by}),
                )
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn list(&self) -> Answer {
        match self.backend.list().await {
            Ok(bans) => answer(StatusCode::OK, &json!({"ok": true, "bans": bans})),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &anyhow::Error) -> Answer {
        let error = format!("{error:#}");
        tracing::error!(exec = %self.backend, error, "call failed");
        no(StatusCode::BAD_GATEWAY, error)
    }
}

async fn read(request: Request<Incoming>) -> Result<Call, Answer> {
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect();
    let body = match timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the body is longer than {LARGEST_BODY} bytes");
            return Err(no(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(Err(error)) => return Err(no(StatusCode::BAD_REQUEST, error)),
        Err(_) => return Err(no(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    };
    call::parse(&body).map_err(|error: CallError| no(StatusCode::BAD_REQUEST, error))
}

fn no(status: StatusCode, why: impl fmt::Display) -> Answer {
    answer(status, &json!({"ok": false, "error": why.to_string()}))
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}
