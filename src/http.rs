//! HTTP for few clients, none of whom is trusted with much of the process: how long one may take,
//! how long a head may be, and how many there are at a time is bounded.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::addr::{PeerAddr, canonical};

/// How long the head of a request may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a head. hyper takes no less than 8 KiB.
const LARGEST_HEAD: usize = 8 << 10;

/// What is answered.
pub type Answer = Response<Full<Bytes>>;

/// Some clients at a time.
#[derive(Debug)]
pub struct Clients(Arc<Semaphore>);

impl Clients {
    /// So many.
    pub fn new(most: usize) -> Clients {
        Clients(Arc::new(Semaphore::new(most)))
    }

    /// A place for one more, if there is any.
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

/// The next connection. Errors pass: of the connection, or for want of descriptors.
pub async fn accept(listener: &TcpListener) -> (TcpStream, PeerAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, PeerAddr(canonical(peer))),
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection for now");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Answers one request on a connection within `whole`, from the first byte to the end of the answer.
/// The error says what went wrong.
pub async fn converse<F>(
    stream: TcpStream,
    whole: Duration,
    answer: impl Fn(Request<Incoming>) -> F,
) -> Result<(), String>
where
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<Answer, Infallible>(answer.await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(whole, conversation).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not over within {whole:?}")),
    }
}

/// An answer of that type.
pub fn answer(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let content = HeaderValue::from_static(content);
    answer.headers_mut().insert(CONTENT_TYPE, content);
    answer
}

/// Turns a client away without a word, which leaves nothing behind.
pub fn reset(stream: &TcpStream) {
    let _: io::Result<()> = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
