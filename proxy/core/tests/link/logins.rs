//! What is said of NEGOTIATE and of sessions once they stand.

use std::time::Duration;

use smb_parse::{
    FileId,
    cmd::ioctl,
    encode::{self, IoctlParams},
    fsctl,
    header::{Command, Flags, Header, Status},
};
use understudy_core::{crypto::Dialect, effect::CloseReason, event::Succession};

use crate::{
    TEXT,
    node::{CAPABILITIES, SECURITY_MODE},
    rig::{CLIENT_CAPABILITIES, CLIENT_GUID, Rig},
};

/// A client of that dialect that has logged in as alice and opened a file, on the second node.
fn taken_over(dialect: Dialect) -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.dialect = dialect;
    rig.put("file", 77, TEXT);
    rig.negotiate();
    let session = rig.log_in("alice");
    let file = rig.open(session, "file");
    rig.fail_over();
    (rig, file)
}

/// What a client says to have its NEGOTIATE validated (MS-SMB2 2.2.31.4).
fn validation(dialects: &[u16]) -> Vec<u8> {
    let mut input = CLIENT_CAPABILITIES.to_le_bytes().to_vec();
    input.extend(CLIENT_GUID);
    input.extend(1_u16.to_le_bytes());
    input.extend(u16::try_from(dialects.len()).unwrap().to_le_bytes());
    input.extend(dialects.iter().flat_map(|d| d.to_le_bytes()));
    input
}

fn validate(rig: &Rig, input: &[u8], max_output: u32) -> Vec<u8> {
    let params = IoctlParams {
        ctl_code: fsctl::VALIDATE_NEGOTIATE_INFO,
        file_id: FileId::ALL_ONES,
        input,
        max_output,
    };
    encode::ioctl(&rig.header(Command::IOCTL, 0), &params)
}

#[test]
fn negotiate_is_validated_as_the_clients_own_node_would() {
    for dialect in [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302] {
        let (mut rig, file) = taken_over(dialect);
        let (status, msg) = rig.ask(validate(&rig, &validation(&[dialect.0]), 24));
        assert_eq!(status, Status::SUCCESS);
        assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED));
        let answer = ioctl::Response::parse(&msg).unwrap();
        let mut expected = CAPABILITIES.to_le_bytes().to_vec();
        expected.extend(rig.server_guid);
        expected.extend(SECURITY_MODE.to_le_bytes());
        expected.extend(dialect.0.to_le_bytes());
        assert_eq!(answer.output, expected, "{dialect:?}");
        assert_eq!((answer.ctl_code, answer.file_id), (fsctl::VALIDATE_NEGOTIATE_INFO, FileId::ALL_ONES));
        assert!(rig.nodes[1].seen(Command::IOCTL).is_empty(), "the node was asked something else");
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    }
}

#[test]
fn a_negotiate_that_was_tampered_with_ends_the_connection() {
    let good = validation(&[Dialect::SMB302.0]);
    let altered = |at: usize| {
        let mut input = good.clone();
        input[at] ^= 1;
        input
    };
    let mut cut = good.clone();
    cut.truncate(good.len() - 1);
    let more = validation(&[Dialect::SMB302.0, Dialect::SMB311.0]);
    // Capabilities, Guid, SecurityMode, Dialects; too short, another list.
    for input in [altered(0), altered(4), altered(20), altered(24), cut, more, Vec::new()] {
        let (mut rig, _) = taken_over(Dialect::SMB302);
        rig.send(&[validate(&rig, &input, 24)]);
        assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "{input:x?}");
    }
    let (mut rig, _) = taken_over(Dialect::SMB302);
    rig.send(&[validate(&rig, &good, 23)]);
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "no room for the answer");
    let (mut rig, _) = taken_over(Dialect::SMB311);
    rig.send(&[validate(&rig, &validation(&[Dialect::SMB311.0]), 24)]);
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "3.1.1 has another way");
}

#[test]
fn a_validation_in_flight_at_the_crash_is_answered() {
    let mut rig = Rig::new();
    rig.dialect = Dialect::SMB300;
    rig.negotiate();
    rig.log_in("alice");
    rig.nodes[0].habits.mute.push(Command::IOCTL);
    let asked = rig.send(&[validate(&rig, &validation(&[Dialect::SMB300.0]), 24)])[0];
    rig.fail_over();
    assert_eq!(Status(rig.answer(asked).0.status), Status::SUCCESS);
}

fn at_work(user: &str) -> (Rig, usize, FileId) {
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.negotiate();
    let session = rig.log_in(user);
    let file = rig.open(session, "file");
    (rig, session, file)
}

/// Breaks the proof in an NTLM AUTHENTICATE: the last byte of its MIC (MS-NLMP 2.2.1.3).
pub(crate) fn forge(token: &mut [u8]) {
    let at = token.windows(8).position(|w| w == b"NTLMSSP\0").unwrap();
    token[at + 87] ^= 1;
}

