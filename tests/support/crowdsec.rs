//! Debian's CrowdSec engine with its local API alone: no online service, no logs to read.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;

use super::{Host, Running, TempDir, repository};

/// Where `tests/run` unpacks the package.
fn package(path: &str) -> String {
    let path = repository("target/crowdsec").join(path);
    assert!(
        path.exists(),
        "{} is missing: use tests/run",
        path.display()
    );
    path.to_str().expect("UTF-8").to_owned()
}

/// An engine in a directory of its own, on 127.0.0.1:8080 of the host that it is started on.
pub struct Engine {
    pub files: TempDir,
    pub url: &'static str,
}

impl Engine {
    /// An engine that does not run yet, and knows a component called realpeer.
    #[track_caller]
    pub fn new() -> Engine {
        Engine::with("", "http://127.0.0.1:8080")
    }

    /// One that speaks TLS with a certificate for 127.0.0.1, which `ca.pem` has signed.
    #[track_caller]
    pub fn with_tls() -> Engine {
        Engine::with(
            "tls: {cert_file: DIR/cert.pem, key_file: DIR/key.pem}",
            "https://127.0.0.1:8080",
        )
    }

    fn with(tls: &str, url: &'static str) -> Engine {
        let files = TempDir::new();
        let directory = files
            .path("")
            .to_str()
            .expect("UTF-8")
            .trim_end_matches('/')
            .to_owned();
        for part in ["etc/patterns", "data", "hub", "plugins", "notifications"] {
            fs::create_dir_all(files.path(part)).expect("make a directory");
        }
        for (from, to) in [
            ("etc/crowdsec/profiles.yaml", "etc/profiles.yaml"),
            ("etc/crowdsec/simulation.yaml", "etc/simulation.yaml"),
            ("usr/share/crowdsec/hub/.index.json", "hub/.index.json"),
        ] {
            fs::copy(package(from), files.path(to)).expect("copy a file of the package");
        }
        for pattern in fs::read_dir(package("etc/crowdsec/patterns")).expect("patterns") {
            let pattern = pattern.expect("a file").path();
            let name = pattern.file_name().expect("a name");
            fs::copy(&pattern, files.path("etc/patterns").join(name)).expect("copy a pattern");
        }
        files.file("credentials.yaml", "");
        files.file("acquis.yaml", "");
        let config = CONFIG.replace("TLS", tls).replace("DIR", &directory);
        files.file("config.yaml", &config);
        let engine = Engine { files, url };
        let host = Host::new("engine");
        if !tls.is_empty() {
            engine.make_certificates(&host);
        }
        let credentials = engine.path("credentials.yaml");
        engine.cscli(
            &host,
            &[
                "machines",
                "add",
                "test",
                "--password",
                "test",
                "-f",
                &credentials,
                "--force",
                "-u",
                url,
            ],
        );
        let key = engine.cscli(&host, &["bouncers", "add", "realpeer", "-o", "raw"]);
        engine.write_key(&key);
        engine
    }

    fn make_certificates(&self, host: &Host) {
        let directory = self.path("");
        let script = "cd \"$0\"; new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
            $new -x509 -keyout ca.key -out ca.pem -subj /CN=ca -days 2
            $new -keyout key.pem -out csr.pem -subj /CN=engine -addext subjectAltName=IP:127.0.0.1
            openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 \
                -copy_extensions copy";
        host.run(&["sh", "-ec", script, &directory]);
    }

    /// The path of one of its files.
    pub fn path(&self, name: &str) -> String {
        self.files.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// Where the key of realpeer stands.
    pub fn key_file(&self) -> String {
        self.path("key")
    }

    /// Writes a key there that only its owner may read.
    pub fn write_key(&self, key: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.files.file("key", &format!("{}\n", key.trim()));
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    /// The flags that lead realpeer here, and a file of that meaning with more keys.
    pub fn flags(&self) -> [String; 4] {
        [
            "-crowdsec-url".into(),
            self.url.into(),
            "-crowdsec-key-file".into(),
            self.key_file(),
        ]
    }

    /// Runs it until the answer is dropped.
    #[track_caller]
    pub fn start(&self, host: &Host) -> Running {
        let words = [
            &package("usr/bin/crowdsec"),
            "-c",
            &self.path("config.yaml"),
            "-no-cs",
        ];
        let running = host.spawn(&words).ends_by(Signal::SIGTERM);
        host.wait_for_port(8080);
        running
    }

    /// Runs a command of its administrator and returns what it prints.
    #[track_caller]
    pub fn cscli(&self, host: &Host, words: &[&str]) -> String {
        let config = self.path("config.yaml");
        let program = package("usr/bin/cscli");
        host.run(&[&[&*program, "-c", &config], words].concat())
    }

    /// As `cscli decisions`.
    #[track_caller]
    pub fn decisions(&self, host: &Host, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.cscli(host, &[&["decisions"], &words[..]].concat())
    }

    /// Whether `crowdsec -t` accepts an acquisition file.
    pub fn accepts_acquisition(&self, host: &Host, text: &str) -> Result<(), String> {
        self.files.file("acquis.yaml", text);
        let program = package("usr/bin/crowdsec");
        let mut command = host.command(&program);
        let output = command
            .args(["-c", &self.path("config.yaml"), "-t"])
            .output();
        let output = output.expect("run crowdsec -t");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr)),
        }
    }
}

