//! What a server does with files.

use smb_parse::{
    FileId,
    cmd::{create, lock, query_directory, query_info, read, set_info, write},
    create_context::{self, RequestContext},
    encode,
    header::{Command, Header, Status},
};

use std::collections::BTreeMap;

use understudy_core::crypto::Dialect;

use super::{
    Caching, Chain, ConnId, Deed, Mark, Open, Out, Server, chain::Step, durable::reconnect_of, login::u16s,
};
use crate::disk::{BLOCKS, Disk, File, POISON};

/// CreateDisposition (MS-SMB2 2.2.13).
const SUPERSEDE: u32 = 0;
const OPEN: u32 = 1;
const CREATE: u32 = 2;
const OVERWRITE: u32 = 4;
const OVERWRITE_IF: u32 = 5;
/// FILE_DIRECTORY_FILE, FILE_DELETE_ON_CLOSE.
const DIRECTORY: u32 = 1;
const DELETE_ON_CLOSE: u32 = 0x1000;
/// FileStandardInformation (MS-FSCC 2.4.47).
const STANDARD: u8 = 5;
/// How many names one answer holds.
const NAMES: usize = 3;

pub(super) fn fail(status: Status) -> Step {
    Step::Done(status, u16s(&[9, 0, 0, 0]))
}

/// Read 1, write 2, delete 4.
fn access(mask: u32) -> u32 {
    const MAXIMUM_ALLOWED: u32 = 0x0200_0000;
    if mask & MAXIMUM_ALLOWED != 0 {
        return 7;
    }
    u32::from(mask & 1 != 0) | if mask & 6 != 0 { 2 } else { 0 } | if mask & 0x1_0000 != 0 { 4 } else { 0 }
}

impl Server {
    fn deed(&mut self, chain: &Chain, deed: Deed) {
        self.out.push(Out::Deed(chain.conn, chain.mark.clone(), deed));
    }

