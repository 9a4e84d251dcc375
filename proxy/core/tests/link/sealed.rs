//! Sessions that are encrypted.

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::read,
    encode,
    frame::PREFIX,
    header::{Command, Header, Status},
};
use understudy_core::{
    crypto::{
        Dialect,
        sealing::{Cipher, Nonces},
    },
    effect::CloseReason,
    files::Files,
    ids::LinkId,
};

use crate::{
    node::{Disk, Habits, interim, response, seal},
    rig::{Rig, Users},
};

/// More than what is opened in Relay without need.
const BULK: usize = 20_000;

/// A client that seals, with a file open.
fn at_work(dialect: Dialect, cipher: Cipher) -> (Rig, FileId) {
    let mut rig = Rig::new();
    let file = begin(&mut rig, dialect, cipher);
    (rig, file)
}

fn begin(rig: &mut Rig, dialect: Dialect, cipher: Cipher) -> FileId {
    rig.put("a", 11, &[1; 10]);
    (rig.dialect, rig.cipher) = (dialect, Some(cipher));
    rig.negotiate();
    rig.seals = true;
    rig.log_in("alice");
    rig.open(0, "a")
}

fn gcm() -> (Rig, FileId) {
    at_work(Dialect::SMB311, Cipher::Aes128Gcm)
}

fn status(rig: &Rig, id: u64) -> Status {
    Status(rig.answer(id).0.status)
}

fn contents(rig: &mut Rig, file: FileId, len: usize) -> Vec<u8> {
    let asked = rig.read(0, file, 0, u32::try_from(len).unwrap());
    let (status, answer) = rig.ask(asked);
    assert_eq!(status, Status::SUCCESS);
    read::Response::parse(&answer).unwrap().data.to_vec()
}

/// Every cipher on 3.1.1, and the two older dialects with the only one they have.
fn variants() -> Vec<(Dialect, Cipher)> {
    let old = [Dialect::SMB300, Dialect::SMB302].map(|dialect| (dialect, Cipher::Aes128Ccm));
    Cipher::ALL.map(|cipher| (Dialect::SMB311, cipher)).into_iter().chain(old).collect()
}

#[test]
fn an_open_whose_name_another_file_has_taken_is_lost_alone() {
    let (mut rig, file) = gcm();
    rig.put("b", 12, &[2; 10]);
    let other = rig.open(0, "b");
    rig.put("b", 13, &[3; 10]);
    rig.fail_over();
    assert_eq!(rig.ask(rig.read(0, other, 0, 10)).0, Status::FILE_CLOSED);
    assert_eq!(contents(&mut rig, file, 10), [1; 10]);
    assert_eq!(rig.nodes[1].seen(Command::CLOSE).len(), 1, "and what was opened instead is closed again");
}

#[test]
fn what_a_client_has_sealed_goes_on_sealed_on_the_other_node() {
    for (dialect, cipher) in variants() {
        let (mut rig, file) = at_work(dialect, cipher);
        let write = rig.write(0, file, 0, &[2; BULK]);
        assert_eq!(rig.ask(write).0, Status::SUCCESS);
        rig.nodes[0].habits.swallows = vec![Command::WRITE];
        let (bulk, small) = (rig.write(0, file, 0, &[3; BULK]), rig.write(0, file, 5, &[4; 5]));
        let ids = [rig.send(&[bulk])[0], rig.send(&[small])[0]];
        rig.disk.borrow_mut().get_mut("a").unwrap().1.clear();
        rig.fail_over();
        assert_eq!(ids.map(|id| status(&rig, id)), [Status::SUCCESS; 2], "{cipher:?}");
        let wanted = [&[3; 5][..], &[4; 5], &[3; BULK - 10]].concat();
        assert_eq!(contents(&mut rig, file, BULK), wanted, "{dialect:?} {cipher:?}");
        let node = &rig.nodes[1];
        for ((header, _), sealed) in node.seen.iter().zip(&node.sealed) {
            let before = matches!(header.command, Command::NEGOTIATE | Command::SESSION_SETUP);
            assert_eq!(*sealed, !before, "{} to the other node", header.command.name());
        }
        assert_eq!(rig.refused, 0);
    }
}

