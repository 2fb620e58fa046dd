//! Log lines on stdout: JSON with go-mmproxy's keys, or text for people.

use std::fmt::{self, Write};
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, Verbosity};

/// Sends log lines to stdout from now on. Without a format, text if stdout is a terminal.
pub fn init(verbosity: Verbosity, format: Option<LogFormat>) {
    let format = format.unwrap_or(match std::io::stdout().is_terminal() {
        true => LogFormat::Text,
        false => LogFormat::Json,
    });
    let level = if verbosity == Verbosity::All {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Line(format))
        .with_writer(std::io::stdout)
        .finish();
    // Fails only if a test has set one before, which then stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
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
        if !event.metadata().target().starts_with("realpeer") && level > Level::WARN {
            return Ok(());
        }
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields {
            format: self.0,
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut fields);
        let Fields { message, rest, .. } = fields;
        match self.0 {
            LogFormat::Json => writeln!(
                out,
                r#"{{"time":"{time}","level":"{level}","msg":{}{rest}}}"#,
                json(&message)
            ),
            LogFormat::Text => writeln!(out, "{time} {level:5} {}{rest}", escaped(&message)),
        }
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
