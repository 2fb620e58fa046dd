//! The status page, in a browser: read, followed while a counter moves, and attacked by strings from
//! outside.

mod support;

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use support::chromium::chromium;
use support::http::get;
use support::site::{listener, udp};
use support::stage::CLIENT;
use support::{Backend, DEADLINE, Host, Site, TempDir};

const AT: &str = "127.0.0.1:9150";
const NINE: &str = "127.0.0.1:9000";
const SSH: &str = "192.0.2.10:2201";
const SUBNETS: &str = "allowed-subnets = [\"192.0.2.5\"]";
const MARKUP: &str = "<img/src=x/onerror=document.title='owned'>\"'&";

fn site() -> Site {
    let web = listener("web", "0.0.0.0:2203", "127.0.0.1:9003", SUBNETS);
    Site::new(
        &(format!("metrics = \"{AT}\"\nname = \"edge\"\n")
            + &listener("ssh", "0.0.0.0:2201", NINE, "")
            + &web
            + &udp("dns", "0.0.0.0:2202", NINE, SUBNETS)),
    )
}

/// The document after the page's script has had so many milliseconds of its own time.
#[track_caller]
fn document(host: &Host, milliseconds: u32) -> String {
    let files = TempDir::new();
    let time = format!("--virtual-time-budget={milliseconds}");
    let page = format!("http://{AT}/");
    let flags = ["--dump-dom", &time, "--enable-logging=stderr", &page];
    let output = chromium(host, &files, &flags).output();
    let output = output.expect("chromium is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("Content Security Policy"), "{said}");
    assert!(!said.contains("Uncaught"), "{said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn people_read_it_and_strings_from_outside_stay_text() {
    let site = site();
    let backend = Backend::listen(&site.server, NINE);
    let _session = site.session(SSH, &backend, CLIENT);
    site.ctl.ok(&format!("ban 203.0.113.9 -reason {MARKUP}"));
    let page = document(&site.server, 1000);
    for text in [
        "<title>edge – realpeer</title>",
        "<b>ssh</b>",
        "<div>0.0.0.0:2201</div>",
        "203.0.113.7",
        "203.0.113.9/32",
        "no -allowed-subnets",
        "accepting",
    ] {
        assert!(page.contains(text), "no {text:?} in {page}");
    }
    assert!(
        page.contains("&lt;img/src=x/onerror=document.title='owned'&gt;\"'&amp;"),
        "{page}"
    );
    assert!(!page.contains("<img"), "{page}");
    // Without a script the page is the same.
    let plain = get(&site.server, AT, "/").body;
    assert!(
        plain.contains("203.0.113.7") && plain.contains("&lt;img/src"),
        "{plain}"
    );
    assert!(!plain.contains("<img"), "{plain}");
}

/// The browser stays open: its remote control tells what the page shows.
#[test]
fn a_counter_moves_while_the_page_is_open() {
    let site = site();
    let backend = Backend::listen(&site.server, NINE);
    let browser = Browser::open(&site.server, &format!("http://{AT}/"));
    let accepted = "document.querySelector('[data-count=accepted]').textContent";
    browser.await_value(accepted, "0");
    let sessions: Vec<_> = (1..=3)
        .map(|n| site.session(SSH, &backend, &format!("203.0.113.8:{n}")))
        .collect();
    browser.await_value(accepted, "3");
    browser.await_value(
        "document.querySelector('[data-count=open]').textContent",
        "3",
    );
    site.ctl.ok(&format!("ban 203.0.113.9 -reason {MARKUP}"));
    let text = "[...document.querySelectorAll('td.text')].map(td => td.textContent).join()";
    browser.await_value(text, MARKUP);
    // What the policy forbids, it forbids, and the page did nothing of it.
    browser.await_value("String(window.violations.length)", "0");
    browser.await_value("document.title", "edge – realpeer");
    browser.await_value(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'x'})), \
         String(window.violations.length)",
        "1",
    );
    drop(sessions);
    // A proxy that is gone is said to be.
    browser.await_value("String(document.getElementById('stale').hidden)", "true");
    site.proxy.signal(nix::sys::signal::Signal::SIGKILL);
    browser.await_value("String(document.getElementById('stale').hidden)", "false");
}