    pub(super) fn create(&mut self, chain: &mut Chain, header: &Header, msg: &[u8], disk: &mut Disk) -> Step {
        let Ok(asked) = create::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let name = asked.name.to_string_lossy();
        if name.starts_with("poison") {
            self.offend("unverified", format!("a CREATE of {name} was executed"));
        }
        self.scavenge(disk);
        if let Some(wanted) = reconnect_of(&asked) {
            return match self.reconnect(chain, header, &asked, wanted, disk) {
                Ok(volatile) => self.reconnected(chain, header, volatile, disk),
                Err(step) => step,
            };
        }
        let directory = asked.create_options & DIRECTORY != 0;
        let found = if directory { Some(0) } else { disk.find(&name) };
        if self.refused.contains(if directory { "." } else { &*name }) {
            return fail(Status::ACCESS_DENIED);
        }
        match (asked.create_disposition, found) {
            (OPEN | OVERWRITE, None) => return fail(Status::OBJECT_NAME_NOT_FOUND),
            (CREATE, Some(_)) => return fail(Status::OBJECT_NAME_COLLISION),
            (_, Some(number)) if self.doomed.contains(&number) => return fail(Status::DELETE_PENDING),
            _ => {}
        }
        let guid = self.conns.get(&chain.conn).map(|c| c.guid).unwrap_or_default();
        let own = lease_of(&asked).map(|l| (guid, l.key));
        let other = |l: &super::Lease| Some(l.number) != found;
        if own.is_some_and(|key| self.leases.get(&key).is_some_and(other)) {
            return fail(Status::INVALID_PARAMETER);
        }
        let (wants, share) = (access(asked.desired_access), asked.share_access & 7);
        // Who only looks at attributes is in nobody's way, as with Samba.
        let stat = wants == 0;
        if let Some(number) = found.filter(|_| !directory) {
            self.close_ghosts(number, disk, |server, ghost| {
                !stat
                    && (server.is_in_the_way(ghost, own)
                        || wants & !ghost.share != 0
                        || ghost.access & !share != 0)
            });
            let clash = |o: &Open| o.number == number && (wants & !o.share != 0 || o.access & !share != 0);
            if self.opens.values().any(clash) {
                return fail(Status::SHARING_VIOLATION);
            }
            if !stat && self.break_for_open(number, own) {
                return Step::Wait;
            }
        }
        let number = found.unwrap_or_else(|| disk.create(&name));
        if chain.mark.reclaims && !directory {
            let state = lease_of(&asked).map_or(0, |lease| lease.state);
            let oplock = Some(asked.requested_oplock_level).filter(|level| *level != 0xff).unwrap_or(0);
            self.deed(chain, Deed::AskedBack { number, name: name.clone(), oplock, state });
        }
        let empties = matches!(asked.create_disposition, SUPERSEDE | OVERWRITE | OVERWRITE_IF);
        if empties && let Some(file) = disk.files.get_mut(&number) {
            (file.blocks, file.appended, file.padded) = Default::default();
            self.touch(number, true, disk);
        }
        let id = self.fresh();
        let guid = self.conns.get(&chain.conn).map(|c| c.guid).unwrap_or_default();
        if found.is_none() {
            self.break_for_name();
        }
        let (caching, context) = self.grant_caching(chain.conn, guid, number, &asked);
        let durable = self.grant_durable(&asked, guid, caching).filter(|_| !directory);
        let open = Open {
            persistent: id,
            durable: durable.as_ref().map(|(durable, ..)| *durable),
            disconnected: None,
            user: String::new(),
            number,
            name: name.clone(),
            session: header.session_id,
            conn: chain.conn,
            guid,
            access: wants,
            share,
            caching,
            breaking: None,
            locks: Vec::new(),
            sequences: BTreeMap::new(),
            relocked: false,
            delete_on_close: asked.create_options & DELETE_ON_CLOSE != 0,
            cursor: None,
            listed: false,
            directory,
        };
        self.opens.insert(id, open);
        let reclaims = chain.mark.reclaims && asked.create_disposition == OPEN;
        if !reclaims && !directory && !stat {
            let exclusive = asked.create_disposition == CREATE;
            self.deed(chain, Deed::Opened { number, exclusive, name: name.clone() });
        }
        if empties {
            let tag = asked.contexts().flatten().find(|c| c.tag == create_context::tag::ALSI);
            let tag = tag.and_then(|c| c.data.try_into().ok()).map_or(0, u64::from_le_bytes);
            self.break_for_write(id, number);
            self.deed(chain, Deed::Emptied { number, tag });
        }
        if found.is_none() {
            self.deed(chain, Deed::Made { name });
        }
        chain.file = FileId { persistent: id, volatile: id };
        let mut contexts: Vec<(&[u8], Vec<u8>)> = context.into_iter().collect();
        contexts.extend(durable.map(|(_, tag, answer)| (tag, answer)));
        if asked.contexts().flatten().any(|c| c.tag == create_context::tag::QFID) {
            contexts.push((create_context::tag::QFID, [&number.to_le_bytes()[..], &[0; 24]].concat()));
        }
        let oplock_level = match caching {
            Caching::Oplock(level) => level,
            Caching::Lease(_) => 0xff,
        };
        let action = match (found, asked.create_disposition) {
            (None, _) => 2,
            (_, SUPERSEDE) => 0,
            (_, OVERWRITE | OVERWRITE_IF) => 3,
            _ => 1,
        };
        let file = disk.files.get(&number).cloned().unwrap_or_default();
        self.create_answer(chain, header, (oplock_level, action), &file, &contexts)
    }

    /// A durable Open was had again.
    fn reconnected(&mut self, chain: &mut Chain, header: &Header, volatile: u64, disk: &Disk) -> Step {
        chain.file = self.file_id(volatile);
        let Some(open) = self.opens.get(&volatile) else { return fail(Status::OBJECT_NAME_NOT_FOUND) };
        let (level, context) = match open.caching {
            Caching::Oplock(level) => (level, None),
            Caching::Lease(key) => (0xff, self.lease_context(open.guid, key)),
        };
        let file = disk.files.get(&open.number).cloned().unwrap_or_default();
        let contexts: Vec<(&[u8], Vec<u8>)> = context.into_iter().collect();
        self.create_answer(chain, header, (level, 1), &file, &contexts)
    }