/// Who is logged in there.
pub(crate) fn users_of(rig: &Rig, node: usize) -> Vec<&str> {
    rig.nodes[node].users()
}

#[test]
fn in_relay_a_reauthentication_keeps_the_keys_and_the_authority() {
    let (mut rig, session, file) = at_work("alice");
    assert_eq!(rig.reauthenticate(session, "alice"), Status::SUCCESS);
    rig.fail_over();
    assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(users_of(&rig, 1), ["alice"]);
}

#[test]
fn in_relay_authority_follows_the_user_whom_the_node_has_accepted() {
    let (mut rig, session, file) = at_work("alice");
    assert_eq!(rig.reauthenticate(session, "bob"), Status::SUCCESS);
    rig.fail_over();
    assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(users_of(&rig, 1), ["bob"], "not in the name of whom the session once was");
    // Mallory is known to the nodes only: from now on nobody can act for the session.
    let (mut rig, session, _) = at_work("alice");
    assert_eq!(rig.reauthenticate(session, "mallory"), Status::SUCCESS);
    rig.fail_over();
    assert_eq!(rig.closed, Some(CloseReason::Unprotected));
    assert!(rig.nodes[1].seen.is_empty());
    // Nor for a signed session that has become a guest's.
    let (mut rig, session, _) = at_work("alice");
    rig.nodes[0].habits.maps_to_guest = true;
    assert_eq!(rig.reauthenticate(session, "alice"), Status::SUCCESS);
    rig.fail_over();
    assert_eq!(rig.closed, Some(CloseReason::Unprotected));
}

#[test]
fn in_relay_whoever_fails_to_prove_anew_is_not_moved() {
    let (mut rig, session, _) = at_work("alice");
    let other = rig.log_in("bob");
    let theirs = rig.open(other, "file");
    let mut login = rig.exchange("alice");
    login.id = rig.sessions[session].id;
    let first = rig.send_login(&mut login);
    assert_eq!(rig.take_login(&mut login, first), Status::MORE_PROCESSING_REQUIRED);
    forge(&mut login.token);
    let second = rig.send_login(&mut login);
    assert_eq!(rig.take_login(&mut login, second), Status::LOGON_FAILURE);
    assert_eq!(rig.files.borrow().opens(), 1, "its Opens are gone with it");
    rig.fail_over();
    assert_eq!(rig.ask(rig.read(other, theirs, 0, 4)).0, Status::SUCCESS);
    assert_eq!(users_of(&rig, 1), ["bob"]);
}

#[test]
fn a_session_that_the_node_ends_is_over() {
    for after_takeover in [false, true] {
        let (mut rig, session, file) = at_work("alice");
        rig.log_in("bob");
        if after_takeover {
            rig.fail_over();
        }
        let node = &mut rig.nodes[usize::from(after_takeover)];
        let id = node.session_of("alice").unwrap();
        node.end_session(id);
        node.forget_key();
        for _ in 0..2 {
            assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::USER_SESSION_DELETED);
        }
        assert_eq!(rig.files.borrow().opens(), 0);
        if !after_takeover {
            rig.fail_over();
            assert_eq!(users_of(&rig, 1), ["bob"]);
        }
    }
}

#[test]
fn whoever_logs_off_is_gone_with_all_they_had_open() {
    for after_takeover in [false, true] {
        let (mut rig, session, file) = at_work("alice");
        let other = rig.log_in("bob");
        let theirs = rig.open(other, "file");
        if after_takeover {
            rig.fail_over();
        }
        let (status, msg) = rig.log_off(session);
        assert_eq!(status, Status::SUCCESS);
        assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED), "its last answer is signed");
        let serving = usize::from(after_takeover);
        assert_eq!(users_of(&rig, serving), ["bob"]);
        assert_eq!(rig.files.borrow().opens(), 1);
        assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::USER_SESSION_DELETED);
        assert_eq!(rig.ask(rig.read(other, theirs, 0, 4)).0, Status::SUCCESS);
        if !after_takeover {
            rig.fail_over();
            assert_eq!(users_of(&rig, 1), ["bob"]);
            assert_eq!(rig.ask(rig.read(other, theirs, 0, 4)).0, Status::SUCCESS);
        }
    }
}

#[test]
fn a_logoff_in_flight_at_the_crash_succeeds_once() {
    let (mut rig, session, _) = at_work("alice");
    rig.log_in("bob");
    rig.nodes[0].habits.swallows.push(Command::LOGOFF);
    let logoff = encode::logoff(&rig.header(Command::LOGOFF, session));
    let id = rig.send(&[logoff])[0];
    rig.fail_over();
    assert_eq!(Status(rig.answer(id).0.status), Status::SUCCESS);
    assert_eq!(users_of(&rig, 1), ["bob"]);
    assert_eq!(rig.files.borrow().opens(), 0);
}

