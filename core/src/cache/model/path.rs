//! The path to a violation in words: a numbered list of steps, with the server, the replicas and the subscribers after
//! each.

use std::fmt::Write;

use stateright::Path;

use super::{ModelEvent, ModelReplica, ModelStep, ModelSubscriber, Origin, Received, Violation, World};
use crate::log::{EntryKind, LogView};
use crate::names::EventId;

/// Names of the replicas and subscribers by their numbers in a world. The numbers may change with a step, the names do
/// not.
struct Names {
    replicas: [char; 2],
    subscribers: [char; 2],
}

/// Tells how a path leads to a world in which a property does not hold.
pub(super) fn in_words(property: &str, path: Path<World, ModelStep>, origin: Origin) -> String {
    let mut names = Names { replicas: ['A', 'B'], subscribers: ['1', '2'] };
    let mut world = World::start(origin);
    let mut text = format!("This does not hold: {property}.\n\nAt first:\n{}", names.describe(&world));
    for (index, step) in path.into_actions().into_iter().enumerate() {
        let after = world.after(step);
        let _ = writeln!(text, "{}. {}", index + 1, names.describe_step(&world, step, &after));
        text += &names.describe(&after);
        let swaps;
        (world, swaps) = after.canonical();
        if swaps.replicas {
            names.replicas.swap(0, 1);
        }
        if swaps.subscribers {
            names.subscribers.swap(0, 1);
        }
    }
    let rest = world.at_rest();
    text += "Then both replicas read the log, and both subscribers receive all that follows:\n";
    text += &names.describe(&rest);
    for violation in rest.violations {
        let _ = writeln!(text, "Violation: {}.", violation.text());
    }
    text
}

impl Names {
    fn describe_step(&self, before: &World, step: ModelStep, after: &World) -> String {
        let announced = |replica: usize| before.replicas[replica].inbox.front().expect("there is one").id;
        match step {
            ModelStep::Publish(replica, kind) => {
                let event = after.acknowledged.last().expect("it was published");
                format!("Replica {} publishes a {}; its id is {}.", self.replicas[replica], name(kind), event.id)
            }
            ModelStep::Finish(replica) => {
                let event = after.acknowledged.last().expect("it was published");
                format!("Replica {} publishes a final message; its id is {}.", self.replicas[replica], event.id)
            }
            ModelStep::ReceiveAnnouncement(replica) => {
                format!("Replica {} receives the announcement of {}.", self.replicas[replica], announced(replica))
            }
            ModelStep::LoseAnnouncement(replica) => {
                format!("The announcement of {} to replica {} is lost.", announced(replica), self.replicas[replica])
            }
            ModelStep::Read(replica) => format!("Replica {} reads the log.", self.replicas[replica]),
            ModelStep::Poll(subscriber) => {
                let count = before.subscribers[subscriber].received.len();
                let new = after.subscribers[subscriber].received.get(count).map(ToString::to_string);
                let new = new.unwrap_or_else(|| "nothing".into());
                format!("Subscriber {} polls and receives {new}.", self.subscribers[subscriber])
            }
            ModelStep::Reconnect(subscriber) => {
                let replica = self.replicas[after.subscribers[subscriber].replica];
                format!("Subscriber {} disconnects and resumes on replica {replica}.", self.subscribers[subscriber])
            }
            ModelStep::Save => "The server saves its data, and its copy receives all of it.".into(),
            ModelStep::Restart => "The server restarts with the data that it saved last.".into(),
            ModelStep::RestartWithoutLoss => "The server restarts with all its data.".into(),
            ModelStep::FailOver => "The server fails over to its copy.".into(),
            ModelStep::LoseAllKeys => "The server loses all its data.".into(),
            ModelStep::ExpireHead => "The log and its head expire.".into(),
            ModelStep::ReplaceReplica(replica) => {
                format!("Replica {} dies, and a new one takes its place.", self.replicas[replica])
            }
            ModelStep::SetClockBack => "The server's clock is set back by a quarter of a head's lifetime.".into(),
            ModelStep::Trim(kind) => format!("The server trims the oldest {} from the log.", name(kind)),
            ModelStep::Expire => "All events of the log expire.".into(),
            ModelStep::Clear(replica) => format!("Replica {} clears the log.", self.replicas[replica]),
        }
    }