    fn create_answer(
        &mut self,
        chain: &Chain,
        header: &Header,
        (oplock_level, action): (u8, u32),
        file: &File,
        contexts: &[(&[u8], Vec<u8>)],
    ) -> Step {
        let ok = self.response(chain.conn, header, Status::SUCCESS);
        let mut plain = vec![0; Header::LEN];
        ok.write(&mut plain);
        plain.extend(u16s(&[89]));
        plain.extend([oplock_level, 0]);
        plain.extend(action.to_le_bytes());
        for value in [file.birth, file.birth + 1, file.written, file.changed, 0, file.size()] {
            plain.extend(value.to_le_bytes());
        }
        let attributes =
            if self.opens.get(&chain.file.volatile).is_some_and(|o| o.directory) { 0x10 } else { 0 };
        plain.extend(u32::to_le_bytes(attributes));
        plain.extend([0; 4]);
        plain.extend(chain.file.to_bytes());
        plain.extend([0; 8]);
        let answer = match create::Response::parse(&plain) {
            Ok(response) => encode::create_response(&ok, &response, contexts),
            Err(_) => plain,
        };
        Step::Answer(answer)
    }

    pub(super) fn on_open(
        &mut self,
        chain: &Chain,
        header: &Header,
        msg: &[u8],
        id: FileId,
        disk: &mut Disk,
    ) -> Step {
        match header.command {
            Command::READ => self.read(chain, header, msg, id, disk),
            Command::WRITE => self.write(chain, msg, id, disk),
            Command::FLUSH => Step::Done(Status::SUCCESS, u16s(&[4, 0])),
            Command::CLOSE => {
                self.close_open(id.volatile, disk);
                Step::Done(Status::SUCCESS, [&u16s(&[60])[..], &[0; 58]].concat())
            }
            Command::LOCK => self.lock(chain, msg, id, disk),
            Command::SET_INFO => self.set_info(chain, msg, id, disk),
            Command::QUERY_DIRECTORY => self.query_directory(chain, header, msg, id, disk),
            Command::CHANGE_NOTIFY => Step::Wait,
            Command::QUERY_INFO => {
                let number = self.opens.get(&id.volatile).map_or(0, |o| o.number);
                let end = disk.files.get(&number).map_or(0, File::size);
                let is_standard =
                    query_info::Request::parse(msg).is_ok_and(|r| r.file_info_class == STANDARD);
                let info: Vec<u8> = if is_standard {
                    [end, end, 1].into_iter().flat_map(u64::to_le_bytes).collect()
                } else {
                    number.to_le_bytes().to_vec()
                };
                let len = info.len() as u32;
                Step::Done(Status::SUCCESS, [&u16s(&[9, 72])[..], &len.to_le_bytes(), &info].concat())
            }
            _ => fail(Status::NOT_SUPPORTED),
        }
    }

    fn read(&mut self, chain: &Chain, header: &Header, msg: &[u8], id: FileId, disk: &Disk) -> Step {
        let Ok(asked) = read::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let Some(open) = self.opens.get(&id.volatile) else { return fail(Status::FILE_CLOSED) };
        let (number, block) = (open.number, (asked.offset / 8) as usize);
        if open.access & 1 == 0 {
            return fail(Status::ACCESS_DENIED);
        }
        if block >= BLOCKS || asked.length != 8 {
            return self.read_tail(chain, header, &asked, disk.files.get(&number));
        }
        if self.is_locked(id.volatile, number, block, false) {
            return fail(Status::FILE_LOCK_CONFLICT);
        }
        let Some(tag) = disk.files.get(&number).and_then(|f| f.blocks.get(block)).copied() else {
            return fail(Status::END_OF_FILE);
        };
        self.deed(chain, Deed::Read { number, block });
        let ok = self.response(chain.conn, header, Status::SUCCESS);
        Step::Answer(encode::read_response(&ok, &tag.to_le_bytes()))
    }

