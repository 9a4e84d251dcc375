//! Scenarios of a [`Link`](understudy_core::link::Link): one client, two nodes on one disk, virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod appends;
mod barrier;
mod caching;
mod debug;
mod directories;
mod footprint;
mod judged;
mod lock_sequences;
mod logins;
mod names;
mod node;
mod reclaim;
mod renames;
mod replay;
mod returns;
mod rig;
mod sealed;
mod shutdown;
mod side_channel;

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::{lock::Lock, oplock_break, read},
    encode::{self, IoctlParams, QueryInfoParams},
    frame::PREFIX,
    fsctl,
    header::{Command, Flags, Header, Status},
    patch,
};
use understudy_core::{
    effect::CloseReason,
    event::{Cause, FileEvent, LegLoss, SessionLoss},
    ids::{LegId, LinkId, OpenToken},
};

use crate::{
    node::{Disk, Habits, Node},
    rig::{Rig, Users},
};

const TEXT: &[u8] = b"nobody notices";

/// A client that has logged in as `user` and opened a file.
fn at_work(user: &str) -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.negotiate();
    let session = rig.log_in(user);
    let file = rig.open(session, "file");
    (rig, file)
}

fn status(rig: &Rig, id: u64) -> Status {
    Status(rig.answer(id).0.status)
}

fn query(rig: &Rig, file: FileId) -> Vec<u8> {
    let params = QueryInfoParams {
        info_type: 1,
        file_info_class: 5,
        output_buffer_length: 64,
        additional_information: 0,
        flags: 0,
        file_id: file,
        input: &[],
    };
    encode::query_info(&rig.header(Command::QUERY_INFO, 0), &params)
}

/// Makes a message the follower of the one before it in its compound.
fn related(mut msg: Vec<u8>) -> Vec<u8> {
    patch::set_flags(&mut msg, Flags::RELATED);
    patch::set_session_id(&mut msg, u64::MAX);
    patch::set_tree_id(&mut msg, u32::MAX);
    msg
}

#[test]
fn relay_changes_no_byte() {
    let (mut rig, file) = at_work("alice");
    let (sent, delivered) = (rig.sent.len(), rig.delivered.len());
    let msg = rig.read(0, file, 0, 100);
    let frame = rig.cover(&[msg]);
    rig.send_raw(&frame);
    assert_eq!(rig.sent[sent..], [frame]);
    assert_eq!(&rig.delivered[delivered][PREFIX..], rig.inbox.last().unwrap());
}

#[test]
fn a_leg_that_the_link_does_not_know_changes_nothing() {
    let (mut rig, _) = at_work("alice");
    rig.nodes[1].habits.mute.push(Command::NEGOTIATE);
    rig.fail_over();
    let (stranger, due) = (LegId(99), rig.link.poll_timeout());
    let (inbox, sent) = (rig.inbox.len(), rig.sent.len());
    let answer = rig.delivered[0].clone();
    rig.now += Duration::from_secs(1);
    rig.link.handle_connected(rig.now, stranger);
    rig.link.handle_node_frame(rig.now, stranger, BytesMut::from(&answer[..]));
    rig.link.handle_leg_lost(rig.now, stranger, LegLoss::Closed);
    rig.pump();
    assert_eq!((rig.inbox.len(), rig.sent.len()), (inbox, sent));
    assert_eq!(rig.link.poll_timeout(), due, "it is not taken for the node that is waited for");
}

#[test]
fn a_read_in_flight_is_answered_once_by_the_other_node() {
    for user in ["alice", "nobody"] {
        let (mut rig, file) = at_work(user);
        rig.nodes[0].habits.mute.push(Command::READ);
        let id = rig.send(&[rig.read(0, file, 0, 100)])[0];
        assert!(rig.final_answer(id).is_none());
        rig.fail_over();
        let (header, msg) = rig.answer(id);
        assert_eq!(read::Response::parse(msg).unwrap().data, TEXT);
        assert_eq!(header.session_id, rig.sessions[0].id, "the client's own SessionId");
        assert_eq!(header.flags.contains(Flags::SIGNED), user == "alice");
        let (sent, _) = rig.nodes[1].seen(Command::READ)[0];
        assert_ne!(sent.session_id, rig.sessions[0].id, "the new node has ids of its own");
        let report = &rig.takeovers[0];
        assert_eq!((report.sessions, report.opens_reclaimed, report.replayed), (1, 1, 1));
        assert_eq!(rig.ask(rig.read(0, file, 0, 6)).0, Status::SUCCESS, "and it goes on");
    }
}

