//! What a client hears, and whether it may be told that.

use smb_parse::{
    cmd::{create, oplock_break, query_directory, read},
    compound::elements,
    create_context::ResponseContext,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Flags, Header, Status},
    patch, transform,
};
use understudy_core::crypto::sealing::HEADROOM;

use super::{
    Asked, Belief, Client, Held, Kind,
    acts::{NAMES, RANGE_NOT_LOCKED},
    login::Ack,
};
use crate::{
    disk::number_of,
    node::{is_node_id, is_node_tree},
    oracle::{Oracle, Violation},
    world::{SHARED_NAMES, STATIC_NAMES},
};

const ACK_REQUIRED: u32 = 1;
/// FILE_CREATED, a CreateAction (MS-SMB2 2.2.14).
const CREATED: u32 = 2;

type Check = Result<(), Violation>;

impl Client {
    /// A frame arrives: what it sends at once in return. `own`: the proxy has made or translated it. `foreign`: whether an
    /// id of a node is one that the client must not get.
    pub fn hear(
        &mut self,
        frame: &[u8],
        own: bool,
        foreign: &dyn Fn(u64) -> bool,
        oracle: &mut Oracle,
    ) -> Result<Vec<Vec<u8>>, Violation> {
        let body = frame.get(PREFIX..).unwrap_or_default();
        let mut opened = None;
        if protocol(body) == Protocol::Transform {
            let Ok(header) = transform::Header::parse(body) else {
                return Err(Violation::new("malformed", "a sealed frame"));
            };
            if !self.heard.insert((header.session_id, header.nonce)) {
                return Err(Violation::new("nonce", "an AEAD nonce was used twice"));
            }
            let session = self.sessions.iter().find(|s| s.id == header.session_id);
            let keys = session.and_then(|s| s.seals.as_ref());
            let Some(mut plain) = keys.and_then(|k| k.to_client.open(body)) else {
                return Err(Violation::new("wrong seal", format!("session {:x}", header.session_id)));
            };
            opened = Some(plain.split_off(HEADROOM).to_vec());
        }
        let mut out = Vec::new();
        for element in elements(opened.as_deref().unwrap_or(body)) {
            let Ok(element) = element else {
                return Err(Violation::new("malformed", "an answer that is cut"));
            };
            let mut ids = [element.header.session_id, element.header.async_id().unwrap_or(0), 0].to_vec();
            ids.extend(patch::response_file_id(element.msg).map(|id| id.volatile));
            if let Some(id) = ids.into_iter().find(|id| is_node_id(*id) && foreign(*id)) {
                let name = element.header.command.name();
                return Err(Violation::new(
                    "foreign id",
                    format!("{name}: the client gets a node's id {id:x}"),
                ));
            }
            out.extend(self.hear_message(&element.header, element.msg, (opened.is_some(), own), oracle)?);
        }
        Ok(out)
    }

