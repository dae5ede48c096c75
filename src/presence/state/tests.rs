//! Each rule of a room's presence, tested by the changes that are sent to the broker and by the effects of its answers.

use super::*;

const GRACE: Duration = Duration::from_secs(10);

/// Sessions are numbers here.
type TestState = RoomState<u32>;

fn state() -> (TestState, Instant) {
    (TestState::new(GRACE), Instant::now())
}

fn id(name: &str) -> SubscriberId {
    SubscriberId::new(name).unwrap()
}

fn member_of(name: &str, owner: &str) -> Arc<Member> {
    Arc::new(Member { subscriber: id(name), owner: owner.into(), address: None, profile: "".into() })
}

fn member(name: &str) -> Arc<Member> {
    member_of(name, "owner")
}

fn outcomes(outcomes: &[MemberOutcome]) -> PresenceUpdate {
    PresenceUpdate { outcomes: outcomes.to_vec(), has_stale: false }
}

/// The changes of an update as text: `+name` or `-name`, and `@` with the generation if there is one.
fn text(changes: Option<Vec<MemberChange>>) -> Vec<String> {
    let change_text = |change: &MemberChange| {
        let (sign, member, generation) = match change {
            MemberChange::Join { member, generation } => ('+', member, generation),
            MemberChange::Leave { member, generation } => ('-', member, generation),
        };
        let generation = generation.map(|generation| format!("@{generation}")).unwrap_or_default();
        format!("{sign}{}{generation}", member.subscriber)
    };
    changes.unwrap_or_default().iter().map(change_text).collect()
}

/// Joins with a session, and answers for the broker with a generation.
fn join(state: &mut TestState, now: Instant, name: &str, session: u32, generation: u64) -> Effects<u32> {
    state.join(member(name), session);
    let changes = state.begin_update(now).unwrap();
    state.complete_update(&changes, outcomes(&[MemberOutcome::Present(generation)]), now)
}

#[test]
fn a_session_joins_and_is_reported_once() {
    let (mut state, now) = state();
    let effects = join(&mut state, now, "ann", 1, 7);
    assert_eq!(effects, Effects { ended: vec![], answers: vec![(1, MemberOutcome::Present(7))], is_visible: true });
    assert_eq!((state.len(), text(state.begin_update(now))), (1, vec![]));
}

#[test]
fn a_later_session_of_the_same_member_ends_the_earlier_one_and_is_not_visible() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    let effects = join(&mut state, now, "ann", 2, 8);
    assert_eq!((effects.ended, effects.is_visible), (vec![1], false));
    // The end of the earlier stream does not end the later session.
    state.end_session(&id("ann"), &1, now);
    assert_eq!(state.next_leave(), None);
}

#[test]
fn a_name_that_is_taken_ends_the_session_and_adds_no_member() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    let changes = state.begin_update(now).unwrap();
    let effects = state.complete_update(&changes, outcomes(&[MemberOutcome::NameTaken]), now);
    assert_eq!(
        effects,
        Effects { ended: vec![1], answers: vec![(1, MemberOutcome::NameTaken)], is_visible: false }
    );
    assert!(state.is_empty());
}

#[test]
fn a_member_leaves_after_the_grace_time_unless_it_comes_back() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    join(&mut state, now, "bob", 2, 8);
    state.end_session(&id("ann"), &1, now);
    state.end_session(&id("bob"), &2, now);
    assert_eq!(text(state.begin_update(now)), [""; 0], "the grace time is not over");
    assert_eq!(state.next_leave(), Some(now + GRACE));
    join(&mut state, now, "bob", 3, 9);
    let later = now + GRACE;
    let changes = state.begin_update(later);
    assert_eq!(text(changes.clone()), ["-ann@7"]);
    let effects = state.complete_update(&changes.unwrap(), outcomes(&[MemberOutcome::Absent]), later);
    assert!(effects.is_visible);
    assert_eq!(state.len(), 1, "only bob is left");
}

#[test]
fn a_removed_member_and_one_that_leaves_have_no_grace_time() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    join(&mut state, now, "bob", 2, 8);
    assert!(state.remove(|subscriber, _| *subscriber == id("ann"), now));
    state.leave(&id("bob"), &2, now);
    // The later end of its stream does not prolong that.
    state.end_session(&id("ann"), &1, now);
    let mut leaving = text(state.begin_update(now));
    leaving.sort();
    assert_eq!(leaving, ["-ann@7", "-bob@8"]);
}

#[test]
fn a_stream_that_ends_before_the_answer_leaves_after_the_grace_time() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    let changes = state.begin_update(now).unwrap();
    state.end_session(&id("ann"), &1, now);
    state.complete_update(&changes, outcomes(&[MemberOutcome::Present(7)]), now);
    assert_eq!(state.next_leave(), Some(now + GRACE));
    // So does one that ends before its join was sent.
    state.join(member("bob"), 2);
    state.end_session(&id("bob"), &2, now);
    let changes = state.begin_update(now).unwrap();
    state.complete_update(&changes, outcomes(&[MemberOutcome::Present(8)]), now);
    assert_eq!(text(state.begin_update(now + GRACE)).len(), 2);
}

