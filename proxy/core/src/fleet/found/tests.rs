use std::time::{Duration, Instant};

use understudy_state::{Phase, PlacementRecord};

use super::*;
use crate::fleet::{FenceMode, FleetConfig, Health, ProbeReport, Profile, Token, profile::Granted};

struct Rig {
    fleet: Fleet,
    now: Instant,
}

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const C: NodeId = NodeId(2);

/// What was done: the effects, with the names of nodes where these are new.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Found(NodeId, String),
    Gone(NodeId),
    Leaving(NodeId),
    Fence(NodeId),
    Silent(NodeId),
    Moved(NodeId, bool),
}

fn found(name: &str, uid: &str, address: &str) -> Found {
    Found { name: name.into(), uid: Some(uid.into()), address: address.into(), leaving: false }
}

fn leaving(name: &str, uid: &str, address: &str) -> Found {
    Found { leaving: true, ..found(name, uid, address) }
}

/// Two pods.
fn pods() -> Vec<Found> {
    vec![found("samba-0", "u0", "10.0.0.1"), found("samba-1", "u1", "10.0.0.2")]
}

impl Rig {
    fn new(fence: FenceMode, placement: Option<&PlacementRecord>) -> Self {
        let config = FleetConfig { fence, ..FleetConfig::new(Vec::new()) };
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        Self { fleet: Fleet::new(config, placement, now), now }
    }

    /// Both pods are found, and the first serves.
    fn serving(fence: FenceMode) -> Self {
        let mut rig = Self::new(fence, None);
        assert_eq!(rig.list(&pods()), [Done::Found(A, "samba-0".into()), Done::Found(B, "samba-1".into())]);
        assert_eq!(rig.up(A), [Done::Moved(A, true)]);
        assert!(rig.up(B).is_empty());
        rig
    }

    fn list(&mut self, list: &[Found]) -> Vec<Done> {
        self.fleet.handle_nodes(self.now, list);
        self.done()
    }

    fn probe(&mut self, node: NodeId, report: ProbeReport) -> Vec<Done> {
        self.fleet.handle_probe(self.now, node, report);
        self.done()
    }

    /// It answers, as often as it takes.
    fn up(&mut self, node: NodeId) -> Vec<Done> {
        let mut done = self.probe(node, ProbeReport::Answer);
        done.extend(self.probe(node, ProbeReport::Answer));
        done
    }

    /// It says nothing for as long as it takes.
    fn silent(&mut self, node: NodeId) {
        self.fleet.handle_probe(self.now, node, ProbeReport::Silent);
        self.now += Duration::from_millis(1500);
        self.fleet.handle_probe(self.now, node, ProbeReport::Silent);
    }

    /// What the Fleet wants; the store takes everything.
    fn done(&mut self) -> Vec<Done> {
        self.effects().0
    }

    fn effects(&mut self) -> (Vec<Done>, Vec<PlacementRecord>, Option<Token>) {
        let (mut done, mut records, mut fence) = (Vec::new(), Vec::new(), None);
        while let Some(effect) = self.fleet.poll_effect() {
            match effect {
                FleetEffect::StorePlacement { token, record } => {
                    records.push(record);
                    self.fleet.handle_placement_stored(self.now, token);
                }
                FleetEffect::NodeFound { node, found } => done.push(Done::Found(node, found.name)),
                FleetEffect::NodeGone { node } => done.push(Done::Gone(node)),
                FleetEffect::NodeLeaving { node, .. } => done.push(Done::Leaving(node)),
                FleetEffect::NodeSilent { node, .. } => done.push(Done::Silent(node)),
                FleetEffect::Fence { node, token } => {
                    fence = Some(token);
                    done.push(Done::Fence(node));
                }
                FleetEffect::Move { assignment, state_lost, .. } => {
                    done.push(Done::Moved(assignment.node, state_lost));
                }
                _ => {}
            }
        }
        (done, records, fence)
    }

    fn serves(&self) -> Option<NodeId> {
        self.fleet.assignment().map(|a| a.node)
    }
}

#[test]
fn of_nodes_that_are_found_the_first_that_answers_serves() {
    let mut rig = Rig::new(FenceMode::Fence, None);
    rig.fleet.handle_timeout(rig.now + Duration::from_secs(1));
    assert!(rig.done().is_empty());
    assert!(rig.list(&[]).is_empty());
    assert_eq!(rig.list(&pods()).len(), 2);
    assert_eq!(rig.up(B), [Done::Moved(B, true)]);
    assert!(rig.list(&pods()).is_empty(), "nothing is new");
}