#[test]
fn relay_changes_no_byte_of_a_sealed_frame() {
    let (mut rig, file) = gcm();
    for len in [10, BULK] {
        let frame = rig.write(0, file, 0, &vec![7; len]);
        let frame = rig.cover(&[frame]);
        rig.send_raw(&frame);
        assert_eq!(rig.sent.last(), Some(&frame));
    }
}

#[test]
fn a_compound_in_one_transform_is_sent_again_as_one() {
    let (mut rig, _) = gcm();
    rig.put("b", 12, b"of b");
    rig.nodes[0].habits.mute = vec![Command::CREATE, Command::READ, Command::CLOSE];
    let open = rig.create(0, "b", 1);
    let mut read = rig.read(0, FileId::ALL_ONES, 0, 4);
    let mut close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
    for msg in [&mut read, &mut close] {
        let header = Header::parse(msg).unwrap();
        smb_parse::patch::set_flags(msg, header.flags | smb_parse::header::Flags::RELATED);
    }
    let ids = rig.send(&[open, read, close]);
    rig.fail_over();
    for id in &ids {
        assert_eq!(status(&rig, *id), Status::SUCCESS);
    }
    assert_eq!(read::Response::parse(rig.answer(ids[1]).1).unwrap().data, b"of b");
    assert!(!rig.nodes[1].opens.values().any(|name| name == "b"));
}

#[test]
fn after_a_takeover_one_flipped_bit_ends_the_connection() {
    // Tag, nonce, session, message header, body.
    for at in [4, 20, 44, 52, 90, 130] {
        let (mut rig, file) = gcm();
        rig.fail_over();
        let seen = rig.nodes[1].seen.len();
        let write = rig.write(0, file, 0, &[9; 100]);
        let mut frame = rig.cover(&[write]);
        frame[PREFIX + at] ^= 1;
        rig.send_raw(&frame);
        assert_eq!(rig.closed, Some(CloseReason::SignatureInvalid), "byte {at}");
        assert_eq!((rig.nodes[1].seen.len(), rig.refused), (seen, 1), "byte {at}");
        assert_eq!(rig.get("a"), [1; 10]);
    }
}

#[test]
fn a_kept_write_that_does_not_open_is_not_replayed() {
    let (mut rig, file) = gcm();
    rig.nodes[0].habits.mute = vec![Command::WRITE];
    let write = rig.write(0, file, 0, &[9; BULK]);
    let mut frame = rig.cover(&[write]);
    let last = frame.len() - 1;
    frame[last] ^= 1;
    // The node would end the connection for it; it dies before that.
    rig.up[0] = false;
    let leg = rig.leg.take().unwrap();
    rig.send_raw(&frame);
    rig.leg = Some(leg);
    rig.crash();
    assert_eq!((rig.closed, rig.refused), (Some(CloseReason::SignatureInvalid), 1));
}

#[test]
fn what_must_be_sealed_is_refused_in_plain() {
    for habits in [
        Habits { encrypts_sessions: true, ..Habits::default() },
        Habits { encrypts_share: true, ..Habits::default() },
    ] {
        let mut rig = Rig::new();
        for node in &mut rig.nodes {
            node.habits = habits.clone();
        }
        let file = begin(&mut rig, Dialect::SMB311, Cipher::Aes128Gcm);
        rig.fail_over();
        assert_eq!(rig.closed, None);
        let seen = rig.nodes[1].seen.len();
        rig.seals = false;
        let read = rig.read(0, file, 0, 10);
        assert_eq!(rig.ask(read).0, Status::ACCESS_DENIED);
        assert_eq!(rig.nodes[1].seen.len(), seen, "it went on");
        rig.seals = true;
        assert_eq!(contents(&mut rig, file, 10), [1; 10]);
    }
}