#[test]
fn a_session_that_is_withdrawn_does_not_join_or_leaves_at_once() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    state.leave(&id("ann"), &1, now);
    assert_eq!(text(state.begin_update(now)), [""; 0], "its join was not sent yet");
    state.join(member("ann"), 2);
    let changes = state.begin_update(now).unwrap();
    state.leave(&id("ann"), &2, now);
    state.end_session(&id("ann"), &2, now);
    state.complete_update(&changes, outcomes(&[MemberOutcome::Present(7)]), now);
    assert_eq!(text(state.begin_update(now)), ["-ann@7"]);
}

#[test]
fn a_failed_update_is_repeated_and_its_session_is_a_member_meanwhile() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    let changes = state.begin_update(now).unwrap();
    let effects = state.fail_update(&changes, now);
    assert_eq!(effects.answers, [(1, MemberOutcome::Absent)]);
    assert_eq!(state.len(), 1);
    let changes = state.begin_update(now);
    assert_eq!(text(changes.clone()), ["+ann"]);
    state.complete_update(&changes.unwrap(), outcomes(&[MemberOutcome::Present(7)]), now);
    assert_eq!(state.supersede(&id("ann"), 8), Some(1), "it has the generation of the broker's answer");
}

#[test]
fn while_the_broker_is_away_a_name_belongs_to_the_first_caller() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    let changes = state.begin_update(now).unwrap();
    state.fail_update(&changes, now);
    state.join(member_of("ann", "another"), 2);
    let changes = state.begin_update(now).unwrap();
    assert_eq!(state.fail_update(&changes, now).answers, [(2, MemberOutcome::NameTaken)]);
    state.join(member("ann"), 3);
    let changes = state.begin_update(now).unwrap();
    assert_eq!(state.fail_update(&changes, now).ended, [1], "the same caller's later session ends the earlier one");
}

#[test]
fn a_member_that_is_reported_again_ends_if_its_name_was_taken_meanwhile() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    assert!(!state.compare(PresenceSummary::default()), "the broker has lost the member, and has no surplus");
    let changes = state.begin_update(now);
    assert_eq!(text(changes.clone()), ["+ann@7"]);
    let effects = state.complete_update(&changes.unwrap(), outcomes(&[MemberOutcome::Superseded]), now);
    assert_eq!((effects.ended, state.len()), (vec![1], 0));
}

#[test]
fn a_member_without_a_generation_does_not_leave_while_it_joins_again() {
    let (mut state, now) = state();
    state.join(member("ann"), 1);
    let changes = state.begin_update(now).unwrap();
    state.fail_update(&changes, now);
    state.end_session(&id("ann"), &1, now);
    let later = now + GRACE;
    state.join(member("ann"), 2);
    assert_eq!(text(state.begin_update(later)), ["+ann"], "a leave without a generation would end the new session");
}

#[test]
fn only_an_earlier_generation_is_superseded() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    assert_eq!(state.supersede(&id("ann"), 7), None);
    assert_eq!(state.supersede(&id("bob"), 9), None);
    assert_eq!(state.supersede(&id("ann"), 8), Some(1));
    assert!(state.is_empty());
}

#[test]
fn a_surplus_counts_only_if_it_lasts_and_its_orphans_leave() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    let summary = PresenceSummary { own: 2, ..PresenceSummary::default() };
    assert!(!state.compare(summary), "an update under way may look like a surplus once");
    assert!(state.compare(summary));
    let view = |name: &str, generation| MemberView {
        subscriber: id(name),
        profile: "".into(),
        since: String::new(),
        replica: String::new(),
        is_here: true,
        generation,
        address: None,
    };
    state.check_orphan(view("ann", 7));
    state.check_orphan(view("eve", 3));
    state.join(member("joe"), 2);
    state.check_orphan(view("joe", 4));
    let changes = text(state.begin_update(now));
    assert_eq!(changes, ["+joe", "+ann@7", "-eve@3"]);
}

#[test]
fn stale_members_of_dead_replicas_are_an_update_of_their_own() {
    let (mut state, now) = state();
    join(&mut state, now, "ann", 1, 7);
    state.compare(PresenceSummary { own: 1, has_stale: true, watched: false });
    let changes = state.begin_update(now).expect("an update without changes");
    assert!(changes.is_empty());
    let update = PresenceUpdate { outcomes: vec![], has_stale: true };
    assert!(state.complete_update(&changes, update, now).is_visible);
    assert!(state.begin_update(now).is_some(), "one update did not remove all of them");
    assert!(state.complete_update(&[], PresenceUpdate::default(), now).is_visible);
    assert!(state.begin_update(now).is_none());
}

#[test]
fn an_update_has_a_limit_and_the_rest_follows() {
    let (mut state, now) = state();
    for n in 0..MAX_CHANGES + 3 {
        state.join(member(&format!("m{n}")), u32::try_from(n).unwrap());
    }
    let changes = state.begin_update(now).unwrap();
    assert_eq!(changes.len(), MAX_CHANGES);
    let answers: Vec<_> = (0..MAX_CHANGES as u64).map(|n| MemberOutcome::Present(n + 1)).collect();
    state.complete_update(&changes, outcomes(&answers), now);
    assert_eq!(state.begin_update(now).unwrap().len(), 3);
}
