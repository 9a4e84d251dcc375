//! Driving the Fleet: its questions become connections, its fence a process, its placement a record in the store.

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use understudy_core::{
    event::Cause,
    fleet::{Assignment, Difference, Fleet, FleetEffect, Found, Health, ProbeReport, Severity, Token, What},
    ids::NodeId,
};
use understudy_state::{Batch, Guard, PlacementRecord, Store, StoreError};

use crate::{
    config::CompareConfig,
    fence::Fence,
    ha, persist, probe,
    shared::{Command, FleetInput, Shared},
};

/// How long the store may take over a placement before the move goes on without it.
const STORE: Duration = Duration::from_secs(2);

/// How often it is looked whether a shut gate is open again.
const SHUT: Duration = Duration::from_millis(20);

/// A proxy that was cut off has heard of nobody. When that is over, nodes have so long to answer before they count as silent.
const SETTLE: Duration = Duration::from_secs(2);

/// After so long without a serving node, that is said.
const UNSERVED: Duration = Duration::from_secs(3);

/// The task that owns the Fleet.
pub(crate) struct FleetTask {
    pub(crate) fleet: Fleet,
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<dyn Store>,
    /// What the placement is guarded by, where there are several proxies.
    pub(crate) guard: Option<Guard>,
    pub(crate) fence: Option<Fence>,
    pub(crate) inputs: UnboundedReceiver<FleetInput>,
    pub(crate) probes: Probes,
}

/// How nodes are asked how they are.
pub(crate) struct Probes {
    pub(crate) interval: Duration,
    pub(crate) compare: Option<CompareConfig>,
    pub(crate) tasks: HashMap<NodeId, AbortHandle>,
}

impl Probes {
    /// From now on this node is.
    pub(crate) fn begin(&mut self, shared: &Arc<Shared>, node: NodeId) {
        let watch = probe::watch(Arc::clone(shared), node, self.interval, self.compare.clone());
        if let Some(before) = self.tasks.insert(node, tokio::spawn(watch).abort_handle()) {
            before.abort();
        }
    }

    fn end(&mut self, node: NodeId) {
        if let Some(task) = self.tasks.remove(&node) {
            task.abort();
        }
    }
}

