//! Log lines on stdout: JSON with go-mmproxy's keys, or text for people. Or entries of the systemd
//! journal.

mod journal;
mod queue;

use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::{LogFormat, Verbosity};
use crate::output;
use journal::{Entry, Journal};
use queue::{Queue, Stream};

/// How long the last lines may take before the program ends without them.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log of this process, once it has one.
static LOG: OnceLock<Log> = OnceLock::new();

/// Debug lines are logged, too.
static VERBOSE: AtomicBool = AtomicBool::new(false);

struct Log {
    format: LogFormat,
    lines: Queue,
}

/// Sends log lines out from now on. Without a format, to the journal if `stderr` goes there, as text
/// if stdout is a terminal, and else as JSON. No line waits for its reader, and none that cannot be
/// sent ends the program. The thread that sends them first does `begin`. Fails if the journal is
/// asked for and out of reach.
pub fn init(
    verbosity: Verbosity,
    format: Option<LogFormat>,
    stderr: BorrowedFd<'_>,
    begin: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    set_verbosity(verbosity);
    let (format, lines) = match format {
        None if journal::is_stream(stderr) && Journal::open().is_ok() => {
            (LogFormat::Journal, queue_of(LogFormat::Journal, begin)?)
        }
        None if io::stdout().is_terminal() => (LogFormat::Text, queue_of(LogFormat::Text, begin)?),
        format => {
            let format = format.unwrap_or(LogFormat::Json);
            (format, queue_of(format, begin)?)
        }
    };
    let log = LOG.get_or_init(|| Log { format, lines });
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::DEBUG)
        .with(Lines(log));
    // This fails only if there was a log before, which then stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// The format of this process's log; JSON until it has one.
pub fn format() -> LogFormat {
    LOG.get().map_or(LogFormat::Json, |log| log.format)
}

/// Logs so much from now on.
pub fn set_verbosity(verbosity: Verbosity) {
    VERBOSE.store(verbosity == Verbosity::All, Ordering::Relaxed);
}

/// Says on standard error why the program ends: as the log would if there is one.
pub fn last_words(error: &str) {
    let Some(log) = LOG.get() else {
        return output::complain(error);
    };
    let words = Line::new(log.format).finish(Level::ERROR, error);
    if log.format == LogFormat::Journal {
        log.lines.push(&words);
        log.lines.flush(PATIENCE);
        if !journal::is_stream(io::stderr().as_fd()) {
            output::complain(error);
        }
    } else if let Ok(stderr) = queue_to(&io::stderr(), log.format, || ()) {
        stderr.push(&words);
        stderr.flush(PATIENCE);
    }
}

/// Waits for the last lines of the log, for a second at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.lines.flush(PATIENCE);
    }
}

fn queue_of(format: LogFormat, begin: impl FnOnce() + Send + 'static) -> io::Result<Queue> {
    if format != LogFormat::Journal {
        return queue_to(&io::stdout(), format, begin);
    }
    let journal = Journal::open().map_err(|error| {
        let told = format!("-log-format journal: journald cannot be reached: {error}");
        io::Error::new(error.kind(), told)
    })?;
    Queue::start(begin, move |entries| journal.send(entries), gap(format))
}

fn queue_to(
    stream: &impl AsFd,
    format: LogFormat,
    begin: impl FnOnce() + Send + 'static,
) -> io::Result<Queue> {
    let mut stream = Stream::new(File::from(stream.as_fd().try_clone_to_owned()?));
    Queue::start(begin, move |lines| stream.send(lines), gap(format))
}

/// The line that stands for lost ones.
fn gap(format: LogFormat) -> impl Fn(u64) -> Vec<u8> {
    move |lost| {
        let mut line = Line::new(format);
        line.raw("lost", &lost);
        let message = "log lines were lost: their reader was slow or away";
        line.finish(Level::WARN, message)
    }
}

/// Makes a line of each event.
struct Lines(&'static Log);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Other crates' chatter (netlink's, the runtime's) is not the administrator's business.
        let level = *event.metadata().level();
        let own = event.metadata().target().starts_with("realpeer");
        let quiet = level > Level::INFO && !VERBOSE.load(Ordering::Relaxed);
        if quiet || (!own && level > Level::WARN) {
            return;
        }
        let mut line = Line::new(self.0.format);
        event.record(&mut line);
        let message = std::mem::take(&mut line.message);
        self.0.lines.push(&line.finish(level, &message));
    }
}

/// A line that is being made.
struct Line {
    format: LogFormat,
    message: String,
    /// The other fields as they stand in the line.
    rest: String,
    /// The other fields as the journal has them.
    entry: Entry,
}

impl Line {
    fn new(format: LogFormat) -> Line {
        Line {
            format,
            message: String::new(),
            rest: String::new(),
            entry: Entry::default(),
        }
    }

    fn text(&mut self, key: &str, value: String) {
        if key == "message" {
            self.message = value;
            return;
        }
        let shown = match self.format {
            LogFormat::Json => json(&value),
            LogFormat::Text | LogFormat::Journal if is_plain(&value) => value.clone(),
            LogFormat::Text | LogFormat::Journal => format!("\"{}\"", escaped(&value)),
        };
        self.field(key, &shown, &value);
    }

    fn raw(&mut self, key: &str, value: &dyn fmt::Display) {
        let value = value.to_string();
        self.field(key, &value, &value);
    }

    fn field(&mut self, key: &str, shown: &str, value: &str) {
        // Writing to a string does not fail.
        let _ = match self.format {
            LogFormat::Json => write!(self.rest, ",{}:{shown}", json(key)),
            LogFormat::Text | LogFormat::Journal => write!(self.rest, " {key}={shown}"),
        };
        if self.format == LogFormat::Journal {
            self.entry.add(key, value);
        }
    }

    /// The whole line, with its end; for the journal, an entry behind its length.
    fn finish(self, level: Level, message: &str) -> Vec<u8> {
        let rest = self.rest;
        match self.format {
            LogFormat::Json => format!(
                "{{\"time\":\"{}\",\"level\":\"{level}\",\"msg\":{}{rest}}}\n",
                now(),
                json(message)
            )
            .into_bytes(),
            LogFormat::Text => {
                format!("{} {level:5} {}{rest}\n", now(), escaped(message)).into_bytes()
            }
            LogFormat::Journal => {
                let message = format!("{}{rest}", escaped(message));
                self.entry.finish(level, &message)
            }
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field.name(), &value);
    }
}

fn now() -> String {
    let mut time = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Control characters and quotes that strangers send must not forge or break a line.
fn escaped(text: &str) -> String {
    text.escape_debug().to_string()
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'))
}
