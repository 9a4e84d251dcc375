//! What is stored before a client is told, and what a client meets that lost its connection and comes back.

use std::{cell::RefCell, rc::Rc, time::Duration};

use smb_parse::{
    FileId,
    cmd::{create, lock::Lock, session_setup},
    create_context::{Lease, RequestContext, ResponseContext, tag},
    encode::{self, IoctlParams, LeaseBreak},
    fsctl,
    header::{Command, Status},
};
use understudy_core::{
    effect::{CloseReason, Mutation},
    event::FileEvent,
    files::Files,
    ids::LinkId,
};
use understudy_state::record::{DurableRecord, Hex, OpenRecord, SessionRecord};

use crate::{node::Disk, rig::Rig};

const GUID: [u8; 16] = [6; 16];
const KEY: [u8; 16] = [7; 16];
const RWH: u32 = 7;
/// FileRenameInformation (MS-FSCC 2.4.42).
const RENAME: u8 = 10;
const EXCLUSIVE_NOW: u32 = 0x12;
const MINUTE: Duration = Duration::from_secs(60);

/// A client of this Link at work: logged in, and connected to the share.
fn client(link: u64, disk: &Disk, files: &Rc<RefCell<Files>>) -> Rig {
    let known = Rig::new().users();
    let mut rig = Rig::with(LinkId(link), known, disk, files);
    for node in &mut rig.nodes {
        node.habits.keeps = true;
        node.habits.lease = Some((RWH, 5));
    }
    // When the Link leaves Relay for the same node.
    rig.stays = true;
    rig.negotiate();
    rig
}

fn lease(state: u32) -> Vec<u8> {
    let lease = Lease { key: KEY, state, flags: 0, duration: 0, parent_key: [0; 16], epoch: 0, version: 2 };
    encode::lease(&lease)
}

/// Opens "file" durably, by DH2Q and a lease. The MessageId of the CREATE.
fn ask_durably(rig: &mut Rig) -> u64 {
    let contexts: [(&[u8], Vec<u8>); 2] =
        [(tag::DH2Q, encode::durable_v2_request(60_000, GUID)), (tag::RQLS, lease(RWH))];
    let request = rig.open_request("file", 0xff, &contexts);
    rig.send(&[request])[0]
}

/// DH2C, as the client says it.
fn come_back(rig: &mut Rig, file: FileId, guid: [u8; 16]) -> (Status, Vec<u8>) {
    let contexts: [(&[u8], Vec<u8>); 2] =
        [(tag::DH2C, encode::durable_v2_reconnect(file, guid, 0)), (tag::RQLS, lease(RWH))];
    let request = rig.open_request("file", 0xff, &contexts);
    rig.ask(request)
}

fn lock(rig: &mut Rig, file: FileId) -> Status {
    let lock = Lock { offset: 0, length: 8, flags: EXCLUSIVE_NOW };
    let request = encode::lock(&rig.header(Command::LOCK, 0), file, 0, &[lock]);
    rig.ask(request).0
}

/// A client that has a file open, durably and with a lock.
fn at_work() -> (Rig, FileId, Disk, Rc<RefCell<Files>>) {
    let (disk, files) = (Disk::default(), Rc::default());
    let mut rig = client(1, &disk, &files);
    rig.put("file", 77, b"text");
    rig.log_in("alice");
    let id = ask_durably(&mut rig);
    let file = create::Response::parse(rig.answer(id).1).unwrap().file_id;
    assert_eq!(lock(&mut rig, file), Status::SUCCESS);
    (rig, file, disk, files)
}

/// Its connection is lost.
fn goes_away(rig: &mut Rig) {
    rig.link.handle_client_closed(rig.now);
    rig.pump();
    assert_eq!(rig.closed, Some(CloseReason::ClientClosed));
    rig.files.borrow_mut().link_gone(LinkId(1));
}

