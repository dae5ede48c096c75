//! The least work that a publish takes in Redis.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// For connecting, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that stores events with the gateway's script. It blocks, which is the cheapest way to wait for one
/// answer.
pub struct Redis {
    stream: TcpStream,
    script: String,
    buffer: Vec<u8>,
}

impl Redis {
    /// Connects. `script` is the SHA-1 digest of the script, which has to be loaded already.
    pub fn new(address: SocketAddr, script: String) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let buffer = Vec::new();
        Ok(Redis { stream, script, buffer })
    }

    /// Stores and announces an event, with the gateway's default settings. Fails if Redis does not answer as
    /// expected.
    pub fn append(&mut self, room: &str, body: &[u8]) -> io::Result<()> {
        let head = format!("roomcast:{{{room}}}:head");
        let log = format!("roomcast:{{{room}}}:log");
        let channel = format!("roomcast:{{{room}}}:live");
        let event = [br#"{"published_at":"2026-01-02T03:04:05.678Z","data":""#, body, br#""}"#].concat();
        // Entries to keep, lifetimes of log and head (ms), a random number, lifetime (ms) and digest of an
        // idempotency key, bytes to keep, and the time before which events are too old.
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
        self.read_answer()
    }

    /// Waits for the answer, which is the event's id and a zero.
    fn read_answer(&mut self) -> io::Result<()> {
        let mut answer = [0; 512];
        let mut length = 0;
        loop {
            length += match self.stream.read(&mut answer[length..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
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