#[test]
fn who_logs_in_again_names_the_earlier_session() {
    for (after_takeover, for_ever) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut rig, session, _) = at_work("alice");
        if after_takeover {
            rig.fail_over();
        }
        let mut login = rig.exchange("bob");
        login.previous = 0x77;
        let first = rig.send_login(&mut login);
        assert_eq!(rig.take_login(&mut login, first), Status::MORE_PROCESSING_REQUIRED);
        assert!(rig.successions.is_empty(), "nothing is proved yet");
        let last = rig.send_login(&mut login);
        let expected = Succession { session: 0x77, user: "WG\\bob".into() };
        assert_eq!(rig.successions, [expected]);
        assert!(rig.final_answer(last).is_none(), "the earlier session may still have files open");
        if for_ever {
            rig.wait(Duration::from_secs(2));
        } else {
            rig.link.handle_succession_done(rig.now);
            rig.pump();
        }
        assert_eq!(rig.take_login(&mut login, last), Status::SUCCESS);
        // A guest has proved nothing, nor does a re-authentication end another session.
        let mut login = rig.exchange("nobody");
        login.previous = 0x77;
        assert_eq!(rig.finish_login(&mut login), Status::SUCCESS);
        let mut login = rig.exchange("alice");
        (login.previous, login.id) = (0x77, rig.sessions[session].id);
        assert_eq!(rig.finish_login(&mut login), Status::SUCCESS);
        assert_eq!(rig.successions.len(), 1);
    }
}

#[test]
fn a_session_ends_when_its_user_has_logged_in_elsewhere() {
    // In Relay the node has ended it; in Bridge we do, at once or when there is a node again.
    for (takeover, late) in [(false, false), (true, false), (true, true)] {
        let (mut rig, session, file) = at_work("alice");
        let other = rig.log_in("bob");
        let theirs = rig.open(other, "file");
        let id = rig.sessions[session].id;
        if takeover {
            rig.crash();
            if late {
                rig.succeed(id, "WG\\Alice");
            }
            rig.assign(1);
        }
        rig.succeed(id, "WG\\bob");
        rig.succeed(id + 1, "WG\\alice");
        if !late {
            assert_eq!(rig.files.borrow().opens(), 2, "another user's word, or another session's");
            rig.succeed(id, "WG\\Alice");
        }
        assert_eq!(rig.files.borrow().opens(), 1, "after a takeover: {takeover}, late: {late}");
        if takeover {
            assert_eq!(users_of(&rig, 1), ["bob"]);
            assert_eq!(rig.nodes[1].opens.len(), 1);
            assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::USER_SESSION_DELETED);
        } else {
            rig.fail_over();
            assert_eq!(users_of(&rig, 1), ["bob"], "it is not moved");
        }
        assert_eq!(rig.ask(rig.read(other, theirs, 0, 4)).0, Status::SUCCESS);
    }
}

#[test]
fn an_end_is_under_way_until_the_node_has_said_so_or_is_gone() {
    let (mut rig, session, _) = at_work("alice");
    rig.log_in("bob");
    rig.fail_over();
    rig.nodes[1].habits.mute.push(Command::LOGOFF);
    rig.succeed(rig.sessions[session].id, "WG\\alice");
    assert!(rig.link.is_ending_session());
    rig.crash();
    assert!(!rig.link.is_ending_session());
    rig.up[0] = true;
    rig.assign(0);
    rig.succeed(rig.sessions[1].id, "WG\\bob");
    assert!(!rig.link.is_ending_session(), "this node has answered");
}

#[test]
fn what_waits_in_a_session_that_ends_is_answered() {
    let (mut rig, session, file) = at_work("alice");
    rig.fail_over();
    rig.nodes[1].habits.mute.push(Command::READ);
    let waiting = rig.send(&[rig.read(session, file, 0, 4)])[0];
    rig.succeed(rig.sessions[session].id, "WG\\alice");
    assert_eq!(Status(rig.answer(waiting).0.status), Status::USER_SESSION_DELETED);
}

#[test]
fn two_users_of_one_connection_are_each_moved_as_themselves() {
    let (mut rig, session, file) = at_work("alice");
    let other = rig.log_in("bob");
    let theirs = rig.open(other, "file");
    rig.fail_over();
    for (session, file) in [(session, file), (other, theirs)] {
        assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::SUCCESS);
    }
    let mut users = users_of(&rig, 1);
    users.sort_unstable();
    assert_eq!(users, ["alice", "bob"]);
    assert_eq!(rig.takeovers[0].sessions, 2);
}
