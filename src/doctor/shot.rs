//! One probe and what its fate means.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::task::spawn_blocking;

use super::backend::{self, Backend};
use super::bans;
use super::check::{Check, Status};
use super::obstacles::{self, Obstacles};
use super::policy;
use super::probe::{self, Answer};
use super::target::Target;
use super::{forged, remote};
use crate::config::Protocol;
use crate::routing::accept;
use crate::routing::kernel::Kernel;
use crate::routing::plan::Way;

/// A probe of one target.
#[derive(Clone)]
pub struct Shot {
    /// The way to the kernel.
    pub kernel: Kernel,
    /// Whom it is fired at.
    pub target: Target,
    /// SO_MARK.
    pub mark: Option<u32>,
    /// nft may be asked who dropped it.
    pub trace: bool,
    /// Other addresses to come from, each of another network, where a rule takes the first.
    pub others: Vec<IpAddr>,
}

impl Shot {
    /// At a TCP target on this host.
    pub async fn tcp_here(&self, backend: Backend) -> Result<Vec<Check>> {
        let answer = self.fire().await?;
        let look = backend::check(&self.target, &backend);
        Ok(match (answer, backend) {
            (Answer::Came, Backend::Listens) => vec![look, self.came()],
            // Something else on this host answers for it: a kernel's address translation.
            (Answer::Came, _) => vec![self.came()],
            (Answer::Refused(e), Backend::Listens) if backend::only_ipv6(&self.target) => {
                // A reset is the firewall's if one of its rules says so.
                let lost = self.lost(Answer::Refused(e)).await?;
                if lost.is_of_firewall() {
                    return Ok(vec![look, lost]);
                }
                let port = self.target.need.target.port();
                let elsewhere = Backend::Elsewhere(vec![SocketAddr::from(([0u16; 8], port))]);
                vec![backend::check(&self.target, &elsewhere)]
            }
            (answer, Backend::Listens) => vec![look, self.lost(answer).await?],
            (Answer::Refused(_), _) => vec![look],
            // Nobody listens, and nobody said so: then a firewall is in the way as well.
            (answer, _) => {
                let lost = self.lost(answer).await?;
                let named = lost.id.starts_with("firewall");
                [Some(look), named.then_some(lost)]
                    .into_iter()
                    .flatten()
                    .collect()
            }
        })
    }

    /// At a TCP target elsewhere.
    pub async fn tcp_remote(&self) -> Result<Vec<Check>> {
        let at = self.target.need.target;
        Ok(vec![match self.fire().await? {
            Answer::Came => self.came(),
            Answer::Refused(e) => self.down(format!("{at} refuses connections ({e})")),
            answer => {
                let lost = self.lost(answer).await?;
                if lost.id != "probe" || lost.status == Status::Ok {
                    return Ok(vec![lost]);
                }
                match spawn_blocking(move || TcpStream::connect_timeout(&at, probe::PATIENCE))
                    .await?
                {
                    Ok(_) => remote::wrong(
                        &self.target,
                        "it answers this host, but a client's address gets no answer",
                    ),
                    Err(e) => self.down(format!("{at} does not answer this host either ({e})")),
                }
            }
        }])
    }

    /// At a UDP target on this host.
    pub async fn udp(&self, backend: Option<Backend>) -> Result<Vec<Check>> {
        let look: Vec<_> = backend
            .map(|backend| backend::check(&self.target, &backend))
            .into_iter()
            .collect();
        // The port rule is for the backend's own port, which no other socket may have.
        let probed = self.target.need.way == Way::Loopback;
        if !probed || look.iter().any(|check| check.status != Status::Ok) {
            return Ok(look);
        }
        let result = match (self.fire().await?, self.trace) {
            (Answer::Came, false) => self.came(),
            // That was on another port: a rule may be for the backend's own.
            (answer, _) => self.lost(answer).await?,
        };
        Ok(look.into_iter().chain([result]).collect())
    }

    async fn fire(&self) -> Result<Answer> {
        let shot = self.clone();
        Ok(spawn_blocking(move || shot.fire_now(probe::PATIENCE)).await?)
    }

    fn fire_now(&self, patience: Duration) -> Answer {
        let at = self.target.need.target;
        let stranger = self.target.need.stranger;
        match self.target.protocol {
            Protocol::Tcp => probe::tcp(at, stranger, self.mark, patience),
            Protocol::Udp => probe::udp(at.ip(), stranger, self.mark, patience),
        }
    }