    fn hear_message(
        &mut self,
        header: &Header,
        msg: &[u8],
        (sealed, own): (bool, bool),
        oracle: &mut Oracle,
    ) -> Result<Option<Vec<u8>>, Violation> {
        let status = Status(header.status);
        let id = header.message_id;
        self.credits += u32::from(header.credits);
        if self.credits > 8192 + 64 {
            return Err(Violation::new("credits", format!("the client has {}", self.credits)));
        }
        if id == u64::MAX {
            if sealed || header.flags.contains(Flags::SIGNED) {
                return Err(Violation::new("break covered", "a notification is signed or sealed"));
            }
            self.breaks += 1;
            self.hear_break(msg)?;
            return Ok(None);
        }
        let name = header.command.name();
        if self.finals.contains(&id) {
            return Err(Violation::new("answered twice", format!("{name} {id} once more: {:08x}", status.0)));
        }
        let Some(asked) = self.asked.get_mut(&id) else {
            return Err(Violation::new("answer to nothing", format!("{name} {id}")));
        };
        if asked.command != header.command {
            return Err(Violation::new(
                "wrong command",
                format!("{name} answers {} {id}", asked.command.name()),
            ));
        }
        if status == Status::PENDING {
            let Some(async_id) = header.async_id() else {
                return Err(Violation::new("interim", format!("{name} {id} pends synchronously")));
            };
            // Never signed, for its MessageId is that of the answer; and sealed as the answer will be (MS-SMB2 3.3.4.1.1).
            if header.flags.contains(Flags::SIGNED) || sealed != asked.sealed {
                return Err(Violation::new("interim", format!("{name} {id} pends, wrongly covered")));
            }
            if asked.interim.replace(async_id).is_some() {
                return Err(Violation::new("two interims", format!("{name} {id}")));
            }
            (asked.interim_relayed, asked.granted) = (!own, u32::from(header.credits));
            return Ok(None);
        }
        if asked.interim.is_some() && header.async_id() != asked.interim {
            return Err(Violation::new("interim", format!("{name} {id} ends with another AsyncId")));
        }
        let Some(asked) = self.asked.remove(&id) else { return Ok(None) };
        if own {
            check_translation(&asked, header)?;
        }
        self.finals.insert(id);
        self.last.insert(name, status.0);
        self.answers.push((header.command, id, status));
        self.check_cover(&asked, header, msg, sealed)?;
        self.take(&asked, header, msg, oracle)
    }

    fn check_cover(&self, asked: &Asked, header: &Header, msg: &[u8], sealed: bool) -> Check {
        let status = Status(header.status);
        let name = header.command.name();
        if asked.evil && status.is_success() {
            return Err(Violation::new(
                "unverified",
                format!("{name} {} was tampered with", header.message_id),
            ));
        }
        let known = self.sessions.get(asked.session);
        let parted = [Status::USER_SESSION_DELETED, Status::NETWORK_SESSION_EXPIRED].contains(&status);
        if parted || asked.evil {
            return Ok(());
        }
        if asked.sealed != sealed {
            return Err(Violation::new(
                "not sealed",
                format!("{name} {}: {:08x}", header.message_id, status.0),
            ));
        }
        let key = known.and_then(|s| s.key.as_ref());
        let signed = header.flags.contains(Flags::SIGNED);
        if asked.signed && !signed {
            let text = format!("{name} {}: {:08x}", header.message_id, status.0);
            return Err(Violation::new("not signed", text));
        }
        if let Some(key) = key.filter(|_| signed && !sealed)
            && !key.verify_mut(&mut msg.to_vec())
        {
            return Err(Violation::new("wrong signature", format!("{name} {}", header.message_id)));
        }
        Ok(())
    }

