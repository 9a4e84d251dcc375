//! Logins in Bridge: judged by the node, never finished by the proxy, and never a session without proof.

use std::time::Duration;

use smb_parse::{
    FileId,
    cmd::session_setup,
    header::{Command, Flags, Header, Status},
};
use understudy_core::{crypto::Dialect, effect::CloseReason};

use crate::{
    TEXT,
    logins::{forge, users_of},
    node::Node,
    rig::{Exchange, Rig},
};

/// Alice, logged in with a file open, on the second node.
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

fn on_second_node() -> (Rig, FileId) {
    taken_over(Dialect::SMB311)
}

/// A login of which the node has asked for more.
fn half_way(rig: &mut Rig, user: &str, session: Option<usize>) -> Exchange {
    let mut login = rig.exchange(user);
    login.id = session.map_or(0, |at| rig.sessions[at].id);
    let id = rig.send_login(&mut login);
    assert_eq!(rig.take_login(&mut login, id), Status::MORE_PROCESSING_REQUIRED);
    login
}

/// Sends the rest of a login.
fn go_on(rig: &mut Rig, login: &mut Exchange) -> Status {
    let id = rig.send_login(login);
    rig.take_login(login, id)
}

/// The first node comes back, and the second one dies.
fn fail_back(rig: &mut Rig) {
    rig.up = vec![true, true];
    let known = rig.users();
    rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
    rig.fail_over();
}

/// What must hold after a login that came to nothing.
fn nothing_has_changed(rig: &mut Rig, file: FileId) {
    assert_eq!(users_of(rig, 1), ["alice"]);
    assert!(rig.open_beside.is_empty(), "the connection to the judge still stands");
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    let bob = rig.log_in("bob");
    rig.open(bob, "file");
}

#[test]
fn a_further_user_logs_in_after_a_takeover() {
    for dialect in [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302, Dialect::SMB311] {
        let (mut rig, file) = taken_over(dialect);
        let bob = rig.log_in("bob");
        let theirs = rig.open(bob, "file");
        for (session, file) in [(0, file), (bob, theirs)] {
            assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::SUCCESS, "{dialect:?}");
        }
        assert_eq!(users_of(&rig, 1), ["alice", "bob"]);
        let node = rig.nodes[1].session_of("bob").unwrap();
        let judged = rig.beside[0].2.session_of("bob").unwrap();
        let client = rig.sessions[bob].id;
        assert!(node != judged && node != client && judged != client, "each has its own id");
        assert!(rig.open_beside.is_empty(), "the judge is thrown away");
        fail_back(&mut rig);
        for (session, file) in [(0, file), (bob, theirs)] {
            assert_eq!(rig.ask(rig.read(session, file, 0, 4)).0, Status::SUCCESS, "and it is moved");
        }
        assert_eq!(rig.takeovers[1].sessions, 2);
    }
}

#[test]
fn what_passes_between_client_and_judge_is_theirs() {
    let (mut rig, _) = on_second_node();
    let mut login = half_way(&mut rig, "bob", None);
    let (_, judge) = rig.beside[0].2.seen(Command::SESSION_SETUP)[0];
    assert_eq!(session_setup::Request::parse(judge).unwrap().previous_session_id, 0);
    let sent = login.token.clone();
    assert_eq!(go_on(&mut rig, &mut login), Status::SUCCESS);
    let (_, judge) = rig.beside[0].2.seen(Command::SESSION_SETUP)[1];
    assert_eq!(session_setup::Request::parse(judge).unwrap().security_buffer, sent);
    let (_, own) = rig.nodes[1].seen(Command::SESSION_SETUP).last().copied().unwrap();
    assert_ne!(session_setup::Request::parse(own).unwrap().security_buffer, sent, "our own is another");
}

#[test]
fn a_forged_proof_becomes_no_session() {
    let (mut rig, file) = on_second_node();
    let mut login = half_way(&mut rig, "bob", None);
    forge(&mut login.token);
    assert_eq!(go_on(&mut rig, &mut login), Status::LOGON_FAILURE);
    nothing_has_changed(&mut rig, file);
}

#[test]
fn a_token_that_is_cut_off_becomes_no_session() {
    let (mut whole, _) = on_second_node();
    let len = half_way(&mut whole, "bob", None).token.len();
    for cut in [0, 1, 12, len / 2, len - 1] {
        let (mut rig, file) = on_second_node();
        let mut login = half_way(&mut rig, "bob", None);
        login.token.truncate(cut);
        assert_ne!(go_on(&mut rig, &mut login), Status::SUCCESS, "cut at {cut}");
        nothing_has_changed(&mut rig, file);
    }
}

