//! The state of one room's presence on this replica: what has to be told to the broker, and what follows from its answers.
//! Pure: it does no I/O and is given the time, so that every rule has a unit test.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Generation, Member, MemberChange, MemberOutcome, MemberView, PresenceSummary, PresenceUpdate};
use crate::names::SubscriberId;

/// Changes of one step.
const MAX_CHANGES: usize = 500;

/// One room's members on this replica. `S` stands for a stream's session; two that are equal are the same session.
pub(super) struct RoomState<S> {
    /// How long a member that has left may take to come back.
    grace: Duration,
    members: HashMap<SubscriberId, LocalMember<S>>,
    /// Sessions that wait for their place.
    joins: Vec<Join<S>>,
    /// Sessions whose place the present step asks the broker for.
    joining: Vec<Join<S>>,
    /// Members that have to be told to the broker again.
    retell: VecDeque<SubscriberId>,
    /// Members that the broker counts for this replica, and that are not here.
    orphans: Vec<(SubscriberId, Generation)>,
    /// At the last comparison the broker counted more members than there are.
    has_surplus: bool,
    /// The broker has members of dead replicas, which the next step removes.
    has_stale: bool,
}

/// A member with a stream here, or with one a moment ago.
struct LocalMember<S> {
    member: Arc<Member>,
    session: S,
    /// None until the broker has answered.
    generation: Option<Generation>,
    /// When it leaves: its stream has ended.
    leaves_at: Option<Instant>,
}

struct Join<S> {
    member: Arc<Member>,
    session: S,
    /// The stream has ended before the broker has answered.
    has_left: bool,
}

/// What the caller has to do after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Effects<S> {
    /// Sessions whose streams have to end.
    pub(super) ended: Vec<S>,
    /// Answers to sessions that waited for their place.
    pub(super) answers: Vec<(S, MemberOutcome)>,
    /// Whether a member came or left, so that others were told.
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
            retell: VecDeque::new(),
            orphans: Vec::new(),
            has_surplus: false,
            has_stale: false,
        }
    }

    /// Members here, those that have just left included.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is nothing to keep.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.joins.is_empty()
    }

    /// A session wants a place.
    pub(super) fn join(&mut self, member: Arc<Member>, session: S) {
        self.joins.push(Join { member, session, has_left: false });
    }

    /// A session's stream has ended: its member leaves after the grace time.
    pub(super) fn end_session(&mut self, subscriber: &SubscriberId, session: &S, now: Instant) {
        for join in self.joins.iter_mut().chain(&mut self.joining).filter(|join| join.session == *session) {
            join.has_left = true;
        }
        self.leave_at(subscriber, now + self.grace, |member| member.session == *session);
    }

    /// A session leaves without a grace time.
    pub(super) fn leave(&mut self, subscriber: &SubscriberId, session: &S, now: Instant) {
        self.leave_at(subscriber, now, |member| member.session == *session);
    }

    /// A member was removed from the room.
    pub(super) fn remove(&mut self, subscriber: &SubscriberId, now: Instant) {
        self.leave_at(subscriber, now, |_| true);
    }

    /// A later session of this subscriber has begun on another replica. Returns the session that it ends here, if any.
    pub(super) fn supersede(&mut self, subscriber: &SubscriberId, generation: Generation) -> Option<S> {
        let member = self.members.get(subscriber)?;
        let is_earlier = member.generation.is_some_and(|own| own < generation);
        is_earlier.then(|| self.members.remove(subscriber)).flatten().map(|member| member.session)
    }

    fn leave_at(&mut self, subscriber: &SubscriberId, at: Instant, is_meant: impl Fn(&LocalMember<S>) -> bool) {
        if let Some(member) = self.members.get_mut(subscriber).filter(|member| is_meant(member)) {
            member.leaves_at = Some(member.leaves_at.map_or(at, |before| before.min(at)));
        }
    }

    /// The changes of the next step: sessions that wait, members that the broker may not have, members that leave. None if
    /// there is nothing to do now.
    pub(super) fn begin_step(&mut self, now: Instant) -> Option<Vec<MemberChange>> {
        let count = self.joins.len().min(MAX_CHANGES);
        self.joining = self.joins.drain(..count).collect();
        let join = |member: &Arc<Member>, generation| MemberChange::Join { member: member.clone(), generation };
        let mut changes: Vec<_> = self.joining.iter().map(|asked| join(&asked.member, None)).collect();
        while changes.len() < MAX_CHANGES
            && let Some(subscriber) = self.retell.pop_front()
        {
            // A member with a new session is told by that one.
            let is_joining = self.joining.iter().any(|join| join.member.subscriber == subscriber);
            let member = self.members.get(&subscriber).filter(|member| member.leaves_at.is_none() && !is_joining);
            changes.extend(member.map(|local| join(&local.member, local.generation)));
        }
        let orphans = std::mem::take(&mut self.orphans);
        // An orphan whose session has been answered meanwhile is none.
        let orphans = orphans.into_iter().filter(|(subscriber, generation)| {
            self.members.get(subscriber).is_none_or(|member| member.generation != Some(*generation))
        });
        let orphans: Vec<_> = orphans.collect();
        let leaving = self.members.values().filter(|local| {
            // Without a generation the broker may have the member all the same. If it is about to join again, a leave without
            // a generation would end that session.
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

    /// The broker has done the step with these changes.
    pub(super) fn complete_step(
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
                        // The stream may not have waited for the answer.
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
                    // The name belongs to another session by now.
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

    /// The step with these changes failed, or its answer was lost: all of it is told again. Sessions get their places when the
    /// broker can give them.
    pub(super) fn fail_step(&mut self, changes: &[MemberChange], now: Instant) -> Effects<S> {
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
                self.retell.push_back(member.subscriber.clone());
            }
        }
        effects
    }

    /// Returns the earlier session of the same member, which has to end.
    fn insert(&mut self, join: Join<S>, generation: Option<Generation>, now: Instant) -> Option<S> {
        let leaves_at = join.has_left.then(|| now + self.grace);
        let subscriber = join.member.subscriber.clone();
        let local = LocalMember { member: join.member, session: join.session, generation, leaves_at };
        self.members.insert(subscriber, local).map(|earlier| earlier.session)
    }

    /// When the next member leaves.
    pub(super) fn next_leave(&self) -> Option<Instant> {
        self.members.values().filter_map(|local| local.leaves_at).min()
    }

    /// Compares with what the broker knows. Returns whether the broker has counted members for this replica that are not here,
    /// twice in a row: what is under way looks like that for a moment.
    pub(super) fn compare(&mut self, summary: PresenceSummary) -> bool {
        let told = self.members.values().filter(|local| local.generation.is_some()).count() as u64;
        self.has_stale |= summary.has_stale;
        if summary.own != told {
            self.retell = self.members.keys().cloned().collect();
        }
        let has_surplus = summary.own > told;
        std::mem::replace(&mut self.has_surplus, has_surplus) && has_surplus
    }

    /// Notes a member that the broker counts for this replica; it leaves if it is not here.
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