#[test]
fn a_write_executed_but_not_answered_is_written_again() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[0].habits.swallows.push(Command::WRITE);
    let id = rig.send(&[rig.write(0, file, 0, b"NOBODY")])[0];
    rig.fail_over();
    assert_eq!(status(&rig, id), Status::SUCCESS);
    assert_eq!(rig.nodes[1].seen(Command::WRITE).len(), 1);
    assert_eq!(rig.get("file"), b"NOBODY notices");
}

#[test]
fn an_open_in_flight_gets_an_id_that_is_no_nodes() {
    let (mut rig, first) = at_work("alice");
    rig.nodes[0].habits.mute.push(Command::CREATE);
    let id = rig.send(&[rig.create(0, "file", 3)])[0];
    rig.fail_over();
    let (_, msg) = rig.answer(id);
    let second = patch::response_file_id(msg).unwrap();
    assert_ne!(second, first);
    assert!(!rig.nodes[1].opens.contains_key(&second.volatile));
    for file in [first, second] {
        assert_eq!(rig.ask(rig.read(0, file, 0, 6)).0, Status::SUCCESS);
    }
}

#[test]
fn after_a_takeover_nothing_unsigned_or_forged_is_passed_on() {
    let (mut rig, file) = at_work("alice");
    rig.fail_over();
    let before = rig.nodes[1].seen.len();
    let msg = rig.write(0, file, 0, b"forged");
    let mut frame = rig.cover(&[msg]);
    let last = frame.len() - 1;
    frame[last] ^= 1;
    rig.send_raw(&frame);
    let (header, _) = (rig.answer(header_of(&frame).message_id).0, ());
    assert_eq!(Status(header.status), Status::ACCESS_DENIED);
    assert!(!header.flags.contains(Flags::SIGNED), "nothing is signed for a request that was not verified");
    assert_eq!((rig.nodes[1].seen.len(), rig.refused), (before, 1));
    assert_eq!(rig.get("file"), TEXT);
}

fn header_of(frame: &[u8]) -> Header {
    Header::parse(&frame[PREFIX..]).unwrap()
}

#[test]
fn a_recorded_request_is_not_accepted_a_second_time() {
    let (mut rig, file) = at_work("alice");
    rig.fail_over();
    let msg = rig.read(0, file, 0, 6);
    let frame = rig.cover(&[msg]);
    rig.send_raw(&frame);
    let before = rig.nodes[1].seen.len();
    rig.send_raw(&frame);
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "MS-SMB2 3.3.5.2.3");
    assert_eq!(rig.nodes[1].seen.len(), before);
}

#[test]
fn a_related_close_closes_what_its_compound_has_opened() {
    let (mut rig, _) = at_work("alice");
    for after_takeover in [false, true] {
        let parts = [rig.create(0, "file", 1), query(&rig, FileId::ALL_ONES)];
        let close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
        let [create, query] = parts;
        let ids = rig.send(&[create, related(query), related(close)]);
        for id in ids {
            assert_eq!(status(&rig, id), Status::SUCCESS, "after a takeover: {after_takeover}");
        }
        assert_eq!(rig.files.borrow().opens(), 1, "the file of before alone is open");
        if !after_takeover {
            rig.fail_over();
            assert_eq!(rig.nodes[1].seen(Command::CREATE).len(), 1, "and nothing else is reclaimed");
        }
    }
}

#[test]
fn a_compound_in_flight_is_sent_again_as_one() {
    let (mut rig, _) = at_work("alice");
    rig.nodes[0].habits.mute = vec![Command::CREATE, Command::QUERY_INFO, Command::CLOSE];
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
    let ids = rig.send(&[rig.create(0, "file", 1), related(query(&rig, FileId::ALL_ONES)), related(close)]);
    rig.fail_over();
    for id in ids {
        assert_eq!(status(&rig, id), Status::SUCCESS);
    }
    assert_eq!(rig.files.borrow().opens(), 1);
}

