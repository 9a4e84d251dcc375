//! The side channel: when there is one, what is learned on it, and that nobody is disturbed by it.

use std::time::Duration;

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::create,
    create_context::tag,
    encode::{self, CreateParams},
    frame::PREFIX,
    header::{Command, Header, Status},
};
use understudy_core::{
    crypto::{Dialect, sealing::Cipher},
    effect::CloseReason,
    event::{Cause, LegLoss, SideChannelFailure, SideChannelNews},
    link::{LinkConfig, SideChannelMode},
};

use crate::{TEXT, at_work, node::GRANTED, rig::Rig};

/// Long enough for an Open to be asked about.
const A_WHILE: Duration = Duration::from_millis(1_100);
const MAXIMUM_ALLOWED: u32 = 0x0200_0000;

fn failures(rig: &Rig) -> Vec<SideChannelFailure> {
    let why = |news: &SideChannelNews| match news {
        SideChannelNews::Failed(why) => Some(*why),
        _ => None,
    };
    rig.side_news.iter().filter_map(why).collect()
}

/// A client whose file has been open for a while, and its side channel.
fn watched() -> (Rig, FileId) {
    let (mut rig, file) = at_work("alice");
    rig.wait(A_WHILE);
    assert_eq!(rig.side_news, [SideChannelNews::Bound]);
    (rig, file)
}

/// The client works, as if there were nothing but its own connection.
fn goes_on(rig: &mut Rig, file: FileId) {
    let (status, _) = rig.ask(rig.read(0, file, 0, 6));
    assert_eq!(status, Status::SUCCESS);
    assert_eq!((rig.closed, rig.refused), (None, 0));
}

/// Another client's doing: the node tells of a break, on the main leg or on the side channel.
fn break_on(rig: &mut Rig, file: FileId, aside: bool, level: u8) {
    let header = Rig::break_header(rig.sessions[0].id);
    let frame = encode::frame(encode::oplock_break_notification(&header, file, level));
    let (leg, _) = if aside { rig.side } else { rig.leg }.expect("that leg stands");
    rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&frame[..]));
    rig.pump();
}

fn breaks(rig: &Rig) -> usize {
    let is_break = |msg: &&Vec<u8>| Header::parse(msg).unwrap().message_id == u64::MAX;
    rig.inbox.iter().filter(is_break).count()
}

#[test]
fn an_open_of_some_age_is_asked_for_its_identity_and_nothing_else_happens() {
    let (mut rig, file) = at_work("alice");
    let (sent, delivered) = (rig.sent.len(), rig.delivered.len());
    rig.wait(Duration::from_millis(900));
    assert!(rig.side.is_none());
    rig.wait(Duration::from_millis(200));
    assert_eq!(rig.side_news, [SideChannelNews::Bound]);
    assert_eq!(
        (rig.sent.len(), rig.delivered.len()),
        (sent, delivered),
        "the client's own leg is left alone"
    );
    let asked = rig.nodes[0].seen(Command::QUERY_INFO);
    assert_eq!(asked.len(), 1, "the access was asked for in so many words, and is not in question");
    goes_on(&mut rig, file);
    // A second Open is asked about on the same channel.
    let other = rig.open(0, "file");
    rig.wait(A_WHILE);
    assert_eq!(rig.nodes[0].seen(Command::QUERY_INFO).len(), 2);
    assert_eq!(rig.nodes[0].seen(Command::NEGOTIATE).len(), 2);
    goes_on(&mut rig, other);
}

#[test]
fn what_is_open_for_a_moment_costs_nothing() {
    let (mut rig, file) = at_work("alice");
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, file);
    assert_eq!(rig.ask(close).0, Status::SUCCESS);
    rig.wait(A_WHILE);
    assert!(rig.side.is_none() && rig.side_news.is_empty());
    assert_eq!(rig.link.poll_timeout(), None);
}

