//! A Link in Relay that waits for the Opens of another one.

use std::{sync::Arc, time::Duration};

use smb_parse::{
    FileId,
    compound::elements,
    encode,
    frame::PREFIX,
    header::{Command, Flags, Header, Status},
};
use understudy_core::{
    crypto::sealing::Cipher,
    effect::CloseReason,
    event::FileEvent,
    ids::{LinkId, OpenToken},
    link::{Link, LinkConfig},
};

use crate::rig::{Counting, Rig, Users};

/// Longer than anything waits for another Link.
const TOO_LONG: Duration = Duration::from_secs(11);

/// A client that has a file open, and seals what it says if there is a cipher.
fn at_work(cipher: Option<Cipher>) -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.put("a", 11, b"of a");
    (rig.cipher, rig.seals) = (cipher, cipher.is_some());
    rig.negotiate();
    rig.log_in("alice");
    let file = rig.open(0, "a");
    (rig, file)
}

/// Another Link has lost its node.
fn raise(rig: &mut Rig) {
    let (other, open) = (LinkId(2), OpenToken(1));
    rig.opened_elsewhere(other, open, "b");
    rig.file_event(other, FileEvent::Lost);
    rig.show_files();
}

/// It has its Open again.
fn lift(rig: &mut Rig) {
    rig.file_event(LinkId(2), FileEvent::Reclaimed { open: OpenToken(1), generation: 1 });
    rig.show_files();
    rig.pump();
}

/// A signed CANCEL of a request.
fn cancel(rig: &Rig, id: u64) -> Vec<u8> {
    let mut header = rig.header(Command::CANCEL, 0);
    (header.message_id, header.credits, header.credit_charge) = (id, 0, 0);
    let mut msg = encode::cancel(&header);
    rig.sessions[0].key.as_ref().unwrap().sign(&mut msg);
    encode::frame(msg)
}

fn status(rig: &Rig, id: u64) -> Status {
    Status(rig.answer(id).0.status)
}

/// The node has had that MessageId, as an ECHO.
fn had_echo(rig: &Rig, id: u64) -> bool {
    rig.nodes[0].seen(Command::ECHO).iter().any(|(header, _)| header.message_id == id)
}

#[test]
fn the_node_alone_answers_what_it_has_whoever_cancels_it_meanwhile() {
    let (mut rig, file) = at_work(None);
    rig.nodes[0].habits.mute = vec![Command::READ];
    let asked = rig.send(&[rig.read(0, file, 0, 4)])[0];
    raise(&mut rig);
    let frame = cancel(&rig, asked);
    rig.send_raw(&frame);
    assert!(rig.final_answer(asked).is_none(), "the node is still to answer it");
    assert_eq!(rig.sent.last(), Some(&frame), "and is to hear that it need not");
}

#[test]
fn a_cancel_within_a_compound_is_answered_by_nobody() {
    for first in [false, true] {
        beside_a_create(first);
    }
}

fn beside_a_create(first: bool) {
    let (mut rig, file) = at_work(None);
    rig.nodes[0].habits.mute = vec![Command::READ];
    let asked = rig.send(&[rig.read(0, file, 0, 4)])[0];
    raise(&mut rig);
    let create = rig.create(0, "new", 2);
    let mut header = rig.header(Command::CANCEL, 0);
    header.credit_charge = 0;
    let cancel = encode::cancel(&header);
    let mut frame = rig.cover(&if first { [cancel, create] } else { [create, cancel] });
    let places: Vec<_> =
        elements(&frame[PREFIX..]).map(|e| e.unwrap()).map(|e| (e.range, e.header)).collect();
    for (range, _) in places.into_iter().filter(|(_, header)| header.command == Command::CANCEL) {
        let msg = &mut frame[PREFIX..][range];
        smb_parse::patch::set_message_id(msg, asked);
        rig.sessions[0].key.as_ref().unwrap().sign(msg);
    }
    let seen = rig.nodes[0].seen.len();
    rig.send_raw(&frame);
    assert_eq!(rig.nodes[0].seen.len(), seen, "it does not wait");
    assert!(rig.final_answer(asked).is_none());
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError));
}

#[test]
fn what_is_cancelled_before_the_node_had_it_never_comes_there() {
    for forged in [false, true] {
        let (mut rig, _) = at_work(None);
        raise(&mut rig);
        let asked = rig.send(&[rig.create(0, "new", 2)])[0];
        let mut frame = cancel(&rig, asked);
        if forged {
            *frame.last_mut().unwrap() ^= 1;
        }
        rig.send_raw(&frame);
        assert_eq!(rig.final_answer(asked).is_none(), forged);
        lift(&mut rig);
        let wanted = if forged { Status::SUCCESS } else { Status::CANCELLED };
        assert_eq!((status(&rig, asked), had_echo(&rig, asked)), (wanted, !forged));
        assert_eq!((rig.nodes[0].seen(Command::CANCEL).len(), rig.refused), (0, usize::from(forged)));
    }
}

#[test]
fn a_node_misses_no_message_id_of_what_has_waited_too_long() {
    for cipher in [None, Some(Cipher::Aes128Gcm)] {
        let (mut rig, _) = at_work(cipher);
        raise(&mut rig);
        let before = rig.credits();
        let mut close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
        let header = Header::parse(&close).unwrap();
        smb_parse::patch::set_flags(&mut close, header.flags | Flags::RELATED);
        let ids = rig.send(&[rig.create(0, "new", 2), close]);
        rig.wait(TOO_LONG);
        for id in ids {
            assert_eq!(status(&rig, id), Status::SHARING_VIOLATION);
            assert!(had_echo(&rig, id), "{id} is missing on the node");
        }
        assert!(rig.credits() >= before, "the window shrinks");
        let opened = rig.nodes[0].seen(Command::CREATE).len();
        lift(&mut rig);
        assert_eq!(rig.nodes[0].seen(Command::CREATE).len(), opened, "it was answered");
        rig.open(0, "a");
    }
}

#[test]
fn what_nobody_can_read_waits_too_and_is_let_go_if_it_waits_too_long() {
    for waits in [Duration::from_secs(1), TOO_LONG] {
        let mut rig = Rig::new();
        rig.put("a", 11, b"of a");
        let known = Users([("bob".to_owned(), 4)].into());
        rig.link = Link::new(
            LinkId(1),
            Arc::new(LinkConfig::default()),
            Arc::new(known),
            Box::new(Counting::from(1)),
            rig.now,
        );
        rig.assign(0);
        (rig.cipher, rig.seals) = (Some(Cipher::Aes128Gcm), true);
        rig.negotiate();
        rig.log_in("alice");
        let file = rig.open(0, "a");
        raise(&mut rig);
        let write = rig.write(0, file, 0, b"by a");
        let id = rig.send(&[write])[0];
        assert!(rig.link.kept_bytes() > 0);
        rig.wait(waits);
        assert_eq!(rig.get("a"), b"of a");
        if waits == TOO_LONG {
            assert_eq!(rig.closed, Some(CloseReason::Unprotected));
        } else {
            lift(&mut rig);
            assert_eq!(status(&rig, id), Status::SUCCESS);
            assert_eq!((rig.get("a"), rig.link.kept_bytes()), (b"by a".to_vec(), 0));
            assert_eq!(rig.link.poll_timeout(), None);
        }
    }
}
