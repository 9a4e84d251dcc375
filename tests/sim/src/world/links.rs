//! What a Link wants, and what it says of files and takeovers.

use std::{collections::BTreeMap, rc::Rc};

use understudy_core::{
    effect::{Effect, Leg},
    event::{Event, FileEvent},
    ids::LinkId,
};

use super::{Pair, World, legs::Wire};
use crate::{
    client::Awaited,
    node::{Had, Mark},
    oracle::Violation,
    plan::Hop,
    required,
};

impl World {
    /// Does what a Link wants until it wants nothing.
    pub(super) fn drain(&mut self, at: usize) {
        self.satisfy(at);
        let pair = &mut self.pairs[at];
        let stage = pair.link.stage();
        if std::mem::replace(&mut pair.stage, stage) != stage
            && let Some(stage) = stage
        {
            self.coverage.count(required::stage_entered(stage));
        }
    }

    fn satisfy(&mut self, at: usize) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.pairs[at].link.poll_transmit() {
                quiet = false;
                let own = matches!(self.pairs[at].link.mode(), "takeover" | "bridge");
                match transmit.to {
                    Leg::Client => {
                        if let Err(violation) = self.store.allows(self.pairs[at].client.guid, &transmit.frame)
                        {
                            self.fail(violation);
                        }
                        self.pairs[at].to_client.push_back((transmit.frame, own, self.now));
                    }
                    Leg::Node(leg) => self.send_to_node(at, leg, transmit.frame),
                }
            }
            while let Some(event) = self.pairs[at].link.poll_event() {
                quiet = false;
                self.event(at, event);
            }
            while let Some(effect) = self.pairs[at].link.poll_effect() {
                quiet = false;
                self.effect(at, effect);
            }
            if !quiet {
                continue;
            }
            let version = self.files.version();
            let pair = &mut self.pairs[at];
            let wants = pair.link.wants_files();
            if !wants || pair.files_seen == version && pair.waits && !pair.link.has_fresh_frames() {
                pair.waits = wants;
                return;
            }
            (pair.files_seen, pair.waits) = (version, true);
            pair.link.handle_files(self.now, &self.files);
        }
    }

    /// Links that wait for files hear of every change.
    pub(super) fn look_at_links(&mut self) {
        for at in 0..self.pairs.len() {
            let version = self.files.version();
            if self.pairs[at].closed.is_none()
                && self.pairs[at].link.wants_files()
                && self.pairs[at].files_seen != version
            {
                self.drain(at);
            }
        }
    }

    /// Whether what was in flight is sent again, or waits for it.
    pub fn is_replaying(&self) -> bool {
        self.pairs.iter().any(|pair| pair.closed.is_none() && !pair.in_flight.is_empty())
    }

    /// Whether something of one of these kinds was sent again, and is not answered.
    pub fn is_sent_again(&self, kinds: &[&str]) -> bool {
        let is_it = |pair: &Pair| {
            pair.closed.is_none()
                && !pair.in_flight.is_empty()
                && kinds.iter().any(|kind| pair.sent_again.contains(kind))
        };
        self.pairs.iter().any(is_it)
    }

    /// Whether the proxy has such a request of a client, none of whose requests has lost a node. `sent`: and nothing else is
    /// under way to the node.
    pub(crate) fn is_in_flight(&self, what: Awaited, sent: bool) -> bool {
        let is_it = |at: &usize| {
            let pair = &self.pairs[*at];
            let is_here = pair.closed.is_none() && pair.to_proxy.is_empty() && pair.in_flight.is_empty();
            is_here && pair.client.awaits(what) && !(sent && self.has(*at, Hop::ToNode))
        };
        (0..self.pairs.len()).any(|at| is_it(&at))
    }

    fn event(&mut self, at: usize, event: Event) {
        match event {
            Event::File(event) => self.file_event(at, event),
            Event::LegLost { node, generation, loss, .. } => self.hear_of_loss(node, generation, loss),
            Event::Takeover(report) => {
                self.tell(format!("takeover of client {}: {report:?}", at + 1));
                self.coverage.takeover(&report);
            }
            Event::Replay(row) => {
                if row.verdict == "resend" {
                    self.pairs[at].sent_again.insert(row.request);
                }
                let text = required::row(row.request, row.known, row.verdict);
                if row.verdict == "not_probed" {
                    self.fail(Violation::new("not found out", text.clone()));
                }
                self.coverage.count(text);
            }
            Event::Succession(succession) => {
                for other in (0..self.pairs.len()).filter(|other| *other != at) {
                    self.pairs[other].link.handle_succession(self.now, &succession);
                    self.drain(other);
                }
            }
            Event::SessionLost { loss, .. } => self.coverage.count(format!("session lost: {}", loss.label())),
            Event::SideChannel(news) => self.coverage.count(format!("side channel: {news:?}")),
            Event::SignatureRefused => self.coverage.count("signature refused".into()),
            _ => {}
        }
    }

    fn file_event(&mut self, at: usize, event: FileEvent) {
        let pair = &mut self.pairs[at];
        match &event {
            FileEvent::Opened { open, .. } => {
                if let Some(number) = pair.opened.pop_front() {
                    pair.tokens.insert(*open, number);
                }
            }
            FileEvent::Lost => pair.lost = self.steps,
            FileEvent::Held { open } => {
                pair.held.insert(*open);
            }
            FileEvent::Released { open } => {
                pair.held.remove(open);
            }
            FileEvent::Closed { open } | FileEvent::Left { open, .. } => {
                pair.held.remove(open);
                pair.tokens.remove(open);
            }
            FileEvent::GivenUp { open, .. } => {
                pair.held.remove(open);
                self.coverage.count("open given up".into());
                let refused = match pair.tokens.remove(open) {
                    Some(number) => {
                        pair.client.give_up(number);
                        self.disk.refused.remove(&(pair.client.guid, number))
                    }
                    None => {
                        pair.client.give_up_all();
                        None
                    }
                };
                if let Some(text) = refused {
                    self.fail(Violation::new("lock not had again", text));
                }
            }
            _ => {}
        }
        if self.setup.trace {
            self.tell(format!("files: client {}: {event:?}", at + 1));
        }
        let before = self.files.unreclaimed();
        self.files.handle(self.now, LinkId(at as u64 + 1), event);
        while let Some((link, open, path)) = self.files.poll_moved() {
            let other = usize::try_from(link.0 - 1).unwrap_or(usize::MAX);
            if let Some(pair) = self.pairs.get_mut(other) {
                pair.link.handle_moved(self.now, open, path);
            }
        }
        while let Some(link) = self.files.poll_asked() {
            let other = usize::try_from(link.0 - 1).unwrap_or(usize::MAX);
            if let Some(pair) = self.pairs.get_mut(other) {
                pair.link.handle_asked();
            }
        }
        if before > 0 && self.files.unreclaimed() == 0 {
            self.all_reclaimed();
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Connect { leg, node, role } => self.dial(at, leg, usize::from(node.0), role),
            Effect::CloseLeg { leg, how } => self.close_leg(at, leg, how),
            Effect::Store { token, mutation } => self.store.ask(at, token, mutation),
            Effect::CloseClient { reason, .. } => {
                self.tell(format!("the proxy closes client {}: {}", at + 1, reason.label()));
                self.coverage.count(format!("closed: {}", reason.label()));
                let pair = &mut self.pairs[at];
                pair.closed = Some(reason);
                pair.left = true;
                self.files.link_gone(LinkId(at as u64 + 1));
                self.pairs[at].tokens.clear();
                self.pairs[at].held.clear();
            }
        }
    }

    /// The mark of what a Link sends now.
    pub(super) fn mark(&self, at: usize) -> Mark {
        let mode = self.pairs[at].link.mode();
        let mut blocked = Vec::new();
        for other in (0..self.pairs.len()).filter(|other| *other != at) {
            blocked.extend(self.not_back(other, at));
        }
        Mark {
            bridge: mode != "relay" && mode != "handshake",
            reclaims: mode == "takeover",
            blocked: Rc::from(blocked),
            at: self.steps,
            had: if mode == "takeover" { self.had(at) } else { None },
        }
    }

    /// What a client that has heard all has.
    fn had(&self, at: usize) -> Option<Rc<[Had]>> {
        let pair = &self.pairs[at];
        pair.client.has_now().filter(|_| pair.has_heard_all())
    }

    /// The files of which that Link has Opens that are not back on the node that serves the other one.
    fn not_back(&self, at: usize, other: usize) -> Vec<u64> {
        let pair = &self.pairs[at];
        let behind = self.is_behind(at, other);
        // What a leg has lost that is not known to be lost nobody can wait for.
        let unheard = !behind && self.main_wire(at).is_some_and(|wire| wire.dead && !wire.over);
        if pair.closed.is_some() || unheard || pair.link.mode() != "takeover" && !behind {
            return Vec::new();
        }
        let conn = self.main_wire(at).map(|w| (w.conn, w.node));
        let here = |number: u64| {
            conn.map_or(0, |(conn, node)| {
                let opens = self.nodes[node].opens.values();
                opens.filter(|o| o.conn == conn && o.number == number).count()
            })
        };
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for number in pair.tokens.values() {
            *counts.entry(*number).or_default() += 1;
        }
        counts
            .into_iter()
            .filter(|(number, count)| *count > here(*number))
            .map(|(number, _)| number)
            .collect()
    }

    pub(super) fn main_wire(&self, at: usize) -> Option<&Wire> {
        let pair = &self.pairs[at];
        pair.main.and_then(|leg| pair.wires.get(&leg))
    }

    /// Whether a Link is still on a node, or a life of it, that is over, while another one is served already by the next.
    fn is_behind(&self, at: usize, other: usize) -> bool {
        match (self.main_wire(at), self.main_wire(other)) {
            (Some(own), Some(its)) => {
                own.dead && !its.dead && own.mark != 0 && its.mark != 0 && own.mark != its.mark
            }
            _ => false,
        }
    }
}