    /// What was appended. No client asks for it, but the proxy.
    fn read_tail(
        &mut self,
        chain: &Chain,
        header: &Header,
        asked: &read::Request<'_>,
        file: Option<&File>,
    ) -> Step {
        let bytes = file.map(File::bytes).unwrap_or_default();
        let from = (asked.offset as usize).min(bytes.len());
        let to = (from + asked.length as usize).min(bytes.len());
        if from == to {
            return fail(Status::END_OF_FILE);
        }
        let ok = self.response(chain.conn, header, Status::SUCCESS);
        Step::Answer(encode::read_response(&ok, &bytes[from..to]))
    }

    fn write(&mut self, chain: &Chain, msg: &[u8], id: FileId, disk: &mut Disk) -> Step {
        let Ok(asked) = write::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let Some(open) = self.opens.get(&id.volatile) else { return fail(Status::FILE_CLOSED) };
        let (number, access) = (open.number, open.access);
        let Ok(tag) = asked.data.try_into().map(u64::from_le_bytes) else {
            return fail(Status::INVALID_PARAMETER);
        };
        if tag & POISON != 0 {
            self.offend("unverified", "a WRITE that was tampered with was executed".into());
        }
        if access & 2 == 0 {
            return fail(Status::ACCESS_DENIED);
        }
        let done = Step::Done(Status::SUCCESS, [&u16s(&[17, 0])[..], &8_u32.to_le_bytes(), &[0; 9]].concat());
        if asked.offset == u64::MAX {
            if let Some(file) = disk.files.get_mut(&number) {
                file.appended.push(tag);
                file.padded = true;
            }
            self.touch(number, true, disk);
            self.break_for_write(id.volatile, number);
            self.deed(chain, Deed::Appended { number, tag });
            return done;
        }
        let block = (asked.offset / 8) as usize;
        if self.is_locked(id.volatile, number, block, true) {
            return fail(Status::FILE_LOCK_CONFLICT);
        }
        if let Some(slot) = disk.files.get_mut(&number).and_then(|f| f.blocks.get_mut(block)) {
            *slot = tag;
        }
        if let Some(file) = disk.files.get_mut(&number) {
            file.padded = true;
        }
        self.touch(number, true, disk);
        self.break_for_write(id.volatile, number);
        self.deed(chain, Deed::Wrote { number, block, tag });
        done
    }

    /// Whether another Open's lock forbids it.
    fn is_locked(&self, me: u64, number: u64, block: usize, writes: bool) -> bool {
        self.opens.iter().filter(|(id, o)| **id != me && o.number == number).any(|(_, o)| {
            o.locks.iter().any(|l| l.offset == block as u64 * 8 && (writes || l.flags & lock::EXCLUSIVE != 0))
        })
    }

    /// Whether the LockSequences of an Open are looked at: what it has been asked to do it remembers.
    fn counts_locks(&self, conn: ConnId, id: u64) -> bool {
        let dialect = self.conns.get(&conn).map_or(Dialect::SMB202, |c| c.dialect);
        let durable = self.opens.get(&id).is_some_and(|o| o.durable.is_some());
        dialect >= Dialect::SMB300 || dialect > Dialect::SMB202 && durable
    }

