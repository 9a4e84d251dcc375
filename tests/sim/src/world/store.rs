//! The store: it takes its time, and no client may hear of a durable grant before it has the record.

use std::collections::{BTreeSet, VecDeque};

use smb_parse::{
    cmd::create,
    compound::elements,
    create_context::ResponseContext,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Status},
};
use understudy_core::{effect::Mutation, ids::StoreToken};
use understudy_state::record::{FileIdRecord, OpenKey};

use super::World;
use crate::oracle::Violation;

/// What it has, and what it was asked.
#[derive(Debug, Default)]
pub(super) struct Store {
    opens: BTreeSet<OpenKey>,
    asked: VecDeque<(usize, StoreToken, Mutation)>,
}

impl Store {
    pub(super) fn ask(&mut self, at: usize, token: StoreToken, mutation: Mutation) {
        self.asked.push_back((at, token, mutation));
    }

    /// Whether a client may hear this. What is sealed nobody reads here.
    pub(super) fn allows(&self, client: [u8; 16], frame: &[u8]) -> Result<(), Violation> {
        let body = frame.get(PREFIX..).unwrap_or_default();
        if protocol(body) != Protocol::Smb2 {
            return Ok(());
        }
        for element in elements(body).filter_map(Result::ok) {
            let header = element.header;
            if header.command != Command::CREATE || Status(header.status) != Status::SUCCESS {
                continue;
            }
            let Ok(answer) = create::Response::parse(element.msg) else { continue };
            let is_durable = answer.contexts().filter_map(Result::ok).any(|context| {
                matches!(
                    ResponseContext::parse(&context),
                    ResponseContext::Durable | ResponseContext::DurableV2 { .. }
                )
            });
            let id = answer.file_id;
            let file_id = FileIdRecord { persistent: id.persistent, volatile: id.volatile };
            if is_durable && !self.opens.contains(&OpenKey { client, file_id }) {
                return Err(Violation::new("durable not stored", format!("{file_id}")));
            }
        }
        Ok(())
    }
}

impl World {
    /// The store has taken everything that it was asked. False if that was nothing.
    pub(super) fn store_answers(&mut self) -> bool {
        let asked = std::mem::take(&mut self.store.asked);
        let any = !asked.is_empty();
        for (at, token, mutation) in asked {
            match mutation {
                Mutation::PutOpen(record) | Mutation::PutAway(record, _) => {
                    self.store.opens.insert(record.key());
                }
                Mutation::RemoveOpen(key) => {
                    self.store.opens.remove(&key);
                }
                Mutation::PutSession(_) | Mutation::RemoveSession { .. } => {}
            }
            self.pairs[at].link.handle_stored(self.now, token);
            self.drain(at);
        }
        any
    }
}
