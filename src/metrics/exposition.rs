//! The metrics, as Prometheus reads them: its own text format, or OpenMetrics for who prefers it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::picture::{label, open_files, open_files_limit};
use super::readiness;
use crate::config::Protocol;
use crate::histogram::Times;
use crate::listeners::Listeners;
use crate::service::{Record, Service};
use crate::stats::Count;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The one that an Accept header prefers.
    pub fn asked_for(accept: Option<&str>) -> Format {
        let weight = |kind: &str| {
            let ranges = accept.unwrap_or_default().split(',').map(str::trim);
            let mut of_kind = ranges.filter(|range| range.split(';').next() == Some(kind));
            of_kind.next().map_or(0.0, quality)
        };
        let open = weight("application/openmetrics-text");
        match open > 0.0 && open >= weight("text/plain") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The `q` of a media range (RFC 9110, 12.4.2).
fn quality(range: &str) -> f64 {
    let mut parameters = range.split(';').map(str::trim);
    let q = parameters.find_map(|parameter| parameter.strip_prefix("q="));
    q.map_or(1.0, |q| q.parse().unwrap_or(0.0))
}

/// Reads all counters and writes them.
pub async fn scrape(listeners: &Arc<Listeners>, format: Format) -> Result<String, fmt::Error> {
    let services = listeners.services().await.into_iter();
    let scrape = Scrape {
        services: services
            .map(|(service, accepting)| (label(&service), service, accepting))
            .collect(),
        ready: readiness::reasons(listeners).await.is_empty(),
        open_files: open_files().await,
        listeners: Arc::clone(listeners),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut out, &registry)?,
        Format::OpenMetrics => text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

#[derive(Debug)]
struct Scrape {
    services: Vec<(String, Arc<Service>, bool)>,
    ready: bool,
    open_files: Option<u64>,
    listeners: Arc<Listeners>,
}

/// Labels and a value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, u64);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.connections(encoder)?;
        self.flows(encoder)?;
        self.both(encoder)?;
        self.process(encoder)
    }
}