    fn lock(&mut self, chain: &Chain, msg: &[u8], id: FileId, disk: &mut Disk) -> Step {
        let Ok(asked) = lock::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let Some(number) = self.opens.get(&id.volatile).map(|o| o.number) else {
            return fail(Status::FILE_CLOSED);
        };
        let locks: Vec<_> = asked.locks().filter_map(Result::ok).collect();
        // MS-SMB2 3.3.5.14: what repeats a number was done, and is not done again.
        let (index, sequence) = (asked.lock_sequence >> 4, asked.lock_sequence & 0xf);
        let counts = (1..=64).contains(&index) && self.counts_locks(chain.conn, id.volatile);
        if let Some(open) = self.opens.get_mut(&id.volatile).filter(|_| counts) {
            if open.sequences.get(&index) == Some(&sequence) {
                return Step::Done(Status::SUCCESS, u16s(&[4, 0]));
            }
            open.sequences.remove(&index);
        }
        for (at, wanted) in locks.iter().enumerate() {
            let block = (wanted.offset / 8) as usize;
            let exclusive = wanted.flags & lock::EXCLUSIVE != 0;
            let Some(open) = self.opens.get_mut(&id.volatile) else { break };
            if wanted.flags & lock::UNLOCK != 0 {
                // What was unlocked before stays so (3.3.5.14.1).
                if !unlock(&mut open.locks, wanted.offset) {
                    return fail(Status(0xc000_007e));
                }
                continue;
            }
            let clashes = |l: &lock::Lock| exclusive || l.flags & lock::EXCLUSIVE != 0;
            let own = open.locks.iter().any(|l| l.offset == wanted.offset && clashes(l));
            if own || self.is_locked(id.volatile, number, block, exclusive) {
                let again = |o: &Open| o.number == number && o.relocked;
                // What a living node has let go somebody may have had who waited for it.
                let let_go = disk.let_go.contains(&(self.guid(chain.conn).unwrap_or_default(), number))
                    || disk.contested.contains(&number);
                let kept = self.opens.values().any(|o| o.number == number && o.disconnected.is_some());
                if !let_go && chain.mark.reclaims && (kept || self.opens.values().any(again)) {
                    let text = format!("block {block} of file {number} cannot be locked again");
                    disk.refused.insert((self.guid(chain.conn).unwrap_or_default(), number), text);
                }
                // And what was locked before is unlocked (3.3.5.14.2).
                if let Some(open) = self.opens.get_mut(&id.volatile) {
                    open.locks.truncate(open.locks.len() - at);
                }
                let now = own || wanted.flags & lock::FAIL_IMMEDIATELY != 0;
                return if now { fail(Status::LOCK_NOT_GRANTED) } else { Step::Wait };
            }
            if let Some(open) = self.opens.get_mut(&id.volatile) {
                open.locks.push(*wanted);
            }
        }
        if let Some(open) = self.opens.get_mut(&id.volatile).filter(|_| counts) {
            open.sequences.insert(index, sequence);
        }
        if chain.mark.reclaims {
            if let Some(open) = self.opens.get_mut(&id.volatile) {
                open.relocked = true;
                disk.let_go.remove(&(open.guid, number));
                disk.refused.remove(&(open.guid, number));
            }
        } else {
            let own = self.guid(chain.conn).unwrap_or_default();
            if disk.let_go.iter().any(|(guid, file)| *guid != own && *file == number) {
                disk.contested.insert(number);
            }
            for taken in locks.iter().filter(|l| l.flags & lock::UNLOCK == 0) {
                let block = (taken.offset / 8) as usize;
                self.deed(chain, Deed::Locked { number, block });
            }
        }
        Step::Done(Status::SUCCESS, u16s(&[4, 0]))
    }

    fn set_info(&mut self, chain: &Chain, msg: &[u8], id: FileId, disk: &mut Disk) -> Step {
        const RENAME: u8 = 10;
        const LINK: u8 = 11;
        const DISPOSITION: u8 = 13;
        let Ok(asked) = set_info::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let Some(open) = self.opens.get(&id.volatile) else { return fail(Status::FILE_CLOSED) };
        let (number, old) = (open.number, open.name.clone());
        let done = Step::Done(Status::SUCCESS, u16s(&[2]));
        if open.access & 4 == 0 {
            return fail(Status::ACCESS_DENIED);
        }
        match asked.file_info_class {
            DISPOSITION => {
                self.touch(number, false, disk);
                if asked.buffer.first() == Some(&1) {
                    self.doomed.insert(number);
                } else {
                    self.doomed.remove(&number);
                }
                done
            }
            class @ (RENAME | LINK) => {
                let units = asked.buffer.get(20..).unwrap_or_default().chunks_exact(2);
                let name: String = units
                    .map(|u| char::from(u8::try_from(u16::from_le_bytes([u[0], u[1]])).unwrap_or(b'?')))
                    .collect();
                if name.starts_with("poison") {
                    self.offend("unverified", format!("a rename to {name} was executed"));
                }
                if disk.find(&name).is_some() {
                    return fail(Status::OBJECT_NAME_COLLISION);
                }
                disk.names.insert(name.clone(), number);
                self.break_for_name();
                self.touch(number, false, disk);
                if class == LINK {
                    self.deed(chain, Deed::Linked { number, name });
                    return done;
                }
                disk.names.remove(&old);
                for open in self.opens.values_mut().filter(|o| o.number == number && o.name == old) {
                    open.name.clone_from(&name);
                }
                self.deed(chain, Deed::Renamed { number, old, name });
                done
            }
            _ => fail(Status::NOT_SUPPORTED),
        }
    }

