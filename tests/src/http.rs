//! The few HTTP requests that scenarios make, over a plain socket: what is sent is under control.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends a request and answers status and body.
///
/// # Panics
/// When the server can't be reached or doesn't speak HTTP.
#[must_use]
pub fn request(method: &str, address: &str, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).expect("the admin port answers");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out can be set");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).expect("the request is taken");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer comes");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// A GET that must answer 200.
///
/// # Panics
/// When it doesn't.
#[must_use]
pub fn get(address: &str, path: &str) -> String {
    let (status, body) = request("GET", address, path, "");
    assert_eq!(status, 200, "GET {path}: {body}");
    body
}