#[test]
fn a_file_of_the_same_age_that_took_the_name_is_not_taken_for_the_one_that_was_open() {
    for (watched, status) in [(false, Status::SUCCESS), (true, Status::FILE_CLOSED)] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        for node in &mut rig.nodes {
            node.habits.birth = Some(5);
        }
        rig.negotiate();
        let session = rig.log_in("alice");
        let file = rig.open(session, "file");
        if watched {
            rig.wait(A_WHILE);
        }
        rig.put("file", 78, b"another");
        rig.fail_over();
        assert_eq!(rig.ask(rig.read(0, file, 0, 6)).0, status, "by its age alone it cannot be told");
    }
}

#[test]
fn a_node_that_numbers_no_files_tells_nothing_of_them() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[0].habits.hides_numbers = true;
    rig.wait(A_WHILE);
    assert_eq!(rig.nodes[0].seen(Command::QUERY_INFO).len(), 1);
    rig.fail_over();
    goes_on(&mut rig, file);
}

#[test]
fn what_maximum_allowed_came_to_is_what_is_asked_for_again() {
    let (mut rig, _) = at_work("alice");
    let name: Vec<u8> = "file".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let params = CreateParams {
        oplock_level: 0,
        impersonation_level: 2,
        desired_access: MAXIMUM_ALLOWED,
        file_attributes: 0,
        share_access: 7,
        create_disposition: 1,
        create_options: 0,
        name_utf16: &name,
        contexts: &[],
    };
    assert_eq!(rig.ask(encode::create(&rig.header(Command::CREATE, 0), &params)).0, Status::SUCCESS);
    rig.wait(A_WHILE);
    rig.fail_over();
    let asked: Vec<_> = rig.nodes[1]
        .seen(Command::CREATE)
        .iter()
        .map(|(_, msg)| create::Request::parse(msg).unwrap().desired_access)
        .collect();
    assert_eq!(asked, [3, GRANTED]);
}

#[test]
fn there_is_none_where_none_can_be() {
    let off = LinkConfig { side_channel: SideChannelMode::Off, ..LinkConfig::default() };
    let mut guest = Rig::new();
    let mut old = Rig::new();
    old.dialect = Dialect::SMB210;
    for (rig, user) in [(&mut Rig::configured(off), "alice"), (&mut guest, "nobody"), (&mut old, "alice")] {
        rig.put("file", 77, TEXT);
        rig.negotiate();
        let session = rig.log_in(user);
        rig.open(session, "file");
        rig.wait(A_WHILE);
        assert!(rig.side.is_none() && rig.side_news.is_empty());
    }
}

#[test]
fn it_can_be_had_for_every_session() {
    let always = LinkConfig { side_channel: SideChannelMode::Always, ..LinkConfig::default() };
    for dialect in [Dialect::SMB300, Dialect::SMB302, Dialect::SMB311] {
        let mut rig = Rig::configured(always.clone());
        rig.dialect = dialect;
        rig.negotiate();
        rig.log_in("alice");
        assert_eq!(rig.side_news, [SideChannelNews::Bound], "{dialect:?}");
    }
}

#[test]
fn who_seals_is_asked_about_sealed() {
    for (dialect, cipher) in [(Dialect::SMB302, Cipher::Aes128Ccm), (Dialect::SMB311, Cipher::Aes256Gcm)] {
        let mut rig = Rig::new();
        rig.put("file", 77, TEXT);
        for node in &mut rig.nodes {
            node.habits.birth = Some(5);
        }
        (rig.dialect, rig.cipher) = (dialect, Some(cipher));
        rig.negotiate();
        rig.seals = true;
        let session = rig.log_in("alice");
        let file = rig.open(session, "file");
        rig.wait(A_WHILE);
        assert_eq!(rig.side_news, [SideChannelNews::Bound]);
        let node = &rig.nodes[0];
        let asked = node.seen.iter().position(|(header, _)| header.command == Command::QUERY_INFO).unwrap();
        assert!(node.sealed[asked], "{cipher:?}");
        rig.put("file", 78, b"another");
        rig.fail_over();
        assert_eq!(rig.ask(rig.read(0, file, 0, 6)).0, Status::FILE_CLOSED, "the answer was understood");
    }
}