impl FleetTask {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut unserved = Unserved::No;
        self.measure_differences();
        let mut settled = Instant::now();
        loop {
            if !self.shared.gate.is_open() {
                // Another proxy may lead: this one moves nobody, and fences no node. What it hears waits.
                sleep(SHUT).await;
                settled = Instant::now() + SETTLE;
                continue;
            }
            self.drain();
            self.measure();
            unserved = self.tell_unserved(unserved);
            let due = self.fleet.poll_timeout().map(|due| Instant::from_std(due).max(settled));
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return,
                },
                () = until(due) => self.fleet.handle_timeout(std::time::Instant::now()),
            }
        }
    }

    fn input(&mut self, input: FleetInput) {
        let now = std::time::Instant::now();
        match input {
            FleetInput::LegLost { node, generation, loss } => {
                self.fleet.handle_leg_lost(now, node, generation, loss)
            }
            FleetInput::Probe { node, report } => self.fleet.handle_probe(now, node, report),
            FleetInput::Profile { node, profile } => self.fleet.handle_profile(node, *profile),
            FleetInput::Verified { node, token, report } => {
                self.fleet.handle_verify(now, node, token, report)
            }
            FleetInput::Fenced { node, token, success } => {
                let result = if success { "ok" } else { "failed" };
                self.shared.metrics.fences.with_label_values(&[result]).inc();
                self.fleet.handle_fenced(now, node, token, success);
            }
            FleetInput::Stored { token } => self.fleet.handle_placement_stored(now, token),
            FleetInput::Reclaimed => self.fleet.handle_reclaimed(),
            FleetInput::Cleared { node } => self.fleet.handle_cleared(now, node),
            FleetInput::Nodes(list) => self.fleet.handle_nodes(now, &list),
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.fleet.poll_effect() {
            match effect {
                FleetEffect::Verify { node, token, timeout } => self.verify(node, token, timeout),
                FleetEffect::Fence { node, token } => self.fence(node, token),
                FleetEffect::StorePlacement { record, token } => self.store(&record, token),
                FleetEffect::Move { assignment, cause, from, state_lost } => {
                    self.moved(assignment, cause, from, state_lost);
                    self.measure_differences();
                    self.tell_fence();
                }
                FleetEffect::Compromise { from, to, differences } => {
                    let [from, to] = [from, to].map(|node| self.shared.node_name(node));
                    let differences = described(&differences, [&from, &to]);
                    tracing::warn!(
                        from,
                        to,
                        ?differences,
                        "no better node answers: some clients will not survive the move"
                    );
                }
                FleetEffect::Compared { nodes, differences } => {
                    let [one, other] = nodes.map(|node| self.shared.node_name(node));
                    self.compared([&one, &other], &differences);
                    self.measure_differences();
                }
                FleetEffect::NodeFound { node, found } => self.found(node, found),
                FleetEffect::NodeGone { node } => self.gone(node),
                FleetEffect::NodeLeaving { node, why } => {
                    let node = self.shared.node_name(node);
                    tracing::warn!(node, "the serving node leaves: {why}; clients stay until it is dead");
                }
                FleetEffect::NodeSilent { node, why } => {
                    tracing::error!(
                        node = self.shared.node_name(node),
                        "the serving node is silent; clients wait: {why}"
                    );
                    self.shared.tell_all(&Command::NodeSilent);
                }
                FleetEffect::NodeAnswers { node } => {
                    tracing::warn!(node = self.shared.node_name(node), "the silent node answers again");
                    self.shared.tell_all(&Command::NodeAnswers);
                }
            }
        }
    }

    fn inputs_to(&self) -> UnboundedSender<FleetInput> {
        self.shared.fleet.clone()
    }

    fn verify(&self, node: NodeId, token: Token, limit: Duration) {
        let (inputs, address) = (self.inputs_to(), self.shared.nodes.address(node));
        tokio::spawn(async move {
            let report = match address {
                Some(address) => probe::ask(&address, limit).await,
                None => ProbeReport::Silent,
            };
            let _ = inputs.send(FleetInput::Verified { node, token, report });
        });
    }

    fn fence(&self, node: NodeId, token: Token) {
        let inputs = self.inputs_to();
        let (fence, config) = (self.fence.clone(), self.shared.nodes.get(node));
        tokio::spawn(async move {
            let success = match (fence, config) {
                (Some(fence), Some(node)) => fence.run(&node).await,
                _ => false,
            };
            let _ = inputs.send(FleetInput::Fenced { node, token, success });
        });
    }

    fn found(&mut self, node: NodeId, found: Found) {
        tracing::info!(node = found.name, address = found.address, uid = found.uid, "a node is found");
        self.shared.nodes.found(node, found.into());
        self.probes.begin(&self.shared, node);
        self.measure_differences();
        self.tell_fence();
    }

    fn gone(&mut self, node: NodeId) {
        let name = self.shared.node_name(node);
        tracing::info!(node = name, "the node is not found any more");
        self.shared.nodes.gone(node);
        self.probes.end(node);
        if !self.shared.nodes.there().iter().any(|(_, node)| node.name == name) {
            self.shared.metrics.forget_node(&name);
        }
        self.measure_differences();
        self.tell_fence();
    }

    /// Whom it may be asked to fence.
    fn tell_fence(&self) {
        if let Some(fence) = &self.fence {
            fence.know(&self.fleet.names().into_iter().map(ToOwned::to_owned).collect());
        }
    }

    fn store(&self, record: &PlacementRecord, token: Token) {
        let (inputs, store, shared) = (self.inputs_to(), Arc::clone(&self.store), Arc::clone(&self.shared));
        let (change, guard) = (record.to_change(), self.guard.clone());
        tokio::spawn(async move {
            let batch = change.map(|change| persist::guarded(Batch::new(vec![change]), guard.as_ref()));
            let failed = match batch {
                Ok(batch) => match timeout(STORE, store.commit(batch)).await {
                    Ok(Err(StoreError::Fenced(key))) => {
                        ha::deposed(&format!("the placement is not taken of it any more: {key} is another's"))
                    }
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("no answer in time".to_owned()),
                },
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = failed {
                shared.metrics.store_errors.inc();
                tracing::error!(error, "the placement could not be stored; clients are moved all the same");
            }
            let _ = inputs.send(FleetInput::Stored { token });
        });
    }

    fn moved(&self, assignment: Assignment, cause: Cause, from: Option<NodeId>, state_lost: bool) {
        let (node, epoch) = (self.shared.node_name(assignment.node), assignment.epoch);
        let unfenced = cause == Cause::Silence && self.fence.is_none();
        match from.map(|from| self.shared.node_name(from)) {
            None => tracing::info!(node, epoch, "serving"),
            Some(from) if state_lost => {
                let (cause, clients) = (cause.label(), self.shared.links());
                tracing::warn!(from, node, epoch, cause, clients, "moving all clients");
                if unfenced {
                    tracing::warn!(
                        node = from,
                        "left unfenced: when it wakes it may execute what it had received, over newer data; it is not used \
                         again until its host shows that the process is gone, or POST /nodes/{from}/clear"
                    );
                }
            }
            Some(_) => tracing::info!(node, "the node lives; only connections were lost"),
        }
        self.shared.assign(assignment, cause, state_lost);
        if self.shared.with_files(|files| files.unreclaimed()) == 0 {
            let _ = self.shared.fleet.send(FleetInput::Reclaimed);
        }
    }

    fn compared(&self, nodes: [&str; 2], differences: &[Difference]) {
        let [one, other] = nodes;
        let list = described(differences, nodes);
        if differences.iter().any(Difference::breaks) {
            tracing::warn!(one, other, differences = ?list, "the nodes differ, and clients that are moved would break");
        } else if !differences.is_empty() {
            tracing::info!(one, other, differences = ?list, "the nodes differ in what clients do not mind");
        } else {
            tracing::info!(one, other, "the nodes do not differ any more");
        }
    }

    /// Sets every series, so that all are there from the start and none outlives its cause.
    fn measure_differences(&self) {
        let differences = &self.shared.metrics.node_differences;
        for (_, node) in self.shared.nodes.there() {
            What::all()
                .for_each(|what| differences.with_label_values(&[node.name.as_str(), what.label()]).set(0));
        }
        for (node, what, severity) in self.fleet.deviations() {
            let value = if severity == Severity::Breaks { 2 } else { 1 };
            differences.with_label_values(&[self.shared.node_name(node).as_str(), what.label()]).set(value);
        }
    }

    /// Says once that clients have no node, and what is thought of each. While a node is sought this is called often.
    fn tell_unserved(&self, unserved: Unserved) -> Unserved {
        let now = std::time::Instant::now();
        match (self.fleet.assignment(), unserved) {
            (Some(_), _) => Unserved::No,
            (None, Unserved::No) => Unserved::Since(now),
            (None, Unserved::Since(at)) if now >= at + UNSERVED => {
                let status = self.fleet.status(now);
                let line = |(node, health, dirty): &(NodeId, Health, bool)| {
                    let name = self.shared.node_name(*node);
                    format!("{name}: {}{}", health.label(), if *dirty { ", dirty" } else { "" })
                };
                let nodes: Vec<_> = status.iter().map(line).collect();
                tracing::warn!(?nodes, "no node can serve; clients wait for one until takeover_deadline");
                Unserved::Said
            }
            (None, waiting) => waiting,
        }
    }

    fn measure(&self) {
        let metrics = &self.shared.metrics;
        let serving = self.fleet.assignment().map(|a| a.node);
        // For a while two may be called the same, of which one has come for the other.
        let mut by_name: BTreeMap<String, [bool; 3]> = BTreeMap::new();
        for (node, health, dirty) in self.fleet.status(std::time::Instant::now()) {
            let is = [health == Health::Up, serving == Some(node), dirty];
            let sum = by_name.entry(self.shared.node_name(node)).or_default();
            sum.iter_mut().zip(is).for_each(|(sum, is)| *sum |= is);
        }
        for (name, is) in by_name {
            let gauges = [&metrics.node_health, &metrics.node_active, &metrics.node_dirty];
            for (gauge, is) in gauges.into_iter().zip(is) {
                gauge.with_label_values(&[name.as_str()]).set(i64::from(is));
            }
        }
        if let Some(assignment) = self.fleet.assignment() {
            #[allow(clippy::cast_precision_loss, reason = "an epoch counts takeovers")]
            metrics.epoch.set(assignment.epoch as f64);
        }
    }
}

/// For the log: what it is, both values, what comes of it and what to do.
fn described(differences: &[Difference], nodes: [&str; 2]) -> Vec<String> {
    let describe = |difference: &Difference| {
        let Difference { what, values: [one, other], .. } = difference;
        let (effect, [a, b]) = (effect(difference, nodes), nodes);
        format!("{}: {one} at {a}, {other} at {b}; {effect}; {}", what.label(), what.remedy())
    };
    differences.iter().map(describe).collect()
}

/// What a difference between two nodes means to clients that are moved from one to the other.
pub(crate) fn effect(difference: &Difference, [one, other]: [&str; 2]) -> String {
    match (difference.there, difference.back) {
        (Severity::Noticed, Severity::Noticed) => "clients do not mind".into(),
        (Severity::Breaks, Severity::Noticed) => format!("breaks clients moved to {other}"),
        (Severity::Noticed, Severity::Breaks) => format!("breaks clients moved to {one}"),
        (Severity::Breaks, Severity::Breaks) => "breaks clients moved either way".into(),
    }
}

/// Whether a node serves, and if not, whether that was said.
#[derive(Clone, Copy)]
enum Unserved {
    No,
    Since(std::time::Instant),
    Said,
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
