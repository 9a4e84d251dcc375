use super::*;

struct Rig {
    fleet: Fleet,
    now: Instant,
}

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

impl Rig {
    fn new(fence: FenceMode, placement: Option<PlacementRecord>) -> Self {
        let mut config = FleetConfig::new(vec!["a".into(), "b".into()]);
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
                self.fleet.handle_placement_stored(*token);
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