#[test]
fn a_proof_for_another_challenge_becomes_no_session() {
    let (mut rig, file) = on_second_node();
    let mut first = half_way(&mut rig, "bob", None);
    let recorded = first.token.clone();
    assert_eq!(go_on(&mut rig, &mut first), Status::SUCCESS);
    rig.log_off(1);
    let mut second = half_way(&mut rig, "bob", None);
    second.token = recorded;
    assert_eq!(go_on(&mut rig, &mut second), Status::LOGON_FAILURE);
    nothing_has_changed(&mut rig, file);
}

#[test]
fn a_user_nobody_can_act_for_is_told_so() {
    let (mut rig, file) = on_second_node();
    let mut login = rig.exchange("mallory");
    assert_eq!(rig.finish_login(&mut login), Status::REQUEST_NOT_ACCEPTED);
    nothing_has_changed(&mut rig, file);
}

#[test]
fn a_user_does_not_become_a_guest_unnoticed() {
    // The judge maps to guest.
    let (mut rig, file) = on_second_node();
    for habits in [&mut rig.beside_habits, &mut rig.nodes[1].habits] {
        habits.maps_to_guest = true;
    }
    let mut login = rig.exchange("bob");
    assert_eq!(rig.finish_login(&mut login), Status::REQUEST_NOT_ACCEPTED);
    for habits in [&mut rig.beside_habits, &mut rig.nodes[1].habits] {
        habits.maps_to_guest = false;
    }
    nothing_has_changed(&mut rig, file);
    // Our own login does.
    let (mut rig, file) = on_second_node();
    rig.nodes[1].habits.maps_to_guest = true;
    let mut login = rig.exchange("bob");
    assert_eq!(rig.finish_login(&mut login), Status::REQUEST_NOT_ACCEPTED);
    assert_eq!(rig.nodes[1].seen(Command::LOGOFF).len(), 1, "the guest's session is ended");
    rig.nodes[1].habits.maps_to_guest = false;
    nothing_has_changed(&mut rig, file);
}

#[test]
fn a_node_that_does_not_know_the_key_is_not_believed() {
    for judge in [true, false] {
        let (mut rig, file) = on_second_node();
        let habits = if judge { &mut rig.beside_habits } else { &mut rig.nodes[1].habits };
        habits.signs_wrongly = true;
        let mut login = rig.exchange("bob");
        assert_eq!(rig.finish_login(&mut login), Status::REQUEST_NOT_ACCEPTED, "the judge: {judge}");
        let habits = if judge { &mut rig.beside_habits } else { &mut rig.nodes[1].habits };
        habits.signs_wrongly = false;
        let bob = rig.nodes[1].session_of("bob");
        bob.into_iter().for_each(|id| rig.nodes[1].end_session(id));
        nothing_has_changed(&mut rig, file);
    }
}

#[test]
fn no_flipped_bit_of_a_nodes_answers_makes_a_session() {
    // NEGOTIATE and two SESSION_SETUPs of the judge; two SESSION_SETUPs of our own.
    let mut flipped = 0;
    for (beside, number) in [(true, 0), (true, 1), (true, 2), (false, 0), (false, 1)] {
        for at in 0..220 {
            let (mut rig, file) = on_second_node();
            rig.tamper = Some((beside, number, at));
            let mut login = rig.exchange("bob");
            let mut id = rig.send_login(&mut login);
            if rig.final_answer(id).is_some_and(|(h, _)| h.status == Status::MORE_PROCESSING_REQUIRED.0) {
                // A challenge that makes no sense is none that a client goes on with.
                let token =
                    session_setup::Response::parse(rig.answer(id).1).map(|r| r.security_buffer.to_vec());
                if token.is_ok_and(|token| login.is_answerable(&token)) {
                    rig.take_login(&mut login, id);
                    id = rig.send_login(&mut login);
                }
            }
            let status = rig.final_answer(id).map(|(header, _)| Status(header.status));
            if rig.tamper.take().is_some() {
                break; // The answer ends before that byte.
            }
            assert_ne!(status, Some(Status::SUCCESS), "beside: {beside}, answer {number}, byte {at}");
            assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
            flipped += 1;
        }
    }
    assert!(flipped > 5 * 72, "only {flipped} bits were flipped");
}

