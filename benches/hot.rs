//! Benchmarks of the functions that run for every event: `cargo bench`.

use bytes::Bytes;
use roomcast::broker::{LogEntry, LogSlice};
use roomcast::delivery::format::{event_chunk, event_envelope};
use roomcast::live::LiveEvent;
use roomcast::log::EpochHistory;
use roomcast::names::{Cursor, Event, EventId, RoomName, Topic};

fn main() {
    divan::main();
}

/// The stored form of an event with this many bytes of text.
fn stored(bytes: usize) -> Bytes {
    let text = format!(r#"{{"published_at":"2026-01-02T03:04:05.678Z","text":"{}"}}"#, "x".repeat(bytes));
    Event::decode(text.as_bytes()).expect("it is an event").encode()
}

fn topic() -> Topic {
    RoomName::new("lobby").expect("it is a name").into()
}

fn entry(offset: u64, bytes: usize) -> LogEntry {
    LogEntry { id: EventId::new(1_790_000_000_000_000, offset), stored: stored(bytes) }
}

#[divan::bench(args = [128, 4096, 65_536])]
fn event_to_text(bencher: divan::Bencher<'_, '_>, bytes: usize) {
    let (topic, entry) = (topic(), entry(1, bytes));
    bencher.bench(|| LiveEvent::new(&topic, divan::black_box(&entry)).map(|event| event_chunk(&event).len()));
}

#[divan::bench(args = [128, 4096, 65_536])]
fn event_to_envelope(bencher: divan::Bencher<'_, '_>, bytes: usize) {
    let (topic, entry) = (topic(), entry(1, bytes));
    let room = topic.room().expect("it is a room");
    bencher
        .with_inputs(|| LiveEvent::new(&topic, &entry).expect("it is an event"))
        .bench_refs(|event| event_envelope(event, room).len());
}

#[divan::bench(args = [128, 4096])]
fn event_to_log(bencher: divan::Bencher<'_, '_>, bytes: usize) {
    let event = Event::decode(&stored(bytes)).expect("it is an event");
    bencher.bench(|| divan::black_box(&event).encode());
}

#[divan::bench(args = [1, 100, 1000])]
fn next_after(bencher: divan::Bencher<'_, '_>, events: u64) {
    let mut history = EpochHistory::new(1_790_000_000_000_000);
    let entries = (1..=events).map(|_| LogEntry { id: history.extend(), stored: Bytes::new() }).collect();
    let slice = LogSlice { entries, history: history.clone(), ..LogSlice::unwritten(history.end()) };
    let position = EventId::new(1_790_000_000_000_000, events - 1);
    bencher.bench(|| divan::black_box(&history).next_after(position, &slice, None));
}

#[divan::bench(args = [1, 20, 100])]
fn cursor_of_rooms(bencher: divan::Bencher<'_, '_>, rooms: u64) {
    let room = |n| Topic::from(RoomName::new(&format!("room-{n}")).expect("it is a name"));
    let topics: Vec<_> = (0..rooms).map(room).collect();
    let position = EventId::new(1_790_000_000_000_000, 41);
    bencher.bench(|| Cursor::from_bookmarks(topics.iter().map(|topic| (topic, position.into()))).encode());
}