/// What the store has of Opens.
fn records(rig: &Rig) -> Vec<OpenRecord> {
    let mut records: Vec<OpenRecord> = Vec::new();
    for mutation in &rig.stored {
        match mutation {
            Mutation::PutOpen(record) => {
                records.retain(|known| known.key() != record.key());
                records.push((**record).clone());
            }
            Mutation::RemoveOpen(key) => records.retain(|known| known.key() != *key),
            _ => {}
        }
    }
    records
}

/// The nodes of a second client's rig know what those of the first would have kept.
fn nodes_kept(from: &mut Rig, to: &mut Rig) {
    let kept = from.nodes[0].disconnected();
    assert!(!kept.is_empty(), "nothing is durable on the node");
    to.nodes[0].kept = kept;
}

#[test]
fn a_durable_open_is_stored_before_the_client_hears_of_it_and_so_is_its_lock() {
    let (disk, files) = (Disk::default(), Rc::default());
    let mut rig = client(1, &disk, &files);
    rig.put("file", 77, b"text");
    rig.put("other", 78, b"");
    rig.log_in("alice");
    rig.store_waits = true;
    let id = ask_durably(&mut rig);
    assert!(rig.final_answer(id).is_none(), "the client is promised what is not stored");
    // A break that names what the client has not heard of waits, too.
    let notice = LeaseBreak { epoch: 6, flags: 1, key: KEY, current: RWH, new: 3 };
    let frame = encode::frame(encode::lease_break_notification(&Rig::break_header(0), &notice));
    let (leg, _) = rig.leg.unwrap();
    rig.link.handle_node_frame(rig.now, leg, bytes::BytesMut::from(&frame[..]));
    rig.pump();
    assert!(!rig.inbox.iter().any(|msg| msg[12..14] == [18, 0]), "a break overtakes the CREATE it is about");
    // What is not durable waits for nothing.
    let other = rig.ask(rig.open_request("other", 0, &[])).0;
    assert_eq!(other, Status::SUCCESS);
    rig.take_stored();
    let (header, msg) = rig.answer(id);
    assert_eq!(Status(header.status), Status::SUCCESS);
    let file = create::Response::parse(msg).unwrap().file_id;
    assert!(rig.inbox.iter().any(|msg| msg[12..14] == [18, 0]), "the break is lost");
    let locked = encode::lock(
        &rig.header(Command::LOCK, 0),
        file,
        0,
        &[Lock { offset: 0, length: 8, flags: EXCLUSIVE_NOW }],
    );
    let locked = rig.send(&[locked])[0];
    assert!(rig.final_answer(locked).is_none(), "the lock is not stored yet");
    rig.take_stored();
    assert_eq!(Status(rig.answer(locked).0.status), Status::SUCCESS);
    let known = records(&rig);
    let record = known.iter().find(|record| record.durable != DurableRecord::No).unwrap();
    assert_eq!((&*record.user, &*record.node, record.locks.len()), ("WG\\alice", "a", 1));
    assert_eq!(record.lease.unwrap().state, 3, "what the client was told to go down to");
    // What is closed is forgotten.
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, file);
    assert_eq!(rig.ask(close).0, Status::SUCCESS);
    assert!(!records(&rig).iter().any(|record| record.durable != DurableRecord::No));
}

#[test]
fn a_client_is_not_served_without_the_store_if_that_is_the_rule() {
    let (mut rig, ..) = at_work();
    rig.store_waits = true;
    let contexts: [(&[u8], Vec<u8>); 2] =
        [(tag::DH2Q, encode::durable_v2_request(60_000, [9; 16])), (tag::RQLS, lease(RWH))];
    let request = rig.open_request("file", 0xff, &contexts);
    let id = rig.send(&[request])[0];
    rig.link.handle_store_failed(rig.now);
    rig.pump();
    assert!(rig.final_answer(id).is_none());
    assert_eq!(rig.closed, Some(CloseReason::StoreFailed));
}

