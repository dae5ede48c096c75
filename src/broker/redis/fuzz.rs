//! Fuzz targets: the contents of channels and keys that other clients can write to.

use super::announcement::{Assembler, ChannelMessage};
use super::head;
use super::keys::Keys;
use crate::fuzz::{shaped, shaped_text};
use crate::log::{Head, StepContext};

/// A channel carries whole announcements, halves, and any other message. What is assembled into an entry has the
/// announced length, and comes from one message or from two adjacent ones of the same channel.
#[test]
fn fuzz_announcements() {
    let samples = ["7-1 2\n{}", "7-1 2\n", "{}", "7-2 10\n{\"text\":1}", "9007199254740991-1 0\n", "7-1 2 1\n{}"];
    bolero::check!().with_type::<Vec<(bool, Vec<u8>)>>().for_each(|messages: &Vec<(bool, Vec<u8>)>| {
        let mut assembler = Assembler::default();
        let mut before: Option<(&str, Vec<u8>)> = None;
        for (channel, bytes) in messages {
            let (channel, message) = (if *channel { "a" } else { "b" }, shaped(&samples, bytes));
            if let ChannelMessage::LogEntry(entry, _) = assembler.push(channel, &message) {
                let parts = match message.strip_suffix(&entry.stored[..]) {
                    Some([]) | None => {
                        let (other, header) = before.take().expect("a header came before");
                        assert_eq!(other, channel, "both messages are of one channel");
                        header
                    }
                    Some(header) => header.to_vec(),
                };
                let header = std::str::from_utf8(&parts).unwrap().strip_suffix('\n').unwrap();
                let (id, rest) = header.split_once(' ').unwrap();
                let length = rest.split_once(' ').map_or(rest, |(length, _)| length);
                assert_eq!(id, entry.id.to_string());
                assert_eq!(length.parse::<usize>().unwrap(), entry.stored.len());
                before = None;
            } else {
                before = Some((channel, message));
            }
        }
    });
}

/// A text that parses as a head has a valid history, and a new epoch can begin on it.
#[test]
fn fuzz_heads() {
    let samples = [
        "1790000000000000-42 0123456789abcdef",
        "30-2 abc ~20-7 ?9-1/10 20-7 10-0 ~9-1 ^9 =20-5",
        "9007199254740991-9007199254740991 m ~1-1",
    ];
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&samples, bytes);
        let Some(head) = head::parse(&text) else { return };
        let numbers: Vec<_> = head.history.epochs().iter().map(|epoch| epoch.number).collect();
        assert!(!numbers.is_empty() && numbers.is_sorted_by(|a, b| a < b), "epochs rise: {numbers:?}");
        assert!(
            text.starts_with(&format!("{} {}", head.history.end(), head.replication_id)),
            "a head begins with its newest epoch"
        );
        assert!(head.history.holds(head.history.end()));
        let newest = head.history.newest().number;
        let context = StepContext { replication_id: "another server", time: 1, random: 0, oldest: None };
        let (next, changed) = Head::ensure_epoch(Some(head), &[], context);
        assert!(changed && next.history.newest().number > newest);
    });
}

/// A channel is resolved to a topic only if it is that topic's channel.
#[test]
fn fuzz_channels() {
    let keys = Keys::new("roomcast", &"{prefix}:hash:{{hash}}".parse().unwrap(), "replica");
    let samples = ["roomcast:{lobby}:live", "roomcast:{lobby}:log", "roomcast:{a}b}:live"];
    bolero::check!().for_each(|bytes: &[u8]| {
        let channel = shaped_text(&samples, bytes);
        if let Some(topic) = keys.topic_of_channel(&channel) {
            assert_eq!(keys.live(&topic), channel);
        }
    });
}
