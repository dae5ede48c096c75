//! The least that a publish takes of Redis.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection on which the gateway's script stores events. It blocks: the
/// cheapest way to wait for one answer.
pub struct Redis {
    stream: TcpStream,
    script: String,
    buffer: Vec<u8>,
}

impl Redis {
    /// `script` is the SHA-1 of the script, which Redis knows already.
    pub fn new(address: SocketAddr, script: String) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let buffer = Vec::new();
        Ok(Redis { stream, script, buffer })
    }

    /// Stores and announces an event, as the gateway does by default.
    pub fn append(&mut self, room: &str, body: &[u8]) -> io::Result<()> {
        let head = format!("roomcast:{{{room}}}:head");
        let log = format!("roomcast:{{{room}}}:log");
        let channel = format!("roomcast:{{{room}}}:live");
        let event = [br#"{"published_at":"2026-01-02T03:04:05.678Z","data":""#, body, br#""}"#].concat();
        // Entries, lifetimes of log and head, random, lifetime and digest of
        // an idempotency key, bytes, and the oldest time.
        let rest = "1000 3600000 90000000 1 300000 - 1048576 2025-01-01T00:00:00.000Z";
        let first = ["EVALSHA", &self.script, "2", &head, &log];
        let arguments = first
            .into_iter()
            .map(str::as_bytes)
            .chain([event.as_slice(), channel.as_bytes()])
            .chain(rest.split(' ').map(str::as_bytes));
        self.buffer.clear();
        write!(self.buffer, "*{}\r\n", arguments.clone().count())?;
        for argument in arguments {
            write!(self.buffer, "${}\r\n", argument.len())?;
            self.buffer.extend_from_slice(argument);
            self.buffer.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&self.buffer)?;
        self.stored()
    }

    /// Waits for the answer: the id and a zero.
    fn stored(&mut self) -> io::Result<()> {
        let mut answer = [0; 512];
        let mut length = 0;
        loop {
            length += match self.stream.read(&mut answer[length..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => more,
            };
            let answer = &answer[..length];
            if answer.starts_with(b"*2\r\n") && answer.ends_with(b"\r\n:0\r\n") {
                return Ok(());
            }
            if !answer.starts_with(b"*") && answer.ends_with(b"\r\n") {
                return Err(io::Error::other(String::from_utf8_lossy(answer)));
            }
        }
    }
}