#[test]
fn the_stored_node_is_waited_for_from_when_nodes_are_found() {
    let stored = PlacementRecord {
        v: 1,
        epoch: 9,
        node: "samba-1".into(),
        phase: Phase::Serving,
        dirty: vec!["samba-0".into(), "samba-7".into()],
    };
    let mut rig = Rig::new(FenceMode::Fence, Some(&stored));
    rig.now += Duration::from_secs(60);
    rig.list(&[found("samba-2", "u2", "10.0.0.3")]);
    assert!(rig.up(A).is_empty(), "the stored node may still be found");
    rig.list(&[found("samba-2", "u2", "10.0.0.3"), leaving("samba-1", "u1", "10.0.0.2")]);
    // It is to end, but clients were there.
    assert_eq!(rig.probe(B, ProbeReport::Answer), [Done::Moved(B, false)]);
    assert_eq!(rig.fleet.assignment().unwrap().epoch, 9);

    let mut rig = Rig::new(FenceMode::Fence, Some(&stored));
    rig.now += Duration::from_secs(60);
    rig.list(&pods());
    assert!(rig.up(A).is_empty(), "it is dirty");
    rig.now += Duration::from_secs(1);
    rig.list(&[found("samba-0", "u0", "10.0.0.1"), found("samba-2", "u2", "10.0.0.3")]);
    rig.fleet.handle_probe(rig.now, C, ProbeReport::Answer);
    let (done, records, _) = rig.effects();
    assert_eq!(done.last(), Some(&Done::Moved(C, true)));
    assert_eq!(records[0].dirty, ["samba-0", "samba-7"], "one that was not found yet stays dirty");
}

#[test]
fn a_node_that_is_gone_and_serves_nobody_is_not_asked_any_more() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let of = |max_read| {
        let granted = Granted { max_read, ..Granted::default() };
        Profile { dialects: [(crate::crypto::Dialect::SMB311, granted)].into(), ..Profile::default() }
    };
    rig.fleet.handle_profile(A, of(8));
    rig.fleet.handle_profile(B, of(4));
    assert_eq!(rig.fleet.deviations().len(), 1);
    rig.done();
    assert_eq!(rig.list(&pods()[..1]), [Done::Gone(B)]);
    assert!(rig.list(&pods()[..1]).is_empty(), "once");
    assert!(rig.fleet.deviations().is_empty());
    rig.fleet.handle_profile(B, of(4));
    assert!(rig.fleet.deviations().is_empty(), "that is old news");
    assert_eq!(rig.fleet.status(rig.now).len(), 1);
    rig.up(B);
    assert!(rig.probe(A, ProbeReport::Refused).is_empty(), "there is nobody to move to");
    // It is the same one that comes back, and has to show anew that it lives.
    assert_eq!(rig.list(&pods()), [Done::Found(B, "samba-1".into())]);
    assert_eq!(rig.up(B), [Done::Moved(B, true)]);
}

#[test]
fn clients_stay_at_a_node_that_is_to_end_and_nobody_goes_there() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let [first, second] = [0, 1].map(|at| pods()[at].clone());
    assert_eq!(rig.list(&[leaving("samba-0", "u0", "10.0.0.1"), second.clone()]), [Done::Leaving(A)]);
    assert_eq!(rig.serves(), Some(A));
    assert_eq!(rig.probe(A, ProbeReport::Refused), [Done::Moved(B, true)]);
    rig.list(&[first, leaving("samba-1", "u1", "10.0.0.2"), found("samba-2", "u2", "10.0.0.3")]);
    rig.up(C);
    assert_eq!(rig.list(&[found("samba-2", "u2", "10.0.0.3")]), [Done::Gone(A), Done::Leaving(B)]);
    assert_eq!(rig.serves(), Some(B), "that it is not found does not mean that it is dead");
    assert_eq!(rig.probe(B, ProbeReport::Refused), [Done::Moved(C, true), Done::Gone(B)]);
}

#[test]
fn nobody_is_moved_to_a_node_that_is_to_end() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let [first, second] = [0, 1].map(|at| pods()[at].clone());
    let ends = leaving("samba-1", "u1", "10.0.0.2");
    // One that was there and one that is found so, both in front of the one that stays.
    let [third, fourth] = [leaving("samba-2", "u2", "10.0.0.3"), found("samba-3", "u3", "10.0.0.4")];
    rig.list(&[first.clone(), ends.clone(), third.clone(), fourth]);
    for node in [B, C, NodeId(3)] {
        assert!(rig.up(node).is_empty());
    }
    assert_eq!(rig.probe(A, ProbeReport::Refused), [Done::Moved(NodeId(3), true)]);

    // If there is no other, clients wait; they go to the one that is not to end after all, or to a new one.
    for (list, node) in [(vec![second, third.clone()], B), (vec![ends.clone(), third.clone(), first], A)] {
        let mut rig = Rig::serving(FenceMode::Fence);
        rig.list(&[pods()[0].clone(), ends.clone(), third.clone()]);
        rig.up(B);
        rig.up(C);
        assert!(rig.probe(A, ProbeReport::Refused).is_empty());
        assert!(rig.up(B).is_empty() && rig.up(C).is_empty(), "both are to end");
        assert_eq!(rig.serves(), None);
        let mut done = rig.list(&list);
        if node == A {
            done.extend(rig.up(A));
        }
        assert_eq!(done.iter().find(|done| matches!(done, Done::Moved(..))), Some(&Done::Moved(node, true)));
    }
}

