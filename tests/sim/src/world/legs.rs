//! The connections between Links and nodes.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use understudy_core::{
    effect::{Close, Role},
    event::LegLoss,
    ids::LegId,
};

use super::World;
use crate::{
    coverage::command_of,
    node::{ConnId, Mark},
};

/// One connection: both directions.
pub(super) struct Wire {
    pub(super) node: usize,
    pub(super) conn: ConnId,
    pub(super) beside: bool,
    /// What the ids of the node began with when it accepted the connection.
    pub(super) mark: u64,
    /// The node's end is gone: what is sent now goes nowhere.
    pub(super) dead: bool,
    /// The Link has given it up: what arrives is thrown away.
    pub(super) given_up: bool,
    /// Neither end has it any more.
    pub(super) over: bool,
    pub(super) to_node: VecDeque<ToNode>,
    pub(super) to_link: VecDeque<ToLink>,
    /// The last command of the proxy's own or of the client's.
    pub(super) last: &'static str,
}

pub(super) enum ToNode {
    Connect,
    Frame(Bytes, Mark),
    Close,
}

/// What a node that lives has got by a connection that is broken.
pub(super) struct Straggler {
    pub(super) node: usize,
    pub(super) conn: ConnId,
    pub(super) what: ToNode,
}

pub(super) enum ToLink {
    Connected,
    Frame(Vec<u8>, Vec<u64>),
    Lost(LegLoss),
}

impl Wire {
    /// Nobody at the other end has answered for too long.
    pub(super) fn time_out(&mut self) {
        let heard = matches!(self.to_link.back(), Some(ToLink::Lost(_)));
        if self.dead && !self.over && !self.given_up && !heard {
            self.to_link.push_back(ToLink::Lost(LegLoss::Silent));
        }
    }
}

impl World {
    pub(super) fn dial(&mut self, at: usize, leg: LegId, node: usize, role: Role) {
        self.next_conn += 1;
        let wire = Wire {
            node,
            conn: self.next_conn,
            beside: role == Role::Auxiliary,
            mark: 0,
            dead: false,
            given_up: false,
            over: false,
            to_node: VecDeque::from([ToNode::Connect]),
            to_link: VecDeque::new(),
            last: "connect",
        };
        let pair = &mut self.pairs[at];
        if role == Role::Main {
            pair.main = Some(leg);
        }
        pair.wires.insert(leg, wire);
    }

    pub(super) fn close_leg(&mut self, at: usize, leg: LegId, _how: Close) {
        if let Some(wire) = self.pairs[at].wires.get_mut(&leg) {
            wire.given_up = true;
            wire.to_link.clear();
            if wire.dead {
                wire.over = true;
            } else {
                wire.to_node.push_back(ToNode::Close);
            }
        }
    }

    pub(super) fn send_to_node(&mut self, at: usize, leg: LegId, frame: Bytes) {
        let mark = self.mark(at);
        if let Some(wire) = self.pairs[at].wires.get_mut(&leg) {
            wire.last = command_of(&frame);
            if !wire.dead {
                wire.to_node.push_back(ToNode::Frame(frame, mark));
            }
        }
    }

    /// The wire on which something is under way: to the node, or from it.
    pub(super) fn wire(&self, at: usize, beside: bool, to_node: bool) -> Option<LegId> {
        let pair = &self.pairs[at];
        let ready = |wire: &Wire| {
            wire.beside == beside
                && !wire.over
                && if to_node {
                    let silent = self.stopped[wire.node] && self.up[wire.node];
                    !silent && !wire.to_node.is_empty()
                } else {
                    !wire.to_link.is_empty()
                }
        };
        pair.wires.iter().find(|(_, wire)| ready(wire)).map(|(leg, _)| *leg)
    }

    pub(super) fn carry_to_node(&mut self, at: usize, beside: bool) -> bool {
        let Some(leg) = self.wire(at, beside, true) else { return false };
        let Some(wire) = self.pairs[at].wires.get_mut(&leg) else { return false };
        let (node, conn) = (wire.node, wire.conn);
        let Some(what) = wire.to_node.pop_front() else { return false };
        if !self.up[node] {
            let first = matches!(what, ToNode::Connect);
            wire.to_node.clear();
            if first && !wire.given_up {
                wire.to_link.push_back(ToLink::Lost(LegLoss::Refused));
            } else if wire.given_up {
                wire.over = true;
            }
            return true;
        }
        match what {
            ToNode::Connect => {
                wire.to_link.push_back(ToLink::Connected);
                wire.mark = self.nodes[node].mark();
            }
            ToNode::Close => wire.over = true,
            ToNode::Frame(..) => {}
        }
        self.come_to_node(at, node, conn, what);
        true
    }

    /// Whether a node has got something by a connection that is broken.
    pub(super) fn has_straggler(&self, at: usize) -> bool {
        self.pairs[at].stragglers.front().is_some_and(|late| !self.stopped[late.node])
    }

