//! `realpeer ban-relay`: on the ingress host, takes bans from the application servers over HTTP and
//! hands them to fail2ban or to an nft set, so that a bot's packets stop where they arrive.
//!
//! Who may call is decided by address and token, how often by `-rate`, and what is banned is a
//! parsed address that is neither this host's nor a caller's. Nothing of a call reaches a shell.
//!
//! Each caller, known by its address, has bans of its own: an address stays banned until the last
//! who asked for it wants it no more, and what the administrator banned is left alone.

mod backend;
mod book;
mod call;
mod fail2ban;
mod http;
mod keeper;
mod nft_set;
mod rate;
mod store;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

use crate::cli::BanRelayFlags;
use crate::config::{Protocol, Verbosity, resolve, systemd_state_dir};
use crate::http as http_server;
use crate::listening::cannot_listen;
use crate::log;
use crate::networks::Networks;
use crate::report::{Reporter, Subject, Volume};
use crate::stats::Count;
pub use backend::Backend;
use http::Relay;
use keeper::Keeper;
use rate::Rate;
use store::Store;

/// Connections at once; more are closed at once.
const CONNECTIONS: usize = 64;

/// How long a call may take, from its first byte to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// After how long an end of a ban that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// The shortest token: 16 characters of base64 are 96 bits.
const SHORTEST_TOKEN: usize = 16;

/// Serves calls until a signal ends it.
pub async fn run(flags: BanRelayFlags) -> Result<()> {
    log::init(Verbosity::Errors, None, io::stderr().as_fd(), || ())
        .context("cannot start the log")?;
    let (Some(token_file), Some(callers)) = (&flags.token_file, &flags.allowed_subnets) else {
        bail!("ban-relay needs -token-file and -allowed-subnets");
    };
    let trusted = Networks::load(callers).context("-allowed-subnets")?;
    let token = token(token_file).context("-token-file")?;
    let state = flags.state_dir.or_else(systemd_state_dir);
    let store = state.map(|directory| Store::open(&directory));
    let store = store.transpose().context("-state-dir")?;
    let relay = Arc::new(Relay {
        token,
        exec: flags.backend.to_string(),
        keeper: Mutex::new(Keeper::new(flags.backend, store)),
        changed: Notify::new(),
        ban_time: flags.ban_time,
        rate: Rate::new(flags.rate),
        reporter: Reporter::new(Arc::new(Volume::new(Verbosity::Quiet)), Protocol::Tcp),
        trusted,
    });
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    let (listener, address) =
        listen(resolve(&flags.listen, Some).map_err(|e| anyhow!("-l {e}"))?).await?;
    tracing::info!(listenAdr = %address, exec = relay.exec, "ban-relay listening");
    if let Err(error) = relay.keeper.lock().await.restore() {
        let error = format!("{error:#}");
        tracing::error!(
            exec = relay.exec,
            error,
            "cannot put back the bans of the last run"
        );
    }
    tokio::select! {
        never = serve(listener, Arc::clone(&relay)) => match never {},
        never = end_bans(&relay) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    Ok(())
}

/// Ends each ban when its time is over.
async fn end_bans(relay: &Relay) -> std::convert::Infallible {
    loop {
        let next = relay.keeper.lock().await.next_end();
        tokio::select! {
            () = sleep(next.unwrap_or(Duration::MAX)) => {}
            () = relay.changed.notified() => continue,
        }
        if let Err(error) = relay.keeper.lock().await.end_what_is_over().await {
            let error = format!("{error:#}");
            tracing::error!(
                exec = relay.exec,
                error,
                "cannot end a ban whose time is over; trying again"
            );
            sleep(AGAIN).await;
        }
    }
}

fn token(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let token = text.trim();
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < SHORTEST_TOKEN || !plain {
        bail!(
            "{name} must hold one line of at least {SHORTEST_TOKEN} characters without spaces: openssl rand -base64 24 > {name}"
        );
    }
    Ok(token.into())
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| anyhow!(cannot_listen("-l", address, Protocol::Tcp, &e)))?;
    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    Ok((listener, address))
}

async fn serve(listener: TcpListener, relay: Arc<Relay>) -> std::convert::Infallible {
    let clients = http_server::Clients::new(CONNECTIONS);
    loop {
        let (stream, peer) = http_server::accept(&listener).await;
        if !relay.trusted.contains(peer.ip()) {
            http_server::reset(&stream);
            if let Some(held_back) = relay
                .reporter
                .due(Count::PeerNotAllowed, Subject::default())
            {
                tracing::warn!(frontendRemoteAddr = %peer, heldBack = held_back, "refused: not in the allowed-subnets file");
            }
            continue;
        }
        let Some(place) = clients.admit() else {
            http_server::reset(&stream);
            tracing::warn!(frontendRemoteAddr = %peer, error = "too many connections at once", "call refused");
            continue;
        };
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            let answer = |request| Arc::clone(&relay).answer(request, peer);
            if let Err(error) = http_server::converse(stream, PATIENCE, answer).await {
                tracing::warn!(frontendRemoteAddr = %peer, error, "call refused");
            }
            drop(place);
        });
    }
}
