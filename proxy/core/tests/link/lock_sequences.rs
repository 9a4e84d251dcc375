//! LOCKs that are repeated with the same LockSequence (MS-SMB2 3.3.5.14): a server says yes to them, and does nothing.

use smb_parse::{
    FileId,
    cmd::{
        create,
        lock::{self, Lock},
    },
    create_context::tag,
    encode,
    header::{Command, Status},
};

use crate::rig::Rig;

/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 9;
const EXCLUSIVE: u32 = 2;
const UNLOCK: u32 = 4;
const FAIL_IMMEDIATELY: u32 = 0x10;

/// A client with a file open, by a durable handle or not: LockSequences count on those.
fn holder(durable: bool) -> (Rig, FileId) {
    let mut rig = Rig::new();
    for node in &mut rig.nodes {
        node.habits.keeps = true;
    }
    rig.negotiate();
    rig.log_in("alice");
    rig.put("file", 77, b"text");
    let contexts = [(tag::DHNQ, encode::durable_request())];
    let asked = rig.open_request("file", BATCH, if durable { &contexts } else { &[] });
    let (status, msg) = rig.ask(asked);
    assert_eq!(status, Status::SUCCESS);
    (rig, create::Response::parse(&msg).unwrap().file_id)
}

fn request(rig: &Rig, file: FileId, sequence: u32, offset: u64, flags: u32) -> Vec<u8> {
    let element = Lock { offset, length: 8, flags };
    encode::lock(&rig.header(Command::LOCK, 0), file, sequence, &[element])
}

fn lock(rig: &mut Rig, file: FileId, sequence: u32, offset: u64, flags: u32) -> Status {
    let asked = request(rig, file, sequence, offset, flags);
    rig.ask(asked).0
}

/// What a node was asked to lock and unlock since: LockSequence, offsets and flags.
fn seen(rig: &Rig, node: usize) -> Vec<(u32, Vec<(u64, u32)>)> {
    let asked = rig.nodes[node].seen(Command::LOCK).into_iter();
    let asked = asked.map(|(_, msg)| lock::Request::parse(msg).unwrap());
    asked.map(|a| (a.lock_sequence, a.locks().flatten().map(|l| (l.offset, l.flags)).collect())).collect()
}

#[test]
fn what_a_node_did_not_do_again_is_not_locked_twice() {
    let (mut rig, file) = holder(true);
    for _ in 0..2 {
        assert_eq!(lock(&mut rig, file, 0x21, 16, EXCLUSIVE), Status::SUCCESS);
    }
    assert_eq!(lock(&mut rig, file, 0x22, 0, EXCLUSIVE), Status::SUCCESS);
    for (sequence, flags) in [(0x33, EXCLUSIVE), (0x41, UNLOCK), (0x34, EXCLUSIVE), (0x41, UNLOCK)] {
        assert_eq!(lock(&mut rig, file, sequence, 8, flags), Status::SUCCESS);
    }
    rig.fail_over();
    let now = EXCLUSIVE | FAIL_IMMEDIATELY;
    assert_eq!(seen(&rig, 1), [(0, vec![(16, now), (0, now), (8, now)])]);
}

#[test]
fn without_a_durable_handle_nothing_is_a_repetition() {
    let (mut rig, file) = holder(false);
    for _ in 0..2 {
        assert_eq!(lock(&mut rig, file, 0x21, 16, 1), Status::SUCCESS);
    }
    rig.fail_over();
    let now = 1 | FAIL_IMMEDIATELY;
    assert_eq!(seen(&rig, 1), [(0, vec![(16, now), (16, now)])], "shared locks add up");
}

#[test]
fn another_node_does_not_get_what_was_done_before_it() {
    let (mut rig, file) = holder(true);
    assert_eq!(lock(&mut rig, file, 0x21, 16, EXCLUSIVE), Status::SUCCESS);
    rig.fail_over();
    let before = seen(&rig, 1).len();
    assert_eq!(lock(&mut rig, file, 0x21, 16, EXCLUSIVE), Status::SUCCESS);
    assert_eq!(seen(&rig, 1).len(), before, "it would refuse that, for the lock is there");
    assert_eq!(lock(&mut rig, file, 0x22, 24, EXCLUSIVE), Status::SUCCESS);
    assert_eq!(seen(&rig, 1).last(), Some(&(0x22, vec![(24, EXCLUSIVE)])));
}

#[test]
fn an_unlock_in_flight_that_was_done_before_is_told_so() {
    let (mut rig, file) = holder(true);
    assert_eq!(lock(&mut rig, file, 0x21, 16, EXCLUSIVE), Status::SUCCESS);
    assert_eq!(lock(&mut rig, file, 0x31, 16, UNLOCK), Status::SUCCESS);
    rig.nodes[0].habits.mute = vec![Command::LOCK];
    let again = request(&rig, file, 0x31, 16, UNLOCK);
    let last = request(&rig, file, 0x51, 16, UNLOCK);
    let ids = [rig.send(&[again])[0], rig.send(&[last])[0]];
    rig.fail_over();
    let told = ids.map(|id| Status(rig.answer(id).0.status));
    assert_eq!(told, [Status::SUCCESS, Status(0xc000_007e)]);
    assert_eq!(lock(&mut rig, file, 0x51, 16, UNLOCK), Status::SUCCESS, "the rig's node says yes to all");
}

#[test]
fn what_is_sent_again_to_a_node_that_has_kept_the_open_is_done_again() {
    let (mut rig, file) = holder(true);
    rig.nodes[0].habits.mute = vec![Command::LOCK];
    let asked = request(&rig, file, 0x21, 16, EXCLUSIVE);
    let id = rig.send(&[asked])[0];
    rig.nodes[0].habits.mute.clear();
    rig.cut();
    // The node may have done it: it is undone, and done.
    let [.., undone, done] = &seen(&rig, 0)[..] else { panic!("{:?}", seen(&rig, 0)) };
    assert_eq!(*undone, (0, vec![(16, UNLOCK)]));
    assert_eq!(*done, (0, vec![(16, EXCLUSIVE)]), "it would be a repetition with its LockSequence");
    assert_eq!(Status(rig.answer(id).0.status), Status::SUCCESS);
}
