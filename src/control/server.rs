//! Serves the control socket. Everything a client can do is bounded: how many there are, how long
//! a line is, how long one may take to send or to read it, and how much of the main thread's time
//! its commands get.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::commands::Office;
use super::protocol::{End, Line, Request};
use super::socket::Place;
use crate::events::{Event, Told, Watcher};

/// Clients at once. Each holds a descriptor that no connection gets.
const CLIENTS: usize = 8;

/// Clients that watch, beside the others: one may be silent and slow for as long as it likes.
const WATCHERS: usize = 4;

/// Bytes of a request.
const LONGEST_REQUEST: u64 = 4096;

/// Lines of answers that are made before any is sent: many bans in a row are synced at once.
const BATCH: usize = 512;

/// Bytes that are sent in one go.
const CHUNK: usize = 64 << 10;

/// How long a client may be silent, or not read.
const PATIENCE: Duration = Duration::from_secs(10);

/// After so much work for a client the client waits as long again.
const TURN: Duration = Duration::from_millis(10);

/// Serves clients for ever; whoever drops it breaks off with all of them. A socket that is in use
/// is waited for.
pub async fn serve(place: Place, office: Arc<Office>) -> io::Result<()> {
    let bound = match place {
        Place::Ours(bound) => bound,
        Place::InUse(wanted) => wanted.wait().await,
    };
    tracing::debug!(path = %bound.path.display(), "control socket");
    let listener = UnixListener::from_std(bound.listener.try_clone()?)?;
    office.succession.have_control(bound);
    let end = pin!(office.succession.end.notified());
    let mut end = end.fuse();
    let places = Arc::new(Semaphore::new(CLIENTS));
    let seats = Arc::new(Semaphore::new(WATCHERS));
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Another process accepts. Who is here already is served on.
            _ = &mut end => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a control connection at the moment");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let _ = stream.try_write(&line(&Line::End(End::error("too many clients"))));
            continue;
        };
        let (office, seats) = (Arc::clone(&office), Arc::clone(&seats));
        clients.spawn(async move {
            let (input, mut output) = stream.into_split();
            let mut input = BufReader::new(input);
            // A client that breaks off, or takes too long, is its own affair.
            let wanted = converse(&mut input, &mut output, &office).await;
            drop(place);
            if let Ok(Some(watch)) = wanted {
                let _ = seat(watch, &office, &seats, &mut input, &mut output).await;
            }
        });
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
    Ok(())
}

/// What a client watches.
struct Watch {
    watcher: Watcher,
    listener: Option<String>,
}

/// Answers a client until it leaves, or wants to watch.
async fn converse(
    input: &mut BufReader<OwnedReadHalf>,
    output: &mut OwnedWriteHalf,
    office: &Office,
) -> io::Result<Option<Watch>> {
    let mut answers = Vec::new();
    let mut busy = Duration::ZERO;
    while let Some(request) = read_request(input).await? {
        let began = Instant::now();
        match serde_json::from_slice(&request) {
            Ok(Request::Watch { listener }) => match office.watch(listener.as_deref()).await {
                Ok(watcher) => {
                    office.settle(&mut answers).await;
                    send(output, &answers).await?;
                    return Ok(Some(Watch { watcher, listener }));
                }
                Err(end) => answers.push(Line::End(end)),
            },
            Ok(Request::Bans { origin }) if !office.succession.is_over() => {
                office.settle(&mut answers).await;
                send(output, &answers).await?;
                answers.clear();
                let mut pages = office.bans(origin);
                while let Some(page) = pages.recv().await {
                    send(output, &page).await?;
                }
            }
            Ok(request) => answers.extend(office.answer(request).await),
            Err(error) => answers.push(Line::End(End::error(format!("cannot read this: {error}")))),
        }
        busy += began.elapsed();
        if input.buffer().contains(&b'\n') && answers.len() < BATCH && busy < TURN {
            continue;
        }
        office.settle(&mut answers).await;
        send(output, &answers).await?;
        answers.clear();
        if busy > TURN {
            sleep(busy).await;
            busy = Duration::ZERO;
        }
    }
    Ok(None)
}

/// Tells a client what happens, if there is a seat, until it leaves. It may be slow: what it does not
/// read in time is lost to it.
async fn seat(
    mut watch: Watch,
    office: &Office,
    seats: &Semaphore,
    input: &mut BufReader<OwnedReadHalf>,
    output: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let Ok(_seat) = seats.try_acquire() else {
        return send(output, &[Line::End(End::error("too many watch already"))]).await;
    };
    let left = async {
        // It has nothing more to say.
        let _ = input.read_u8().await;
    };
    tokio::select! {
        result = tell(&mut watch, output) => result,
        () = left => Ok(()),
        // Whoever watches asks the process that serves now.
        () = office.succession.end.notified() => {
            send(output, &[Line::End(End::ok())]).await
        }
    }
}

async fn tell(watch: &mut Watch, output: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut told = Arc::new(Told::now(Event::Watching {}));
    let mut chunk = Vec::new();
    loop {
        let mut next = Some(told);
        while let Some(told) = next {
            let wanted = watch.listener.as_deref();
            if wanted.is_none_or(|listener| told.concerns(listener)) {
                chunk.extend(line(&Line::Event(told)));
            }
            next = match chunk.len() < CHUNK {
                true => watch.watcher.ready(),
                false => None,
            };
        }
        output.write_all(&chunk).await?;
        chunk.clear();
        told = watch.watcher.next().await;
    }
}

/// The next line, without its end; none if the client has finished.
async fn read_request(input: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    let mut limited = input.take(LONGEST_REQUEST);
    let reading = limited.read_until(b'\n', &mut request);
    timeout(PATIENCE, reading).await??;
    match request.pop() {
        Some(b'\n') => Ok(Some(request)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn send(output: &mut OwnedWriteHalf, answer: &[Line]) -> io::Result<()> {
    let mut chunk = Vec::new();
    for (number, entry) in answer.iter().enumerate() {
        chunk.extend(line(entry));
        if chunk.len() >= CHUNK || number + 1 == answer.len() {
            timeout(PATIENCE, output.write_all(&chunk)).await??;
            chunk.clear();
        }
    }
    Ok(())
}

fn line(entry: &Line) -> Vec<u8> {
    // Nothing in it can fail to be JSON; were it so, the client would get an empty line.
    let mut text = serde_json::to_vec(entry).unwrap_or_default();
    text.push(b'\n');
    text
}
