//! The presence of one room on this replica, as a state machine: which changes to send to the broker, and the effects
//! of its answers. Pure: it does no I/O and is given the time, so that every rule has a unit test.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Generation, Member, MemberChange, MemberOutcome, MemberView, PresenceSummary, PresenceUpdate};
use crate::names::SubscriberId;

/// Most joins of one update, and most leaves.
const MAX_CHANGES: usize = 500;

/// The members of one room on this replica. `S` is the session of a stream; equal values are the same session.
pub(super) struct RoomState<S> {
    /// How long a member whose stream has ended may take to come back.
    grace: Duration,
    members: HashMap<SubscriberId, LocalMember<S>>,
    /// Sessions that wait for an update to join with.
    joins: Vec<Join<S>>,
    /// Sessions that join with the update under way.
    joining: Vec<Join<S>>,
    /// Members that have to be reported to the broker again.
    unreported: VecDeque<SubscriberId>,
    /// Members that the broker counts for this replica and that it does not have.
    orphans: Vec<(SubscriberId, Generation)>,
    /// At the last comparison, the broker counted more members for this replica than it has.
    has_surplus: bool,
    /// The broker has members of dead replicas, which the next update removes.
    has_stale: bool,
}

/// A member whose stream is on this replica, or was until a moment ago.
struct LocalMember<S> {
    member: Arc<Member>,
    session: S,
    /// `None` until the broker has answered.
    generation: Option<Generation>,
    /// When the member leaves, if its stream has ended.
    leaves_at: Option<Instant>,
}

struct Join<S> {
    member: Arc<Member>,
    session: S,
    /// How long the member stays, if the stream ended before the broker answered.
    grace: Option<Duration>,
}

/// The effects of an update, for the caller to carry out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Effects<S> {
    /// Sessions whose streams have to end.
    pub(super) ended: Vec<S>,
    /// Answers to sessions that joined with the update.
    pub(super) answers: Vec<(S, MemberOutcome)>,
    /// Whether a member joined or left for other subscribers, too.
    pub(super) is_visible: bool,
}

impl<S> Default for Effects<S> {
    fn default() -> Self {
        Self { ended: Vec::new(), answers: Vec::new(), is_visible: false }
    }
}