/// The node that has the Open lives, by the ids that the client knows: the bytes pass, and the lock is remembered.
#[test]
fn what_the_node_gives_back_in_relay_is_as_it_was() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    let mut rig = client(2, &disk, &files);
    nodes_kept(&mut first, &mut rig);
    rig.log_in("alice");
    let (status, _) = come_back(&mut rig, file, GUID);
    assert_eq!((status, rig.link.mode()), (Status::SUCCESS, "relay"));
    assert_eq!(files.borrow().absent(), 0);
    rig.fail_over();
    assert_eq!(rig.nodes[1].seen(Command::LOCK).len(), 1, "the lock that it had before it was away");
}

/// The node has died meanwhile: the Open is had afresh on the other one, under the FileId that the client knows.
#[test]
fn what_a_dead_node_had_is_opened_afresh_with_its_locks() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    files.borrow_mut().all_lost(first.now, 1);
    let mut rig = client(2, &disk, &files);
    rig.nodes[0].habits.lease = Some((RWH, 1));
    rig.log_in("alice");
    assert_eq!(rig.link.mode(), "bridge", "it may name what the node does not know");
    let (status, msg) = come_back(&mut rig, file, GUID);
    assert_eq!(status, Status::SUCCESS);
    let answer = create::Response::parse(&msg).unwrap();
    assert_eq!((answer.file_id, answer.create_action), (file, 1));
    let granted = answer.contexts().flatten().find_map(|c| match ResponseContext::parse(&c) {
        ResponseContext::Lease(lease) => Some(lease),
        _ => None,
    });
    assert_eq!(granted.map(|lease| (lease.state, lease.epoch)), Some((RWH, 5)), "as the client knows it");
    let node = &rig.nodes[0];
    assert_eq!(node.seen(Command::LOCK).len(), 1);
    let (_, asked) = node.seen(Command::CREATE).last().copied().unwrap();
    let asked = create::Request::parse(asked).unwrap();
    assert_eq!(asked.create_disposition, 1, "never the original one");
    assert!(
        !asked.contexts().flatten().any(|c| matches!(
            RequestContext::parse(&c),
            RequestContext::DurableReconnectV2 { .. } | RequestContext::DurableReconnect { .. }
        )),
        "this node never had it"
    );
    // It is the client's: it can be used, and is recorded.
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    let known = records(&rig);
    assert_eq!(known.iter().filter(|record| record.durable != DurableRecord::No).count(), 1);
    assert_eq!(files.borrow().absent(), 0);
}

/// The proxy has died, and the node has not: the records are all that is left.
#[test]
fn what_was_recorded_is_had_from_the_node_that_has_kept_it() {
    let (mut first, file, disk, _) = at_work();
    let files = Rc::new(RefCell::new(Files::with_grace(MINUTE)));
    for record in records(&first) {
        files.borrow_mut().load(first.now, record, None);
    }
    let mut rig = client(2, &disk, &files);
    nodes_kept(&mut first, &mut rig);
    rig.log_in("alice");
    assert_eq!(rig.link.mode(), "bridge");
    let (status, msg) = come_back(&mut rig, file, GUID);
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(create::Response::parse(&msg).unwrap().file_id, file);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
}

#[test]
fn nobody_else_gets_the_file_in_between_and_everybody_after_that() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    files.borrow_mut().all_lost(first.now, 1);
    let mut other = Rig::with(LinkId(3), Rig::new().users(), &disk, &files);
    other.client_guid = [9; 16];
    other.negotiate();
    other.log_in("bob");
    let request = other.open_request("file", 0, &[]);
    let waits = other.send(&[request])[0];
    assert!(other.final_answer(waits).is_none(), "the file is somebody else's");
    other.wait(Duration::from_secs(11));
    assert_eq!(Status(other.answer(waits).0.status), Status::SHARING_VIOLATION);
    files.borrow_mut().handle_timeout(first.now + Duration::from_secs(61));
    other.show_files();
    other.pump();
    let (status, _) = other.ask(other.open_request("file", 0, &[]));
    assert_eq!(status, Status::SUCCESS);
    let _ = file;
}