#[test]
fn whoever_hides_the_tree_is_refused() {
    let mut rig = Rig::new();
    for node in &mut rig.nodes {
        node.habits.encrypts_share = true;
    }
    let file = begin(&mut rig, Dialect::SMB311, Cipher::Aes128Gcm);
    rig.fail_over();
    let seen = rig.nodes[1].seen.len();
    for seals in [false, true] {
        rig.seals = seals;
        let mut read = rig.read(0, file, 0, 10);
        smb_parse::patch::set_async_id(&mut read, 1);
        assert_eq!(rig.ask(read).0, Status::INVALID_PARAMETER);
    }
    assert_eq!(rig.nodes[1].seen.len(), seen, "it went on");
    assert_eq!(contents(&mut rig, file, 10), [1; 10]);
}

#[test]
fn plain_and_sealed_go_side_by_side() {
    let (mut rig, file) = gcm();
    for seals in [false, true, false] {
        rig.seals = seals;
        assert_eq!(contents(&mut rig, file, 10), [1; 10]);
    }
    rig.fail_over();
    for seals in [false, true, false, true] {
        rig.seals = seals;
        assert_eq!(contents(&mut rig, file, 10), [1; 10]);
        assert_eq!(rig.nodes[1].sealed.last(), Some(&seals));
    }
}

#[test]
fn a_node_that_cannot_seal_does_not_get_what_was_sealed() {
    let (mut rig, _) = gcm();
    rig.nodes[1].habits.seals_nothing = true;
    rig.fail_over();
    assert_eq!(rig.closed, Some(CloseReason::TakeoverFailed));
    assert!(rig.nodes[1].seen(Command::TREE_CONNECT).is_empty());
}

#[test]
fn our_interim_is_sealed_in_a_sealed_session() {
    let (mut rig, file) = gcm();
    rig.nodes[0].habits.mute = vec![Command::READ];
    let read = rig.read(0, file, 0, 10);
    let id = rig.send(&[read])[0];
    rig.crash();
    rig.wait(Duration::from_secs(2));
    let interims = rig.inbox.iter().map(|msg| Header::parse(msg).unwrap());
    assert_eq!(interims.filter(|h| h.message_id == id && h.status == Status::PENDING.0).count(), 1);
    rig.assign(1);
    assert_eq!(status(&rig, id), Status::SUCCESS);
}

#[test]
fn an_interim_that_is_not_sealed_is_not_sealed_for_the_client() {
    let (mut rig, file) = gcm();
    rig.fail_over();
    rig.nodes[1].habits.mute = vec![Command::READ];
    let read = rig.read(0, file, 0, 10);
    let id = rig.send(&[read])[0];
    let (asked, _) = rig.nodes[1].seen(Command::READ).last().unwrap();
    let forged = encode::frame(encode::error_response(&interim(asked)));
    let (leg, _) = rig.leg.unwrap();
    rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&forged[..]));
    rig.pump();
    let heard = rig.inbox.iter().any(|msg| Header::parse(msg).unwrap().message_id == id);
    assert_eq!((heard, rig.refused), (false, 1));
    rig.nodes[1].habits = Habits { pends: vec![Command::READ], ..Habits::default() };
    assert_eq!(contents(&mut rig, file, 10), [1; 10]);
    let interims = rig.inbox.iter().filter(|msg| Header::parse(msg).unwrap().status == Status::PENDING.0);
    assert_eq!((interims.count(), rig.refused), (1, 1), "a sealed one passes");
}

#[test]
fn every_sealed_request_is_answered_when_its_session_ends() {
    let (mut rig, file) = gcm();
    rig.fail_over();
    rig.nodes[1].habits.mute = vec![Command::READ];
    let reads = [rig.read(0, file, 0, 10), rig.read(0, file, 0, 5)];
    let ids = reads.map(|read| rig.send(&[read])[0]);
    let asked: Vec<_> = rig.nodes[1].seen(Command::READ).iter().map(|(header, _)| *header).collect();
    let (leg, _) = rig.leg.unwrap();
    for header in asked {
        // As a node says it that has ended the session: it has the keys no more.
        let answer = encode::frame(encode::error_response(&response(&header, Status::USER_SESSION_DELETED)));
        rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&answer[..]));
        rig.pump();
    }
    assert_eq!(ids.map(|id| status(&rig, id)), [Status::USER_SESSION_DELETED; 2]);
}

