//! Parses the stored form of a head. `scripts/log.lua` describes the form and writes it.

use crate::log::{Epoch, EpochHistory, Head, LateLoss};
use crate::names::EventId;

/// Parses a head. `None` if it is malformed, which counts as no head.
pub(super) fn parse(text: &str) -> Option<Head> {
    let mut tokens = text.split(' ');
    let newest: EventId = tokens.next()?.parse().ok()?;
    let replication_id = tokens.next()?.to_owned();
    let mut epochs = vec![Epoch::new(newest.epoch, newest.offset)];
    let (mut dropped, mut cleared, mut finished, mut last_message) = (0, EventId::start_of(0), None, None);
    for token in tokens {
        if let Some(since) = token.strip_prefix('~') {
            epochs.last_mut()?.lost_since = Some(since.parse().ok()?);
        } else if let Some(late) = token.strip_prefix('?') {
            let (since, entered) = late.split_once('/')?;
            let late = LateLoss { since: since.parse().ok()?, entered: entered.parse().ok()? };
            epochs.last_mut()?.late_loss = Some(late);
        } else if let Some(position) = token.strip_prefix('=') {
            cleared = position.parse().ok()?;
        } else if let Some(id) = token.strip_prefix('!') {
            finished = Some(id.parse().ok()?);
        } else if let Some(position) = token.strip_prefix('&') {
            last_message = Some(position.parse().ok()?);
        } else if let Some(time) = token.strip_prefix('#') {
            // Only scripts need it.
            time.parse::<u64>().ok()?;
        } else if let Some(epoch) = token.strip_prefix('^') {
            dropped = epoch.parse().ok()?;
        } else {
            let id: EventId = token.parse().ok()?;
            epochs.push(Epoch::new(id.epoch, id.offset));
        }
    }
    epochs.reverse();
    let history = EpochHistory::from_parts(epochs, dropped, cleared)?.with_finished(finished);
    Some(Head { replication_id, history, last_message })
}

/// The server's replication id in the answer to `INFO replication`.
pub(super) fn server_replication_id(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("master_replid:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_into_its_history() {
        let head = parse("30-2 abc ~20-7 ?9-1/10 20-7 10-0 ~9-1 ^9 =20-5 !20-6 &20-6 #0").unwrap();
        assert_eq!(head.replication_id, "abc");
        let late = LateLoss { since: EventId::new(9, 1), entered: 10 };
        let expected = [
            Epoch { lost_since: Some(EventId::new(9, 1)), ..Epoch::new(10, 0) },
            Epoch::new(20, 7),
            Epoch { lost_since: Some(EventId::new(20, 7)), late_loss: Some(late), ..Epoch::new(30, 2) },
        ];
        assert_eq!(head.history.epochs(), expected);
        assert_eq!(head.history.dropped(), 9);
        assert_eq!(head.history.cleared(), EventId::new(20, 5));
        assert_eq!(head.history.finished(), Some(EventId::new(20, 6)));
        assert_eq!(head.last_message, Some(EventId::new(20, 6)));
    }

    #[test]
    fn a_malformed_head_counts_as_none() {
        for malformed in
            ["", "x", "1-1", "1-1 ab 2-2", "1-1 ab ~", "1-1 ab x-1", "1-1 ab ?1-1", "1-1 ab !", "1-1 ab  "]
        {
            assert_eq!(parse(malformed), None, "{malformed:?}");
        }
    }
}
