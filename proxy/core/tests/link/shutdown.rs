//! A proxy that stops: what is answered before its clients are disconnected.

use smb_parse::{
    FileId,
    cmd::lock::Lock,
    encode,
    header::{Command, Header, Status},
};
use understudy_core::effect::CloseReason;

use crate::{at_work, rig::Rig};

const EXCLUSIVE: u32 = 2;

/// A LOCK and a CHANGE_NOTIFY for which the node says that they wait.
fn waits(rig: &mut Rig, file: FileId) {
    for node in &mut rig.nodes {
        node.habits.pends.extend([Command::LOCK, Command::CHANGE_NOTIFY]);
        node.habits.swallows.extend([Command::LOCK, Command::CHANGE_NOTIFY]);
    }
    let locks = [Lock { offset: 0, length: 1, flags: EXCLUSIVE }];
    let lock = encode::lock(&rig.header(Command::LOCK, 0), file, 0, &locks);
    // CHANGE_NOTIFY (MS-SMB2 2.2.35): of the form of a FLUSH, and longer.
    let mut notify = encode::flush(&rig.header(Command::CHANGE_NOTIFY, 0), file);
    notify[64] = 32;
    notify.extend([0; 8]);
    for asked in [lock, notify] {
        rig.send(&[asked]);
        let told = rig.inbox.last().map(|msg| Header::parse(msg).unwrap().status);
        assert_eq!(told, Some(Status::PENDING.0));
    }
}

#[test]
fn nobody_waits_for_what_may_never_happen() {
    for taken_over in [false, true] {
        let (mut rig, file) = at_work("alice");
        waits(&mut rig, file);
        if taken_over {
            rig.fail_over();
        }
        rig.link.handle_shutdown(rig.now);
        rig.pump();
        assert_eq!(rig.closed, Some(CloseReason::Shutdown), "taken over: {taken_over}");
    }
}

#[test]
fn an_answer_that_is_under_way_is_waited_for() {
    for taken_over in [false, true] {
        let (mut rig, file) = at_work("alice");
        if taken_over {
            rig.fail_over();
        }
        for node in &mut rig.nodes {
            node.habits.swallows.extend([Command::LOCK, Command::READ]);
        }
        let locks = [Lock { offset: 0, length: 1, flags: EXCLUSIVE }];
        let lock = encode::lock(&rig.header(Command::LOCK, 0), file, 0, &locks);
        let asked = if taken_over { lock } else { rig.read(0, file, 0, 4) };
        rig.send(&[asked]);
        rig.link.handle_shutdown(rig.now);
        rig.pump();
        assert_eq!(rig.closed, None, "taken over: {taken_over}");
    }
}
