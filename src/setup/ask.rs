//! The questions, for what the flags leave open.

use std::io::{self, IsTerminal};

use anyhow::{Result, bail};
use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use super::answers::{Answers, Backend, backend, balancers};
use super::guess::{self, Service};
use super::plan;
use crate::cli::SetupFlags;
use crate::config::{Addresses, Choice, Protocol, addresses};
use crate::doctor::printable;
use crate::output::print;

/// The most peers that are shown.
const PEERS: usize = 5;

/// Everything that setup has to know, by flags, guesses and questions.
pub fn answers(flags: &SetupFlags) -> Result<Answers> {
    let protocol = flags.protocol;
    let open = [
        ("-backend", flags.backend.is_none()),
        ("-from", flags.from.is_none()),
    ];
    let open: Vec<&str> = open
        .iter()
        .filter(|(_, open)| *open)
        .map(|(flag, _)| *flag)
        .collect();
    if !open.is_empty() && !io::stdin().is_terminal() {
        bail!(
            "there is no terminal to ask on: give {}",
            open.join(" and ")
        );
    }
    let services = guess::services(protocol);
    let backend = match flags.backend {
        Some(backend) => guess::completed(backend, protocol),
        None => ask_backend(&services, protocol)?,
    };
    let known = plan::instance_of(&backend, protocol);
    let service = services.iter().find(|service| {
        let mut addresses = service.backend.addresses();
        addresses.any(|addr| backend.addresses().any(|other| other == addr))
    });
    let name = match (&flags.name, &known) {
        (Some(name), _) => name.clone(),
        (None, Some(known)) => known.name.clone(),
        (None, None) => plan::free_name(&guess::file_name(service, backend.port()), backend.port()),
    };
    let from = match &flags.from {
        Some(from) => from.clone(),
        None => ask_balancers(&backend, protocol)?,
    };
    let listen = match &flags.listen {
        Some(listen) => listen.clone(),
        None => {
            let before = known
                .filter(|known| known.name == name)
                .map(|known| known.listen);
            let guess = before.unwrap_or_else(|| suggestion(&backend, &from, protocol));
            match flags.yes || !io::stdin().is_terminal() {
                true => addresses(&guess).map_err(anyhow::Error::msg)?,
                false => ask_listen(&guess)?,
            }
        }
    };
    Ok(Answers {
        name,
        protocol,
        udp_header: flags.udp_header,
        backend,
        from,
        listen,
    })
}

/// Goes on only if somebody says yes.
pub fn agreement(question: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nothing was changed: there is no terminal to ask on, and -yes was not given");
    }
    match ask(&format!("{question} y/n"), "n", |text| {
        Ok(text.to_lowercase())
    })?
    .as_str()
    {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}

fn ask_backend(services: &[Service], protocol: Protocol) -> Result<Backend> {
    let mut shown = String::new();
    for (number, service) in services.iter().enumerate() {
        let sockets: Vec<String> = service.sockets.iter().map(ToString::to_string).collect();
        let program = printable(&service.program);
        shown += &format!(
            "  {:>2}  {program:<16} {}\n",
            number + 1,
            sockets.join(", ")
        );
    }
    if services.is_empty() {
        print(format_args!(
            "No server was found that listens here ({}).\n",
            protocol.word()
        ))?;
    } else {
        print(format_args!(
            "Servers on this host ({}):\n{shown}\n",
            protocol.word()
        ))?;
    }
    let first = services
        .iter()
        .position(|service| service.program == "sshd");
    let default = first.map_or(String::new(), |at| (at + 1).to_string());
    ask(
        "Which one is to see the real clients? Its number, or ADDRESS:PORT",
        &default,
        |text| match text.parse::<usize>() {
            Ok(number) => {
                let service = number.checked_sub(1).and_then(|at| services.get(at));
                service
                    .map(|service| service.backend)
                    .ok_or_else(|| "there is no such number".into())
            }
            Err(_) => backend(text).map(|backend| guess::completed(backend, protocol)),
        },
    )
}

/// It cannot be guessed: whoever is connected may be a client as well.
fn ask_balancers(backend: &Backend, protocol: Protocol) -> Result<Vec<IpNet>> {
    let peers = guess::peers(backend, protocol);
    if !peers.is_empty() {
        print(format_args!(
            "\nConnected to {backend} now (load balancers, or clients that came directly):\n"
        ))?;
        for (ip, count) in peers.iter().take(PEERS) {
            print(format_args!("  {ip} ({count})\n"))?;
        }
    }
    print("\nWhoever you name next may claim to be any client: name only load balancers.\n")?;
    ask(
        "The load balancer's address; several separated by commas",
        "",
        balancers,
    )
}

fn ask_listen(guess: &str) -> Result<Addresses> {
    print("\n")?;
    ask(
        "Where realpeer listens for the load balancer",
        guess,
        addresses,
    )
}

fn suggestion(backend: &Backend, from: &[IpNet], protocol: Protocol) -> String {
    let port = guess::free_port(backend.port(), protocol);
    let local = from.iter().all(|network| network.addr().is_loopback());
    let both = Socket::new(Domain::IPV6, Type::STREAM, None).is_ok();
    match (local, both) {
        (true, _) if from.iter().all(|network| network.addr().is_ipv4()) => {
            format!("127.0.0.1:{port}")
        }
        (_, true) => format!(":{port}"),
        (_, false) => format!("0.0.0.0:{port}"),
    }
}

/// Asks until the answer is understood. An empty answer means the default, if there is one.
fn ask<T>(question: &str, default: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T> {
    loop {
        match default {
            "" => print(format_args!("{question}: "))?,
            _ => print(format_args!("{question} [{default}]: "))?,
        }
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 {
            print("\n")?;
            bail!("nothing was changed");
        }
        let text = match line.trim() {
            "" => default,
            text => text,
        };
        match read(text) {
            Ok(answer) => return Ok(answer),
            Err(error) => print(format_args!("  {error}\n"))?,
        }
    }
}