#[test]
fn who_is_not_the_client_gets_nothing() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    files.borrow_mut().all_lost(first.now, 1);
    let mut rig = client(2, &disk, &files);
    rig.nodes[0].habits.lease = Some((RWH, 1));
    rig.log_in("alice");
    assert_eq!(come_back(&mut rig, file, [1; 16]).0, Status::OBJECT_NAME_NOT_FOUND, "another CreateGuid");
    let strange = FileId { persistent: file.persistent + 1, ..file };
    assert_eq!(come_back(&mut rig, strange, GUID).0, Status::OBJECT_NAME_NOT_FOUND, "another FileId");
    rig.log_in("bob");
    let contexts: [(&[u8], Vec<u8>); 2] =
        [(tag::DH2C, encode::durable_v2_reconnect(file, GUID, 0)), (tag::RQLS, lease(RWH))];
    let mut request = rig.open_request("file", 0xff, &contexts);
    let header = rig.header(Command::CREATE, 1);
    header.write(&mut request);
    assert_eq!(rig.ask(request).0, Status::OBJECT_NAME_NOT_FOUND, "another user");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::SUCCESS, "and still it is the client's");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::OBJECT_NAME_NOT_FOUND, "once");
}

#[test]
fn a_file_that_others_had_since_its_grace_is_not_opened_afresh() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    files.borrow_mut().all_lost(first.now, 1);
    // Version 2 was granted for a minute: it is over together with the grace.
    files.borrow_mut().handle_timeout(first.now + Duration::from_secs(59));
    assert_eq!(files.borrow().absent(), 1);
    files.borrow_mut().handle(first.now, LinkId(9), FileEvent::Client { guid: [9; 16] });
    files.borrow_mut().handle_timeout(first.now + Duration::from_secs(61));
    assert_eq!(files.borrow().absent(), 0, "the client's time is over");
    let mut rig = client(2, &disk, &files);
    rig.log_in("alice");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::OBJECT_NAME_NOT_FOUND);
}

/// Asks for a resilient handle, for so many milliseconds.
fn make_resilient(rig: &mut Rig, file: FileId, timeout: u32, input: usize) -> Status {
    let mut asked = timeout.to_le_bytes().to_vec();
    asked.resize(input, 0);
    let params =
        IoctlParams { ctl_code: fsctl::LMR_REQUEST_RESILIENCY, file_id: file, input: &asked, max_output: 0 };
    let request = encode::ioctl(&rig.header(Command::IOCTL, 0), &params);
    rig.ask(request).0
}

/// DHnC without a lease.
fn come_back_to_resilient(rig: &mut Rig, file: FileId) -> (Status, Vec<u8>) {
    let contexts: [(&[u8], Vec<u8>); 1] = [(tag::DHNC, encode::durable_reconnect(file))];
    let request = rig.open_request("file", 0, &contexts);
    rig.ask(request)
}

/// Samba has no such handles: the proxy promises them, and keeps the file from others while its client is away.
#[test]
fn a_resilient_handle_is_kept_with_its_locks_although_no_node_knows_of_it() {
    for bridge in [false, true] {
        let (disk, files) = (Disk::default(), Rc::default());
        let mut first = client(1, &disk, &files);
        first.put("file", 77, b"text");
        first.log_in("alice");
        let file = first.open(0, "file");
        if bridge {
            first.fail_over();
        }
        assert_eq!(make_resilient(&mut first, file, 300_001, 8), Status::INVALID_PARAMETER, "too long");
        assert_eq!(make_resilient(&mut first, file, 1000, 4), Status::INVALID_PARAMETER, "too short");
        assert_eq!(make_resilient(&mut first, file, 90_000, 8), Status::SUCCESS);
        for node in &first.nodes {
            assert!(node.seen(Command::IOCTL).is_empty(), "a node is asked for what it does not have");
        }
        assert_eq!(lock(&mut first, file), Status::SUCCESS);
        goes_away(&mut first);
        let mut other = Rig::with(LinkId(3), Rig::new().users(), &disk, &files);
        other.client_guid = [9; 16];
        other.negotiate();
        other.log_in("bob");
        let request = other.open_request("file", 0, &[]);
        let waits = other.send(&[request])[0];
        assert!(other.final_answer(waits).is_none(), "the file is somebody else's");
        files.borrow_mut().handle_timeout(first.now + Duration::from_secs(89));
        let mut rig = client(2, &disk, &files);
        rig.log_in("alice");
        let (status, msg) = come_back_to_resilient(&mut rig, file);
        assert_eq!(status, Status::SUCCESS);
        assert_eq!(create::Response::parse(&msg).unwrap().file_id, file);
        assert_eq!(rig.nodes[0].seen(Command::LOCK).len(), 1, "without its lock");
        other.show_files();
        other.pump();
        assert!(other.final_answer(waits).is_none(), "a break would come before the client is ready for it");
        files.borrow_mut().handle_timeout(rig.now + Duration::from_millis(500));
        other.show_files();
        other.pump();
        assert_eq!(Status(other.answer(waits).0.status), Status::SUCCESS, "as the node says now");
        // And once more, for longer than was promised.
        rig.link.handle_client_closed(rig.now);
        rig.pump();
        files.borrow_mut().link_gone(LinkId(2));
        files.borrow_mut().handle_timeout(first.now + Duration::from_secs(91));
        assert_eq!(files.borrow().absent(), 0);
    }
}

