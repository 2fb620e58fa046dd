//! Connects to a TCP server from an address that this host does not have, and prints what the server
//! says first.
//!
//! ```sh
//! realpeer routing up -4 127.0.0.1:22    # brings the server's replies back to this host
//! cargo build --example connect_as && target/debug/examples/connect_as 203.0.113.9:40000 127.0.0.1:22
//! ```
//!
//! Needs CAP_NET_ADMIN or CAP_NET_RAW.

use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use realpeer::addr::{ClientAddr, TargetAddr};
use realpeer::routing::Marks;
use realpeer::upstream::{Asking, Kind, Options, Place, SourcePort, connect, failure};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Result<Vec<SocketAddr>, _> =
        std::env::args().skip(1).map(|word| word.parse()).collect();
    let [client, target] = addresses?[..] else {
        return Err("usage: connect_as CLIENT:PORT SERVER:PORT".into());
    };
    let mut stream = connect_as(ClientAddr(client), TargetAddr(target)).await?;
    println!("connected to {target} as {}", stream.local_addr()?);
    let mut greeting = [0; 256];
    let length = stream.read(&mut greeting).await?;
    println!("{}", greeting[..length].trim_ascii_end().escape_ascii());
    Ok(())
}

async fn connect_as(
    client: ClientAddr,
    target: TargetAddr,
) -> Result<tokio::net::TcpStream, Box<dyn Error>> {
    let options = Options {
        // Only the way `mark` of the routing needs marks.
        place: Place::here(Arc::new(Marks::default()), Arc::new(Asking::new()?)),
        mark: None,
        source_port: SourcePort::Keep,
        keepalive: None,
    };
    let connecting = connect(client, target, Kind::Stream, &options)?;
    let stream = tokio::net::TcpStream::from_std(TcpStream::from(connecting.socket))?;
    // The connection is under way: the socket becomes writable once it is there, or has failed.
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(failure(client, target, error).into()),
        None => Ok(stream),
    }
}