#[test]
fn a_node_that_is_to_end_is_asked_on_until_it_is_not_found_any_more() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let first = pods()[0].clone();
    let ends = leaving("samba-1", "u1", "10.0.0.2");
    assert!(rig.list(&[first.clone(), ends.clone()]).is_empty(), "nobody is there");
    assert_eq!(rig.fleet.status(rig.now)[1], (B, Health::Up, false));
    assert_eq!(rig.fleet.names(), ["samba-0", "samba-1"]);
    assert_eq!(rig.list(std::slice::from_ref(&first)), [Done::Gone(B)]);
    assert_eq!(rig.list(&[first, ends]), [Done::Found(B, "samba-1".into())]);
}

#[test]
fn a_pod_that_has_taken_the_name_is_another_node_and_the_one_before_is_fenced() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let second = pods()[1].clone();
    let successor = found("samba-0", "u9", "10.0.0.9");
    let done = rig.list(&[successor, second]);
    assert_eq!(done, [Done::Leaving(A), Done::Found(C, "samba-0".into())]);
    rig.up(C);
    assert_eq!(rig.serves(), Some(A), "nobody has said that it is dead");
    assert_eq!(rig.fleet.names(), ["samba-0", "samba-1", "samba-0"]);
    rig.silent(A);
    let (done, _, token) = rig.effects();
    assert_eq!(done, [Done::Fence(A)]);
    rig.fleet.handle_fenced(rig.now, A, token.unwrap(), true);
    assert_eq!(rig.done(), [Done::Moved(B, true), Done::Gone(A)]);
    assert_eq!(rig.fleet.names(), ["samba-1", "samba-0"]);
}

#[test]
fn who_has_the_address_of_another_does_not_speak_for_it() {
    let mut rig = Rig::serving(FenceMode::Fence);
    let generation = rig.fleet.assignment().unwrap().generation;
    let taken = found("samba-0", "u9", "10.0.0.1");
    rig.fleet.handle_leg_lost(rig.now, A, generation, crate::event::LegLoss::Closed);
    rig.done();
    let list = [taken, pods()[1].clone()];
    rig.fleet.handle_nodes(rig.now, &list);
    let (done, _, token) = rig.effects();
    assert_eq!(
        done,
        [Done::Gone(A), Done::Leaving(A), Done::Found(C, "samba-0".into()), Done::Fence(A)],
        "it is fenced at once"
    );
    assert!(rig.probe(A, ProbeReport::Answer).is_empty());
    assert!(rig.probe(A, ProbeReport::Refused).is_empty());
    // Nor does a list that has neither of them any more.
    assert_eq!(rig.list(&pods()[1..]), [Done::Gone(C)]);
    rig.fleet.handle_fenced(rig.now, A, token.unwrap(), true);
    assert_eq!(rig.done(), [Done::Moved(B, true)]);
    assert_eq!(rig.fleet.names(), ["samba-1"]);
}

#[test]
fn a_node_whose_address_is_taken_while_clients_are_moved_there_is_fenced_too() {
    let mut rig = Rig::serving(FenceMode::Fence);
    rig.fleet.handle_probe(rig.now, A, ProbeReport::Refused);
    let Some(FleetEffect::StorePlacement { token, .. }) = rig.fleet.poll_effect() else { panic!() };
    let list = [pods()[0].clone(), found("samba-1", "u9", "10.0.0.2")];
    assert_eq!(rig.list(&list), [Done::Gone(B), Done::Leaving(B), Done::Found(C, "samba-1".into())]);
    rig.fleet.handle_placement_stored(rig.now, token);
    assert_eq!(rig.done(), [Done::Moved(B, true), Done::Fence(B)]);
}

#[test]
fn an_empty_list_takes_nobody_away() {
    let mut rig = Rig::serving(FenceMode::Fence);
    assert!(rig.list(&[]).is_empty());
    assert_eq!(rig.probe(A, ProbeReport::Refused), [Done::Moved(B, true)]);
}

#[test]
fn the_successor_of_a_dirty_node_is_clean() {
    let mut rig = Rig::serving(FenceMode::Unfenced);
    rig.list(&[pods()[1].clone()]);
    rig.silent(A);
    let (done, records, _) = rig.effects();
    assert_eq!(done, [Done::Moved(B, true), Done::Gone(A)]);
    assert_eq!(records[0].dirty, ["samba-0"]);
    rig.list(&[found("samba-0", "u9", "10.0.0.9"), pods()[1].clone()]);
    rig.fleet.handle_reclaimed();
    let (_, records, _) = rig.effects();
    assert_eq!(records[0].dirty, [""; 0]);
    rig.up(C);
    assert_eq!(rig.probe(B, ProbeReport::Refused), [Done::Moved(C, true)]);
}
