use super::{
    profile::{Granted, Severity, What},
    *,
};
use crate::crypto::Dialect;

struct Rig {
    fleet: Fleet,
    now: Instant,
}

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

impl Rig {
    fn new(fence: FenceMode, placement: Option<PlacementRecord>) -> Self {
        Self::of(&["a", "b"], fence, placement)
    }

    fn of(nodes: &[&str], fence: FenceMode, placement: Option<PlacementRecord>) -> Self {
        let mut config = FleetConfig::new(nodes.iter().map(|&name| name.into()).collect());
        config.fence = fence;
        #[allow(clippy::disallowed_methods, reason = "a first instant; the rest is virtual")]
        let now = Instant::now();
        Self { fleet: Fleet::new(config, placement.as_ref(), now), now }
    }

    /// Drains the effects; stores succeed at once.
    fn effects(&mut self) -> Vec<FleetEffect> {
        let mut out = Vec::new();
        while let Some(effect) = self.fleet.poll_effect() {
            if let FleetEffect::StorePlacement { token, .. } = &effect {
                self.fleet.handle_placement_stored(self.now, *token);
            }
            out.push(effect);
        }
        out
    }

    fn verify_tokens(&mut self) -> Vec<(NodeId, Token)> {
        self.effects()
            .into_iter()
            .filter_map(|e| match e {
                FleetEffect::Verify { node, token, .. } => Some((node, token)),
                _ => None,
            })
            .collect()
    }

    fn probe(&mut self, node: NodeId, report: ProbeReport) {
        self.fleet.handle_probe(self.now, node, report);
    }