#[test]
fn a_refusal_is_final() {
    let (mut rig, file) = at_work("alice");
    rig.nodes[0].habits.single_channel = true;
    rig.wait(A_WHILE);
    assert_eq!(failures(&rig), [SideChannelFailure::Refused]);
    assert!(rig.side.is_none());
    rig.open(0, "file");
    rig.wait(Duration::from_secs(1_000));
    assert_eq!(failures(&rig).len(), 1);
    goes_on(&mut rig, file);
}

#[test]
fn a_node_that_says_nothing_is_asked_again_later() {
    for command in [Command::NEGOTIATE, Command::SESSION_SETUP] {
        let (mut rig, file) = at_work("alice");
        rig.nodes[0].habits.mute.push(command);
        rig.wait(A_WHILE);
        assert!(rig.side.is_some());
        rig.wait(Duration::from_secs(5));
        assert!(rig.side.is_none());
        assert_eq!(failures(&rig), [SideChannelFailure::Silent], "{command:?}");
        goes_on(&mut rig, file);
        rig.nodes[0].habits.mute.clear();
        rig.wait(Duration::from_secs(60));
        if command == Command::NEGOTIATE {
            assert_eq!(rig.side_news.last(), Some(&SideChannelNews::Bound));
            assert_eq!(rig.nodes[0].seen(Command::QUERY_INFO).len(), 1);
        } else {
            assert_eq!(
                failures(&rig)[1..],
                [SideChannelFailure::Nonce],
                "the binding was signed once already"
            );
        }
    }
}

#[test]
fn its_loss_is_no_loss() {
    let mut rig = Rig::new();
    rig.dialect = Dialect::SMB302;
    rig.put("file", 77, TEXT);
    rig.negotiate();
    let session = rig.log_in("alice");
    let file = rig.open(session, "file");
    rig.wait(A_WHILE);
    let (leg, _) = rig.side.take().unwrap();
    rig.link.handle_leg_lost(rig.now, leg, LegLoss::Closed);
    rig.pump();
    let news = [SideChannelNews::Closed, SideChannelNews::Failed(SideChannelFailure::Lost)];
    assert_eq!(rig.side_news[1..], news);
    goes_on(&mut rig, file);
    rig.wait(Duration::from_secs(60));
    assert!(rig.side.is_none(), "there is nothing left to ask");
    rig.open(0, "file");
    rig.wait(A_WHILE);
    assert_eq!(rig.side_news.last(), Some(&SideChannelNews::Bound));
}

#[test]
fn it_ends_before_the_clients_own_leg_does() {
    let (mut rig, _) = watched();
    let legs = [rig.side.unwrap().0, rig.leg.unwrap().0];
    rig.link.handle_client_closed(rig.now);
    rig.pump();
    assert_eq!(rig.given_up, legs);
    assert_eq!(
        (rig.closed, rig.side_news.last()),
        (Some(CloseReason::ClientClosed), Some(&SideChannelNews::Closed))
    );
}

#[test]
fn a_takeover_leaves_none_behind() {
    let (mut rig, file) = watched();
    let side = rig.side.unwrap().0;
    rig.fail_over();
    assert_eq!(rig.given_up, [side]);
    goes_on(&mut rig, file);
    rig.open(0, "file");
    rig.wait(A_WHILE);
    assert!(rig.side.is_none(), "in Bridge there is none");
    // Nor when the node is left because it was silent.
    let (mut rig, _) = watched();
    let legs = [rig.side.unwrap().0, rig.leg.unwrap().0];
    rig.assign_for(1, Cause::Silence);
    assert_eq!(rig.given_up, legs);
}