#[test]
fn a_compound_cut_behind_its_create_goes_on_alone() {
    let (mut rig, _) = at_work("alice");
    rig.nodes[0].habits.mute = vec![Command::QUERY_INFO, Command::CLOSE];
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
    let ids = rig.send(&[rig.create(0, "file", 1), related(query(&rig, FileId::ALL_ONES)), related(close)]);
    assert_eq!(status(&rig, ids[0]), Status::SUCCESS);
    rig.fail_over();
    assert_eq!((status(&rig, ids[1]), status(&rig, ids[2])), (Status::SUCCESS, Status::SUCCESS));
    let (header, msg) = rig.nodes[1].seen(Command::QUERY_INFO)[0];
    assert!(!header.flags.contains(Flags::RELATED));
    assert_ne!(patch::request_file_id(msg), Some(FileId::ALL_ONES));
    assert_eq!(rig.files.borrow().opens(), 1, "the file of before alone is open");
}

#[test]
fn one_interim_at_most_whoever_sends_it() {
    // The lost node's own, then the new node's.
    let (mut rig, file) = at_work("alice");
    rig.nodes.iter_mut().for_each(|n| n.habits.pends.push(Command::READ));
    rig.nodes[0].habits.swallows.push(Command::READ);
    let id = rig.send(&[rig.read(0, file, 0, 100)])[0];
    rig.fail_over();
    let (header, _) = rig.answer(id);
    assert_eq!(header.async_id(), Some(id + 0x1_0000), "the AsyncId that the client knows");
    assert_eq!(header.credits, 0, "the interim has granted them");
    // Ours, then the new node's.
    let (mut rig, file) = at_work("alice");
    rig.nodes[1].habits.pends.push(Command::READ);
    rig.nodes[0].habits.mute.push(Command::READ);
    let id = rig.send(&[rig.read(0, file, 0, 100)])[0];
    rig.crash();
    rig.wait(Duration::from_secs(2));
    let pending = rig.inbox.last().map(|msg| Header::parse(msg).unwrap()).unwrap();
    assert_eq!((pending.status, pending.credits), (Status::PENDING.0, 0));
    assert!(!pending.flags.contains(Flags::SIGNED));
    rig.assign(1);
    let (header, _) = rig.answer(id);
    assert_eq!(header.async_id(), Some(id));
    assert!(header.credits > 0);
}

#[test]
fn a_window_of_credits_stays_open_over_takeovers() {
    let (mut rig, file) = at_work("alice");
    for round in 0..3 {
        rig.up = vec![true, true];
        let known = rig.users();
        let serving = rig.leg.unwrap().1;
        rig.nodes[1 - serving] = Node::new(0x9000 + round * 0x1000, &rig.disk, &known);
        for _ in 0..50 {
            assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
            assert!(rig.credits() > 0);
        }
        rig.nodes[serving].habits.mute.push(Command::READ);
        rig.send(&[rig.read(0, file, 0, 4)]);
        rig.fail_over();
        assert!(rig.credits() > 0);
    }
}

#[test]
fn a_user_nobody_can_act_for_is_let_go_at_once() {
    let (mut rig, _) = at_work("mallory");
    rig.crash();
    assert_eq!(rig.closed, Some(CloseReason::Unprotected));
}

#[test]
fn beside_a_protected_user_the_unprotected_session_ends_alone() {
    let (mut rig, file) = at_work("alice");
    let other = rig.log_in("mallory");
    rig.nodes[0].habits.mute.push(Command::READ);
    let theirs = rig.open(other, "file");
    let lost = rig.send(&[rig.read(other, theirs, 0, 4)])[0];
    rig.fail_over();
    let (header, _) = rig.answer(lost);
    assert_eq!(Status(header.status), Status::USER_SESSION_DELETED);
    assert!(!header.flags.contains(Flags::SIGNED));
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(rig.takeovers[0].sessions_lost, 1);
    assert_eq!(rig.losses, [SessionLoss::Unprotected]);
    assert_eq!(rig.closed, None);
}

