//! Compares the deliveries of a run with those that were expected, once the run is over.

use std::collections::HashSet;

use serde::Serialize;

use crate::pool::SubscriberPool;
use crate::publisher::{PublisherOutcome, SharedCounters};

/// How many faulty rooms a report names.
const MAX_FAULTY_ROOMS: usize = 20;

/// The numbers of deliveries. An event is expected by each subscription of its room if its publish call was
/// answered with 2xx, and if the subscription was confirmed before the event was sent. Of a subscription that the
/// load tool closed, only the events up to the last one received count.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryReport {
    pub expected: u64,
    /// Expected deliveries that arrived, without duplicates.
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    /// Payloads that were cut short or altered.
    pub damaged: u64,
    /// Deliveries of another room's events.
    pub misrouted: u64,
    /// Deliveries of events with a failed publish call. They are neither expected nor faults.
    pub unacknowledged: u64,
    /// Deliveries to a reopened subscription of events that were sent before it was confirmed.
    pub early: u64,
    /// Events that this run did not publish, such as pings.
    pub other_events: u64,
    pub rooms_with_faults: usize,
    /// The first 20 rooms with faults.
    pub faulty_rooms: Vec<RoomFaults>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct RoomFaults {
    pub room: String,
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
}

impl DeliveryReport {
    pub fn new(
        pool: &SubscriberPool,
        shared: &SharedCounters,
        outcomes: &[PublisherOutcome],
        room_name: impl Fn(u32) -> String,
    ) -> DeliveryReport {
        let none = HashSet::new();
        let failed = |publisher: u32| outcomes.get(publisher as usize).map_or(&none, |outcome| &outcome.failed);
        // Events with a failed publish call are not expected, so they cannot be lost.
        let expected_in = |room: u32, publisher: u32, start: u32, end: u32| {
            let failed = failed(publisher);
            let not_expected = if failed.is_empty() {
                0
            } else {
                (start..end).filter(|&seq| failed.contains(&(room, seq))).count() as u64
            };
            u64::from(end - start) - not_expected
        };

        let tally = &pool.tally;
        let mut lost = vec![0; tally.rooms.len()];
        let mut unacknowledged = 0;
        pool.each_tracker(|room, publisher, tracker| {
            for (start, end) in tracker.lost(shared.started(room, publisher)) {
                lost[room as usize] += expected_in(room, publisher, start, end);
            }
            let failed = failed(publisher).iter();
            unacknowledged += failed.filter(|&&(r, seq)| r == room && tracker.has_received(seq)).count() as u64;
        });
        for range in &tally.missing_at_reopening {
            lost[range.room as usize] += expected_in(range.room, range.publisher, range.start, range.end);
        }

        let faulty = tally.rooms.iter().zip(&lost).enumerate().filter_map(|(room, (counts, &lost))| {
            let faulty = lost + counts.duplicated + counts.out_of_order > 0;
            faulty.then(|| RoomFaults {
                room: room_name(room as u32),
                received: counts.received,
                lost,
                duplicated: counts.duplicated,
                out_of_order: counts.out_of_order,
            })
        });
        let mut faulty_rooms: Vec<RoomFaults> = faulty.collect();
        let rooms_with_faults = faulty_rooms.len();
        faulty_rooms.truncate(MAX_FAULTY_ROOMS);

        let lost = lost.iter().sum();
        let received = tally.unique - unacknowledged;
        DeliveryReport {
            expected: received + lost,
            received,
            lost,
            duplicated: tally.rooms.iter().map(|room| room.duplicated).sum(),
            out_of_order: tally.rooms.iter().map(|room| room.out_of_order).sum(),
            damaged: tally.damaged,
            misrouted: tally.misrouted,
            unacknowledged,
            early: tally.early,
            other_events: tally.other_events,
            rooms_with_faults,
            faulty_rooms,
        }
    }

    pub fn faults(&self) -> u64 {
        self.lost + self.duplicated + self.out_of_order + self.damaged + self.misrouted
    }
}
