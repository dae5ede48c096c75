//! The result of decoding the bytes of one read.

use crate::payload::{Marker, PayloadCodec};

/// What a decoder found in the bytes of one read. The subscriber pool clears it before each read and processes it
/// afterwards.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Payloads of this run, in order of arrival.
    pub markers: Vec<Marker>,
    /// Number of payloads of this run that were damaged.
    pub damaged: u64,
    /// Number of events without a payload of this run.
    pub other_events: u64,
    /// The server confirmed the subscription in these bytes.
    pub ready: bool,
    /// Bytes to send back to the server.
    pub reply: Vec<u8>,
}

impl Decoded {
    pub fn clear(&mut self) {
        self.markers.clear();
        self.damaged = 0;
        self.other_events = 0;
        self.ready = false;
        self.reply.clear();
    }
}

/// The payloads found in an event that is still incomplete.
#[derive(Debug, Default)]
pub struct PendingEvent {
    markers: Vec<Marker>,
    damaged: u64,
}

impl PendingEvent {
    pub fn scan(&mut self, codec: &PayloadCodec, text: &[u8]) {
        codec.scan(text, |marker| match marker {
            Some(marker) => self.markers.push(marker),
            None => self.damaged += 1,
        });
    }

    /// Moves the payloads to `decoded`, because the event is complete.
    pub fn dispatch(&mut self, decoded: &mut Decoded) {
        if self.markers.is_empty() && self.damaged == 0 {
            decoded.other_events += 1;
        }
        decoded.markers.append(&mut self.markers);
        decoded.damaged += std::mem::take(&mut self.damaged);
    }
}