#[test]
fn it_ends_with_its_session() {
    let (mut rig, _) = watched();
    let other = rig.log_in("bob");
    let theirs = rig.open(other, "file");
    let logoff = encode::logoff(&rig.header(Command::LOGOFF, 0));
    assert_eq!(rig.ask(logoff).0, Status::SUCCESS);
    assert_eq!((rig.side, rig.side_news.last()), (None, Some(&SideChannelNews::Closed)));
    assert_eq!(rig.ask(rig.read(other, theirs, 0, 6)).0, Status::SUCCESS);
    rig.wait(A_WHILE);
    assert_eq!(rig.side_news.last(), Some(&SideChannelNews::Bound), "the other session's has its turn");
}

#[test]
fn what_is_not_proved_is_not_believed() {
    let (mut rig, file) = at_work("alice");
    rig.wait(A_WHILE);
    rig.open(0, "file");
    rig.nodes[0].habits.forgets_to_sign = true;
    rig.wait(A_WHILE);
    assert_eq!(failures(&rig), [SideChannelFailure::NotProved]);
    rig.nodes[0].habits.forgets_to_sign = false;
    assert!(rig.side.is_none());
    assert_eq!((rig.closed, rig.ask(rig.read(0, file, 0, 6)).0), (None, Status::SUCCESS));
}

#[test]
fn a_process_that_is_stuck_is_told_of_and_so_is_its_waking() {
    let (mut rig, file) = watched();
    for asked in 1..6 {
        rig.wait(Duration::from_secs(10));
        assert_eq!((rig.nodes[0].seen(Command::ECHO).len(), rig.stuck), (asked, false));
    }
    rig.nodes[0].habits.mute.push(Command::ECHO);
    rig.wait(Duration::from_secs(10));
    assert!(!rig.stuck);
    rig.wait(Duration::from_secs(10));
    assert!(rig.stuck);
    rig.wait(Duration::from_secs(100));
    assert_eq!((rig.closed, rig.takeovers.len()), (None, 0), "nothing is done about it");
    rig.nodes[0].habits.mute.clear();
    rig.open(0, "file");
    rig.wait(A_WHILE);
    assert!(!rig.stuck, "it answers what it is asked");
    goes_on(&mut rig, file);
}

#[test]
fn a_silent_node_has_no_stuck_process() {
    let (mut rig, _) = watched();
    rig.nodes[0].habits.mute.push(Command::ECHO);
    rig.link.handle_node_silent(rig.now);
    for _ in 0..5 {
        rig.wait(Duration::from_secs(10));
        assert!(!rig.stuck);
    }
    rig.link.handle_node_answers(rig.now);
    rig.wait(Duration::from_secs(10));
    assert!(rig.stuck);
    rig.link.handle_client_closed(rig.now);
    rig.pump();
    assert!(!rig.stuck, "a Link that is gone is not counted as stuck");
}

#[test]
fn a_break_reaches_the_client_once_by_whichever_leg() {
    for first in [false, true] {
        let (mut rig, file) = watched();
        break_on(&mut rig, file, first, 1);
        assert_eq!(breaks(&rig), 1);
        break_on(&mut rig, file, !first, 1);
        assert_eq!(breaks(&rig), 1, "the same by the other leg");
        break_on(&mut rig, file, first, 0);
        assert_eq!(breaks(&rig), 2, "another one");
        rig.fail_over();
        let (_, msg) = &rig.nodes[1].seen(Command::CREATE)[0];
        assert_eq!(create::Request::parse(msg).unwrap().requested_oplock_level, 0, "it was taken in");
    }
}

#[test]
fn what_an_old_side_channel_says_is_not_heard() {
    let (mut rig, file) = watched();
    let (leg, _) = rig.side.unwrap();
    rig.fail_over();
    let inbox = rig.inbox.len();
    let frame =
        encode::frame(encode::oplock_break_notification(&rig.header(Command::OPLOCK_BREAK, 0), file, 0));
    rig.link.handle_node_frame(rig.now, leg, BytesMut::from(&frame[..]));
    rig.link.handle_connected(rig.now, leg);
    rig.link.handle_leg_lost(rig.now, leg, LegLoss::Closed);
    rig.pump();
    assert_eq!(rig.inbox.len(), inbox);
    assert!(frame.len() > PREFIX);
    goes_on(&mut rig, file);
}