#[test]
fn an_exchange_whose_judge_breaks_is_to_begin_anew() {
    for (session, expected) in
        [(None, Status::USER_SESSION_DELETED), (Some(0), Status::NETWORK_SESSION_EXPIRED)]
    {
        for in_flight in [true, false] {
            let (mut rig, file) = on_second_node();
            let mut login = half_way(&mut rig, "alice", session);
            let id = if in_flight {
                rig.beside[0].2.habits.mute.push(Command::SESSION_SETUP);
                let id = rig.send_login(&mut login);
                rig.lose_beside();
                id
            } else {
                rig.lose_beside();
                rig.send_login(&mut login)
            };
            assert_eq!(Status(rig.answer(id).0.status), expected, "in flight: {in_flight}");
            rig.wait(Duration::from_millis(300));
            nothing_has_changed(&mut rig, file);
        }
    }
}

#[test]
fn a_guest_is_a_guest() {
    let (mut rig, _) = on_second_node();
    let guest = rig.log_in("nobody");
    let file = rig.open(guest, "file");
    assert!(rig.sessions[guest].key.is_none());
    fail_back(&mut rig);
    assert_eq!(rig.ask(rig.read(guest, file, 0, 4)).0, Status::SUCCESS);
}

#[test]
fn a_session_is_authenticated_anew_and_keeps_its_keys() {
    let (mut rig, file) = on_second_node();
    let before = rig.nodes[1].session_of("alice");
    assert_eq!(rig.reauthenticate(0, "alice"), Status::SUCCESS);
    assert_eq!(rig.nodes[1].session_of("alice"), before, "the node's session is the same");
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    // As another user: the node's session is theirs, and they are moved.
    assert_eq!(rig.reauthenticate(0, "bob"), Status::SUCCESS);
    assert_eq!(rig.nodes[1].session_of("bob"), before);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    fail_back(&mut rig);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    assert_eq!(users_of(&rig, 0), ["bob"]);
}

#[test]
fn a_session_that_has_expired_is_authenticated_anew() {
    for after_takeover in [false, true] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        rig.negotiate();
        rig.log_in("alice");
        let file = rig.open(0, "file");
        if after_takeover {
            rig.fail_over();
        }
        rig.nodes[usize::from(after_takeover)].habits.expired = true;
        for _ in 0..2 {
            let (status, msg) = rig.ask(rig.read(0, file, 0, 4));
            assert_eq!(status, Status::NETWORK_SESSION_EXPIRED);
            assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED));
        }
        assert_eq!(rig.reauthenticate(0, "alice"), Status::SUCCESS);
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS, "nothing of it is lost");
    }
}

#[test]
fn whoever_fails_to_prove_anew_has_no_session_any_more() {
    let (mut rig, file) = on_second_node();
    rig.log_in("bob");
    let mut login = half_way(&mut rig, "alice", Some(0));
    forge(&mut login.token);
    assert_eq!(go_on(&mut rig, &mut login), Status::LOGON_FAILURE);
    assert_eq!(users_of(&rig, 1), ["bob"]);
    assert_eq!(rig.files.borrow().opens(), 0);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::USER_SESSION_DELETED);
}

#[test]
fn a_session_that_may_have_become_anothers_is_over() {
    let (mut rig, file) = on_second_node();
    let mut login = half_way(&mut rig, "bob", Some(0));
    rig.nodes[1].habits.swallows.push(Command::SESSION_SETUP);
    let id = rig.send_login(&mut login);
    rig.wait(Duration::from_secs(6));
    assert_eq!(Status(rig.answer(id).0.status), Status::REQUEST_NOT_ACCEPTED);
    assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::USER_SESSION_DELETED);
    assert!(rig.nodes[1].users().is_empty());
}