#[test]
fn a_node_that_maps_to_guest_does_not_get_the_users_writes() {
    let (mut rig, _) = at_work("alice");
    rig.nodes[1].habits.maps_to_guest = true;
    rig.fail_over();
    assert_eq!(rig.closed, Some(CloseReason::TakeoverFailed));
    assert_eq!(rig.losses, [SessionLoss::Refused]);
    assert!(rig.nodes[1].seen(Command::CREATE).is_empty());
}

#[test]
fn what_must_not_reach_a_node_is_replaced_by_an_echo() {
    let (mut rig, file) = at_work("alice");
    for _ in 0..2 {
        let params = IoctlParams {
            ctl_code: fsctl::QUERY_NETWORK_INTERFACE_INFO,
            file_id: FileId::ALL_ONES,
            input: &[],
            max_output: 4096,
        };
        let ioctl = encode::ioctl(&rig.header(Command::IOCTL, 0), &params);
        let serving = rig.leg.unwrap().1;
        let (status, msg) = rig.ask(ioctl);
        assert_eq!(status, Status::INVALID_DEVICE_REQUEST);
        assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED));
        assert!(rig.nodes[serving].seen(Command::IOCTL).is_empty());
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
        if serving == 0 {
            let (echo, _) = rig.nodes[0].seen(Command::ECHO)[0];
            assert_eq!((echo.session_id, echo.flags.contains(Flags::SIGNED)), (0, false));
            rig.fail_over();
        }
    }
}

#[test]
fn an_answer_of_ours_is_signed_only_if_the_request_was_signed_rightly() {
    let (mut rig, file) = at_work("alice");
    let params = IoctlParams {
        ctl_code: fsctl::QUERY_NETWORK_INTERFACE_INFO,
        file_id: FileId::ALL_ONES,
        input: &[],
        max_output: 4096,
    };
    let mut frame = rig.cover(&[encode::ioctl(&rig.header(Command::IOCTL, 0), &params)]);
    frame[PREFIX + 48] ^= 1;
    rig.send_raw(&frame);
    let header = rig.answer(header_of(&frame).message_id).0;
    assert_eq!(Status(header.status), Status::ACCESS_DENIED);
    assert!(!header.flags.contains(Flags::SIGNED));
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS, "the connection goes on");
}

#[test]
fn while_no_node_serves_an_echo_is_answered_and_the_deadline_holds() {
    let (mut rig, file) = at_work("alice");
    rig.crash();
    let echo = rig.header(Command::ECHO, 0);
    assert_eq!(rig.ask(encode::echo(&echo)).0, Status::SUCCESS);
    let id = rig.send(&[rig.read(0, file, 0, 4)])[0];
    rig.wait(Duration::from_secs(59));
    assert!(rig.closed.is_none() && rig.final_answer(id).is_none());
    rig.wait(Duration::from_secs(2));
    assert_eq!(rig.closed, Some(CloseReason::Deadline));
}

#[test]
fn nobody_cancels_what_is_kept_of_another_session() {
    let (mut rig, file) = at_work("alice");
    let nobody = rig.log_in("nobody");
    rig.nodes[0].habits.mute.push(Command::READ);
    let id = rig.send(&[rig.read(0, file, 0, 4)])[0];
    rig.crash();
    let nobody = rig.sessions[nobody].id;
    for session in [0, nobody] {
        let mut header = Header::request(Command::CANCEL, id);
        header.session_id = session;
        rig.send_raw(&encode::frame(encode::cancel(&header)));
        assert!(rig.final_answer(id).is_none(), "it is alice's");
    }
    rig.assign(1);
    assert_eq!(status(&rig, id), Status::SUCCESS);
}

#[test]
fn what_belongs_to_a_session_is_refused_without_one() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[1].habits.oplock = Some(1);
    rig.fail_over();
    let seen = rig.nodes[1].seen.len();
    let ack = encode::oplock_break_ack(&rig.header(Command::OPLOCK_BREAK, 0), file, 1);
    for mut msg in [rig.read(0, file, 0, 4), ack.clone()] {
        patch::set_session_id(&mut msg, 0);
        assert_eq!(rig.ask(msg).0, Status::USER_SESSION_DELETED);
    }
    assert_eq!(rig.ask(ack).0, Status::SUCCESS, "alice's own still counts");
    assert_eq!(rig.nodes[1].seen.len(), seen);
    assert_eq!(rig.ask(encode::echo(&Header::request(Command::ECHO, 0))).0, Status::SUCCESS);
}

