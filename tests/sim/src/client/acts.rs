//! What a client does.

use smb_parse::{
    FileId,
    cmd::lock,
    create_context::{Lease, tag},
    encode::{self, CreateParams, IoctlParams, QueryDirectoryParams, QueryInfoParams},
    fsctl,
    header::{Command, Flags, Header, Status, Target},
    patch,
};
use std::collections::BTreeSet;
use understudy_core::crypto::Dialect;

use super::{Asked, Client, Held, Kind, login::Ack};
use crate::{
    disk::POISON,
    oracle::Oracle,
    plan::{Act, CACHES, Change},
    world::PASSING_NAMES,
};

/// FileNamesInformation (MS-FSCC 2.4.33).
pub(super) const NAMES: u8 = 12;
const RENAME: u8 = 10;
const LINK: u8 = 11;
const DISPOSITION: u8 = 13;
const DELETE_ON_CLOSE: u32 = 0x1000;
const DIRECTORY: u32 = 1;

fn utf16(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Makes a message the follower of the one before it in its compound.
fn related(mut msg: Vec<u8>) -> Vec<u8> {
    patch::set_flags(&mut msg, Flags::RELATED);
    patch::set_session_id(&mut msg, u64::MAX);
    patch::set_tree_id(&mut msg, u32::MAX);
    msg
}

/// STATUS_RANGE_NOT_LOCKED (MS-ERREF 2.3).
pub(super) const RANGE_NOT_LOCKED: Status = Status(0xc000_007e);

fn ranges(blocks: &[u64], flags: u32) -> Vec<lock::Lock> {
    blocks.iter().map(|block| lock::Lock { offset: block * 8, length: 8, flags }).collect()
}

type Message = (Vec<u8>, Asked);

impl Client {
    /// Does something: the frame that it sends. `None`: it cannot.
    pub fn act(&mut self, act: &Act, oracle: &mut Oracle) -> Option<Vec<u8>> {
        if !self.alive {
            return None;
        }
        match act {
            Act::Login(user) => return self.is_ready().then(|| self.begin_login(*user)).flatten(),
            Act::Cancel => return self.cancel(),
            _ if !self.is_ready() => return None,
            Act::Ack => return self.acknowledge(oracle),
            _ => {}
        }
        if self.credits < 3 {
            return None;
        }
        let evil = matches!(act, Act::EvilWrite { .. } | Act::EvilCreate);
        let msgs = match act {
            Act::Compound { name, block, writes } => self.compound(name, *block, *writes, oracle)?,
            Act::Name { name, change } => self.change_name(name, *change, oracle)?,
            Act::Create { .. } | Act::EvilCreate => vec![self.create(act, oracle)?],
            Act::Echo | Act::LogOff => vec![self.plain(act, oracle)?],
            _ => vec![self.on_slot(act, oracle)?],
        };
        self.cover(msgs, evil)
    }

    fn session(&self, wanted: usize) -> Option<usize> {
        let usable = |at: &usize| self.sessions.get(*at).is_some_and(|s| !s.over && s.tree != 0);
        let count = self.sessions.len();
        (0..count).map(|n| (n + wanted) % count).find(usable)
    }

    fn plain(&mut self, act: &Act, oracle: &mut Oracle) -> Option<Message> {
        let start = oracle.tick();
        if *act == Act::Echo {
            let mut header = self.header(Command::ECHO, usize::MAX);
            header.session_id = 0;
            return Some((encode::echo(&header), self.asked(Kind::Other, Command::ECHO, usize::MAX, start)));
        }
        let at = self.session(self.sessions.len().checked_sub(1)?)?;
        let header = self.header(Command::LOGOFF, at);
        self.sessions[at].over = true;
        self.slots.retain(|_, h| h.session != at);
        self.forget_leases();
        Some((encode::logoff(&header), self.asked(Kind::LogOff(at), Command::LOGOFF, at, start)))
    }

    fn create(&mut self, act: &Act, oracle: &mut Oracle) -> Option<Message> {
        let Act::Create { name, disposition, cache, share, slot, delete, more } = act else {
            return self.create_as("poison", (3, false), 0, 7, None, 0, oracle);
        };
        if self.slots.contains_key(slot) || self.asked.values().any(|a| a.slot == Some(*slot)) {
            return None;
        }
        let options = if *delete { DELETE_ON_CLOSE } else { 0 } | if name == "." { DIRECTORY } else { 0 };
        self.create_as(name, (*disposition, *more), *cache, *share, Some(*slot), options, oracle)
    }

    #[allow(clippy::too_many_arguments, reason = "these are the fields of a CREATE")]
    fn create_as(
        &mut self,
        name: &str,
        (disposition, more): (u32, bool),
        cache: usize,
        share: u32,
        slot: Option<u8>,
        options: u32,
        oracle: &mut Oracle,
    ) -> Option<Message> {
        let passing = PASSING_NAMES.contains(&name);
        let is_new = name == "*";
        if (disposition == 2) != is_new && !passing && !(is_new && disposition == 3) {
            return None;
        }
        let once = is_new && disposition == 2;
        let name = if is_new { self.unused("x") } else { name.to_owned() };
        let session = self.session(slot.map_or(0, usize::from))?;
        let (_, mut level, mut state) = CACHES[cache];
        if level == 0xff && self.dialect == Dialect::SMB202 {
            (level, state) = (9, 0);
        }
        let directory = options & DIRECTORY != 0;
        if directory && self.dialect >= Dialect::SMB300 {
            state &= 3;
        } else if directory {
            (level, state) = (0, 0);
        }
        let key = (level == 0xff).then(|| self.lease_key(&name));
        let v2 = self.dialect >= Dialect::SMB300;
        let mut contexts: Vec<(&[u8], Vec<u8>)> = Vec::new();
        if let Some(key) = key {
            *self.keys.entry(key).or_default() += 1;
            let version = if v2 { 2 } else { 1 };
            let lease = Lease { key, state, flags: 0, duration: 0, parent_key: [0; 16], epoch: 0, version };
            contexts.push((tag::RQLS, encode::lease(&lease)));
        }
        let empties = matches!(disposition, 0 | 4 | 5).then(|| oracle.tag());
        if let Some(number) = empties {
            oracle.empty_sent(number);
            contexts.push((tag::ALSI, number.to_le_bytes().to_vec()));
        }
        if more {
            contexts.push((tag::EXTA, vec![0; 8]));
        }
        if (level == 9 || state & 2 != 0) && !directory {
            // As Linux asks, or as Windows does.
            let newer = v2 && self.at % 2 == 1;
            let guid = [[self.guid[0]; 8], self.next.to_le_bytes()].concat().try_into().unwrap_or_default();
            contexts.push(if newer {
                (tag::DH2Q, encode::durable_v2_request(0, guid))
            } else {
                (tag::DHNQ, encode::durable_request())
            });
        }
        let path = if directory { Vec::new() } else { utf16(&name) };
        let params = CreateParams {
            oplock_level: level,
            impersonation_level: 2,
            desired_access: if directory { 1 } else { 0x1_0003 },
            file_attributes: 0,
            share_access: share,
            create_disposition: disposition,
            create_options: options,
            name_utf16: &path,
            contexts: &contexts,
        };
        let msg = encode::create(&self.header(Command::CREATE, session), &params);
        let kind = Kind::Create { slot, name, once, wanted: (level, state), key, session, empties };
        let mut asked = self.asked(kind, Command::CREATE, session, oracle.tick());
        asked.slot = slot;
        Some((msg, asked))
    }

    /// All Opens of a name share a lease.
    fn lease_key(&self, name: &str) -> [u8; 16] {
        let mut key = [self.guid[0]; 16];
        for (at, byte) in name.bytes().take(15).enumerate() {
            key[at + 1] = byte;
        }
        key
    }

    fn unused(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}-{}", self.at + 1, self.names)
    }

    fn compound(
        &mut self,
        name: &str,
        block: u64,
        writes: bool,
        oracle: &mut Oracle,
    ) -> Option<Vec<Message>> {
        let chain = self.next;
        let create = self.create_as(name, (3, false), 0, 7, None, 0, oracle)?;
        let session = create.1.session;
        let start = oracle.tick();
        let work = if writes {
            let tag = oracle.tag();
            oracle.write_sent(tag);
            let header = self.header(Command::WRITE, session);
            let msg = encode::write(&header, FileId::ALL_ONES, block * 8, 0, &tag.to_le_bytes());
            (related(msg), self.asked(Kind::Write { tag }, Command::WRITE, session, start))
        } else {
            let header = self.header(Command::READ, session);
            let msg = encode::read(&header, FileId::ALL_ONES, block * 8, 8, 0);
            let kind = Kind::Read { number: None, chain, block: block as usize };
            (related(msg), self.asked(kind, Command::READ, session, start))
        };
        let close = encode::close(&self.header(Command::CLOSE, session), 0, FileId::ALL_ONES);
        let close = (related(close), self.asked(Kind::Close, Command::CLOSE, session, start));
        Some(vec![create, work, close])
    }

    /// A name that comes and goes is opened by nobody else meanwhile.
    fn change_name(&mut self, name: &str, change: Change, oracle: &mut Oracle) -> Option<Vec<Message>> {
        let (disposition, options) = match change {
            Change::Make => (2, 0),
            Change::Delete => (1, DELETE_ON_CLOSE),
            _ => (1, 0),
        };
        let share = if PASSING_NAMES.contains(&name) { 0 } else { 7 };
        let counts = matches!(change, Change::Make | Change::Delete | Change::Dispose);
        let deletes = matches!(change, Change::Delete | Change::Dispose);
        if counts && share != 0 || deletes && !oracle.is_standing(name) {
            return None;
        }
        let chain = self.next;
        let create = self.create_as(name, (disposition, false), 0, share, None, options, oracle)?;
        let session = create.1.session;
        let start = oracle.tick();
        let header = self.header(Command::SET_INFO, session);
        let change_it = match change {
            Change::Rename => {
                let name = self.unused("r");
                Some((set_name(&header, RENAME, FileId::ALL_ONES, &name)?, Kind::Rename { name }))
            }
            Change::Link => {
                let name = self.unused("l");
                Some((set_name(&header, LINK, FileId::ALL_ONES, &name)?, Kind::Link { name }))
            }
            Change::Dispose => {
                Some((encode::set_info(&header, 1, DISPOSITION, 0, FileId::ALL_ONES, &[1]), Kind::Dispose))
            }
            Change::Make | Change::Delete => None,
        };
        let mut all = vec![create];
        if let Some((msg, kind)) = change_it {
            all.push((related(msg), self.asked(kind, Command::SET_INFO, session, start)));
        }
        let close = encode::close(&self.header(Command::CLOSE, session), 0, FileId::ALL_ONES);
        let kind = if counts {
            let what = format!("{} {name}", if change == Change::Make { "make" } else { "delete" });
            oracle.tally_asked(&what);
            Kind::Counted { what, create: chain }
        } else {
            Kind::Close
        };
        all.push((related(close), self.asked(kind, Command::CLOSE, session, start)));
        Some(all)
    }

    fn on_slot(&mut self, act: &Act, oracle: &mut Oracle) -> Option<Message> {
        let (command, slot) = subject(act)?;
        let held = self.slots.get(&slot)?.clone();
        if held.directory
            != matches!(
                act,
                Act::List { .. }
                    | Act::Close { .. }
                    | Act::Notify { .. }
                    | Act::Query { .. }
                    | Act::Fsctl { .. }
            )
            && (held.directory || matches!(act, Act::List { .. } | Act::Notify { .. }))
        {
            return None;
        }
        let (id, session) = (held.id, held.session);
        let header = self.header(command, session);
        let start = oracle.tick();
        let (msg, kind) = self.message(act, &header, slot, held, oracle)?;
        let _ = id;
        Some((msg, self.asked(kind, command, session, start)))
    }

    fn message(
        &mut self,
        act: &Act,
        header: &Header,
        slot: u8,
        held: Held,
        oracle: &mut Oracle,
    ) -> Option<(Vec<u8>, Kind)> {
        let id = held.id;
        Some(match act {
            Act::Read { block, .. } => {
                let kind = Kind::Read { number: Some(held.number), chain: 0, block: *block as usize };
                (encode::read(header, id, block * 8, 8, 0), kind)
            }
            Act::Write { block, .. } => {
                let tag = oracle.tag();
                oracle.write_sent(tag);
                oracle.is_in_order(tag);
                (encode::write(header, id, block * 8, 0, &tag.to_le_bytes()), Kind::Write { tag })
            }
            Act::EvilWrite { .. } => {
                let tag = oracle.tag() | POISON;
                (encode::write(header, id, 0, 0, &tag.to_le_bytes()), Kind::Other)
            }
            Act::Append { .. } => {
                let tag = oracle.tag();
                (encode::write(header, id, u64::MAX, 0, &tag.to_le_bytes()), Kind::Append { tag })
            }
            Act::Flush { .. } => (encode::flush(header, id), Kind::Other),
            Act::Close { .. } => {
                self.slots.remove(&slot);
                self.forget_lease(held.lease);
                (encode::close(header, 0, id), Kind::Close)
            }
            Act::Lock { blocks, exclusive, wait, .. } => {
                let how = if *exclusive { lock::EXCLUSIVE } else { lock::SHARED };
                let flags = how | if *wait { 0 } else { lock::FAIL_IMMEDIATELY };
                let (blocks, exclusive) = (blocks.clone(), *exclusive);
                let mut unlocking = Vec::new();
                for asked in self.asked.values_mut() {
                    if let Kind::Unlock { id: other, blocks, outcome, .. } = &mut asked.kind
                        && *other == id
                    {
                        *outcome = None;
                        unlocking.extend(blocks.iter().copied());
                    }
                }
                let order = !unlocking.is_empty();
                if let Some(held) = self.slots.get_mut(&slot).filter(|_| order) {
                    held.unsure = true;
                    // If this one is done first, that one fails no more where it was to.
                    held.locks.retain(|(block, _)| !unlocking.contains(block));
                }
                let msg = encode::lock(header, id, self.lock_sequence(), &ranges(&blocks, flags));
                (msg, Kind::Lock { slot, id, blocks, exclusive, unlocked: order })
            }
            Act::Unlock { blocks, .. } => {
                let outcome = self.unlock(slot, id, blocks)?;
                (
                    encode::lock(header, id, self.lock_sequence(), &ranges(blocks, lock::UNLOCK)),
                    Kind::Unlock { slot, id, blocks: blocks.clone(), outcome },
                )
            }
            Act::Rename { .. } => {
                let name = self.unused("r");
                (set_name(header, RENAME, id, &name)?, Kind::Rename { name })
            }
            Act::Link { .. } => {
                let name = self.unused("l");
                (set_name(header, LINK, id, &name)?, Kind::Link { name })
            }
            Act::Delete { .. } => (encode::set_info(header, 1, DISPOSITION, 0, id, &[1]), Kind::Other),
            Act::List { .. } => self.list(header, slot, id)?,
            Act::Query { .. } => {
                let params = QueryInfoParams {
                    info_type: 1,
                    file_info_class: 6,
                    output_buffer_length: 64,
                    additional_information: 0,
                    flags: 0,
                    file_id: id,
                    input: &[],
                };
                (encode::query_info(header, &params), Kind::Other)
            }
            Act::Notify { .. } => (notify(header, id), Kind::Other),
            Act::Fsctl { .. } => {
                let params =
                    IoctlParams { ctl_code: fsctl::MARK_HANDLE, file_id: id, input: &[], max_output: 0 };
                (encode::ioctl(header, &params), Kind::Other)
            }
            _ => return None,
        })
    }

    /// An index and a number that no LOCK has had (MS-SMB2 3.2.4.19).
    fn lock_sequence(&mut self) -> u32 {
        if self.dialect == Dialect::SMB202 {
            return 0;
        }
        self.locks += 1;
        let (index, number) = (self.locks % 64 + 1, self.locks / 64 % 16);
        index << 4 | number
    }

    /// What is unlocked is not believed from now on. What comes of it, where that is sure: not behind a LOCK in flight.
    fn unlock(&mut self, slot: u8, id: FileId, blocks: &[u64]) -> Option<Option<Status>> {
        let mut sure = true;
        for asked in self.asked.values_mut() {
            match &mut asked.kind {
                Kind::Lock { id: other, unlocked, .. } if *other == id => (*unlocked, sure) = (true, false),
                Kind::Unlock { id: other, outcome, .. } if *other == id => (*outcome, sure) = (None, false),
                _ => {}
            }
        }
        let held = self.slots.get_mut(&slot)?;
        sure &= !held.gone && !held.unsure;
        held.unsure |= !sure;
        let mut outcome = Status::SUCCESS;
        for block in blocks {
            let exclusive = held.locks.iter().position(|l| *l == (*block, true));
            match exclusive.or_else(|| held.locks.iter().position(|l| l.0 == *block)) {
                Some(at) => {
                    held.locks.remove(at);
                }
                None if sure => {
                    outcome = RANGE_NOT_LOCKED;
                    break;
                }
                None => {}
            }
        }
        Some(sure.then_some(outcome))
    }

    /// One more part of the directory, if none is on its way.
    fn list(&mut self, header: &Header, slot: u8, id: FileId) -> Option<(Vec<u8>, Kind)> {
        if self.asked.values().any(|a| a.command == Command::QUERY_DIRECTORY) {
            return None;
        }
        let held = self.slots.get_mut(&slot)?;
        let flags = u8::from(held.seen.is_none());
        held.seen.get_or_insert_with(BTreeSet::new);
        let pattern = utf16("*");
        let params = QueryDirectoryParams {
            info_class: NAMES,
            flags,
            file_index: 0,
            file_id: id,
            pattern_utf16: &pattern,
            output_buffer_length: 4096,
        };
        Some((encode::query_directory(header, &params), Kind::List { slot, id }))
    }

    /// Only what an Open has is believed.
    pub(super) fn forget_leases(&mut self) {
        let slots = &self.slots;
        self.leases.retain(|key, _| slots.values().any(|h| h.lease == Some(*key)));
    }

    /// The last Open of a lease was closed.
    pub(super) fn forget_lease(&mut self, key: Option<[u8; 16]>) {
        if let Some(key) = key.filter(|key| !self.slots.values().any(|h| h.lease == Some(*key))) {
            self.leases.remove(&key);
        }
    }

    fn cancel(&mut self) -> Option<Vec<u8>> {
        let (id, asked) = self
            .asked
            .iter()
            .find(|(_, a)| !a.evil && self.sessions.get(a.session).is_some_and(|s| !s.over))?;
        let (id, interim, session) = (*id, asked.interim, asked.session);
        let mut header = self.header(Command::CANCEL, session);
        header.message_id = id;
        header.credits = 0;
        header.target = Target::Sync { reserved: 0, tree_id: 0 };
        if let Some(async_id) = interim {
            header.flags = header.flags | Flags::ASYNC;
            header.target = Target::Async { async_id };
        }
        let mut msg = encode::cancel(&header);
        let known = self.sessions.get(session)?;
        let (seals, key, sid) = (known.seals.clone(), known.key.clone(), known.id);
        if let Some(seals) = seals.filter(|_| self.setup.protection.seals()) {
            return Some(crate::cover::seal(&seals.to_server, sid, &mut self.nonces, &msg));
        }
        // With GMAC the MessageId is the nonce: that of what is cancelled, with a bit that says so.
        if let Some(key) = key.filter(|_| self.setup.security_mode() & 2 != 0) {
            key.sign(&mut msg);
        }
        Some(encode::frame(msg))
    }

    fn acknowledge(&mut self, oracle: &mut Oracle) -> Option<Vec<u8>> {
        if self.credits == 0 {
            return None;
        }
        let ack = self.acks.pop_front()?;
        let start = oracle.tick();
        let (msg, session) = match ack {
            Ack::Oplock(id, level) => {
                let held = self.slots.values_mut().find(|h| h.id == id)?;
                held.oplock = level;
                let session = held.session;
                (encode::oplock_break_ack(&self.header(Command::OPLOCK_BREAK, session), id, level), session)
            }
            Ack::Lease(key, state) => {
                let lease = self.leases.get_mut(&key)?;
                lease.state &= state;
                let state = lease.state;
                let session = self.slots.values().find(|h| h.lease == Some(key))?.session;
                (encode::lease_break_ack(&self.header(Command::OPLOCK_BREAK, session), key, state), session)
            }
        };
        let asked = self.asked(Kind::Ack, Command::OPLOCK_BREAK, session, start);
        self.cover(vec![(msg, asked)], false)
    }
}

