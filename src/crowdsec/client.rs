//! The local API, as a remediation component asks it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::config::Crowdsec;

/// How long the engine may take to accept a connection, to begin an answer, and for the whole of it.
const CONNECT: Duration = Duration::from_secs(10);
const BEGIN: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(300);

/// The longest silence in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(20);

/// The longest key file, in bytes.
const LONGEST_KEY: u64 = 4096;

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It does not know the key.
    #[error(
        "the CrowdSec engine at {url} refuses the API key of {file} (403): make one on the engine's host by `cscli bouncers add realpeer -o raw`, and write it to {file}"
    )]
    WrongKey {
        /// Its URL.
        url: String,
        /// Where the key stands.
        file: String,
    },
    /// There is no key.
    #[error("the CrowdSec API key: {0}")]
    NoKey(String),
    /// Nobody answers there.
    #[error(
        "cannot reach the CrowdSec engine at {url}: {error}: is it running, and does api.server.listen_uri of its config.yaml name that address?"
    )]
    Unreachable {
        /// Its URL.
        url: String,
        /// What happened.
        error: String,
    },
    /// It says something else.
    #[error("the CrowdSec engine at {url} answered {status} to {path}")]
    Status {
        /// Its URL.
        url: String,
        /// Of HTTP.
        status: u16,
        /// What was asked for.
        path: String,
    },
    /// The answer broke off, or is none.
    #[error("the answer of the CrowdSec engine at {url} cannot be used: {error}")]
    Answer {
        /// Its URL.
        url: String,
        /// What is wrong with it.
        error: String,
    },
}

/// A client of one engine.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    config: Crowdsec,
}

impl Client {
    /// Fails if the certificates of `tls-ca-file` cannot be read.
    pub fn new(config: &Crowdsec) -> Result<Client, Failure> {
        let roots = match &config.tls_ca_file {
            None => RootCerts::PlatformVerifier,
            Some(file) => certificates(file).map_err(|error| Failure::Unreachable {
                url: config.url.clone(),
                error: format!("tls-ca-file {}: {error}", file.display()),
            })?,
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("realpeer/v", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            // An engine is asked by its address, whatever the environment says of proxies.
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(BEGIN))
            .timeout_recv_body(Some(WHOLE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .into();
        let config = config.clone();
        Ok(Client { agent, config })
    }

    /// The decisions since the last question, or all of them.
    pub fn stream(&self, all: bool) -> Result<Response<Body>, Failure> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("startup", if all { "true" } else { "false" });
        // Without it an engine tells only the longest of several decisions on one address, and
        // nothing when that is deleted (seen with 1.4.6).
        query.append_pair("dedup", "false");
        let scopes: Vec<&str> = match &self.config.scopes[..] {
            [] => vec!["ip", "range"],
            some => some.iter().map(String::as_str).collect(),
        };
        query.append_pair("scopes", &scopes.join(",").to_lowercase());
        for (name, list) in [
            ("origins", &self.config.origins),
            ("scenarios_containing", &self.config.scenarios_containing),
        ] {
            if !list.is_empty() {
                query.append_pair(name, &list.join(","));
            }
        }
        self.get(&format!("/v1/decisions/stream?{}", query.finish()))
    }

    /// Asks something whose answer is short and changes nothing: the headers of the answer.
    pub fn look(&self) -> Result<HeaderMap, Failure> {
        let answer = self.get("/v1/decisions?ip=198.18.0.1")?;
        Ok(answer.headers().clone())
    }

    /// Reports what was done; tells whether the engine knows such reports.
    pub fn report(&self, report: &serde_json::Value) -> Result<bool, Failure> {
        let path = "/v1/usage-metrics";
        let request = self
            .agent
            .post(format!("{}{path}", self.config.url))
            .header("X-Api-Key", self.key()?)
            .header("Content-Type", "application/json");
        let answer = request.send(report.to_string());
        match answer.map(|answer| answer.status().as_u16()) {
            Ok(200..=299) => Ok(true),
            Ok(404 | 405) => Ok(false),
            Ok(status) => Err(self.status(status, path)),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    /// An answer that cannot be used.
    pub fn bad(&self, error: impl ToString) -> Failure {
        Failure::Answer {
            url: self.config.url.clone(),
            error: error.to_string(),
        }
    }

    fn get(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = self
            .agent
            .get(format!("{}{path}", self.config.url))
            .header("X-Api-Key", self.key()?);
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        match answer.status().as_u16() {
            200 => Ok(answer),
            status => Err(self.status(status, path)),
        }
    }

    fn status(&self, status: u16, path: &str) -> Failure {
        let url = self.config.url.clone();
        match status {
            401 | 403 => Failure::WrongKey {
                url,
                file: self.config.api_key_file.display().to_string(),
            },
            _ => Failure::Status {
                url,
                status,
                path: path.split('?').next().unwrap_or(path).to_owned(),
            },
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable {
            url: self.config.url.clone(),
            error: error.to_string(),
        }
    }

    /// It is read each time: a new one needs neither restart nor reload.
    fn key(&self) -> Result<String, Failure> {
        let path = &self.config.api_key_file;
        let no_key = |why: String| Failure::NoKey(format!("{}: {why}", path.display()));
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST_KEY).read_to_string(&mut text))
            .map_err(|error| no_key(format!("cannot read it: {error}")))?;
        let key = text.trim();
        match !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(key.to_owned()),
            false => Err(no_key("it holds no key: write the one line there that `cscli bouncers add realpeer -o raw` prints".into())),
        }
    }
}

/// Whether anybody on the host may read the key.
pub fn is_open(key_file: &Path) -> bool {
    fs::metadata(key_file).is_ok_and(|metadata| metadata.mode() & 0o004 != 0)
}

/// How far the engine's clock is ahead of ours, by its `Date`.
pub fn clock_ahead(headers: &HeaderMap) -> Option<i64> {
    let date = headers.get("date")?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let (theirs, ours) = (seconds(theirs)?, seconds(SystemTime::now())?);
    Some(theirs.as_secs() as i64 - ours.as_secs() as i64)
}

fn certificates(file: &Path) -> Result<RootCerts, String> {
    let pem = fs::read(file).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            all.push(certificate);
        }
    }
    match all.is_empty() {
        true => Err("it holds no certificate".into()),
        false => Ok(RootCerts::new_with_certs(&all)),
    }
}