#[test]
fn a_login_that_no_node_has_answered_is_judged_afresh() {
    for in_relay in [true, false] {
        let (mut rig, _) = on_second_node();
        if in_relay {
            rig = Rig::new();
            rig.put("file", 77, TEXT);
            rig.negotiate();
            rig.log_in("alice");
            rig.nodes[0].habits.mute.push(Command::SESSION_SETUP);
        } else {
            rig.up = vec![true, true];
            rig.beside_habits.mute.push(Command::SESSION_SETUP);
        }
        let mut login = rig.exchange("bob");
        let id = rig.send_login(&mut login);
        assert!(rig.final_answer(id).is_none());
        rig.beside_habits.mute.clear();
        if !in_relay {
            let known = rig.users();
            rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
        }
        rig.fail_over();
        assert_eq!(rig.take_login(&mut login, id), Status::MORE_PROCESSING_REQUIRED);
        assert_eq!(go_on(&mut rig, &mut login), Status::SUCCESS, "in Relay: {in_relay}");
        assert_eq!(users_of(&rig, usize::from(in_relay)), ["alice", "bob"]);
    }
}

#[test]
fn a_first_login_that_no_node_has_answered_is_judged_afresh() {
    for user in ["alice", "nobody", "mallory"] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        rig.negotiate();
        rig.nodes[0].habits.mute.push(Command::SESSION_SETUP);
        let mut login = rig.exchange(user);
        let id = rig.send_login(&mut login);
        rig.fail_over();
        assert_eq!(rig.take_login(&mut login, id), Status::MORE_PROCESSING_REQUIRED, "{user}");
        if user == "mallory" {
            rig.send_login(&mut login);
            assert_eq!(
                rig.closed,
                Some(CloseReason::Unprotected),
                "who cannot be served here connects again"
            );
            continue;
        }
        assert_eq!(go_on(&mut rig, &mut login), Status::SUCCESS, "{user}");
        rig.connect(0);
        let file = rig.open(0, "file");
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
        fail_back(&mut rig);
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    }
    // What is half done is not.
    let mut rig = Rig::new();
    rig.negotiate();
    half_way(&mut rig, "alice", None);
    rig.crash();
    assert_eq!(rig.closed, Some(CloseReason::NodeClosed));
    let mut rig = Rig::new();
    rig.negotiate();
    let mut login = half_way(&mut rig, "alice", None);
    rig.nodes[0].habits.mute.push(Command::SESSION_SETUP);
    rig.send_login(&mut login);
    rig.crash();
    assert_eq!(rig.closed, Some(CloseReason::LostInHandshake));
}

#[test]
fn a_login_that_is_cut_by_a_death_is_never_finished() {
    for (in_relay, in_flight) in [(true, false), (true, true), (false, false), (false, true)] {
        let (mut rig, _) = on_second_node();
        if in_relay {
            rig = Rig::new();
            rig.put("file", 77, TEXT);
            rig.negotiate();
            rig.log_in("alice");
        }
        let mut login = half_way(&mut rig, "bob", None);
        let serving = usize::from(!in_relay);
        let id = if in_flight {
            rig.nodes[serving].habits.mute.push(Command::SESSION_SETUP);
            for (_, _, judge) in &mut rig.beside {
                judge.habits.mute.push(Command::SESSION_SETUP);
            }
            let id = rig.send_login(&mut login);
            assert!(rig.final_answer(id).is_none());
            Some(id)
        } else {
            None
        };
        rig.up = vec![true, true];
        let known = rig.users();
        rig.nodes[1 - serving] = Node::new(0x7000, &rig.disk, &known);
        rig.fail_over();
        let id = id.unwrap_or_else(|| rig.send_login(&mut login));
        let status = Status(rig.answer(id).0.status);
        assert_eq!(status, Status::USER_SESSION_DELETED, "in Relay: {in_relay}, in flight: {in_flight}");
        assert_eq!(users_of(&rig, 1 - serving), ["alice"]);
        rig.log_in("bob");
    }
}

#[test]
fn a_reauthentication_that_is_cut_by_a_death_is_to_begin_anew() {
    for in_flight in [false, true] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        rig.negotiate();
        rig.log_in("alice");
        let file = rig.open(0, "file");
        let mut login = half_way(&mut rig, "alice", Some(0));
        let id = if in_flight {
            rig.nodes[0].habits.mute.push(Command::SESSION_SETUP);
            let id = rig.send_login(&mut login);
            rig.fail_over();
            id
        } else {
            rig.fail_over();
            rig.send_login(&mut login)
        };
        assert_eq!(Status(rig.answer(id).0.status), Status::NETWORK_SESSION_EXPIRED);
        assert_eq!(rig.reauthenticate(0, "alice"), Status::SUCCESS);
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    }
}