    fn take(
        &mut self,
        asked: &Asked,
        header: &Header,
        msg: &[u8],
        oracle: &mut Oracle,
    ) -> Result<Option<Vec<u8>>, Violation> {
        let status = Status(header.status);
        let ok = status.is_success();
        if status == Status::USER_SESSION_DELETED
            && let Some(session) = self.sessions.get_mut(asked.session)
        {
            session.over = true;
            let at = asked.session;
            self.slots.retain(|_, h| h.session != at);
            self.forget_leases();
        }
        let malformed = || Violation::new("malformed", format!("an answer to {}", header.command.name()));
        match &asked.kind {
            Kind::Negotiate => return Ok(self.negotiated(msg)),
            Kind::Login => return self.logged_in(header, msg).map_err(|rule| Violation::new(rule, "")),
            Kind::Tree(at) => {
                if let (Some(session), Some(tree)) =
                    (self.sessions.get_mut(*at), header.tree_id().filter(|_| ok))
                {
                    session.tree = tree;
                }
            }
            Kind::Create { .. } => self.take_create(asked, header, msg, oracle)?,
            Kind::Read { number, chain, block } if ok => {
                let answer = read::Response::parse(msg).map_err(|_| malformed())?;
                let tag = answer.data.try_into().map(u64::from_le_bytes).map_err(|_| malformed())?;
                let number = number.or_else(|| self.chains.get(chain).copied());
                if let Some(number) = number {
                    oracle.read(number, *block, tag, asked.start)?;
                }
            }
            Kind::Write { tag } => oracle.write_answered(*tag, ok)?,
            Kind::Append { tag } => oracle.told(&format!("append {tag}"), outcome(status))?,
            Kind::Link { name } => oracle.told(&format!("link {name}"), outcome(status))?,
            Kind::Dispose if !ok => {
                self.spoilt.insert(header.message_id + 1);
            }
            Kind::Counted { what, .. } => {
                let counts = !self.spoilt.remove(&header.message_id) || !ok;
                oracle.tally_told(what, outcome(status).filter(|_| counts));
            }
            Kind::Rename { name } => {
                oracle.told(&format!("rename {name}"), outcome(status))?;
                if status == Status::OBJECT_NAME_COLLISION {
                    return Err(Violation::new(
                        "wrong status",
                        format!("nobody but this rename has made {name}"),
                    ));
                }
            }
            Kind::Lock { slot, id, blocks, exclusive, unlocked: false } if ok => {
                if let Some(held) = self.slots.get_mut(slot).filter(|h| h.id == *id) {
                    held.locks.extend(blocks.iter().map(|block| (*block, *exclusive)));
                }
            }
            // It may have been done.
            Kind::Lock { slot, id, .. } if status == Status::INTERNAL_ERROR => {
                if let Some(held) = self.slots.get_mut(slot).filter(|h| h.id == *id) {
                    held.unsure = true;
                }
            }
            Kind::Unlock { slot, id, outcome: Some(expected), .. } if *expected != status => {
                let Some(held) = self.slots.get_mut(slot).filter(|h| h.id == *id && !h.gone) else {
                    return Ok(None);
                };
                held.unsure = true;
                if [Status::SUCCESS, RANGE_NOT_LOCKED].contains(&status) {
                    let text = format!("UNLOCK: {:08x} instead of {:08x}", status.0, expected.0);
                    return Err(Violation::new("wrong status", text));
                }
            }
            Kind::List { slot, id } => self.take_names(*slot, *id, status, msg)?,
            Kind::LogOff(at) => self.sessions[*at].over = true,
            Kind::Close
            | Kind::Dispose
            | Kind::Read { .. }
            | Kind::Lock { .. }
            | Kind::Unlock { .. }
            | Kind::Ack
            | Kind::Other => {}
        }
        if status == Status::FILE_CLOSED {
            self.lose(asked);
        }
        Ok(None)
    }

    /// An Open that the server does not have any more.
    fn lose(&mut self, asked: &Asked) {
        if let Kind::List { slot, id } | Kind::Lock { slot, id, .. } | Kind::Unlock { slot, id, .. } =
            &asked.kind
            && self.slots.get(slot).is_some_and(|h| h.id == *id)
        {
            self.slots.remove(slot);
        }
    }