/// A file that others rename while its client is away is found, and recorded, by its new name.
#[test]
fn what_is_renamed_meanwhile_is_recorded_by_its_new_name() {
    let (mut first, file, disk, files) = at_work();
    let mut other = Rig::with(LinkId(3), Rig::new().users(), &disk, &files);
    other.client_guid = [9; 16];
    other.negotiate();
    other.log_in("bob");
    let theirs = other.open(0, "file");
    goes_away(&mut first);
    assert_eq!(other.ask(other.set_name(0, theirs, RENAME, "moved", false)).0, Status::SUCCESS);
    let close = encode::close(&other.header(Command::CLOSE, 0), 0, theirs);
    assert_eq!(other.ask(close).0, Status::SUCCESS);
    let stored = std::iter::from_fn(|| files.borrow_mut().poll_mutation());
    let last = stored.filter_map(|mutation| match mutation {
        Mutation::PutAway(record, _) => Some(record.path),
        _ => None,
    });
    let moved: Vec<u8> = "moved".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(last.last(), Some(moved.into()));
    files.borrow_mut().all_lost(first.now, 1);
    let mut rig = client(2, &disk, &files);
    rig.log_in("alice");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::INVALID_PARAMETER, "by its old name");
    let contexts: [(&[u8], Vec<u8>); 2] =
        [(tag::DH2C, encode::durable_v2_reconnect(file, GUID, 0)), (tag::RQLS, lease(RWH))];
    let request = rig.open_request("moved", 0xff, &contexts);
    assert_eq!(rig.ask(request).0, Status::SUCCESS);
}

/// The last of the sessions that the store has.
fn session_record(rig: &Rig) -> SessionRecord {
    let put = rig.stored.iter().rev().find_map(|mutation| match mutation {
        Mutation::PutSession(record) => Some((**record).clone()),
        _ => None,
    });
    put.expect("no session is stored")
}