    /// Both nodes are up and A serves.
    fn serving(fence: FenceMode) -> Self {
        let mut rig = Self::new(fence, None);
        for _ in 0..2 {
            rig.probe(A, ProbeReport::Answer);
            rig.probe(B, ProbeReport::Answer);
        }
        rig.effects();
        assert_eq!(rig.fleet.assignment().unwrap().node, A);
        rig
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn generation(&self) -> u64 {
        self.fleet.assignment().unwrap().generation
    }
}

fn moves(effects: &[FleetEffect]) -> Vec<(NodeId, bool)> {
    effects
        .iter()
        .filter_map(|e| match e {
            FleetEffect::Move { assignment, state_lost, .. } => Some((assignment.node, *state_lost)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_refused_connect_moves_to_the_next_node_after_it_is_stored() {
    let mut rig = Rig::serving(FenceMode::None);
    let generation = rig.generation();
    rig.fleet.handle_leg_lost(rig.now, A, generation, LegLoss::Closed);
    let (node, token) = rig.verify_tokens()[0];
    assert_eq!(node, A, "the same node is asked first");
    rig.fleet.handle_verify(rig.now, A, token, ProbeReport::Refused);
    let effects = rig.effects();
    let stored = effects.iter().position(|e| matches!(e, FleetEffect::StorePlacement { .. })).unwrap();
    let moved = effects.iter().position(|e| matches!(e, FleetEffect::Move { .. })).unwrap();
    assert!(stored < moved);
    let FleetEffect::StorePlacement { record, .. } = &effects[stored] else { unreachable!() };
    assert_eq!((record.node.as_str(), record.phase, record.epoch), ("b", Phase::Reclaiming, 2));
    assert_eq!(moves(&effects), [(B, true)]);
    rig.fleet.handle_reclaimed();
    let after = rig.effects();
    assert!(
        matches!(&after[..], [FleetEffect::StorePlacement { record, .. }] if record.phase == Phase::Serving),
        "{after:?}"
    );
}

#[test]
fn a_lost_leg_is_not_a_lost_node() {
    let mut rig = Rig::serving(FenceMode::None);
    let before = rig.fleet.assignment().unwrap();
    rig.fleet.handle_leg_lost(rig.now, A, before.generation, LegLoss::Closed);
    let (_, token) = rig.verify_tokens()[0];
    rig.fleet.handle_verify(rig.now, A, token, ProbeReport::Answer);
    let effects = rig.effects();
    assert_eq!(moves(&effects), [(A, false)]);
    let after = rig.fleet.assignment().unwrap();
    assert_eq!((after.epoch, after.generation), (before.epoch, before.generation + 1));
    // Another Link's news of the same event is old.
    rig.fleet.handle_leg_lost(rig.now, A, before.generation, LegLoss::Closed);
    assert!(rig.effects().is_empty());
}

/// Lets the fresh connections of a verification come to nothing for 10 s; returns what else the Fleet wants then.
fn verify_in_vain(rig: &mut Rig, report: ProbeReport, probe_answers: bool) -> Vec<FleetEffect> {
    let (generation, end) = (rig.generation(), rig.now + Duration::from_secs(10));
    rig.fleet.handle_leg_lost(rig.now, A, generation, LegLoss::Closed);
    let mut asked = 0;
    while rig.now < end {
        let effects = rig.effects();
        match effects[..] {
            [FleetEffect::Verify { node: A, token, timeout }] => {
                asked += 1;
                rig.now += if report == ProbeReport::Silent { timeout } else { Duration::ZERO };
                if probe_answers {
                    rig.probe(A, ProbeReport::Answer);
                }
                rig.fleet.handle_verify(rig.now, A, token, report);
            }
            [] => {
                rig.now = rig.fleet.poll_timeout().expect("something must happen");
                rig.fleet.handle_timeout(rig.now);
            }
            _ => return effects,
        }
    }
    assert!(asked <= 101, "a node that closes is not asked in a circle: {asked}");
    Vec::new()
}

#[test]
fn a_node_too_busy_for_a_fresh_connection_is_not_silent() {
    for report in [ProbeReport::Silent, ProbeReport::Closed] {
        let mut rig = Rig::serving(FenceMode::Fence);
        let effects = verify_in_vain(&mut rig, report, true);
        assert!(effects.is_empty(), "{report:?}: {effects:?}");
    }
}

#[test]
fn a_node_that_only_closes_is_no_more_dead_than_a_silent_one() {
    for report in [ProbeReport::Silent, ProbeReport::Closed] {
        let mut rig = Rig::serving(FenceMode::None);
        let effects = verify_in_vain(&mut rig, report, false);
        assert!(matches!(effects[..], [FleetEffect::NodeSilent { node: A, .. }]), "{report:?}: {effects:?}");
    }
}

#[test]
fn one_slow_reply_is_no_death_and_silence_without_fence_moves_nobody() {
    let mut rig = Rig::serving(FenceMode::None);
    rig.probe(A, ProbeReport::Silent);
    assert!(rig.effects().is_empty());
    rig.pass(1500);
    rig.probe(A, ProbeReport::Silent);
    let effects = rig.effects();
    assert!(matches!(effects[..], [FleetEffect::NodeSilent { node: A, .. }]), "{effects:?}");
    assert!(moves(&effects).is_empty());
    rig.probe(A, ProbeReport::Answer);
    let effects = rig.effects();
    assert!(effects.contains(&FleetEffect::NodeAnswers { node: A }));
    assert_eq!(moves(&effects), [(A, false)]);
}

#[test]
fn silence_moves_only_after_the_fence_has_succeeded() {
    let mut rig = Rig::serving(FenceMode::Fence);
    rig.pass(1500);
    rig.probe(A, ProbeReport::Silent);
    rig.pass(1500);
    rig.probe(A, ProbeReport::Silent);
    let effects = rig.effects();
    let [FleetEffect::Fence { node: A, token }] = effects[..] else { panic!("{effects:?}") };
    rig.fleet.handle_fenced(rig.now, A, token, false);
    assert!(moves(&rig.effects()).is_empty());
    let due = rig.fleet.poll_timeout().unwrap();
    rig.fleet.handle_timeout(due);
    let effects = rig.effects();
    let [FleetEffect::Fence { token, .. }] = effects[..] else { panic!("{effects:?}") };
    rig.fleet.handle_fenced(due, A, token, true);
    assert_eq!(moves(&rig.effects()), [(B, true)]);
}

#[test]
fn an_unfenced_silent_node_is_dirty_until_proved_dead_or_cleared() {
    let mut rig = Rig::serving(FenceMode::Unfenced);
    for _ in 0..2 {
        rig.probe(A, ProbeReport::Silent);
        rig.pass(1500);
    }
    let effects = rig.effects();
    assert_eq!(moves(&effects), [(B, true)]);
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, FleetEffect::StorePlacement { record, .. } if record.dirty == ["a"]))
    );
    // It answers again, but is not eligible.
    rig.probe(A, ProbeReport::Answer);
    rig.probe(A, ProbeReport::Answer);
    rig.probe(B, ProbeReport::Refused);
    assert!(moves(&rig.effects()).is_empty());
    rig.fleet.handle_cleared(rig.now, A);
    assert_eq!(moves(&rig.effects()), [(A, true)]);
}

#[test]
fn while_no_node_answers_all_are_asked_again_and_again() {
    let mut rig = Rig::serving(FenceMode::None);
    rig.probe(B, ProbeReport::Refused);
    rig.probe(A, ProbeReport::Refused);
    assert!(rig.fleet.assignment().is_none());
    let first = rig.verify_tokens();
    assert_eq!(first.len(), 2);
    for (node, token) in first {
        rig.fleet.handle_verify(rig.now, node, token, ProbeReport::Refused);
    }
    rig.now = rig.fleet.poll_timeout().unwrap();
    rig.fleet.handle_timeout(rig.now);
    let second = rig.verify_tokens();
    assert_eq!(second.len(), 2);
    let (node, token) = second[0];
    rig.fleet.handle_verify(rig.now, node, token, ProbeReport::Answer);
    assert_eq!(moves(&rig.effects()), [(A, true)]);
}

#[test]
fn a_restarted_proxy_stays_with_the_stored_node() {
    let stored = PlacementRecord { v: 1, epoch: 9, node: "b".into(), phase: Phase::Serving, dirty: vec![] };
    let mut rig = Rig::new(FenceMode::None, Some(stored));
    rig.probe(A, ProbeReport::Answer);
    rig.probe(A, ProbeReport::Answer);
    assert!(rig.fleet.assignment().is_none(), "the other node must not be taken while b may still answer");
    rig.probe(B, ProbeReport::Answer);
    assert_eq!(moves(&rig.effects()), [(B, false)]);
    assert_eq!(rig.fleet.assignment().unwrap().epoch, 9);
}

const C: NodeId = NodeId(2);

/// What a node says whose largest read is of so many bytes.
fn profile(max_read: u32) -> Profile {
    let granted = Granted { max_read, ..Granted::default() };
    Profile { dialects: [(Dialect::SMB311, granted)].into(), ..Profile::default() }
}

/// Three nodes, of which A serves and then refuses a connection. Those in `up` answer so often.
fn after_the_death_of_a(profiles: [Option<u32>; 3], up: [u32; 2]) -> (Rig, Vec<FleetEffect>) {
    let mut rig = Rig::of(&["a", "b", "c"], FenceMode::None, None);
    for _ in 0..2 {
        rig.probe(A, ProbeReport::Answer);
    }
    for (node, answers) in [B, C].into_iter().zip(up) {
        for _ in 0..answers {
            rig.probe(node, ProbeReport::Answer);
        }
    }
    rig.effects();
    assert_eq!(rig.fleet.assignment().unwrap().node, A);
    for (node, size) in [A, B, C].into_iter().zip(profiles) {
        if let Some(size) = size {
            rig.fleet.handle_profile(node, profile(size));
        }
    }
    rig.effects();
    rig.probe(A, ProbeReport::Refused);
    let effects = rig.effects();
    (rig, effects)
}

fn compromises(effects: &[FleetEffect]) -> Vec<(NodeId, NodeId, What)> {
    let all = effects.iter().filter_map(|e| match e {
        FleetEffect::Compromise { from, to, differences } => Some((*from, *to, differences)),
        _ => None,
    });
    all.flat_map(|(from, to, found)| found.iter().map(move |found| (from, to, found.what))).collect()
}

#[test]
fn a_node_on_which_clients_would_break_is_passed_over() {
    // What each grants, how often B and C have answered, and who is taken.
    let table = [
        ([Some(8), Some(8), Some(8)], [2, 2], B),
        ([Some(8), Some(4), Some(8)], [2, 2], C),
        ([Some(8), Some(16), Some(8)], [2, 2], B),
        // One answer of a sound node is worth more than two of one that breaks clients.
        ([Some(8), Some(4), Some(8)], [2, 1], C),
        // What is not known is not held against a node.
        ([Some(8), Some(4), None], [2, 2], C),
        ([None, Some(4), Some(8)], [2, 2], B),
    ];
    for (profiles, up, taken) in table {
        let (_, effects) = after_the_death_of_a(profiles, up);
        assert_eq!(moves(&effects), [(taken, true)], "{profiles:?}");
        assert!(compromises(&effects).is_empty(), "{profiles:?}");
    }
}

#[test]
fn a_node_that_breaks_clients_is_better_than_none() {
    for (profiles, up) in [([Some(8), Some(4), Some(8)], [2, 0]), ([Some(8), Some(4), Some(2)], [2, 2])] {
        let (mut rig, effects) = after_the_death_of_a(profiles, up);
        assert_eq!(moves(&effects), [(B, true)], "{profiles:?}");
        assert_eq!(compromises(&effects), [(A, B, What::MaxRead)]);
        let [first, ..] = &effects[..] else { panic!("{effects:?}") };
        assert!(
            matches!(first, FleetEffect::Compromise { .. }),
            "it is said before clients are moved: {effects:?}"
        );
        // Those that are left can do with what B grants; C does as well, and is no compromise if it grants as much.
        rig.fleet.handle_profile(C, profile(4));
        rig.probe(C, ProbeReport::Answer);
        rig.probe(B, ProbeReport::Refused);
        let effects = rig.effects();
        assert_eq!((moves(&effects), compromises(&effects)), (vec![(C, true)], vec![]));
    }
}

/// The same process would have to come back to keep a promise; what its successor says is another matter.
#[test]
fn what_clients_were_told_outlives_the_node_that_told_them() {
    let (mut rig, effects) = after_the_death_of_a([Some(8), None, None], [0, 0]);
    assert!(moves(&effects).is_empty());
    rig.fleet.handle_profile(A, profile(4));
    rig.fleet.handle_profile(B, profile(8));
    rig.probe(B, ProbeReport::Answer);
    let effects = rig.effects();
    assert_eq!((moves(&effects), compromises(&effects)), (vec![(B, true)], vec![]));
}

#[test]
fn each_pair_is_compared_once_and_again_when_it_changes() {
    let mut rig = Rig::serving(FenceMode::None);
    let compared = |rig: &mut Rig| -> Vec<([NodeId; 2], usize)> {
        let all = rig.effects().into_iter().filter_map(|e| match e {
            FleetEffect::Compared { nodes, differences } => Some((nodes, differences.len())),
            _ => None,
        });
        all.collect()
    };
    rig.fleet.handle_profile(B, profile(4));
    assert!(compared(&mut rig).is_empty(), "there is nothing to compare with yet");
    rig.fleet.handle_profile(A, profile(8));
    assert_eq!(compared(&mut rig), [([A, B], 1)]);
    assert_eq!(rig.fleet.deviations(), [(B, What::MaxRead, Severity::Breaks)]);
    rig.fleet.handle_profile(B, profile(4));
    assert!(compared(&mut rig).is_empty(), "that was said");
    rig.fleet.handle_profile(B, profile(16));
    assert_eq!(compared(&mut rig), [([A, B], 1)]);
    assert_eq!(rig.fleet.deviations(), [(B, What::MaxRead, Severity::Noticed)]);
    rig.fleet.handle_profile(B, profile(8));
    assert_eq!(compared(&mut rig), [([A, B], 0)]);
    assert!(rig.fleet.deviations().is_empty());
    // Alike from the beginning is no news.
    rig.fleet.handle_profile(B, profile(8));
    assert!(compared(&mut rig).is_empty());
}