impl Scrape {
    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tcp = Some(Protocol::Tcp);
        let one = |count| move |record: &Record| record.count(count);
        counter(
            encoder,
            "realpeer_connections_accepted",
            "TCP connections taken from load balancers",
            self.each(tcp, one(Count::Accepted)),
        )?;
        counter(
            encoder,
            "realpeer_connections_served",
            "TCP connections that reached the backend",
            self.each(tcp, one(Count::Served)),
        )?;
        counter(
            encoder,
            "realpeer_connections_refused",
            "TCP connections that were refused, by reason",
            self.by(tcp, "reason", &named(Count::REFUSALS)),
        )?;
        gauge(
            encoder,
            "realpeer_connections_open",
            "TCP connections that are open",
            self.each(tcp, |record| record.open() as u64),
        )?;
        counter(
            encoder,
            "realpeer_accept_failures",
            "Times a listener had to wait for descriptors or memory",
            self.each(tcp, one(Count::AcceptFailed)),
        )?;
        self.histogram(
            encoder,
            "realpeer_header_duration_seconds",
            "Time from a connection's start to the end of its PROXY header",
            |record| record.times(|tally| &tally.header),
        )?;
        self.histogram(
            encoder,
            "realpeer_backend_connect_duration_seconds",
            "Time from the PROXY header to the backend's answer to the connection",
            |record| record.times(|tally| &tally.backend),
        )
    }

    fn flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let udp = Some(Protocol::Udp);
        counter(
            encoder,
            "realpeer_udp_flows_opened",
            "UDP flows that were opened",
            self.each(udp, |record| record.count(Count::Served)),
        )?;
        gauge(
            encoder,
            "realpeer_udp_flows_open",
            "UDP flows that are open",
            self.each(udp, |record| record.open() as u64),
        )?;
        counter(
            encoder,
            "realpeer_udp_flows_evicted",
            "UDP flows that were closed to make room for others",
            self.each(udp, |record| record.count(Count::FlowEvicted)),
        )?;
        counter(
            encoder,
            "realpeer_udp_datagrams",
            "Datagrams passed on, up to the backend and down to clients",
            self.by(
                udp,
                "direction",
                &[("up", Count::DatagramsUp), ("down", Count::DatagramsDown)],
            ),
        )?;
        let dropped = [
            Count::REFUSALS,
            &[Count::DatagramLost, Count::DatagramTruncated],
        ];
        counter(
            encoder,
            "realpeer_udp_dropped",
            "Datagrams that were dropped, by reason",
            self.by(udp, "reason", &named(&dropped.concat())),
        )
    }

    fn both(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        counter(
            encoder,
            "realpeer_bytes",
            "Bytes passed on, up to the backend and down to clients; those of a TCP connection count when it ends",
            self.by(
                None,
                "direction",
                &[("up", Count::BytesUp), ("down", Count::BytesDown)],
            ),
        )?;
        counter(
            encoder,
            "realpeer_sessions_ended",
            "Connections and UDP flows ended by a ban or an administrator (killed) or by -idle-timeout (idle)",
            self.by(None, "reason", &named(&[Count::Killed, Count::Idle])),
        )?;
        counter(
            encoder,
            "realpeer_port_fallbacks",
            "Connections and UDP flows whose client's port was in use on this host, so that they have another one",
            self.each(None, |record| record.count(Count::PortReplaced)),
        )?;
        let accepting = self.services.iter();
        gauge(
            encoder,
            "realpeer_listener_accepting",
            "1 if the listener takes new clients, 0 while it is drained",
            accepting.map(|(label, _, accepting)| (of(label), u64::from(*accepting))),
        )
    }

    /// Nothing without an engine.
    fn crowdsec(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let proxy = &self.listeners.proxy;
        let Some(state) = &proxy.crowdsec else {
            return Ok(());
        };
        let told = state.told(&proxy.bans.decisions);
        gauge(
            encoder,
            "realpeer_crowdsec_decisions",
            "Decisions of the CrowdSec engine in force, by origin",
            by_origin(&told.decisions),
        )?;
        counter(
            encoder,
            "realpeer_crowdsec_refused",
            "Clients refused because of a decision, by origin",
            by_origin(&told.refused),
        )?;
        counter(
            encoder,
            "realpeer_crowdsec_failures",
            "Attempts to read decisions that failed",
            [(Vec::new(), told.failures)].into_iter(),
        )?;
        let last = told.last_update.map(|time| (Vec::new(), time));
        gauge(
            encoder,
            "realpeer_crowdsec_last_update_timestamp_seconds",
            "When an answer of the engine was last read to its end",
            last.into_iter(),
        )
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let listeners = &self.listeners;
        let proxy = &listeners.proxy;
        let alone = |value| [(Vec::new(), value)].into_iter();
        gauge(
            encoder,
            "realpeer_ready",
            "1 if /readyz says so",
            alone(u64::from(self.ready)),
        )?;
        gauge(
            encoder,
            "realpeer_bans",
            "Bans in force",
            alone(proxy.bans.list().len() as u64),
        )?;
        counter(
            encoder,
            "realpeer_routing_repairs",
            "Times the policy routing was put back after another program removed it",
            alone(listeners.routing().restored()),
        )?;
        let reloads = listeners.reloads();
        let results = [("success", &reloads.done), ("failure", &reloads.failed)];
        let results = results.map(|(result, count)| {
            let count = count.load(Ordering::Relaxed);
            (vec![("result", result)], count)
        });
        counter(
            encoder,
            "realpeer_config_reloads",
            "Reloads of the configuration",
            results.into_iter(),
        )?;
        self.crowdsec(encoder)?;
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        gauge(
            encoder,
            "realpeer_build_info",
            "1; the version is a label",
            [(version, 1)].into_iter(),
        )?;
        if let Some(open) = self.open_files {
            gauge(
                encoder,
                "process_open_fds",
                "Open file descriptors",
                alone(open),
            )?;
        }
        if let Some(limit) = open_files_limit() {
            gauge(
                encoder,
                "process_max_fds",
                "Maximum number of open file descriptors",
                alone(limit),
            )?;
        }
        let started = proxy.started.duration_since(SystemTime::UNIX_EPOCH);
        gauge(
            encoder,
            "process_start_time_seconds",
            "Start of the process, in seconds since 1970",
            alone(started.map_or(0, |since| since.as_secs())),
        )
    }

    /// The listeners of a protocol, or all.
    fn of(&self, protocol: Option<Protocol>) -> impl Iterator<Item = (&str, &Record)> {
        let services = self.services.iter();
        services
            .filter(move |(_, service, _)| protocol.is_none_or(|p| service.config.protocol == p))
            .map(|(label, service, _)| (&**label, &*service.record))
    }

    fn each(
        &self,
        protocol: Option<Protocol>,
        value: impl Fn(&Record) -> u64,
    ) -> impl Iterator<Item = Sample<'_>> {
        self.of(protocol)
            .map(move |(label, record)| (of(label), value(record)))
    }

    fn by(
        &self,
        protocol: Option<Protocol>,
        label: &'static str,
        counts: &[(&'static str, Count)],
    ) -> impl Iterator<Item = Sample<'_>> {
        self.of(protocol).flat_map(move |(listener, record)| {
            counts.iter().map(move |(value, count)| {
                let labels = vec![("listener", listener), (label, *value)];
                (labels, record.count(*count))
            })
        })
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        times: impl Fn(&Record) -> Times,
    ) -> fmt::Result {
        let mut all = self.of(Some(Protocol::Tcp)).peekable();
        if all.peek().is_none() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (label, record) in all {
            let times = times(record);
            let buckets: Vec<_> = times.buckets().collect();
            let labels = of(label);
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(times.sum(), times.count(), &buckets, None)?;
        }
        Ok(())
    }
}

fn of(listener: &str) -> Vec<(&'static str, &str)> {
    vec![("listener", listener)]
}

fn named(counts: &[Count]) -> Vec<(&'static str, Count)> {
    counts.iter().map(|count| (count.name(), *count)).collect()
}

/// A sample for each origin of decisions.
fn by_origin(counts: &BTreeMap<String, u64>) -> impl Iterator<Item = Sample<'_>> {
    let origins = counts.iter();
    origins.map(|(origin, count)| (vec![("origin", origin.as_str())], *count))
}

/// A family of counters; `_total` is put behind its name.
fn counter<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = Sample<'a>>,
) -> fmt::Result {
    let mut samples = samples.peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        let mut metric = family.encode_family(&labels)?;
        metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
    }
    Ok(())
}

fn gauge<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = Sample<'a>>,
) -> fmt::Result {
    let mut samples = samples.peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        let mut metric = family.encode_family(&labels)?;
        metric.encode_gauge(&(value as f64))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_who_prefers_it() {
        use Format::{OpenMetrics, Prometheus};
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (None, Prometheus),
            (Some("*/*"), Prometheus),
            (Some("text/html, text/plain"), Prometheus),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("application/openmetrics-text; q=0"), Prometheus),
            (
                Some("application/openmetrics-text;q=0.2, text/plain;q=0.9"),
                Prometheus,
            ),
            (Some(prometheus), OpenMetrics),
            (Some(";;,q=,"), Prometheus),
        ] {
            assert_eq!(Format::asked_for(accept), expected, "{accept:?}");
        }
    }
}