/// Of a proxy that is only stopped, the sessions live on.
#[test]
fn the_sessions_of_a_proxy_before_are_ended_before_anything_is_had_again() {
    let (mut first, file, disk, _) = at_work();
    let files = Rc::new(RefCell::new(Files::with_grace(MINUTE)));
    for record in records(&first) {
        files.borrow_mut().load(first.now, record, None);
    }
    let known = session_record(&first);
    let other = |session: u64, node_session: u64| SessionRecord {
        session: Hex(session.to_be_bytes()),
        node_session: Hex(node_session.to_be_bytes()),
        ..known.clone()
    };
    let bobs = SessionRecord { user: known.user.replace("alice", "bob"), ..other(0x42, 0x4742) };
    let elsewhere = SessionRecord { node: "nowhere".into(), ..other(0x43, 0x4743) };
    let strangers = SessionRecord { client: Hex([3; 16]), ..other(0x44, 0x4744) };
    for record in [known.clone(), other(0x41, 0x4741), bobs, elsewhere, strangers] {
        files.borrow_mut().load_session(first.now, record);
    }
    let mut rig = client(2, &disk, &files);
    nodes_kept(&mut first, &mut rig);
    rig.log_in("alice");
    assert_eq!(rig.link.mode(), "bridge");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::SUCCESS);
    let ended = |rig: &Rig| {
        let logins = rig.nodes[0].seen(Command::SESSION_SETUP);
        let named = |msg: &[u8]| session_setup::Request::parse(msg).unwrap().previous_session_id;
        let mut named: Vec<_> = logins.iter().map(|(_, msg)| named(msg)).filter(|id| *id != 0).collect();
        named.dedup();
        named
    };
    let mut all = ended(&rig);
    all.sort_unstable();
    let mut expected = [u64::from_be_bytes(known.node_session.0), 0x4741];
    expected.sort_unstable();
    assert_eq!(all, expected, "once each, those of alice at this node");
    let removed = |files: &Rc<RefCell<Files>>| {
        let mut removed = Vec::new();
        while let Some(mutation) = files.borrow_mut().poll_mutation() {
            if let Mutation::RemoveSession { session, .. } = mutation {
                removed.push(session);
            }
        }
        removed.sort_unstable();
        removed
    };
    let mut expected = vec![0x41, u64::from_be_bytes(known.session.0)];
    expected.sort_unstable();
    assert_eq!(removed(&files), expected);
    // In Bridge, too.
    rig.log_in("bob");
    assert!(ended(&rig).contains(&0x4742), "a further user's is not ended");
    assert_eq!(removed(&files), [0x42]);
    // Nobody came for the others.
    assert!(files.borrow().poll_timeout().is_some());
    files.borrow_mut().handle_timeout(first.now + MINUTE);
    assert_eq!(removed(&files), [0x43, 0x44]);
}

/// What they had open is not there before: no CREATE goes out until the last login is done.
#[test]
fn nothing_is_opened_before_the_last_of_them_is_ended() {
    let (mut first, file, disk, _) = at_work();
    let files = Rc::new(RefCell::new(Files::with_grace(MINUTE)));
    for record in records(&first) {
        files.borrow_mut().load(first.now, record, None);
    }
    let known = session_record(&first);
    for number in 1..4_u64 {
        let session = Hex(number.to_be_bytes());
        let record = SessionRecord { session, node_session: session, ..known.clone() };
        files.borrow_mut().load_session(first.now, record);
    }
    let mut rig = client(2, &disk, &files);
    nodes_kept(&mut first, &mut rig);
    rig.log_in("alice");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::SUCCESS);
    let first_open = rig.nodes[0].seen.iter().position(|(header, _)| header.command == Command::CREATE);
    let before = &rig.nodes[0].seen[..first_open.unwrap()];
    let logins = before.iter().filter(|(header, _)| header.command == Command::SESSION_SETUP);
    let mut ended: Vec<_> =
        logins.map(|(_, msg)| session_setup::Request::parse(msg).unwrap().previous_session_id).collect();
    ended.sort_unstable();
    ended.dedup();
    assert!(ended.ends_with(&[1, 2, 3]), "{ended:?}");
}

/// While the node kept the file for its client, somebody else has opened it: the node has given it up for that, and a further
/// node is not asked for it afresh.
#[test]
fn what_somebody_else_has_had_is_not_opened_afresh_on_another_node() {
    let (mut first, file, disk, files) = at_work();
    goes_away(&mut first);
    let mut other = Rig::with(LinkId(3), Rig::new().users(), &disk, &files);
    other.client_guid = [9; 16];
    other.negotiate();
    other.log_in("bob");
    let theirs = other.open(0, "file");
    let close = encode::close(&other.header(Command::CLOSE, 0), 0, theirs);
    assert_eq!(other.ask(close).0, Status::SUCCESS);
    files.borrow_mut().all_lost(first.now, 1);
    let mut rig = client(2, &disk, &files);
    rig.log_in("alice");
    assert_eq!(come_back(&mut rig, file, GUID).0, Status::OBJECT_NAME_NOT_FOUND);
}