const CONFIG: &str = "
common: {daemonize: false, log_media: stdout, log_level: info, working_dir: .}
config_paths: {config_dir: DIR/etc/, data_dir: DIR/data/, simulation_path: DIR/etc/simulation.yaml, hub_dir: DIR/hub/, index_path: DIR/hub/.index.json, notification_dir: DIR/notifications/, plugin_dir: DIR/plugins/}
crowdsec_service: {acquisition_path: DIR/acquis.yaml, parser_routines: 1}
cscli: {output: human}
db_config: {log_level: info, type: sqlite, db_path: DIR/data/crowdsec.db, use_wal: true}
api:
  client: {insecure_skip_verify: true, credentials_path: DIR/credentials.yaml}
  server:
    log_level: info
    listen_uri: 127.0.0.1:8080
    profiles_path: DIR/etc/profiles.yaml
    console_path: DIR/etc/console.yaml
    TLS
prometheus: {enabled: false}
";

/// A server on 127.0.0.1:8080 of a host that answers as a test says: with the request's first line and
/// its body, and the connection to write to.
pub struct FakeEngine {
    /// The first lines and bodies of the requests so far.
    pub requests: Arc<Mutex<Vec<(String, String)>>>,
}

impl FakeEngine {
    pub fn start(
        host: &Host,
        answer: impl Fn(&str, &mut TcpStream) + Send + 'static,
    ) -> FakeEngine {
        let listener = host.enter(|| TcpListener::bind("127.0.0.1:8080").expect("bind"));
        let requests: Arc<Mutex<Vec<_>>> = Arc::default();
        let heard = Arc::clone(&requests);
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let Some(request) = read_request(&stream) else {
                    continue;
                };
                heard.lock().expect("no panic").push(request.clone());
                answer(&request.0, &mut stream);
            }
        });
        FakeEngine { requests }
    }

    /// How many requests began so.
    pub fn count(&self, start: &str) -> usize {
        let requests = self.requests.lock().expect("no panic");
        requests
            .iter()
            .filter(|(line, _)| line.starts_with(start))
            .count()
    }
}

fn read_request(stream: &TcpStream) -> Option<(String, String)> {
    let mut input = BufReader::new(stream);
    let mut first = String::new();
    input.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let line = line.trim().to_lowercase();
        if let Some(number) = line.strip_prefix("content-length:") {
            length = number.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut input, &mut body).ok()?;
    Some((first, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends an answer with its length, and ends the connection.
pub fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

/// An answer of the decisions stream that changes nothing.
pub const NOTHING: &[u8] = br#"{"deleted":null,"new":null}"#;

/// A full answer of the decisions stream, as gzip packs it: so many bans from 10.0.0.0 on, each third
/// address.
pub fn stream_of(count: u32) -> Vec<u8> {
    let mut text = String::from(r#"{"deleted":null,"new":["#);
    for id in 0..count {
        let address = Ipv4Addr::from(0x0a00_0000 + id * 3);
        let comma = if id == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"duration":"99h0m0s","id":{id},"origin":"CAPI","scenario":"crowdsecurity/ssh-bf","scope":"Ip","type":"ban","value":"{address}"}}"#
        );
    }
    text += "]}";
    let mut gzip = Command::new("gzip")
        .args(["-1", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip");
    let mut input = gzip.stdin.take().expect("piped");
    let feeding = thread::spawn(move || input.write_all(text.as_bytes()).expect("feed gzip"));
    let packed = gzip.wait_with_output().expect("gzip ends").stdout;
    feeding.join().expect("fed");
    packed
}
