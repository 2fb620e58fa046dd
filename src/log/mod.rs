//! Log lines on stdout: JSON with go-mmproxy's keys, or text for people.

mod queue;

use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, Verbosity};
use crate::output;
use queue::Queue;

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

/// Sends log lines to stdout from now on. Without a format, text if stdout is a terminal. No line
/// waits for its reader, and none that cannot be written ends the program. The thread that writes
/// first does `begin`.
pub fn init(
    verbosity: Verbosity,
    format: Option<LogFormat>,
    begin: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let format = format_of(format);
    set_verbosity(verbosity);
    let lines = queue_to(&io::stdout(), format, begin)?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::DEBUG)
        // It would print them to standard error, and panic where that is closed.
        .log_internal_errors(false)
        .event_format(Line(format))
        .with_writer(lines.clone())
        .finish();
    // These fail only if there was a log before, which then stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let _ = LOG.set(Log { format, lines });
    Ok(())
}

/// The format of the log: without a wish, text if stdout is a terminal.
pub fn format_of(wish: Option<LogFormat>) -> LogFormat {
    wish.unwrap_or(match io::stdout().is_terminal() {
        true => LogFormat::Text,
        false => LogFormat::Json,
    })
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
    if let Ok(stderr) = queue_to(&io::stderr(), log.format, || ()) {
        stderr.push(line(log.format, Level::ERROR, error, "").as_bytes());
        stderr.flush(PATIENCE);
    }
}

/// Waits for the last lines of the log, for a second at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.lines.flush(PATIENCE);
    }
}

fn queue_to(
    stream: &impl AsFd,
    format: LogFormat,
    begin: impl FnOnce() + Send + 'static,
) -> io::Result<Queue> {
    let out = File::from(stream.as_fd().try_clone_to_owned()?);
    Queue::start(out, begin, move |lost| {
        let rest = match format {
            LogFormat::Json => format!(",\"lost\":{lost}"),
            LogFormat::Text => format!(" lost={lost}"),
        };
        let message = "log lines were lost: their reader was slow or away";
        line(format, Level::WARN, message, &rest)
    })
}

struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Other crates' chatter (netlink's, the runtime's) is not the administrator's business.
        let level = *event.metadata().level();
        let own = event.metadata().target().starts_with("realpeer");
        let quiet = level > Level::INFO && !VERBOSE.load(Ordering::Relaxed);
        if quiet || (!own && level > Level::WARN) {
            return Ok(());
        }
        let mut fields = Fields {
            format: self.0,
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut fields);
        let Fields { message, rest, .. } = fields;
        out.write_str(&line(self.0, level, &message, &rest))
    }
}

/// A whole line. `rest` is the other fields as they stand in it.
fn line(format: LogFormat, level: Level, message: &str, rest: &str) -> String {
    let mut time = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    match format {
        LogFormat::Json => format!(
            "{{\"time\":\"{time}\",\"level\":\"{level}\",\"msg\":{}{rest}}}\n",
            json(message)
        ),
        LogFormat::Text => format!("{time} {level:5} {}{rest}\n", escaped(message)),
    }
}

/// The message, and the other fields as they stand in the line.
struct Fields {
    format: LogFormat,
    message: String,
    rest: String,
}

impl Fields {
    fn text(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let value = match self.format {
            LogFormat::Json => json(&value),
            LogFormat::Text if is_plain(&value) => value,
            LogFormat::Text => format!("\"{}\"", escaped(&value)),
        };
        self.raw(field, &value);
    }

    fn raw(&mut self, field: &Field, value: &dyn fmt::Display) {
        let _ = match self.format {
            LogFormat::Json => write!(self.rest, ",{}:{value}", json(field.name())),
            LogFormat::Text => write!(self.rest, " {}={value}", field.name()),
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field, &value);
    }
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
