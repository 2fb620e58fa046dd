//! `realpeer demo`: a backend, a load balancer and the real program in a private network
//! namespace, and what the backend sees without and with realpeer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getgid, getuid};
use ppp::v2;
use rtnetlink::LinkUnspec;

use crate::output::print;

/// Ports need no choice in a namespace of one's own.
const LISTEN: &str = "127.0.0.1:8443";
const BACKEND: [&str; 2] = ["127.0.0.1:22", "[::1]:22"];

/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Plays the demo. Must run before any thread is started: a process with threads cannot enter a
/// user namespace. Touches nothing outside its own namespaces.
pub fn run() -> Result<()> {
    enter_private_network()?;
    raise_loopback()?;
    for address in BACKEND {
        serve_backend(TcpListener::bind(address).with_context(|| format!("backend on {address}"))?);
    }
    print("In a private network namespace; nothing on this host is touched.\n\n")?;
    print("A client comes by a load balancer. The backend sees:\n\n")?;
    let clients: [SocketAddr; 2] = ["203.0.113.9:51234".parse()?, "[2001:db8::9]:51234".parse()?];
    for (client, backend) in clients.into_iter().zip(BACKEND) {
        let seen = ask(backend, &[])?;
        print(format_args!(
            "  without realpeer           {seen:<22} the load balancer, not {client}\n"
        ))?;
        ensure!(seen.ip().is_loopback(), "the backend saw {seen}");
    }
    let mut proxy = Proxy::start()?;
    for client in clients {
        for (version, header) in [("v1", header_v1(client)), ("v2", header_v2(client)?)] {
            let seen = ask(LISTEN, &header)?;
            print(format_args!(
                "  with realpeer, PROXY {version}    {seen:<22} the client itself\n"
            ))?;
            ensure!(seen == client, "the backend should have seen {client}");
        }
    }
    proxy.stop()?;
    print(
        "\nThe policy routing that this needs was put in by realpeer itself, and is gone again.\n",
    )?;
    Ok(())
}

/// A network namespace of our own; for an ordinary user inside a user namespace of its own.
fn enter_private_network() -> Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context(
        "this system forbids ordinary users a private namespace: run it as `sudo realpeer demo`",
    )?;
    // Without the map the process has no user; with root in it, programs it starts keep the
    // capabilities. Groups must be denied before an ordinary user may map one (user_namespaces(7)).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("mapping the user")
}

fn raise_loopback() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let raised: Result<()> = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        // The loopback interface is the first in every namespace.
        let up = LinkUnspec::new_with_index(1).up().build();
        Ok(handle.link().set(up).execute().await?)
    });
    raised.context("cannot raise the loopback interface")
}

/// Tells each connection where it seems to come from.
fn serve_backend(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut socket, peer)) = listener.accept() {
            // A client that is gone already has nothing to be told.
            let _ = writeln!(socket, "{peer}");
        }
    });
}

/// Plays the load balancer: connects, sends a header, and returns what the backend answered.
fn ask(to: &str, header: &[u8]) -> Result<SocketAddr> {
    let mut socket = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(header)?;
    let mut answer = String::new();
    socket
        .read_to_string(&mut answer)
        .context("waiting for the backend's answer")?;
    answer
        .trim()
        .parse()
        .with_context(|| format!("the backend answered {answer:?}"))
}

fn header_v1(client: SocketAddr) -> Vec<u8> {
    let (family, own) = match client {
        SocketAddr::V4(_) => ("TCP4", Ipv4Addr::LOCALHOST.to_string()),
        SocketAddr::V6(_) => ("TCP6", Ipv6Addr::LOCALHOST.to_string()),
    };
    format!(
        "PROXY {family} {} {own} {} 8443\r\n",
        client.ip(),
        client.port()
    )
    .into_bytes()
}

fn header_v2(client: SocketAddr) -> Result<Vec<u8>> {
    let own: SocketAddr = match client {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 8443).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 8443).into(),
    };
    let command = v2::Version::Two | v2::Command::Proxy;
    Ok(v2::Builder::with_addresses(command, v2::Protocol::Stream, (client, own)).build()?)
}

/// The real program, in the namespace.
struct Proxy(Child);

impl Proxy {
    fn start() -> Result<Proxy> {
        let flags = [
            "-l",
            LISTEN,
            "-4",
            BACKEND[0],
            "-6",
            BACKEND[1],
            "-log-format",
            "json",
            "-control",
            "off",
        ];
        let program = std::env::current_exe().context("finding realpeer itself")?;
        let mut child = Command::new(&program)
            .arg0("realpeer")
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        print(format_args!("\n  realpeer {}\n\n", flags[..6].join(" ")))?;
        let output = child.stdout.take().context("the proxy has no output")?;
        let mut proxy = Proxy(child);
        let mut lines = BufReader::new(output).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line?;
            if line.contains(r#""msg":"listening""#) {
                // Its later lines must find somebody who reads.
                thread::spawn(move || lines.for_each(drop));
                return Ok(proxy);
            }
            said.push(line);
        }
        proxy.0.wait()?;
        bail!("the proxy did not start; it said:\n{}", said.join("\n"))
    }

    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        ensure!(self.0.wait()?.success(), "the proxy did not end well");
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // After a failure; when it has ended already, there is nothing to kill.
        let _ = self.0.kill();
    }
}