    fn describe(&self, world: &World) -> String {
        let mut text = format!("     Server {}: {}\n", world.replication_id, describe_data(world));
        // By name, so that the lines keep their order.
        let mut replicas: Vec<_> = self.replicas.iter().zip(&world.replicas).collect();
        replicas.sort_by_key(|(name, _)| **name);
        for (name, replica) in replicas {
            let _ = writeln!(text, "     Replica {name}: {}", replica.text(world));
        }
        let mut subscribers: Vec<_> = self.subscribers.iter().zip(&world.subscribers).collect();
        subscribers.sort_by_key(|(name, _)| **name);
        for (name, subscriber) in subscribers {
            let replica = self.replicas[subscriber.replica];
            let view = match subscriber.view {
                LogView::All => "",
                LogView::Messages => ", which gets no presence events,",
            };
            let _ = writeln!(text, "     Subscriber {name}{view} on replica {replica}: {}", subscriber.text());
        }
        text
    }
}

fn name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Message => "message",
        EntryKind::Presence => "presence event",
    }
}

fn describe_data(world: &World) -> String {
    let Some(head) = &world.data.head else { return "has no data".into() };
    let epochs = head.history.epochs().iter().map(|epoch| {
        let since = epoch.lost_since.into_iter().chain(epoch.late_loss.map(|late| late.since)).min();
        let lost = since.map(|since| format!(" (events after {since} lost)")).unwrap_or_default();
        format!("{}{lost}", epoch.number)
    });
    let log = list(world.data.log.0.iter().map(|event| event.id));
    let finished = head.history.finished().map(|id| format!(", is finished at {id}")).unwrap_or_default();
    format!("has epochs {}, ends at {}, stores {log}{finished}", list(epochs), head.history.end())
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { "nothing".into() } else { items.join(", ") }
}

impl ModelReplica {
    fn text(&self, world: &World) -> String {
        let end = self.cache.end().map_or_else(|| "nothing".into(), |end| end.to_string());
        let is_cached = |event: &&ModelEvent| self.cache.ring.event(event.id) == Some(event);
        let cached = list(world.acknowledged.iter().filter(is_cached).map(|event| event.id));
        let watermarks = list(self.watermarks.iter().map(|(epoch, offset)| EventId::new(*epoch, *offset)));
        let announced = list(self.inbox.iter().map(|event| event.id));
        format!("has read to {end}, caches {cached}, watermarks {watermarks}; announcements to come: {announced}")
    }
}

impl ModelSubscriber {
    fn text(&self) -> String {
        let end = if self.has_ended { " and the end" } else { "" };
        format!("is at {}, has received {}{end}", self.position, list(self.received.iter()))
    }
}

impl std::fmt::Display for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(event) => write!(f, "event {}", event.id),
            Self::Gap(gap) => write!(f, "a gap from {} to {} ({})", gap.from, gap.to, gap.reason.name()),
        }
    }
}

impl Violation {
    fn text(self) -> &'static str {
        match self {
            Self::SkippedEvent => "a gap skipped an event that the log still had",
            Self::FalseGap => "a subscriber got a gap for trimmed or expired events, and had missed none",
            Self::RepeatedGap => "a stream got a second gap for the same loss",
            Self::BackwardGap => "a gap moved a stream backwards although it had stayed connected",
            Self::LateGap => {
                "a subscriber received an event before the gap for an earlier event, which its replica knew to be lost"
            }
            Self::ClearedEvent => {
                "a subscriber received an event from the cache that its replica had seen to be cleared"
            }
            Self::SilentLoss => "a subscriber has received neither an event nor a gap for it",
            Self::NeedlessGap => "a subscriber got a gap although no event was lost",
            Self::EarlyEnd => "a stream of a finished log ended before an event that the log has",
            Self::NoEnd => "a stream of a finished log does not end",
        }
    }
}
