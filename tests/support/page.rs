//! A server of pages, asked over a plain socket: every byte of a request is the test's own.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::LIMIT;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The code: 200 where all is well.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What follows the headers.
    pub body: String,
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// Sends a request to `address` with these headers besides `Host` and those of the body, and reads the answer.
///
/// # Panics
///
/// If there is none within [`LIMIT`].
pub async fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        let _ = write!(text, "host: {address}\r\n");
    }
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let _ = write!(text, "content-length: {}\r\n", body.len());
    }
    exchange(address, &format!("{text}\r\n{body}")).await
}

/// A GET without more headers.
pub async fn get(address: &str, path: &str) -> Answer {
    ask(address, "GET", path, &[], "").await
}

/// Sends this text and reads the answer to it.
///
/// # Panics
///
/// If it is not whole within [`LIMIT`], or its answer is none.
pub async fn exchange(address: &str, text: &str) -> Answer {
    let has_body = !text.starts_with("HEAD");
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        // It may answer and close before it has read all.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        while !(has_body && is_whole(&answer)) && stream.read_buf(&mut answer).await.unwrap_or(0) > 0 {}
        answer
    };
    let answer = timeout(LIMIT, exchange).await.expect("an answer in time");
    let answer = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}

/// Not every server closes when it is asked to.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, length)| length.trim().parse().ok()).is_some_and(|length: usize| body.len() >= length)
}

/// The stream of events of an open page.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<TcpStream>,
}

impl Events {
    /// Opens the stream, and reads nothing of it yet.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub async fn open(address: &str) -> Self {
        Self::try_open(address).await.expect("the stream opens")
    }

    /// Opens the stream; the status, if the server refuses it.
    ///
    /// # Errors
    ///
    /// The status line of an answer that is no stream.
    ///
    /// # Panics
    ///
    /// If there is no answer within [`LIMIT`].
    pub async fn try_open(address: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        // Of this version bodies have no frames of their own.
        let request = format!("GET /events HTTP/1.0\r\nhost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it takes a request");
        let mut stream = BufReader::with_capacity(4096, stream);
        let mut status = String::new();
        let head = async {
            stream.read_line(&mut status).await.expect("an answer");
            let mut line = String::new();
            while stream.read_line(&mut line).await.expect("a header") > 2 {
                line.clear();
            }
        };
        timeout(LIMIT, head).await.expect("an answer in time");
        if status.contains(" 200 ") { Ok(Self { stream }) } else { Err(status.trim().to_owned()) }
    }

    /// The next event; `None` at the end of the stream.
    ///
    /// # Panics
    ///
    /// If there is neither within `limit`, or its data is not JSON.
    pub async fn next(&mut self, limit: Duration) -> Option<(String, Value)> {
        let event = async {
            let (mut name, mut data) = (String::new(), Value::Null);
            loop {
                let mut line = String::new();
                if self.stream.read_line(&mut line).await.expect("the stream can be read") == 0 {
                    return None;
                }
                let line = line.trim_end_matches('\n');
                if line.is_empty() {
                    return Some((name, data));
                }
                if let Some(rest) = line.strip_prefix("event: ") {
                    rest.clone_into(&mut name);
                } else if let Some(rest) = line.strip_prefix("data: ") {
                    data = serde_json::from_str(rest).expect("data is JSON");
                }
            }
        };
        timeout(limit, event).await.expect("an event in time")
    }

    /// The data of the next event that has this name and is the one meant; those before it are skipped.
    ///
    /// # Panics
    ///
    /// With `what`, if it does not come within [`LIMIT`].
    pub async fn expect(&mut self, what: &str, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut skipped = Vec::new();
        let found = timeout(LIMIT, async {
            while let Some((known, data)) = self.next(LIMIT).await {
                if known == name && is_it(&data) {
                    return Some(data);
                }
                skipped.push(known);
            }
            None
        });
        match found.await {
            Ok(Some(data)) => data,
            _ => panic!("{what}: not among {skipped:?}"),
        }
    }
}
