//! Metrics, readiness and a status page over HTTP (`-metrics`). Everything is read, nothing can be
//! changed. All of it runs on the main thread, where no connection is carried.

mod exposition;
mod page;
mod picture;
mod rates;
mod readiness;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, StatusCode};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::config::{Process, Protocol};
use crate::control::Office;
use crate::http::{self, Answer, answer};
use crate::listening::cannot_listen;
use crate::sockets::Sockets;
use picture::Picture;
use rates::Rates;

/// Clients at a time; more are closed at once. Each holds a descriptor that no connection gets.
pub const CLIENTS: usize = 16;

/// How long a client may take, from its first byte to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// After an answer that took longer the next one waits as long again: the main thread has other
/// work, too.
const TURN: Duration = Duration::from_millis(10);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// What a browser may do with an answer.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-store"),
    (REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// The socket of `-metrics`.
#[derive(Debug)]
pub struct Bound {
    /// The address as it was asked for.
    pub asked: SocketAddr,
    socket: OwnedFd,
}

impl Bound {
    /// Takes clients.
    pub fn listener(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.socket.try_clone()?.into())
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds the address of `-metrics`, if there is one, unless a process before this one did.
pub async fn bind(process: &Process, sockets: &mut Sockets) -> Result<Option<Bound>> {
    let Some(asked) = process.metrics else {
        return Ok(None);
    };
    let given = sockets
        .take(Protocol::Tcp, asked)
        .and_then(|mut all| all.pop());
    let socket = match given {
        Some(socket) => socket,
        None => open(asked).await.map_err(|error| {
            let why = cannot_listen("-metrics", asked, Protocol::Tcp, &error);
            anyhow!("-metrics: {why}")
        })?,
    };
    let address = SockRef::from(&socket).local_addr().ok();
    let address = address.and_then(|addr| addr.as_socket()).unwrap_or(asked);
    tracing::info!(metricsAdr = %address, "serving metrics and the status page");
    Ok(Some(Bound { asked, socket }))
}

async fn open(address: SocketAddr) -> io::Result<OwnedFd> {
    let listener = TcpListener::bind(address).await?.into_std()?;
    Ok(listener.into())
}

/// Answers until it is dropped, or another process does.
pub async fn serve(listener: TcpListener, office: Arc<Office>) {
    let address = listener.local_addr();
    let desk = Arc::new(Desk {
        office,
        rates: Rates::default(),
        turn: Mutex::default(),
        is_local: address.is_ok_and(|address| address.ip().to_canonical().is_loopback()),
    });
    tokio::select! {
        () = take_clients(listener, &desk) => {}
        never = desk.rates.follow(&desk.office.listeners) => match never {},
    }
}

/// Until another process takes them; whoever is here by then gets an answer.
async fn take_clients(listener: TcpListener, desk: &Arc<Desk>) {
    let places = http::Clients::new(CLIENTS);
    let mut clients = JoinSet::new();
    let mut end = pin!(desk.office.succession.end.notified());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = http::accept(&listener) => accepted,
            () = &mut end => break,
        };
        while clients.try_join_next().is_some() {}
        let Some(place) = places.admit() else {
            http::reset(&stream);
            continue;
        };
        let desk = Arc::clone(desk);
        clients.spawn(async move {
            let answer = |request| desk.answer(request);
            if let Err(error) = http::converse(stream, PATIENCE, answer).await {
                tracing::debug!(frontendRemoteAddr = %peer, error, "a client of -metrics failed");
            }
            drop(place);
        });
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}

/// Answers what clients ask.
#[derive(Debug)]
struct Desk {
    office: Arc<Office>,
    rates: Rates,
    /// One answer at a time, of those that take work.
    turn: Mutex<()>,
    /// Bound to a loopback address.
    is_local: bool,
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let mut answer = self.find(&request).await;
        for (name, value) in HEADERS {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(name, value);
        }
        answer
    }

    async fn find(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD only\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            refusal.headers_mut().insert(ALLOW, allowed);
            return refusal;
        }
        if self.is_local && is_foreign(header(request, HOST)) {
            let why = "this address is for this host: ask for localhost, or for an address\n";
            return answer(StatusCode::MISDIRECTED_REQUEST, TEXT, why);
        }
        let ok = StatusCode::OK;
        match request.uri().path() {
            "/" => answer(ok, HTML, page::render(&self.picture().await)),
            "/style.css" => answer(ok, "text/css", include_str!("style.css")),
            "/script.js" => answer(ok, "text/javascript", include_str!("script.js")),
            "/status.json" => match serde_json::to_vec(&self.picture().await) {
                Ok(json) => answer(ok, JSON, json),
                Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
            },
            "/metrics" => self.metrics(header(request, ACCEPT)).await,
            "/healthz" => answer(ok, TEXT, "alive\n"),
            "/readyz" => self.readiness().await,
            _ => {
                let there = "there are /, /status.json, /metrics, /healthz and /readyz\n";
                answer(StatusCode::NOT_FOUND, TEXT, there)
            }
        }
    }

    async fn picture(&self) -> Picture {
        self.in_turn(Picture::take(&self.office, &self.rates)).await
    }

    async fn metrics(&self, accept: Option<&str>) -> Answer {
        let format = exposition::Format::asked_for(accept);
        let text = self
            .in_turn(exposition::scrape(&self.office.listeners, format))
            .await;
        match text {
            Ok(text) => answer(StatusCode::OK, format.content_type(), text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        }
    }

    async fn readiness(&self) -> Answer {
        let reasons = self
            .in_turn(readiness::reasons(&self.office.listeners))
            .await;
        match &reasons[..] {
            [] => answer(
                StatusCode::OK,
                TEXT,
                "ready\n".to_owned() + &self.crowdsec(),
            ),
            reasons => {
                let text = reasons.join("\n") + "\n" + &self.crowdsec();
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        }
    }

    /// How the reading of decisions goes, in a line. Clients are served without it, too.
    fn crowdsec(&self) -> String {
        let proxy = &self.office.listeners.proxy;
        let told = proxy.crowdsec.as_ref();
        let told = told.map(|state| state.told(&proxy.bans.decisions));
        told.map_or_else(String::new, |told| format!("crowdsec: {}\n", told.words))
    }

    async fn in_turn<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        let began = Instant::now();
        let done = work.await;
        let busy = began.elapsed();
        if busy > TURN {
            sleep(busy).await;
        }
        done
    }
}

fn header(request: &Request<Incoming>, name: HeaderName) -> Option<&str> {
    request.headers().get(name)?.to_str().ok()
}

/// Whether a request is for a name that is not this host's own. A web page can give its own name the
/// address 127.0.0.1, and could then read answers in the browser of an administrator (DNS
/// rebinding).
fn is_foreign(host: Option<&str>) -> bool {
    let Some(host) = host else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let is_local = bare.eq_ignore_ascii_case("localhost") || bare.ends_with(".localhost");
    !is_local && bare.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_is_told_from_this_hosts() {
        for host in [
            "127.0.0.1:9150",
            "[::1]:9150",
            "[::1]",
            "localhost:9150",
            "Localhost",
            "a.localhost:1",
            "192.0.2.1",
        ] {
            assert!(!is_foreign(Some(host)), "{host}");
        }
        for host in [
            "evil.example:9150",
            "evil.example",
            "localhost.evil.example",
            "",
            ":9150",
        ] {
            assert!(is_foreign(Some(host)), "{host}");
        }
        assert!(!is_foreign(None));
    }
}