impl<S: Clone + PartialEq> RoomState<S> {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            members: HashMap::new(),
            joins: Vec::new(),
            joining: Vec::new(),
            unreported: VecDeque::new(),
            orphans: Vec::new(),
            has_surplus: false,
            has_stale: false,
        }
    }

    /// How many members there are, including those in their grace time.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The owner of a member.
    pub(super) fn owner(&self, subscriber: &SubscriberId) -> Option<Box<str>> {
        self.members.get(subscriber).map(|local| local.member.owner.clone())
    }

    /// Whether there are no members and no sessions that wait to join.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.joins.is_empty()
    }

    /// A session joins with the next update.
    pub(super) fn join(&mut self, member: Arc<Member>, session: S) {
        self.joins.push(Join { member, session, grace: None });
    }

    /// The stream of a session has ended: its member leaves after the grace time.
    pub(super) fn end_session(&mut self, subscriber: &SubscriberId, session: &S, now: Instant) {
        self.leave_session(subscriber, session, self.grace, now);
    }

    /// The member of a session leaves without a grace time. If the session still waits to join, it does not join.
    pub(super) fn leave(&mut self, subscriber: &SubscriberId, session: &S, now: Instant) {
        self.joins.retain(|join| join.session != *session);
        self.leave_session(subscriber, session, Duration::ZERO, now);
    }

    fn leave_session(&mut self, subscriber: &SubscriberId, session: &S, grace: Duration, now: Instant) {
        // Unless it is the session of a member, it may still wait to join.
        if self.members.get(subscriber).is_none_or(|local| local.session != *session) {
            for join in self.joins.iter_mut().chain(&mut self.joining).filter(|join| join.session == *session) {
                join.grace = Some(join.grace.map_or(grace, |before| before.min(grace)));
            }
        }
        self.leave_at(subscriber, now + grace, |member| member.session == *session);
    }

    /// Members were removed from the room. Returns whether there are any.
    pub(super) fn remove(&mut self, is_meant: impl Fn(&SubscriberId, &S) -> bool, now: Instant) -> bool {
        let removed = self.members.iter_mut().filter(|(subscriber, local)| is_meant(subscriber, &local.session));
        // At once: it is not before the end of a grace time.
        removed.map(|(_, local)| local.leaves_at = Some(now)).count() > 0
    }

    /// A later session of this subscriber has begun on another replica. Returns the session on this replica that ends.
    pub(super) fn supersede(&mut self, subscriber: &SubscriberId, generation: Generation) -> Option<S> {
        let local = self.members.get(subscriber)?;
        let is_earlier = local.generation.is_some_and(|own| own < generation);
        is_earlier.then(|| self.members.remove(subscriber)).flatten().map(|local| local.session)
    }

    /// Sets when a member leaves, if it is meant and does not leave earlier.
    fn leave_at(&mut self, subscriber: &SubscriberId, at: Instant, is_meant: impl Fn(&LocalMember<S>) -> bool) {
        if let Some(local) = self.members.get_mut(subscriber).filter(|local| is_meant(local)) {
            local.leaves_at = Some(local.leaves_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Begins the next update. Returns its changes: sessions that join, members that the broker may lack, members that
    /// leave. `None` if no update is needed now.
    pub(super) fn begin_update(&mut self, now: Instant) -> Option<Vec<MemberChange>> {
        let count = self.joins.len().min(MAX_CHANGES);
        self.joining = self.joins.drain(..count).collect();
        let join = |member: &Arc<Member>, generation| MemberChange::Join { member: member.clone(), generation };
        let mut changes: Vec<_> = self.joining.iter().map(|joining| join(&joining.member, None)).collect();
        while changes.len() < MAX_CHANGES
            && let Some(subscriber) = self.unreported.pop_front()
        {
            // The join of a new session reports the member as well.
            let is_joining = self.joining.iter().any(|join| join.member.subscriber == subscriber);
            let member = self.members.get(&subscriber).filter(|member| member.leaves_at.is_none() && !is_joining);
            changes.extend(member.map(|local| join(&local.member, local.generation)));
        }
        let orphans = std::mem::take(&mut self.orphans);
        // It is no orphan if the broker's answer to its join has arrived meanwhile.
        let orphans = orphans.into_iter().filter(|(subscriber, generation)| {
            self.members.get(subscriber).is_none_or(|member| member.generation != Some(*generation))
        });
        let orphans: Vec<_> = orphans.collect();
        let leaving = self.members.values().filter(|local| {
            // A member without a generation has to leave, too: the broker may have it although the answer was lost. But
            // if the subscriber is about to join again, a leave without a generation would end that new session.
            let joins_again = || {
                let mut joins = self.joining.iter().chain(&self.joins);
                joins.any(|join| join.member.subscriber == local.member.subscriber)
            };
            local.leaves_at.is_some_and(|at| at <= now) && (local.generation.is_some() || !joins_again())
        });
        let leave = |local: &LocalMember<S>| MemberChange::Leave {
            member: local.member.clone(),
            generation: local.generation,
        };
        changes.extend(leaving.take(MAX_CHANGES).map(leave));
        changes.extend(orphans.into_iter().map(|(subscriber, generation)| {
            let member = Member { subscriber, owner: "-".into(), address: None, profile: "".into() };
            MemberChange::Leave { member: Arc::new(member), generation: Some(generation) }
        }));
        (!changes.is_empty() || self.has_stale).then_some(changes)
    }

    /// Completes the update of these changes with the broker's answer.
    pub(super) fn complete_update(
        &mut self,
        changes: &[MemberChange],
        update: PresenceUpdate,
        now: Instant,
    ) -> Effects<S> {
        let mut effects = Effects { is_visible: self.has_stale, ..Effects::default() };
        self.has_stale = update.has_stale;
        let mut joining = std::mem::take(&mut self.joining).into_iter();
        for (change, outcome) in changes.iter().zip(update.outcomes) {
            match (change, joining.next()) {
                (MemberChange::Join { .. }, Some(join)) => {
                    match outcome {
                        MemberOutcome::Present(generation) => {
                            effects.answers.push((join.session.clone(), outcome));
                            match self.insert(join, Some(generation), now) {
                                Some(earlier) => effects.ended.push(earlier),
                                None => effects.is_visible = true,
                            }
                            continue;
                        }
                        // The stream may have opened without waiting for the answer.
                        MemberOutcome::NameTaken => effects.ended.push(join.session.clone()),
                        MemberOutcome::Absent | MemberOutcome::Superseded => {}
                    }
                    effects.answers.push((join.session, outcome));
                }
                (MemberChange::Join { member, .. }, None) => {
                    let Some(local) = self.members.get_mut(&member.subscriber) else { continue };
                    if let MemberOutcome::Present(generation) = outcome {
                        local.generation = Some(generation);
                        continue;
                    }
                    // The subscriber id belongs to another session by now.
                    let local = self.members.remove(&member.subscriber);
                    effects.ended.extend(local.map(|local| local.session));
                }
                (MemberChange::Leave { member, generation }, _) => {
                    effects.is_visible = true;
                    let local = self.members.get(&member.subscriber);
                    if local.is_some_and(|local| local.generation == *generation && local.leaves_at.is_some()) {
                        self.members.remove(&member.subscriber);
                    }
                }
            }
        }
        effects
    }

    /// The update of these changes failed, or its answer was lost. Its sessions become members here at once, unless
    /// their subscriber id belongs to another caller here, and are reported again.
    pub(super) fn fail_update(&mut self, changes: &[MemberChange], now: Instant) -> Effects<S> {
        let mut effects = Effects::default();
        for join in std::mem::take(&mut self.joining) {
            let present = self.members.get(&join.member.subscriber);
            if present.is_some_and(|present| present.member.owner != join.member.owner) {
                effects.answers.push((join.session, MemberOutcome::NameTaken));
                continue;
            }
            effects.answers.push((join.session.clone(), MemberOutcome::Absent));
            effects.ended.extend(self.insert(join, None, now));
        }
        for change in changes {
            if let MemberChange::Join { member, .. } = change {
                self.unreported.push_back(member.subscriber.clone());
            }
        }
        effects
    }

    /// Adds the member of a session. Returns the earlier session of the same member, which has to end.
    fn insert(&mut self, join: Join<S>, generation: Option<Generation>, now: Instant) -> Option<S> {
        let Join { member, session, grace } = join;
        let leaves_at = grace.map(|grace| now + grace);
        let subscriber = member.subscriber.clone();
        let local = LocalMember { member, session, generation, leaves_at };
        self.members.insert(subscriber, local).map(|earlier| earlier.session)
    }

    /// The time at which the next member leaves.
    pub(super) fn next_leave(&self) -> Option<Instant> {
        self.members.values().filter_map(|local| local.leaves_at).min()
    }

    /// Compares the members with the broker's summary. If the counts differ, all members are reported again. Returns
    /// whether the broker has counted too many twice in a row; once may be due to an update under way.
    pub(super) fn compare(&mut self, summary: PresenceSummary) -> bool {
        let reported = self.members.values().filter(|local| local.generation.is_some()).count() as u64;
        self.has_stale |= summary.has_stale;
        if summary.own != reported {
            self.unreported = self.members.keys().cloned().collect();
        }
        let has_surplus = summary.own > reported;
        std::mem::replace(&mut self.has_surplus, has_surplus) && has_surplus
    }

    /// Checks a member that the broker counts for this replica. It leaves with the next update if this replica lacks
    /// it.
    pub(super) fn check_orphan(&mut self, view: MemberView) {
        let is_joining =
            self.joins.iter().chain(&self.joining).any(|join| join.member.subscriber == view.subscriber);
        if !self.members.contains_key(&view.subscriber) && !is_joining {
            self.orphans.push((view.subscriber, view.generation));
        }
    }
}

#[cfg(test)]
mod tests;