#[test]
fn a_judge_that_breaks_or_is_silent_is_asked_once_more() {
    for silent in [false, true] {
        for command in [Command::NEGOTIATE, Command::SESSION_SETUP] {
            let (mut rig, file) = on_second_node();
            rig.beside_habits.mute.push(command);
            let mut login = rig.exchange("bob");
            let id = rig.send_login(&mut login);
            rig.beside_habits.mute.clear();
            if silent {
                rig.wait(Duration::from_secs(5));
            } else {
                rig.lose_beside();
            }
            assert!(rig.open_beside.is_empty() && rig.final_answer(id).is_none());
            rig.wait(Duration::from_millis(300));
            assert_eq!(rig.take_login(&mut login, id), Status::MORE_PROCESSING_REQUIRED);
            assert_eq!(go_on(&mut rig, &mut login), Status::SUCCESS);
            assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
            assert_eq!(rig.beside.len(), 2);
        }
    }
    // Silence at the second one, too: that is as long as a client is kept waiting.
    let (mut rig, file) = on_second_node();
    rig.beside_habits.mute.push(Command::SESSION_SETUP);
    let mut login = rig.exchange("bob");
    let id = rig.send_login(&mut login);
    for _ in 0..2 {
        assert!(rig.final_answer(id).is_none());
        rig.wait(Duration::from_secs(5));
        rig.wait(Duration::from_millis(300));
    }
    assert_eq!(Status(rig.answer(id).0.status), Status::REQUEST_NOT_ACCEPTED);
    rig.beside_habits.mute.clear();
    nothing_has_changed(&mut rig, file);
    // What kills two judges kills no third.
    let (mut rig, file) = on_second_node();
    rig.beside_habits.mute.push(Command::SESSION_SETUP);
    let mut login = rig.exchange("bob");
    let id = rig.send_login(&mut login);
    for _ in 0..2 {
        rig.lose_beside();
        rig.wait(Duration::from_millis(300));
    }
    assert_eq!(Status(rig.answer(id).0.status), Status::REQUEST_NOT_ACCEPTED);
    assert_eq!(rig.beside.len(), 2);
    rig.beside_habits.mute.clear();
    nothing_has_changed(&mut rig, file);
}

#[test]
fn a_silent_judge_is_no_second_death() {
    let mut rig = Rig::new();
    rig.negotiate();
    rig.log_in("alice");
    for habits in [&mut rig.nodes[0].habits, &mut rig.beside_habits] {
        habits.mute.push(Command::SESSION_SETUP);
    }
    let mut login = rig.exchange("bob");
    let id = rig.send_login(&mut login);
    rig.fail_over();
    assert_eq!(rig.beside.len(), 1);
    rig.beside_habits.mute.clear();
    rig.wait(Duration::from_secs(5));
    rig.wait(Duration::from_millis(300));
    assert_eq!(rig.take_login(&mut login, id), Status::MORE_PROCESSING_REQUIRED);
    assert_eq!(go_on(&mut rig, &mut login), Status::SUCCESS);
}

#[test]
fn logins_are_judged_one_at_a_time() {
    let (mut rig, _) = on_second_node();
    let mut first = half_way(&mut rig, "bob", None);
    let mut second = rig.exchange("alice");
    let id = rig.send_login(&mut second);
    assert!(rig.final_answer(id).is_none(), "it waits");
    assert_eq!(rig.beside.len(), 1);
    assert_eq!(go_on(&mut rig, &mut first), Status::SUCCESS);
    assert_eq!(rig.take_login(&mut second, id), Status::MORE_PROCESSING_REQUIRED);
    // A client that does not go on is not waited for without end.
    let mut third = rig.exchange("bob");
    let id = rig.send_login(&mut third);
    rig.wait(Duration::from_secs(5));
    assert_eq!(rig.take_login(&mut third, id), Status::MORE_PROCESSING_REQUIRED);
    assert_eq!(go_on(&mut rig, &mut second), Status::USER_SESSION_DELETED);
    assert_eq!(go_on(&mut rig, &mut third), Status::SUCCESS);
    // Nor does one client have any number of them.
    let waiting: Vec<_> = (0..12)
        .map(|_| {
            let mut login = rig.exchange("bob");
            rig.send_login(&mut login)
        })
        .collect();
    let refused = waiting
        .iter()
        .filter(|id| rig.final_answer(**id).is_some_and(|(h, _)| h.status == Status::REQUEST_NOT_ACCEPTED.0));
    assert_eq!(refused.count(), 3);
    assert_eq!(rig.open_beside.len(), 1);
}