#[test]
fn where_none_can_be_had_although_it_is_wanted_the_link_is_bridged_from_the_start() {
    let always = LinkConfig { side_channel: SideChannelMode::Always, ..LinkConfig::default() };
    for (dialect, user, bridged) in [
        (Dialect::SMB202, "alice", true),
        (Dialect::SMB210, "alice", true),
        (Dialect::SMB210, "nobody", true),
        (Dialect::SMB210, "mallory", false),
        (Dialect::SMB300, "alice", false),
    ] {
        let mut rig = Rig::configured(always.clone());
        rig.put("file", 10, TEXT);
        rig.dialect = dialect;
        rig.negotiate();
        rig.log_in(user);
        assert_eq!(rig.link.mode(), if bridged { "bridge" } else { "relay" }, "{dialect:?} {user}");
        let causes: Vec<_> = rig.takeovers.iter().map(|report| (report.cause, report.failed)).collect();
        assert_eq!(causes, if bridged { vec![(Cause::EarlyBridge, None)] } else { vec![] }, "{user}");
        let file = rig.open(0, "file");
        goes_on(&mut rig, file);
        if user == "alice" {
            rig.fail_over();
            goes_on(&mut rig, file);
        }
    }
}

#[test]
fn a_node_that_refuses_to_bind_is_bridged_as_long_as_nothing_is_open() {
    let always = LinkConfig { side_channel: SideChannelMode::Always, ..LinkConfig::default() };
    let mut rig = Rig::configured(always);
    rig.put("file", 10, TEXT);
    rig.nodes[0].habits.single_channel = true;
    rig.negotiate();
    rig.log_in("alice");
    assert_eq!((rig.link.mode(), failures(&rig)), ("bridge", vec![SideChannelFailure::Refused]));
    let file = rig.open(0, "file");
    goes_on(&mut rig, file);
}

#[test]
fn a_second_user_is_no_reason_to_leave_the_leg_on_which_the_first_has_files_open() {
    let always = LinkConfig { side_channel: SideChannelMode::Always, ..LinkConfig::default() };
    let mut rig = Rig::configured(always);
    rig.put("file", 10, TEXT);
    rig.dialect = Dialect::SMB210;
    rig.negotiate();
    rig.log_in("mallory");
    let file = rig.open(0, "file");
    rig.log_in("alice");
    assert_eq!((rig.link.mode(), rig.takeovers.len()), ("relay", 0));
    goes_on(&mut rig, file);
}

/// Samba forgets the CreateGuid of an Open when its FileId is first used, by whomever; the client's replay of the CREATE
/// would open the file a second time.
#[test]
fn an_open_that_its_client_may_still_replay_is_not_asked_about() {
    let (mut rig, file) = at_work("alice");
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, file);
    assert_eq!(rig.ask(close).0, Status::SUCCESS);
    let durable = encode::durable_v2_request(60_000, [7; 16]);
    let (status, msg) = rig.ask(rig.open_request("file", 9, &[(tag::DH2Q, durable)]));
    assert_eq!(status, Status::SUCCESS);
    let file = create::Response::parse(&msg).unwrap().file_id;
    rig.wait(A_WHILE);
    assert!(rig.side_news.is_empty() && rig.nodes[0].seen(Command::QUERY_INFO).is_empty());
    // Once the client has used it, it cannot be replayed any more.
    goes_on(&mut rig, file);
    rig.wait(A_WHILE);
    assert_eq!(rig.side_news, [SideChannelNews::Bound]);
    assert_eq!(rig.nodes[0].seen(Command::QUERY_INFO).len(), 1);
    goes_on(&mut rig, file);
}