    pub(super) fn carry_straggler(&mut self, at: usize) -> bool {
        let Some(Straggler { node, conn, what }) = self.pairs[at].stragglers.pop_front() else {
            return false;
        };
        self.come_to_node(at, node, conn, what);
        true
    }

    fn come_to_node(&mut self, at: usize, node: usize, conn: ConnId, what: ToNode) {
        match what {
            ToNode::Connect => self.nodes[node].connect(conn),
            ToNode::Close => {
                let outs = self.nodes[node].disconnect(conn, &mut self.disk);
                self.take_outs(outs);
            }
            ToNode::Frame(frame, mark) => {
                self.tell(format!(
                    "proxy -> node {} for client {}  {}",
                    node + 1,
                    at + 1,
                    crate::story::describe(&frame)
                ));
                let outs = self.nodes[node].handle(conn, &frame, mark, &mut self.disk);
                self.take_outs(outs);
            }
        }
    }

    fn find(&mut self, conn: ConnId) -> Option<(usize, &mut Wire)> {
        self.pairs.iter_mut().enumerate().find_map(|(at, pair)| {
            pair.wires.values_mut().find(|wire| wire.conn == conn).map(|wire| (at, wire))
        })
    }

    /// The node of a connection, and its present life.
    pub(super) fn place_of(&self, conn: ConnId) -> Option<(usize, u32)> {
        let mut wires = self.pairs.iter().flat_map(|pair| pair.wires.values());
        wires.find(|wire| wire.conn == conn).map(|wire| (wire.node, self.nodes[wire.node].life))
    }

    /// A node sends something.
    pub(super) fn arrive(&mut self, conn: ConnId, frame: Vec<u8>, created: Vec<u64>) {
        if let Some((_, wire)) = self.find(conn)
            && !wire.given_up
            && !wire.dead
        {
            wire.to_link.push_back(ToLink::Frame(frame, created));
        }
    }

    /// A node ends a connection.
    pub(super) fn node_closes(&mut self, conn: ConnId) {
        let Some((_, wire)) = self.find(conn) else { return };
        wire.to_node.clear();
        wire.dead = true;
        if wire.given_up {
            wire.over = true;
        } else {
            wire.to_link.push_back(ToLink::Lost(LegLoss::Closed));
        }
        let node = wire.node;
        let outs = self.nodes[node].disconnect(conn, &mut self.disk);
        self.take_outs(outs);
    }

    pub(super) fn carry_from_node(&mut self, at: usize, beside: bool) -> bool {
        let Some(leg) = self.wire(at, beside, false) else { return false };
        let pair = &mut self.pairs[at];
        let Some(wire) = pair.wires.get_mut(&leg) else { return false };
        let node = wire.node;
        let Some(what) = wire.to_link.pop_front() else { return false };
        let before = pair.link.mode();
        match what {
            ToLink::Connected => pair.link.handle_connected(self.now, leg),
            ToLink::Frame(frame, created) => {
                self.tell(format!(
                    "node {} -> proxy for client {}  {}",
                    node + 1,
                    at + 1,
                    crate::story::describe(&frame)
                ));
                self.pairs[at].opened = created.into();
                self.pairs[at].link.handle_node_frame(self.now, leg, BytesMut::from(&frame[..]));
            }
            ToLink::Lost(loss) => {
                wire.over = true;
                let last = wire.last;
                if let Some(stage) = self.pairs[at].stage.filter(|_| !beside) {
                    self.coverage.count(crate::required::stage_lost(stage));
                }
                if !beside {
                    self.coverage.count(format!("leg lost in {before} after {last}"));
                    self.lose_in_flight(at);
                }
                self.tell(format!("the leg of client {} to node {} is lost: {loss:?}", at + 1, node + 1));
                self.pairs[at].link.handle_leg_lost(self.now, leg, loss);
            }
        }
        self.note_relay(at, before, node);
        self.drain(at);
        true
    }

    /// Requests that wait for an answer have one node less.
    pub(super) fn lose_in_flight(&mut self, at: usize) {
        let pair = &mut self.pairs[at];
        pair.sent_again.clear();
        for id in pair.client.asked.keys() {
            *pair.in_flight.entry(*id).or_default() += 1;
        }
    }

    /// As long as a Link is in Relay, the ids of its node are its client's; later ones are not.
    pub(super) fn note_relay(&mut self, at: usize, before: &str, node: usize) {
        let pair = &mut self.pairs[at];
        let after = pair.link.mode();
        if after == "relay" {
            let mark = pair.main.and_then(|leg| pair.wires.get(&leg)).map(|wire| wire.mark);
            pair.relay = mark.map(|mark| (mark, u64::MAX));
        } else if before == "relay"
            && let Some(relay) = &mut pair.relay
            && relay.0 == self.nodes[node].mark()
        {
            relay.1 = self.nodes[node].last_number();
        }
    }
}
