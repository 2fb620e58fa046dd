//! A plain HTTP client, from any host.

use std::io::Read;
use std::net::TcpStream;

use super::{Host, streams};

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header's value.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found
            .unwrap_or_else(|| panic!("no {name} in {}", self.head))
            .1
    }
}

/// Asks for a path with GET.
#[track_caller]
pub fn get(host: &Host, at: &str, path: &str) -> Answer {
    ask(
        host,
        at,
        &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"),
    )
}

/// Sends a request as it is, and reads the answer to its end.
#[track_caller]
pub fn ask(host: &Host, at: &str, request: &str) -> Answer {
    let stream = host.dial(at);
    streams::send(&stream, request);
    read(stream)
}

/// Reads an answer to its end.
#[track_caller]
pub fn read(mut stream: TcpStream) -> Answer {
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .expect("an answer in UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no status in {head}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
