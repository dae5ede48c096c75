//! The stored form of a head; it is described, and written, in `scripts/head.lua`. This side only reads it.

use std::collections::BTreeMap;

use crate::follow::{Chain, Epoch, Head};
use crate::room::EventId;

/// Reads a head; `None` if it is junk, which counts as none.
pub(super) fn parse(text: &str) -> Option<Head> {
    let mut tokens = text.split(' ');
    let newest: EventId = tokens.next()?.parse().ok()?;
    let mark = tokens.next()?.to_owned();
    let mut epochs = vec![Epoch { epoch: newest.epoch, end: newest.offset, lost_since: None }];
    let mut recorded = BTreeMap::new();
    let mut dropped = 0;
    for token in tokens {
        if let Some(since) = token.strip_prefix('~') {
            epochs.last_mut()?.lost_since = Some(since.parse().ok()?);
        } else if let Some(lost) = token.strip_prefix('!') {
            let lost: EventId = lost.parse().ok()?;
            recorded.insert(lost.epoch, lost.offset);
        } else if let Some(cut) = token.strip_prefix('^') {
            dropped = cut.parse().ok()?;
        } else {
            let id: EventId = token.parse().ok()?;
            epochs.push(Epoch { epoch: id.epoch, end: id.offset, lost_since: None });
        }
    }
    epochs.reverse();
    Some(Head { mark, chain: Chain::from_parts(epochs, recorded, dropped)? })
}

/// The mark in what `INFO replication` says.
pub(super) fn server_mark(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("master_replid:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_as_its_chain() {
        let head = parse("30-2 abc ~20-7 20-7 10-0 ~9-1 !20-9 !25-1 ^9").unwrap();
        assert_eq!(head.mark, "abc");
        let epochs = [(10, 0, Some(EventId::new(9, 1))), (20, 7, None), (30, 2, Some(EventId::new(20, 7)))];
        let expected = epochs.map(|(epoch, end, lost_since)| Epoch { epoch, end, lost_since });
        assert_eq!(head.chain.epochs(), expected);
        assert_eq!(head.chain.recorded(), &BTreeMap::from([(20, 9), (25, 1)]));
        assert_eq!(head.chain.dropped(), 9);
    }

    #[test]
    fn a_junk_head_counts_as_none() {
        for junk in ["", "x", "1-1", "1-1 ab 2-2", "1-1 ab ~", "1-1 ab x-1", "1-1 ab  "] {
            assert_eq!(parse(junk), None, "{junk:?}");
        }
    }
}