    fn query_directory(
        &mut self,
        chain: &Chain,
        header: &Header,
        msg: &[u8],
        id: FileId,
        disk: &Disk,
    ) -> Step {
        let Ok(asked) = query_directory::Request::parse(msg) else { return fail(Status::INVALID_PARAMETER) };
        let Some(open) = self.opens.get_mut(&id.volatile) else { return fail(Status::FILE_CLOSED) };
        if !open.directory {
            return fail(Status::INVALID_PARAMETER);
        }
        if asked.flags & (query_directory::RESTART_SCANS | query_directory::REOPEN) != 0 {
            (open.cursor, open.listed) = (None, false);
        }
        let after = open.cursor.clone();
        let names: Vec<&String> = disk
            .names
            .keys()
            .filter(|name| after.as_ref().is_none_or(|after| *name > after))
            .take(NAMES)
            .collect();
        if names.is_empty() {
            return fail(Status::NO_MORE_FILES);
        }
        open.cursor = names.last().map(|name| (*name).clone());
        open.listed = true;
        let mut buffer = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let len = (12 + utf16.len()).next_multiple_of(8);
            let last = at + 1 == names.len();
            buffer.extend(if last { 0 } else { u32::try_from(len).unwrap_or(0) }.to_le_bytes());
            buffer.extend([0; 4]);
            buffer.extend(u32::try_from(utf16.len()).unwrap_or(0).to_le_bytes());
            buffer.extend(utf16);
            if !last {
                buffer.resize(buffer.len().next_multiple_of(8), 0);
            }
        }
        let ok = self.response(chain.conn, header, Status::SUCCESS);
        Step::Answer(encode::query_directory_response(&ok, &buffer))
    }

    /// An Open is over: locks, leases and, with the last one, a doomed file go.
    pub(super) fn close_open(&mut self, id: u64, disk: &mut Disk) {
        let Some(open) = self.opens.remove(&id) else { return };
        if open.delete_on_close {
            self.doomed.insert(open.number);
        }
        if let Caching::Lease(key) = open.caching
            && !self.opens.values().any(|o| o.guid == open.guid && o.caching == open.caching)
        {
            self.leases.remove(&(open.guid, key));
        }
        if !self.opens.values().any(|o| o.number == open.number)
            && self.doomed.remove(&open.number)
            && disk.find(&open.name) == Some(open.number)
        {
            disk.names.remove(&open.name);
            self.break_for_name();
            self.out.push(Out::Deed(
                open.conn,
                Mark::default(),
                Deed::Removed { number: open.number, name: open.name },
            ));
        }
    }
}

/// Lets a range go, the exclusive lock on it first, as Samba does. False if there is none.
fn unlock(locks: &mut Vec<lock::Lock>, offset: u64) -> bool {
    let exclusive = locks.iter().position(|l| l.offset == offset && l.flags & lock::EXCLUSIVE != 0);
    let Some(at) = exclusive.or_else(|| locks.iter().position(|l| l.offset == offset)) else { return false };
    locks.remove(at);
    true
}

/// The lease that a CREATE asks for.
pub(super) fn lease_of(asked: &create::Request<'_>) -> Option<create_context::Lease> {
    asked.contexts().flatten().find_map(|context| match RequestContext::parse(&context) {
        RequestContext::Lease(lease) => Some(lease),
        _ => None,
    })
}