    fn take_create(&mut self, asked: &Asked, header: &Header, msg: &[u8], oracle: &mut Oracle) -> Check {
        let Kind::Create { slot, name, once, wanted, key, session, empties } = &asked.kind else {
            return Ok(());
        };
        let status = Status(header.status);
        if let Some(tag) = empties {
            let answer = create::Response::parse(msg).ok().filter(|_| status.is_success());
            oracle.empty_answered(*tag, answer.map(|answer| number_of(answer.creation_time)))?;
        }
        if *once {
            oracle.told(&format!("create {name}"), outcome(status))?;
            if status == Status::OBJECT_NAME_COLLISION {
                return Err(Violation::new(
                    "wrong status",
                    format!("nobody but this CREATE has made {name}"),
                ));
            }
        }
        if !status.is_success() {
            // Somebody has changed its answer alone: what the CLOSE behind it has closed, the client is not told.
            let behind = |asked: &Asked| matches!(asked.kind, Kind::Counted { create, .. } if create == header.message_id);
            let behind = self.asked.iter().find(|(_, asked)| behind(asked));
            self.spoilt.extend(behind.map(|(id, _)| *id));
            return Ok(());
        }
        let Ok(answer) = create::Response::parse(msg) else {
            return Err(Violation::new("malformed", "an answer to CREATE"));
        };
        let number = number_of(answer.creation_time);
        if answer.create_action == CREATED && SHARED_NAMES.contains(&name.as_str()) {
            oracle.tally_told(&format!("make {name}"), Some(true));
        }
        self.chains.insert(header.message_id, number);
        let lease = answer.contexts().flatten().find_map(|context| match ResponseContext::parse(&context) {
            ResponseContext::Lease(lease) => Some(lease),
            _ => None,
        });
        let Some(slot) = slot.filter(|_| self.sessions.get(*session).is_some_and(|s| !s.over)) else {
            // What others still hold has this state now.
            if let Some((lease, known)) = lease.and_then(|l| Some((l, self.leases.get_mut(&l.key)?))) {
                if known.state & 1 == 0 {
                    known.names = oracle.names;
                }
                (known.state, known.epoch) = (lease.state, lease.epoch);
            }
            return Ok(());
        };
        if self.slots.values().any(|h| h.id == answer.file_id) {
            return Err(Violation::new("id twice", format!("FileId {:x}", answer.file_id.volatile)));
        }
        if lease.is_some_and(|l| {
            Some(l.key) != *key || l.state & !wanted.1 != 0 && self.keys.get(&l.key) == Some(&1)
        }) {
            return Err(Violation::new("more than asked", format!("a lease on {name}")));
        }
        if lease.is_none() && answer.oplock_level > wanted.0 {
            return Err(Violation::new(
                "more than asked",
                format!("oplock {} on {name}", answer.oplock_level),
            ));
        }
        if let Some(lease) = lease {
            if self.keys.get(&lease.key).is_some_and(|count| *count > 1) {
                self.shared.insert(number);
            }
            let lives = self.slots.values().any(|h| h.lease == Some(lease.key) && !h.gone);
            let known = self.leases.entry(lease.key).or_insert(Belief {
                state: 0,
                epoch: lease.epoch,
                v2: lease.version == 2,
                names: oracle.names,
                raced: false,
            });
            if lives && known.v2 && lease.epoch.wrapping_sub(known.epoch) > 0x8000 {
                let text = format!("CREATE of {name}: epoch {} after {}", lease.epoch, known.epoch);
                return Err(Violation::new("epoch falls", text));
            }
            if known.state & 1 == 0 {
                known.names = oracle.names;
            }
            known.raced |= self.acks.iter().any(|ack| matches!(ack, Ack::Lease(key, _) if *key == lease.key));
            known.state = lease.state;
            known.epoch = lease.epoch;
        }
        let held = Held {
            id: answer.file_id,
            session: *session,
            name: name.clone(),
            number,
            oplock: if lease.is_some() { 0 } else { answer.oplock_level },
            lease: lease.map(|l| l.key),
            locks: Vec::new(),
            unsure: false,
            gone: self.suspects_all || self.suspect.contains(&number),
            directory: name == ".",
            seen: None,
        };
        self.slots.insert(slot, held);
        Ok(())
    }