#[test]
fn another_file_under_the_name_loses_that_open_alone() {
    let (mut rig, file) = at_work("alice");
    rig.put("other", 5, b"kept");
    let kept = rig.open(0, "other");
    rig.put("file", 78, b"a stranger");
    rig.fail_over();
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::FILE_CLOSED);
    assert_eq!(rig.ask(rig.read(0, kept, 0, 4)).0, Status::SUCCESS);
    let strangers = rig.nodes[1].opens.values().filter(|name| *name == "file").count();
    assert_eq!(strangers, 0, "what was opened by mistake is closed again");
    assert_eq!((rig.takeovers[0].opens_reclaimed, rig.takeovers[0].opens_lost), (1, 1));
}

#[test]
fn a_close_that_deleted_the_file_has_succeeded() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[0].habits.swallows.push(Command::CLOSE);
    let close = encode::close(&rig.header(Command::CLOSE, 0), 1, file);
    let id = rig.send(&[close])[0];
    rig.disk.borrow_mut().remove("file");
    rig.fail_over();
    assert_eq!(status(&rig, id), Status::SUCCESS);
    assert_eq!(rig.files.borrow().opens(), 0);
}

#[test]
fn a_node_down_before_it_has_said_a_word_is_never_noticed() {
    let mut rig = Rig::new();
    rig.nodes[0].habits.mute.push(Command::NEGOTIATE);
    rig.nodes[1].habits = Habits::default();
    rig.put("file", 77, TEXT);
    rig.later_node = Some(1);
    rig.negotiate();
    let session = rig.log_in("alice");
    rig.open(session, "file");
    assert_eq!(rig.sent[0], rig.sent[1], "the same bytes went to both");
    assert_eq!(rig.link.mode(), "relay");
}

#[test]
fn a_dead_nodes_last_process_is_waited_for_but_not_for_ever() {
    let (mut rig, file) = at_work("alice");
    rig.assign(1);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(rig.nodes[0].seen(Command::READ).len(), 1, "its leg stands, so it still serves");
    rig.crash();
    assert_eq!(rig.takeovers.len(), 1, "the leg's end is what the takeover waited for");

    let (mut rig, file) = at_work("alice");
    rig.assign(1);
    rig.wait(Duration::from_secs(2));
    assert_eq!(rig.takeovers.len(), 1);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(rig.nodes[1].seen(Command::READ).len(), 1);
}

#[test]
fn a_node_that_sits_on_an_answer_is_asked_on_a_fresh_leg() {
    for command in [Command::NEGOTIATE, Command::SESSION_SETUP] {
        let (mut rig, file) = at_work("alice");
        rig.nodes[1].habits.mute.push(command);
        rig.fail_over();
        rig.wait(Duration::from_secs(4));
        assert!(rig.takeovers.is_empty() && rig.leg.is_some(), "{}", command.name());
        rig.wait(Duration::from_secs(2));
        assert!(rig.leg.is_none(), "the leg is given up, and the Fleet is told");
        rig.assign(1);
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    }
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.nodes[0].habits.mute.push(Command::NEGOTIATE);
    rig.patience = Some(Duration::from_secs(6));
    rig.negotiate();
    let session = rig.log_in("alice");
    rig.open(session, "file");
    assert_eq!(rig.sent[0], rig.sent[1], "the same bytes once more");
}

#[test]
fn whoever_is_not_answered_yet_moves_unseen() {
    for cause in [Cause::Crash, Cause::Silence] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        rig.nodes[0].habits.mute.push(Command::NEGOTIATE);
        rig.moves = Some(cause);
        rig.negotiate();
        let session = rig.log_in("alice");
        rig.open(session, "file");
        assert_eq!((rig.leg.unwrap().1, rig.link.mode()), (1, "relay"));
    }
}