#[test]
fn nothing_is_done_in_a_session_that_another_ones_keys_have_sealed() {
    for len in [10, BULK] {
        let (mut rig, file) = gcm();
        let bob = rig.log_in("bob");
        rig.nodes[0].habits.mute = vec![Command::WRITE];
        let mut write = rig.write(bob, file, 0, &vec![9; len]);
        let next = Header::parse(&rig.nodes[0].seen.last().unwrap().1).unwrap().message_id + 1;
        smb_parse::patch::set_message_id(&mut write, next);
        let alice = rig.sessions[0].clone();
        let keys = alice.seals.unwrap();
        let frame = seal(&keys.to_server, alice.id, &mut Nonces::default(), &write);
        rig.send_raw(&frame);
        if rig.closed.is_none() {
            rig.fail_over();
        }
        assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "{len}");
        assert!(rig.nodes[1].seen(Command::WRITE).is_empty(), "{len}");
    }
}

#[test]
fn a_cancel_that_another_session_has_sealed_goes_nowhere() {
    let (mut rig, _) = gcm();
    let bob = rig.log_in("bob");
    rig.fail_over();
    let file = rig.open(bob, "a");
    rig.nodes[1].habits.mute = vec![Command::READ];
    let read = rig.read(bob, file, 0, 10);
    let id = rig.send(&[read])[0];
    for (by, passes) in [(0, false), (bob, true)] {
        let mut header = rig.header(Command::CANCEL, bob);
        header.message_id = id;
        let by = rig.sessions[by].clone();
        let keys = by.seals.unwrap();
        let frame = seal(&keys.to_server, by.id, &mut Nonces::default(), &encode::cancel(&header));
        rig.send_raw(&frame);
        assert_eq!(!rig.nodes[1].seen(Command::CANCEL).is_empty(), passes);
    }
}

#[test]
fn what_a_session_that_is_over_has_in_flight_does_not_end_the_others() {
    for len in [10, BULK] {
        let (mut rig, file) = gcm();
        let bob = rig.log_in("bob");
        let other = rig.open(bob, "a");
        rig.nodes[0].habits.mute = vec![Command::WRITE, Command::READ];
        let (write, read) = (rig.write(0, file, 0, &vec![9; len]), rig.read(0, file, 0, 4));
        let ids = [rig.send(&[write])[0], rig.send(&[read])[0]];
        let (asked, _) = rig.nodes[0].seen.last().unwrap();
        let answer = encode::frame(encode::error_response(&response(asked, Status::USER_SESSION_DELETED)));
        let (leg, _) = rig.leg.unwrap();
        rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&answer[..]));
        rig.pump();
        rig.fail_over();
        assert_eq!(rig.closed, None, "{len}");
        assert_eq!(ids.map(|id| status(&rig, id)), [Status::USER_SESSION_DELETED; 2], "{len}");
        assert!(rig.nodes[1].seen(Command::WRITE).is_empty());
        assert_eq!(rig.ask(rig.read(bob, other, 0, 10)).0, Status::SUCCESS);
    }
}

#[test]
fn a_node_leg_on_which_a_sealed_answer_does_not_open_is_left() {
    let (mut rig, file) = gcm();
    rig.fail_over();
    rig.nodes[1].habits.mute = vec![Command::READ];
    let read = rig.read(0, file, 0, 10);
    let id = rig.send(&[read])[0];
    let (leg, _) = rig.leg.unwrap();
    let other = rig.sessions[0].clone().seals.unwrap();
    for (session, known) in [(7, false), (rig.nodes[1].session_of("alice").unwrap(), true)] {
        let frame = seal(&other.to_client, session, &mut Nonces::default(), &[0; 80]);
        rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&frame[..]));
        rig.pump();
        assert_eq!(rig.given_up.contains(&leg), known);
    }
    assert_eq!(rig.refused, 1, "of a session that is over, only the keys are missing");
    rig.assign(1);
    assert_eq!(status(&rig, id), Status::SUCCESS, "nobody knows which request it was an answer to");
}

