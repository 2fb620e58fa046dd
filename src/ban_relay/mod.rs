//! `realpeer ban-relay`: on the ingress host, takes bans from the application servers over HTTP and
//! hands them to fail2ban or to an nft set, so that a bot's packets stop where they arrive.
//!
//! Who may call is decided by address and token, how often by `-rate`, and what is banned is a
//! parsed address that is neither this host's nor a caller's. Nothing of a call reaches a shell.

mod backend;
mod call;
mod http;
mod nft_set;
mod rate;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::addr::{PeerAddr, canonical};
use crate::cli::BanRelayFlags;
use crate::config::{Protocol, Verbosity, resolve};
use crate::log;
use crate::networks::Networks;
use crate::report::{Reporter, Subject};
use crate::stats::Count;
pub use backend::Backend;
use http::Relay;
use rate::Rate;

/// Connections at once; more are closed at once.
const CONNECTIONS: usize = 64;

/// How long a call may take, from its first byte to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shortest token: 16 characters of base64 are 96 bits.
const SHORTEST_TOKEN: usize = 16;

/// Serves calls until a signal ends it.
pub async fn run(flags: BanRelayFlags) -> Result<()> {
    log::init(Verbosity::Errors, None);
    let (Some(token_file), Some(callers)) = (&flags.token_file, &flags.allowed_subnets) else {
        bail!("ban-relay needs -token-file and -allowed-subnets");
    };
    let trusted = Networks::load(callers).context("-allowed-subnets")?;
    let relay = Arc::new(Relay {
        token: token(token_file).context("-token-file")?,
        backend: flags.backend,
        ban_time: flags.ban_time,
        rate: Rate::new(flags.rate),
        reporter: Reporter::new(Verbosity::Quiet, Protocol::Tcp),
        trusted,
    });
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    let (listener, address) = listen(resolve("-l", &flags.listen, Some)?).await?;
    tracing::info!(listenAdr = %address, exec = %relay.backend, "ban-relay listening");
    tokio::select! {
        never = serve(listener, relay) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    Ok(())
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
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    Ok((listener, address))
}

async fn serve(listener: TcpListener, relay: Arc<Relay>) -> std::convert::Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, PeerAddr(canonical(peer))),
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection for now");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !relay.trusted.contains(peer.ip()) {
            reset(&stream);
            if let Some(held_back) = relay
                .reporter
                .due(Count::PeerNotAllowed, Subject::default())
            {
                tracing::warn!(frontendRemoteAddr = %peer, heldBack = held_back, "refused: not in the allowed-subnets file");
            }
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            reset(&stream);
            continue;
        };
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            // What goes wrong on a connection is its caller's affair.
            let _ = timeout(PATIENCE, http::converse(stream, peer, relay)).await;
            drop(place);
        });
    }
}

fn reset(stream: &TcpStream) {
    let _: io::Result<()> = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