/// As it is in the README; REALPEER_SCREENSHOT says where a copy of it is kept.
#[test]
fn it_can_be_seen() {
    let site = site();
    let backend = Backend::listen(&site.server, NINE);
    let busy: Vec<_> = [
        ("203.0.113.7", 5),
        ("198.51.100.24", 3),
        ("203.0.113.80", 1),
    ]
    .into_iter()
    .flat_map(|(client, count)| (1..=count).map(move |n| format!("{client}:{}", 40000 + n)))
    .map(|client| site.session(SSH, &backend, &client))
    .collect();
    for n in 0..4 {
        let near = site.balancer.dial(SSH);
        support::streams::send(&near, ["SSH-2.0-x\r\n", "PROXY TCP4 bad\r\n"][n % 2]);
        support::streams::assert_closed(&near);
    }
    let down = site.balancer.dial("192.0.2.10:2203");
    support::streams::send(&down, support::header::v1(CLIENT, "198.51.100.1:80"));
    support::streams::assert_reset(&down);
    for (ban, reason) in [("192.0.2.66", "sshd"), ("198.51.100.0/28", "botsearch")] {
        site.ctl.ok(&format!("ban {ban} -for 1h -reason {reason}"));
    }
    let files = TempDir::new();
    let picture = files.path("page.png").display().to_string();
    let (file, page) = (format!("--screenshot={picture}"), format!("http://{AT}/"));
    let flags = ["--window-size=1100,1020", "--hide-scrollbars", &file, &page];
    let output = chromium(&site.server, &files, &flags).output();
    let output = output.expect("chromium is there");
    let said = String::from_utf8_lossy(&output.stderr);
    let bytes = fs::read(&picture).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert!(
        bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000,
        "{said}"
    );
    if let Ok(copy) = std::env::var("REALPEER_SCREENSHOT") {
        fs::write(copy, bytes).expect("keep the picture");
    }
    drop(busy);
}

/// A browser that is asked over pipes, in the DevTools protocol: JSON messages that end with a zero.
struct Browser {
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>, u64)>,
    session: Option<String>,
    child: Child,
    _files: TempDir,
}

impl Browser {
    /// Opens a page.
    #[track_caller]
    fn open(host: &Host, page: &str) -> Browser {
        let files = TempDir::new();
        // It reads from descriptor 3 and writes to 4.
        let script = "exec \"$@\" 3<&0 4>&1 >/dev/null 2>&1";
        let inner = chromium(host, &files, &["--remote-debugging-pipe"]);
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(inner.get_program());
        command.args(inner.get_args());
        for (name, value) in inner.get_envs() {
            command.env(name, value.expect("none is taken away"));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("sh is there");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut browser = Browser {
            pipes: RefCell::new((stdin, stdout, 0)),
            session: None,
            child,
            _files: files,
        };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.ask("Target.attachToTarget", target);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser.ask("Page.enable", json!({}));
        let note = "window.violations = []; addEventListener('securitypolicyviolation', \
                    event => violations.push(event.violatedDirective))";
        let note = json!({"source": note});
        browser.ask("Page.addScriptToEvaluateOnNewDocument", note);
        browser.ask("Page.navigate", json!({"url": page}));
        browser.await_value("document.readyState", "complete");
        browser
    }

    /// Sends a command and returns its result.
    #[track_caller]
    fn ask(&self, method: &str, params: Value) -> Value {
        let (stdin, stdout, last) = &mut *self.pipes.borrow_mut();
        *last += 1;
        let mut message = json!({"id": *last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let bytes = [message.to_string().as_bytes(), b"\0"].concat();
        stdin.write_all(&bytes).expect("the browser reads");
        loop {
            let mut answer = Vec::new();
            stdout
                .read_until(0, &mut answer)
                .expect("the browser answers");
            assert_eq!(answer.pop(), Some(0), "the browser has ended");
            let mut answer: Value = serde_json::from_slice(&answer).expect("JSON");
            if answer["id"] == *last {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    /// Waits until an expression on the page is that string.
    #[track_caller]
    fn await_value(&self, expression: &str, expected: &str) {
        let mut value = Value::Null;
        let until = std::time::Instant::now() + DEADLINE;
        while value != expected {
            assert!(
                std::time::Instant::now() < until,
                "{expression} is {value}, not {expected:?}"
            );
            let answer = self.ask("Runtime.evaluate", json!({"expression": expression}));
            value = answer["result"]["value"].clone();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All of its processes end with the first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