/// The command and the Open of an act.
fn subject(act: &Act) -> Option<(Command, u8)> {
    Some(match act {
        Act::Read { slot, .. } => (Command::READ, *slot),
        Act::Write { slot, .. } | Act::EvilWrite { slot } | Act::Append { slot } => (Command::WRITE, *slot),
        Act::Flush { slot } => (Command::FLUSH, *slot),
        Act::Close { slot } => (Command::CLOSE, *slot),
        Act::Lock { slot, .. } | Act::Unlock { slot, .. } => (Command::LOCK, *slot),
        Act::Rename { slot } | Act::Link { slot } | Act::Delete { slot } => (Command::SET_INFO, *slot),
        Act::List { slot } => (Command::QUERY_DIRECTORY, *slot),
        Act::Query { slot } => (Command::QUERY_INFO, *slot),
        Act::Notify { slot } => (Command::CHANGE_NOTIFY, *slot),
        Act::Fsctl { slot } => (Command::IOCTL, *slot),
        _ => return None,
    })
}

/// SET_INFO that gives a file another name, or one more.
fn set_name(header: &Header, class: u8, id: FileId, name: &str) -> Option<Vec<u8>> {
    let path = utf16(name);
    let len = u32::try_from(path.len()).ok()?.to_le_bytes();
    let buffer = [&[0; 16][..], &len, &path].concat();
    Some(encode::set_info(header, 1, class, 0, id, &buffer))
}

/// CHANGE_NOTIFY (MS-SMB2 2.2.35).
fn notify(header: &Header, id: FileId) -> Vec<u8> {
    let mut msg = vec![0; Header::LEN];
    header.write(&mut msg);
    msg.extend([32, 0, 0, 0, 0, 16, 0, 0]);
    msg.extend(id.to_bytes());
    msg.extend([3, 0, 0, 0, 0, 0, 0, 0]);
    msg
}
