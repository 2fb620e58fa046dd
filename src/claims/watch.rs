//! Keeps `Host` up to date by the kernel's announcements.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use futures_util::FutureExt;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocketExt, TokioSocket};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Host;
use crate::routing::kernel::Kernel;
use crate::routing::watch::subscribe;

/// Between two readings: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(10);
/// Messages can get lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);

/// linux/rtnetlink.h: RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR.
const GROUPS: [u32; 4] = [1, 5, 7, 9];

/// Reads this host's addresses, and again at each change for as long as the runtime runs.
/// What cannot be read is a loud warning: the socket that claims is compared with its claim anyway.
pub async fn follow() -> Arc<ArcSwap<Host>> {
    // First the ear, then the eye: a change in between is heard.
    let changes = subscribe(NETLINK_ROUTE, &GROUPS);
    let host = read().await.unwrap_or_else(|error| {
        warn!(
            "cannot ask the kernel for this host's addresses, so claims of them are not refused: {error:#}"
        );
        Host::default()
    });
    let host = Arc::new(ArcSwap::from_pointee(host));
    if let Err(error) = &changes {
        debug!("cannot hear of changed addresses, looking twice a minute instead: {error}");
    }
    tokio::spawn(keep(Arc::clone(&host), changes.ok()));
    host
}

async fn keep(host: Arc<ArcSwap<Host>>, mut changes: Option<TokioSocket>) {
    loop {
        let _ = timeout(LOOK_ANYWAY, change(&mut changes)).await;
        match read().await {
            Ok(read) => host.store(Arc::new(read)),
            Err(error) => debug!("cannot ask the kernel for this host's addresses: {error:#}"),
        }
        sleep(PAUSE).await;
    }
}

async fn read() -> Result<Host> {
    let kernel = Kernel::connect()?;
    let (own, attached) = kernel.addresses().await?.into_iter().unzip();
    let (own, attached): (Vec<_>, Vec<_>) = (own, attached);
    Ok(Host::new(own, attached, kernel.broadcasts().await?))
}

/// Waits until something has changed that may matter here.
async fn change(changes: &mut Option<TokioSocket>) {
    let Some(socket) = changes else {
        return std::future::pending().await;
    };
    // ENOBUFS, when too much happened at once, is a reason to look as well.
    while let Ok((message, _)) = socket.recv_from_full().await {
        if matters(&message) {
            break;
        }
    }
    // One look serves for all that is announced by now.
    while let Some(Ok(_)) = socket.recv_from_full().now_or_never() {}
}

/// A router's host changes thousands of unicast routes; those do not matter. Of a message, the
/// type stands at 4 (struct nlmsghdr), and a route's type at 16 + 7 (struct rtmsg).
fn matters(message: &[u8]) -> bool {
    const ROUTES: [u16; 2] = [libc::RTM_NEWROUTE, libc::RTM_DELROUTE];
    let kind = message.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let is_route = kind.is_some_and(|kind| ROUTES.contains(&kind));
    !is_route || message.get(23) == Some(&libc::RTN_BROADCAST)
}