    /// Each name once, and none is missing in the end.
    fn take_names(&mut self, slot: u8, id: smb_parse::FileId, status: Status, msg: &[u8]) -> Check {
        let Some(held) = self.slots.get_mut(&slot).filter(|h| h.id == id) else { return Ok(()) };
        let Some(seen) = &mut held.seen else { return Ok(()) };
        if status == Status::NO_MORE_FILES {
            let missing = STATIC_NAMES.iter().find(|name| !seen.contains(**name));
            held.seen = None;
            return match missing {
                Some(name) => Err(Violation::new("enumeration", format!("{name} is missing"))),
                None => Ok(()),
            };
        }
        if !status.is_success() {
            held.seen = None;
            return Ok(());
        }
        let Ok(answer) = query_directory::Response::parse(msg) else {
            return Err(Violation::new("malformed", "an answer to QUERY_DIRECTORY"));
        };
        for entry in query_directory::entries(NAMES, answer.buffer).flatten() {
            let name = entry.name.to_string_lossy();
            if STATIC_NAMES.contains(&name.as_str()) && !seen.insert(name.clone()) {
                return Err(Violation::new("enumeration", format!("{name} came twice")));
            }
        }
        Ok(())
    }

    fn hear_break(&mut self, msg: &[u8]) -> Check {
        match oplock_break::Notification::parse(msg) {
            Ok(oplock_break::Notification::Oplock { oplock_level, file_id, .. }) => {
                let Some(held) = self.slots.values_mut().find(|h| h.id == file_id) else {
                    return Ok(());
                };
                if oplock_level > held.oplock {
                    let text = format!("oplock {} is broken to {oplock_level}", held.oplock);
                    return Err(Violation::new("break raises", text));
                }
                if held.oplock > 1 {
                    self.acks.push_back(Ack::Oplock(file_id, oplock_level));
                } else {
                    held.oplock = oplock_level;
                }
            }
            Ok(oplock_break::Notification::Lease {
                new_epoch, flags, lease_key, new_lease_state, ..
            }) => {
                let Some(lease) = self.leases.get_mut(&lease_key) else { return Ok(()) };
                if new_lease_state & !lease.state != 0 && !lease.raced {
                    let text = format!("lease {:x} is broken to {new_lease_state:x}", lease.state);
                    return Err(Violation::new("break raises", text));
                }
                if lease.v2 && new_epoch.wrapping_sub(lease.epoch) > 0x8000 {
                    let text = format!("epoch {} after {}", new_epoch, lease.epoch);
                    return Err(Violation::new("epoch falls", text));
                }
                lease.epoch = new_epoch;
                if flags & ACK_REQUIRED != 0 {
                    self.acks.push_back(Ack::Lease(lease_key, new_lease_state));
                } else {
                    lease.state = new_lease_state;
                }
            }
            Err(_) => return Err(Violation::new("malformed", "a notification")),
        }
        Ok(())
    }
}

/// An answer in Bridge grants at least what its request took, and names the client's tree.
fn check_translation(asked: &Asked, header: &Header) -> Check {
    let name = header.command.name();
    if !asked.interim_relayed && asked.granted + u32::from(header.credits) == 0 {
        return Err(Violation::new("credits", format!("{name} {} brings none", header.message_id)));
    }
    // MS-SMB2 3.3.4.3.
    if asked.granted > 0 && header.credits > 0 {
        return Err(Violation::new("credits", format!("{name} {} brings some twice", header.message_id)));
    }
    let wanted = asked.tree.filter(|_| asked.command != Command::TREE_CONNECT);
    if let (Some(wanted), Some(tree)) = (wanted, header.tree_id())
        && wanted != tree
    {
        let text = format!("{name} {}: TreeId {tree:x} in the place of {wanted:x}", header.message_id);
        return Err(Violation::new("foreign id", text));
    }
    if asked.command == Command::TREE_CONNECT && header.tree_id().is_some_and(is_node_tree) {
        return Err(Violation::new("foreign id", "the client gets a node's TreeId"));
    }
    Ok(())
}

/// What a status says of something that may be done once. `None`: nobody can tell.
fn outcome(status: Status) -> Option<bool> {
    if status.is_success() {
        return Some(true);
    }
    let undone = [
        Status::SHARING_VIOLATION,
        Status::OBJECT_NAME_NOT_FOUND,
        Status::OBJECT_NAME_COLLISION,
        Status::ACCESS_DENIED,
        Status::DELETE_PENDING,
    ];
    undone.contains(&status).then_some(false)
}