#[test]
fn a_takeover_in_which_a_sealed_answer_does_not_open_fails_at_once() {
    let (mut rig, _) = gcm();
    rig.nodes[1].habits.mute = vec![Command::TREE_CONNECT];
    rig.fail_over();
    assert_eq!(rig.closed, None);
    let (leg, _) = rig.leg.unwrap();
    let other = rig.sessions[0].clone().seals.unwrap();
    let session = rig.nodes[1].session_of("alice").unwrap();
    let frame = seal(&other.to_client, session, &mut Nonces::default(), &[0; 80]);
    rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&frame[..]));
    rig.pump();
    assert_eq!(rig.closed, Some(CloseReason::TakeoverFailed), "others wait for its Opens");
}

#[test]
fn what_nobody_can_read_lets_go_of_its_client_at_once() {
    let mut rig = Rig::new();
    begin(&mut rig, Dialect::SMB311, Cipher::Aes128Gcm);
    rig.log_in("mallory");
    rig.fail_over();
    assert_eq!(rig.closed, Some(CloseReason::Unprotected), "requests of mallory's would never be answered");
}

/// A node ends the connection over a sealed frame of an anonymous session. Hidden, the client would wait for ever.
#[test]
fn whoever_seals_without_a_key_sees_the_node_end_the_connection() {
    let (mut rig, _) = gcm();
    rig.seals = false;
    let nobody = rig.log_in("nobody");
    let id = rig.sessions[nobody].id;
    let asked = encode::logoff(&rig.header(Command::LOGOFF, nobody));
    let keys = rig.sessions[0].seals.clone().unwrap();
    let frame = seal(&keys.to_server, id, &mut Nonces::default(), &asked);
    rig.link.handle_client_frame(rig.now, BytesMut::from(&frame[..]));
    assert!(rig.link.poll_transmit().is_some(), "it is the node's business");
    rig.cut();
    assert_eq!(rig.closed, Some(CloseReason::Unprotected));
}

#[test]
fn a_sealed_request_that_must_not_reach_a_node_is_answered_sealed() {
    let (mut rig, _) = gcm();
    let params = encode::IoctlParams {
        ctl_code: smb_parse::fsctl::QUERY_NETWORK_INTERFACE_INFO,
        file_id: FileId::ALL_ONES,
        max_output: 1000,
        input: &[],
    };
    let ioctl = encode::ioctl(&rig.header(Command::IOCTL, 0), &params);
    assert_eq!(rig.ask(ioctl).0, Status::INVALID_DEVICE_REQUEST);
    let (last, _) = rig.nodes[0].seen.last().unwrap();
    assert_eq!((last.command, last.session_id), (Command::ECHO, 0));
}

#[test]
fn a_sealed_frame_waits_for_the_opens_of_other_links_and_goes_on_as_it_came() {
    let (disk, files) = (Disk::default(), Rc::new(RefCell::new(Files::default())));
    let users = Users([("alice".to_owned(), 3)].into());
    let mut rigs = [1, 2].map(|id| Rig::with(LinkId(id), users.clone(), &disk, &files));
    let open = rigs.each_mut().map(|rig| begin(rig, Dialect::SMB311, Cipher::Aes256Gcm));
    let [one, two] = &mut rigs;
    // Only the first Link has lost its leg.
    one.crash();
    two.show_files();
    let write = two.write(0, open[1], 0, &[6; BULK]);
    let frame = two.cover(&[write]);
    let sent = two.sent.len();
    two.send_raw(&frame);
    assert_eq!(two.sent.len(), sent, "it does not wait");
    one.assign(1);
    two.show_files();
    two.pump();
    assert_eq!(two.sent.last(), Some(&frame));
    assert_eq!(two.get("a"), [6; BULK]);
}

#[test]
fn no_nonce_comes_twice_the_dead_nodes_included() {
    let (mut rig, file) = gcm();
    let before = rig.heard().len();
    assert!(before > 0, "the node has sealed");
    rig.fail_over();
    // That none came before is asserted for each as it comes.
    for _ in 0..50 {
        contents(&mut rig, file, 10);
    }
    assert_eq!(rig.heard().len(), before + 50);
}
