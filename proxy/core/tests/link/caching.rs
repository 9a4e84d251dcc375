//! What breaks, acknowledgements and locks look like on the wire, around a takeover.

use std::time::Duration;

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::{create, lock::Lock, oplock_break::Notification},
    create_context::{Lease, RequestContext, ResponseContext, tag},
    encode::{self, LeaseBreak},
    header::{Command, Header, Status},
};
use understudy_core::ids::{LinkId, OpenToken};

use crate::{at_work, rig::Rig};

const KEY: [u8; 16] = [7; 16];
const PARENT: [u8; 16] = [8; 16];
const PARENT_SET: u32 = 4;
const BREAK_IN_PROGRESS: u32 = 2;
const UNLOCK: u32 = 4;
const EXCLUSIVE_NOW: u32 = 0x12;

fn wanted(state: u32) -> Lease {
    Lease { key: KEY, state, flags: PARENT_SET, duration: 0, parent_key: PARENT, epoch: 0, version: 2 }
}

/// Opens with a lease: what was granted.
fn open_leased(rig: &mut Rig, state: u32) -> (FileId, Lease) {
    let contexts: [(&[u8], Vec<u8>); 1] = [(tag::RQLS, encode::lease(&wanted(state)))];
    let (status, msg) = rig.ask(rig.open_request("file", 0xff, &contexts));
    assert_eq!(status, Status::SUCCESS);
    let answer = create::Response::parse(&msg).unwrap();
    let lease = answer.contexts().flatten().find_map(|c| match ResponseContext::parse(&c) {
        ResponseContext::Lease(lease) => Some(lease),
        _ => None,
    });
    (answer.file_id, lease.unwrap())
}

/// A client with a lease in this state, which the first node says is of epoch 5. The second node grants `second`.
fn leased(state: u32, second: (u32, u16)) -> (Rig, FileId) {
    let (mut rig, _) = at_work("alice");
    rig.nodes[0].habits.lease = Some((7, 5));
    rig.nodes[1].habits.lease = Some(second);
    let (file, lease) = open_leased(&mut rig, state);
    assert_eq!((lease.state, lease.epoch), (state, 5));
    (rig, file)
}

/// The node that serves breaks the lease.
fn node_breaks(rig: &mut Rig, current: u32, new: u32, epoch: u16) {
    let notice = LeaseBreak { epoch, flags: u32::from(current & 6 != 0), key: KEY, current, new };
    let header = Rig::break_header(0);
    let frame = encode::frame(encode::lease_break_notification(&header, &notice));
    let (leg, _) = rig.leg.unwrap();
    rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&frame[..]));
    rig.pump();
}

/// The breaks of the lease that the client has heard of: epoch, whether it is to acknowledge, from what, to what.
fn heard(rig: &Rig) -> Vec<(u16, bool, u32, u32)> {
    let notices = rig.inbox.iter().filter(|m| Header::parse(m).unwrap().message_id == u64::MAX);
    let of_lease = notices.filter_map(|m| match Notification::parse(m) {
        Ok(Notification::Lease {
            new_epoch, flags, lease_key, current_lease_state, new_lease_state, ..
        }) if lease_key == KEY => Some((new_epoch, flags & 1 != 0, current_lease_state, new_lease_state)),
        _ => None,
    });
    of_lease.collect()
}

fn acknowledgement(rig: &Rig, state: u32) -> Vec<u8> {
    encode::lease_break_ack(&rig.header(Command::OPLOCK_BREAK, 0), KEY, state)
}

/// The lease that the node was last asked for.
fn asked_for(rig: &Rig, node: usize) -> Lease {
    let creates = rig.nodes[node].seen(Command::CREATE);
    let leases = creates.iter().rev().flat_map(|(_, msg)| {
        let asked = create::Request::parse(msg).unwrap();
        let contexts = asked.contexts().flatten();
        contexts
            .filter_map(|c| match RequestContext::parse(&c) {
                RequestContext::Lease(lease) => Some(lease),
                _ => None,
            })
            .collect::<Vec<_>>()
    });
    leases.into_iter().next().unwrap()
}

#[test]
fn a_lease_is_asked_for_as_it_was_granted_with_the_parent_that_the_client_named() {
    let (mut rig, _) = leased(3, (7, 0));
    rig.fail_over();
    let asked = asked_for(&rig, 1);
    assert_eq!((asked.key, asked.state, asked.version), (KEY, 3, 2));
    assert_eq!((asked.flags, asked.parent_key), (PARENT_SET, PARENT));
    assert!(heard(&rig).is_empty());
}

#[test]
fn epochs_go_on_from_what_the_client_has_heard() {
    let (mut rig, _) = leased(1, (7, 0));
    rig.fail_over();
    node_breaks(&mut rig, 1, 0, 1);
    assert_eq!(heard(&rig), [(6, false, 1, 0)]);
    rig.nodes[1].habits.lease = Some((7, 2));
    let (_, lease) = open_leased(&mut rig, 7);
    assert_eq!((lease.state, lease.epoch), (7, 7), "an upgrade");
}