#[test]
fn a_second_loss_makes_a_request_a_suspect() {
    let (mut rig, file) = at_work("alice");
    rig.nodes.iter_mut().for_each(|n| n.habits.mute.push(Command::READ));
    let id = rig.send(&[rig.read(0, file, 0, 4)])[0];
    rig.fail_over();
    rig.up = vec![true, true];
    let known = rig.users();
    rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
    rig.fail_over();
    assert_eq!(status(&rig, id), Status::INTERNAL_ERROR);
    assert!(rig.nodes[0].seen(Command::READ).is_empty(), "no third node gets it");
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
}

#[test]
fn a_lock_that_is_waited_for_outlives_any_number_of_nodes() {
    let (mut rig, file) = at_work("alice");
    let waits = |node: &mut Node| {
        node.habits.pends.push(Command::LOCK);
        node.habits.swallows.push(Command::LOCK);
    };
    rig.nodes.iter_mut().for_each(waits);
    let lock =
        encode::lock(&rig.header(Command::LOCK, 0), file, 0, &[Lock { offset: 0, length: 1, flags: 2 }]);
    let id = rig.send(&[lock])[0];
    let known = rig.users();
    for death in 0..5 {
        rig.fail_over();
        assert!(rig.final_answer(id).is_none(), "it is still waited for");
        let (alive, dead) = (1 - death % 2, death % 2);
        assert_eq!(rig.nodes[alive].seen(Command::LOCK).len(), 1);
        rig.up = vec![true, true];
        rig.nodes[dead] = Node::new(0x7000 + 0x1000 * death as u64, &rig.disk, &known);
        waits(&mut rig.nodes[dead]);
    }
}

#[test]
fn a_file_waits_for_the_opens_of_other_links() {
    let (disk, files): (Disk, Rc<RefCell<_>>) = Default::default();
    let users = Users([("alice".to_owned(), 3)].into());
    let mut rig = Rig::with(LinkId(1), users, &disk, &files);
    rig.put("file", 77, TEXT);
    rig.put("free", 78, TEXT);
    rig.negotiate();
    let session = rig.log_in("alice");
    let (file, free) = (rig.open(session, "file"), rig.open(session, "free"));
    let (other, open) = (LinkId(2), OpenToken(1));
    rig.opened_elsewhere(other, open, "file");
    rig.file_event(other, FileEvent::Lost);
    rig.fail_over();
    let parked = rig.send(&[rig.read(0, file, 0, 4)])[0];
    let opening = rig.send(&[rig.create(0, "free", 1)])[0];
    let passed = rig.send(&[rig.read(0, free, 0, 4)])[0];
    assert_eq!(status(&rig, passed), Status::SUCCESS, "another file is not held");
    assert!(rig.final_answer(parked).is_none() && rig.final_answer(opening).is_none());
    rig.file_event(other, FileEvent::Reclaimed { open, generation: 2 });
    rig.show_files();
    rig.pump();
    assert_eq!((status(&rig, parked), status(&rig, opening)), (Status::SUCCESS, Status::SUCCESS));
}

#[test]
fn whoever_waits_too_long_for_a_barrier_is_told_so() {
    let (mut rig, file) = at_work("alice");
    let (other, open) = (LinkId(2), OpenToken(1));
    rig.opened_elsewhere(other, open, "file");
    rig.file_event(other, FileEvent::Lost);
    rig.show_files();
    rig.fail_over();
    let parked = rig.send(&[rig.read(0, file, 0, 4)])[0];
    rig.wait(Duration::from_secs(11));
    assert_eq!(status(&rig, parked), Status::SHARING_VIOLATION);
}

#[test]
fn less_than_before_is_told_by_a_break() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[1].habits.oplock = Some(1);
    rig.fail_over();
    let notice = rig.inbox.iter().find(|m| Header::parse(m).unwrap().message_id == u64::MAX).unwrap();
    let expected = oplock_break::Notification::Oplock { oplock_level: 1, file_id: file };
    assert_eq!(oplock_break::Notification::parse(notice), Ok(expected));
    let ack = encode::oplock_break_ack(&rig.header(Command::OPLOCK_BREAK, 0), file, 1);
    assert_eq!(rig.ask(ack).0, Status::SUCCESS);
    assert!(rig.nodes[1].seen(Command::OPLOCK_BREAK).is_empty(), "the node has asked for no acknowledgement");
}