    /// Fires again under nft's eyes.
    async fn obstacles(&self) -> Result<Obstacles> {
        if !self.trace {
            return Ok(Obstacles::default());
        }
        let shot = self.clone();
        let search = move || obstacles::find(&shot.target, || shot.fire_traced());
        Ok(spawn_blocking(search).await?)
    }

    /// On the backend's own port, which UDP's probe leaves alone.
    fn fire_traced(&self) -> Answer {
        let (at, stranger) = (self.target.need.target, self.target.need.stranger);
        match self.target.protocol {
            Protocol::Tcp => self.fire_now(probe::ONE_PACKET),
            Protocol::Udp => match forged::exchange(at, stranger, self.mark) {
                Ok(()) => Answer::None,
                Err(e) => Answer::Unsent(e),
            },
        }
    }

    /// Why no answer came. A rule that looks at the client's address, as a ban does, tells only of
    /// that one: then another goes, from another network.
    async fn lost(&self, mut answer: Answer) -> Result<Check> {
        let mut shot = self.clone();
        let mut obstacles = shot.obstacles().await?;
        for stranger in &self.others {
            if obstacles.by_address.is_none() {
                break;
            }
            shot.target.need.stranger = *stranger;
            answer = shot.fire().await?;
            if let Answer::Came = answer {
                return Ok(shot.came());
            }
            obstacles = shot.obstacles().await?;
        }
        shot.cause(answer, &obstacles).await
    }

    async fn cause(&self, answer: Answer, obstacles: &Obstacles) -> Result<Check> {
        let at = self.target.need.target;
        if let Answer::Unsent(e) = answer {
            bail!("the probe to {at} cannot be sent: {e}");
        }
        let inherited = self.mark.filter(|_| accept::is_on()).unwrap_or(0);
        let mark = obstacles.reply_mark.unwrap_or(inherited);
        let taken = match self.target.need.way {
            // The mark of the socket match is not there yet.
            Way::Socket => None,
            _ => policy::taken(&self.kernel, &self.target, mark).await?,
        };
        if let Some((drop, by)) = obstacles
            .by_address
            .as_ref()
            .filter(|_| obstacles.is_empty())
        {
            return Ok(bans::check(&self.target, drop, *by));
        }
        if let Some(check) = obstacles.check(&self.target, taken.as_deref()) {
            return Ok(check);
        }
        if obstacles.is_clear() || matches!(answer, Answer::Came) {
            return Ok(self.came());
        }
        if let Some(mark) = obstacles.foreign_mark
            && policy::taken(&self.kernel, &self.target, inherited)
                .await?
                .is_none()
        {
            let taken = taken.map_or_else(String::new, |taken| format!("; {taken}"));
            let found = format!(
                "something else than nft gives the packets of {at} the mark {mark:#x}{taken}"
            );
            return Ok(Check::wrong("mark-changed", true, found)
                .advice("look for it in `iptables-legacy -t mangle -S`, and among eBPF programs"));
        }
        if let Some(taken) = taken {
            return Ok(Check::wrong("rule-shadowed", true, taken).advice(
                "put the rule that brings the replies back before that one (ip rule add … priority N), or keep that mark from them",
            ));
        }
        let how = match answer {
            Answer::Refused(e) => format!("was refused ({e})"),
            _ => "got no answer".to_owned(),
        };
        let stranger = self.target.need.stranger;
        Ok(Check::wrong(
            "probe",
            true,
            format!("a connection from {stranger} to {at} {how}, and no rule of nft's is to blame"),
        )
        .advice("look for legacy iptables rules (iptables-legacy -S), for eBPF filters, and into the backend's log"))
    }

    fn came(&self) -> Check {
        let (need, stranger) = (&self.target.need, self.target.need.stranger);
        let what = match self.target.protocol {
            Protocol::Tcp => "a connection",
            Protocol::Udp => "a datagram",
        };
        Check::ok(
            "probe",
            format!("{what} from {stranger} to {} was answered", need.target),
        )
    }

    fn down(&self, found: String) -> Check {
        Check::wrong("backend-down", self.target.need.given, found).advice(format!(
            "start the backend, or give its address with {}",
            self.target.flag()
        ))
    }
}