#[test]
fn what_the_client_was_told_is_acknowledged_to_the_proxy_when_the_node_is_gone() {
    let (mut rig, file) = leased(7, (7, 0));
    node_breaks(&mut rig, 7, 3, 6);
    rig.fail_over();
    assert_eq!(asked_for(&rig, 1).state, 3, "no more than the client was told");
    assert!(rig.files.borrow().version() > 0);
    let (_, again) = open_leased(&mut rig, 7);
    assert_eq!((again.state, again.flags & BREAK_IN_PROGRESS), (3, BREAK_IN_PROGRESS));
    assert_eq!(rig.ask(rig.write(0, file, 0, b"flush")).0, Status::SUCCESS, "its own requests pass");
    assert_eq!(rig.ask(acknowledgement(&rig, 7)).0, Status::REQUEST_NOT_ACCEPTED);
    let (status, msg) = rig.ask(acknowledgement(&rig, 1));
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(msg.get(88..92), Some(&1_u32.to_le_bytes()[..]), "LeaseState");
    assert_eq!(heard(&rig).len(), 1, "one break, that of the node since lost");
    assert!(rig.nodes[1].seen(Command::OPLOCK_BREAK).is_empty());
    // The node has granted more than the client has now: what it breaks to that is no news.
    node_breaks(&mut rig, 3, 1, 1);
    assert_eq!(heard(&rig).len(), 1);
    assert_eq!(rig.nodes[1].seen(Command::OPLOCK_BREAK).len(), 1, "the proxy has acknowledged");
}

#[test]
fn an_acknowledgement_in_flight_is_answered_before_there_is_a_node() {
    let (mut rig, _) = leased(7, (7, 0));
    node_breaks(&mut rig, 7, 3, 6);
    rig.nodes[0].habits.mute = vec![Command::OPLOCK_BREAK];
    let ack = rig.send(&[acknowledgement(&rig, 3)])[0];
    rig.crash();
    assert_eq!(Status(rig.answer(ack).0.status), Status::SUCCESS);
    rig.assign(1);
    assert_eq!(asked_for(&rig, 1).state, 3);
    assert!(rig.nodes[1].seen(Command::OPLOCK_BREAK).is_empty());
}

#[test]
fn less_than_a_lease_had_is_told_with_the_next_epoch_and_others_wait_until_it_is_acknowledged() {
    let (mut rig, _) = leased(7, (1, 0));
    rig.fail_over();
    assert_eq!(heard(&rig), [(6, true, 7, 1)]);
    let files = rig.files.clone();
    rig.opened_elsewhere(LinkId(2), OpenToken(1), "file");
    assert!(files.borrow().is_held(LinkId(2), OpenToken(1)));
    // A further break waits until this one is acknowledged.
    node_breaks(&mut rig, 1, 0, 1);
    assert_eq!(heard(&rig).len(), 1);
    assert_eq!(rig.ask(acknowledgement(&rig, 1)).0, Status::SUCCESS);
    assert_eq!(heard(&rig), [(6, true, 7, 1), (7, false, 1, 0)]);
    assert!(!files.borrow().is_held(LinkId(2), OpenToken(1)));
}

#[test]
fn others_wait_no_longer_than_a_node_would_have_them_wait() {
    let (mut rig, _) = leased(7, (1, 0));
    rig.fail_over();
    rig.opened_elsewhere(LinkId(2), OpenToken(1), "file");
    rig.wait(Duration::from_secs(34));
    assert!(rig.files.borrow().is_held(LinkId(2), OpenToken(1)));
    rig.wait(Duration::from_secs(1));
    assert!(!rig.files.borrow().is_held(LinkId(2), OpenToken(1)));
}

#[test]
fn locks_are_taken_again_in_order_at_once_or_not_at_all_and_as_no_replay() {
    let (mut rig, file) = at_work("alice");
    let lock = |rig: &mut Rig, sequence, elements: &[Lock]| {
        let msg = encode::lock(&rig.header(Command::LOCK, 0), file, sequence, elements);
        rig.ask(msg).0
    };
    let range = |offset, flags| Lock { offset, length: 8, flags };
    assert_eq!(lock(&mut rig, 0x21, &[range(16, 2)]), Status::SUCCESS);
    assert_eq!(lock(&mut rig, 0x32, &[range(0, 1 | 0x10), range(8, 2 | 0x10)]), Status::SUCCESS);
    assert_eq!(lock(&mut rig, 0x43, &[range(0, UNLOCK)]), Status::SUCCESS);
    rig.fail_over();
    let seen = rig.nodes[1].seen(Command::LOCK);
    let asked = smb_parse::cmd::lock::Request::parse(&seen[0].1).unwrap();
    assert_eq!(asked.lock_sequence, 0);
    let elements: Vec<_> = asked.locks().flatten().collect();
    assert_eq!(elements, [range(16, EXCLUSIVE_NOW), range(8, EXCLUSIVE_NOW)]);
    assert_eq!(lock(&mut rig, 0x54, &[range(24, 2 | 0x10)]), Status::SUCCESS);
    let seen = rig.nodes[1].seen(Command::LOCK);
    assert_eq!(smb_parse::cmd::lock::Request::parse(&seen[1].1).unwrap().lock_sequence, 0x54);
}

#[test]
fn what_is_granted_when_a_node_waits_no_longer_is_broken_again() {
    let (mut rig, _) = leased(3, (3, 5));
    rig.fail_over();
    node_breaks(&mut rig, 3, 0, 6);
    assert_eq!(heard(&rig), [(6, true, 3, 0)]);
    // The client acknowledges too late, and opens the file once more.
    rig.nodes[1].habits.lease = Some((1, 7));
    let (_, lease) = open_leased(&mut rig, 1);
    assert_eq!(lease.state, 1);
    node_breaks(&mut rig, 1, 0, 8);
    assert_eq!(heard(&rig)[1..], [(8, false, 1, 0)]);
}
