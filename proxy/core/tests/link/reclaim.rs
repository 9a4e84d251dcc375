//! Every Open comes back: what a node has kept, what it will not give at once, what is read-only.

use std::{cell::RefCell, rc::Rc, time::Duration};

use smb_parse::{
    FileId,
    cmd::{create, ioctl, lock::Lock, session_setup},
    create_context::{RequestContext, tag},
    encode::{self, IoctlParams},
    fsctl,
    header::{Command, Header, Status},
};

use understudy_core::{files::Files, ids::LinkId};

use crate::{
    node::{Disk, GRANTED},
    rig::Rig,
};

/// SMB2_OPLOCK_LEVEL_BATCH (MS-SMB2 2.2.13).
const BATCH: u8 = 9;
/// The CreateGuid of a client.
const GUID: [u8; 16] = [0x61; 16];
/// SMB2_LOCKFLAG_EXCLUSIVE_LOCK (MS-SMB2 2.2.26.1).
const EXCLUSIVE: u32 = 2;

/// A CREATE that asks for a durable handle of that version; of none if 0.
fn create(rig: &Rig, name: &str, version: u8) -> Vec<u8> {
    let contexts: &[(&[u8], Vec<u8>)] = match version {
        0 => &[],
        1 => &[(tag::DHNQ, encode::durable_request())],
        _ => &[(tag::DH2Q, encode::durable_v2_request(60_000, GUID))],
    };
    create_with(rig, name, contexts)
}

fn create_with(rig: &Rig, name: &str, contexts: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    rig.open_request(name, BATCH, contexts)
}

fn open(rig: &mut Rig, name: &str, version: u8) -> FileId {
    let (status, msg) = rig.ask(create(rig, name, version));
    assert_eq!(status, Status::SUCCESS, "{name}");
    create::Response::parse(&msg).unwrap().file_id
}

fn locked(rig: &mut Rig, file: FileId) {
    let lock = Lock { offset: 0, length: 1, flags: EXCLUSIVE };
    let asked = encode::lock(&rig.header(Command::LOCK, 0), file, 0, &[lock]);
    assert_eq!(rig.ask(asked).0, Status::SUCCESS);
}

fn reads(rig: &mut Rig, file: FileId) -> Status {
    rig.ask(rig.read(0, file, 0, 4)).0
}

/// A client that has three files open and locked: by both kinds of durable handles, and by none.
fn holder() -> (Rig, Vec<FileId>) {
    let mut rig = Rig::new();
    rig.nodes[0].habits.keeps = true;
    rig.negotiate();
    rig.log_in("alice");
    let files = (0..3_u8).map(|version| {
        let name = format!("file{version}");
        rig.put(&name, 70 + u64::from(version), b"text");
        let file = open(&mut rig, &name, version);
        locked(&mut rig, file);
        file
    });
    let files = files.collect();
    (rig, files)
}

/// The names that the present node was asked for since, and how: the tag of what asks for a durable handle.
fn asked_for(rig: &Rig) -> Vec<(String, Option<Vec<u8>>)> {
    let node = rig.leg.expect("a node serves").1;
    let creates = rig.nodes[node].seen(Command::CREATE).into_iter().map(|(_, msg)| {
        let asked = create::Request::parse(msg).unwrap();
        let durable = [tag::DHNQ, tag::DHNC, tag::DH2Q, tag::DH2C];
        let tag = asked.contexts().flatten().map(|c| c.tag.to_vec()).find(|t| durable.contains(&&t[..]));
        (asked.name.to_string_lossy(), tag)
    });
    creates.collect()
}

#[test]
fn a_node_that_lives_gives_back_what_it_has_kept_locks_and_all() {
    let (mut rig, files) = holder();
    let before = rig.nodes[0].session_of("alice").expect("a session");
    // Once in Relay; then in Bridge, where the CreateGuid is the proxy's own.
    for previous in [Some(before), None] {
        let previous = previous.unwrap_or_else(|| rig.nodes[0].session_of("alice").expect("a session"));
        rig.cut();
        let logins = rig.nodes[0].seen(Command::SESSION_SETUP);
        let named = logins.iter().map(|(_, m)| session_setup::Request::parse(m).unwrap().previous_session_id);
        assert!(named.into_iter().all(|id| id == previous), "the lost session is not ended first");
        let asked = asked_for(&rig);
        let [one, two, none] = [("file1", tag::DHNC), ("file2", tag::DH2C), ("file0", &[][..])]
            .map(|(name, tag)| (name.to_owned(), Some(tag.to_vec()).filter(|t| !t.is_empty())));
        assert_eq!(asked, [one, two, none]);
        assert_eq!(rig.nodes[0].seen(Command::LOCK).len(), 1, "what the node has kept is locked");
        let report = rig.takeovers.pop().expect("a takeover");
        assert_eq!((report.opens_reclaimed, report.opens_kept, report.opens_lost), (3, 2, 0));
        for file in &files {
            assert_eq!(reads(&mut rig, *file), Status::SUCCESS);
        }
    }
}

#[test]
fn what_a_node_has_not_kept_is_opened_and_locked_anew() {
    let (mut rig, files) = holder();
    rig.nodes[0].habits.keeps = false;
    // As if its process had been killed.
    rig.nodes[0].forget_promises();
    rig.cut();
    let report = rig.takeovers.pop().expect("a takeover");
    assert_eq!((report.opens_reclaimed, report.opens_kept, report.opens_lost), (3, 0, 0));
    assert_eq!(rig.nodes[0].seen(Command::CREATE).len(), 5);
    assert_eq!(rig.nodes[0].seen(Command::LOCK).len(), 3);
    for file in files {
        assert_eq!(reads(&mut rig, file), Status::SUCCESS);
    }
}

#[test]
fn another_node_is_not_asked_for_what_it_cannot_have() {
    let (mut rig, files) = holder();
    rig.nodes[1].habits.keeps = true;
    rig.fail_over();
    let tags: Vec<_> = asked_for(&rig).into_iter().filter_map(|(_, tag)| tag).collect();
    assert_eq!(tags, [tag::DHNQ, tag::DH2Q]);
    let asked = rig.nodes[1].seen(Command::CREATE);
    let guids = asked.iter().flat_map(|(_, msg)| {
        let asked = create::Request::parse(msg).unwrap();
        let guids = asked.contexts().flatten().filter_map(|c| match RequestContext::parse(&c) {
            RequestContext::DurableV2 { create_guid, .. } => Some(create_guid),
            _ => None,
        });
        guids.collect::<Vec<_>>()
    });
    assert!(guids.into_iter().all(|guid| guid != GUID), "a CreateGuid came twice");
    let logins = rig.nodes[1].seen(Command::SESSION_SETUP);
    let mut named = logins.iter().map(|(_, m)| session_setup::Request::parse(m).unwrap().previous_session_id);
    assert!(named.all(|id| id == 0), "a session of another node is named");
    for file in files {
        assert_eq!(reads(&mut rig, file), Status::SUCCESS);
    }
}

#[test]
fn a_file_that_a_dying_process_still_holds_is_asked_for_again_for_a_while() {
    for (refusals, waits, expected) in [(3, 4, Status::SUCCESS), (1000, 80, Status::FILE_CLOSED)] {
        let mut rig = Rig::new();
        rig.put("file", 77, b"text");
        rig.negotiate();
        rig.log_in("alice");
        let file = open(&mut rig, "file", 0);
        rig.nodes[0].habits.refuses = vec![Status::SHARING_VIOLATION; refusals].into();
        rig.cut();
        assert!(rig.takeovers.is_empty(), "it does not wait");
        for _ in 0..waits {
            rig.wait(Duration::from_millis(50));
        }
        assert_eq!(reads(&mut rig, file), expected);
        let report = rig.takeovers.pop().expect("a takeover");
        assert_eq!(report.opens_lost, u32::from(expected == Status::FILE_CLOSED));
    }
    // On another node nothing of this client's is left over.
    let mut rig = Rig::new();
    rig.put("file", 77, b"text");
    rig.negotiate();
    rig.log_in("alice");
    let file = open(&mut rig, "file", 0);
    rig.nodes[1].habits.refuses = vec![Status::SHARING_VIOLATION].into();
    rig.fail_over();
    assert_eq!(reads(&mut rig, file), Status::FILE_CLOSED);
}

/// A client that has a read-only file open to write, and another file.
fn writer() -> (Rig, FileId, FileId) {
    let mut rig = Rig::new();
    rig.put("object", 77, b"text");
    rig.put("other", 78, b"text");
    let read_only = rig.nodes[0].habits.read_only.clone();
    rig.nodes[1].habits.read_only = read_only.clone();
    rig.negotiate();
    rig.log_in("alice");
    let object = open(&mut rig, "object", 0);
    let other = open(&mut rig, "other", 0);
    read_only.borrow_mut().insert("object".into());
    (rig, object, other)
}

fn is_read_only(rig: &Rig) -> bool {
    rig.nodes[1].habits.read_only.borrow().contains("object")
}

#[test]
fn a_read_only_file_is_had_again_to_write_and_is_read_only_as_before() {
    let (mut rig, object, other) = writer();
    rig.fail_over();
    assert!(is_read_only(&rig));
    assert_eq!(rig.ask(rig.write(0, object, 0, b"more")).0, Status::SUCCESS);
    assert_eq!((rig.get("object"), reads(&mut rig, other)), (b"more".to_vec(), Status::SUCCESS));
    assert_eq!(rig.nodes[1].opens.len(), 2, "a handle of the proxy's own is left");
    assert_eq!(rig.nodes[1].seen(Command::SET_INFO).len(), 2);
    let report = rig.takeovers.pop().expect("a takeover");
    assert_eq!((report.opens_reclaimed, report.opens_lost), (2, 0));
}

#[test]
fn what_a_node_has_not_made_read_only_again_the_next_one_does() {
    let (mut rig, object, _) = writer();
    rig.nodes[1].habits.swallows = vec![Command::SET_INFO];
    rig.fail_over();
    assert!(!is_read_only(&rig) && rig.takeovers.is_empty(), "it is not in the middle of it");
    rig.up[0] = true;
    rig.nodes[0].habits.read_only = rig.nodes[1].habits.read_only.clone();
    rig.stays = true;
    rig.crash();
    rig.assign(0);
    assert!(is_read_only(&rig));
    assert_eq!(rig.ask(rig.write(0, object, 0, b"more")).0, Status::SUCCESS);
    assert_eq!(rig.nodes[0].opens.len(), 2, "a handle of the proxy's own is left");
}

#[test]
fn what_may_not_be_written_any_more_is_lost_alone() {
    // The reclaim, and the handle for the attributes.
    for (denials, read_only) in [(2, true), (100, false)] {
        let (mut rig, object, other) = writer();
        if !read_only {
            rig.nodes[1].habits.read_only.borrow_mut().clear();
        }
        rig.nodes[1].habits.denies = Some(("object".into(), denials));
        rig.fail_over();
        assert_eq!(reads(&mut rig, object), Status::FILE_CLOSED);
        assert_eq!((reads(&mut rig, other), is_read_only(&rig)), (Status::SUCCESS, read_only));
        let report = rig.takeovers.pop().expect("a takeover");
        assert_eq!((report.opens_reclaimed, report.opens_lost), (1, 1));
    }
}

/// FileDispositionInformation, as a client sets it.
fn delete(rig: &Rig, file: FileId) -> Vec<u8> {
    encode::set_info(&rig.header(Command::SET_INFO, 0), 1, 13, 0, file, &[1])
}

#[test]
fn a_file_is_flagged_to_be_deleted_when_no_link_has_to_open_it_any_more() {
    let (disk, files) = (Disk::default(), Rc::<RefCell<Files>>::default());
    let mut rigs = [1, 2].map(|link| {
        let known = Rig::new().users();
        let mut rig = Rig::with(LinkId(link), known, &disk, &files);
        rig.put("file", 77, b"text");
        rig.negotiate();
        rig.log_in("alice");
        rig
    });
    let [file, _] = [0, 1].map(|n: usize| open(&mut rigs[n], "file", 0));
    let [one, two] = &mut rigs;
    assert_eq!(one.ask(delete(one, file)).0, Status::SUCCESS);
    files.borrow_mut().all_lost(one.now, 2);
    one.fail_over();
    let close = encode::close(&one.header(Command::CLOSE, 0), 0, file);
    let close = one.send(&[close])[0];
    assert_eq!(one.nodes[1].seen(Command::CREATE).len(), 1, "it is not back");
    assert!(one.nodes[1].seen(Command::SET_INFO).is_empty(), "the other could not open it any more");
    assert!(one.final_answer(close).is_none(), "it is closed, and stays");
    two.fail_over();
    one.show_files();
    one.pump();
    let done: Vec<_> = one.nodes[1].seen.iter().map(|(header, _)| header.command).collect();
    assert_eq!(done[done.len() - 2..], [Command::SET_INFO, Command::CLOSE]);
    assert_eq!(Status(one.answer(close).0.status), Status::SUCCESS);
    assert!(!files.borrow().is_opening_blocked());
}

/// Clients open the file afresh then; at another status they give up.
#[test]
fn a_durable_reconnect_to_what_nobody_has_is_refused_as_a_node_refuses_it() {
    let (mut rig, _) = holder();
    let gone = FileId { persistent: 0x4711, volatile: 0x4712 };
    let reconnects = [
        (tag::DHNC, encode::durable_reconnect(gone)),
        (tag::DH2C, encode::durable_v2_reconnect(gone, GUID, 0)),
    ];
    rig.fail_over();
    for (tag, context) in reconnects {
        let asked = create_with(&rig, "file1", &[(tag, context)]);
        assert_eq!(rig.ask(asked).0, Status::OBJECT_NAME_NOT_FOUND);
    }
}

/// CHANGE_NOTIFY (MS-SMB2 2.2.35): of the form of a FLUSH, and longer.
fn watches(rig: &mut Rig, directory: FileId) -> Status {
    let mut asked = encode::flush(&rig.header(Command::CHANGE_NOTIFY, 0), directory);
    asked[64] = 32;
    asked.extend([0; 8]);
    rig.ask(asked).0
}

#[test]
fn what_a_lost_node_knew_to_have_changed_is_not_kept_from_who_watches() {
    let (mut rig, files) = holder();
    assert_eq!(watches(&mut rig, files[0]), Status::NOTIFY_ENUM_DIR);
    let asked = |rig: &Rig| [0, 1].map(|node: usize| rig.nodes[node].seen(Command::CHANGE_NOTIFY).len());
    assert_eq!(asked(&rig), [1, 0]);
    rig.fail_over();
    // Between two requests the node gathered what changed. That is lost, and the client has to look for itself.
    assert_eq!(watches(&mut rig, files[0]), Status::NOTIFY_ENUM_DIR);
    assert_eq!(asked(&rig), [1, 0], "the new node knows nothing of it");
    assert_eq!(watches(&mut rig, files[0]), Status::NOTIFY_ENUM_DIR);
    assert_eq!(asked(&rig), [1, 1], "told once");
    // Who has not watched has missed nothing.
    assert_eq!(watches(&mut rig, files[1]), Status::NOTIFY_ENUM_DIR);
    assert_eq!(asked(&rig), [1, 2]);
}

#[test]
fn a_pipe_has_lost_its_other_end_and_can_be_closed() {
    let mut rig = Rig::new();
    rig.put("srvsvc", 77, b"pipe");
    for node in &mut rig.nodes {
        node.habits.pipes = true;
    }
    rig.negotiate();
    rig.log_in("alice");
    let pipe = open(&mut rig, "srvsvc", 0);
    rig.nodes[0].habits.mute = vec![Command::READ];
    let in_flight = rig.send(&[rig.read(0, pipe, 0, 4)])[0];
    rig.fail_over();
    assert_eq!(Status(rig.answer(in_flight).0.status), Status::PIPE_DISCONNECTED);
    assert_eq!(reads(&mut rig, pipe), Status::PIPE_DISCONNECTED);
    let close = encode::close(&rig.header(Command::CLOSE, 0), 0, pipe);
    assert_eq!(rig.ask(close).0, Status::SUCCESS);
    assert_eq!(reads(&mut rig, pipe), Status::FILE_CLOSED);
    let again = open(&mut rig, "srvsvc", 0);
    assert_eq!(reads(&mut rig, again), Status::SUCCESS);
}

#[test]
fn a_node_gives_out_a_key_before_it_gets_one_that_another_has_given_out() {
    let mut rig = Rig::new();
    rig.put("from", 77, b"text");
    rig.put("to", 78, b"");
    rig.negotiate();
    rig.log_in("alice");
    let (from, to) = (open(&mut rig, "from", 0), open(&mut rig, "to", 0));
    // FileId and context; one chunk, of nothing.
    let input = [&from.to_bytes()[..], &[7; 8], &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 24]].concat();
    rig.fail_over();
    let id = *rig.nodes[1].opens.iter().find(|(_, name)| *name == "from").expect("it is back").0;
    for _ in 0..2 {
        let params =
            IoctlParams { ctl_code: fsctl::SRV_COPYCHUNK, file_id: to, input: &input, max_output: 64 };
        rig.ask(encode::ioctl(&rig.header(Command::IOCTL, 0), &params));
    }
    let seen = rig.nodes[1].seen(Command::IOCTL);
    let asked = seen.iter().map(|(_, msg)| ioctl::Request::parse(msg).unwrap());
    let asked: Vec<_> = asked.map(|a| (a.ctl_code, a.file_id.volatile, a.input.get(8..16))).collect();
    let bytes = id.to_le_bytes();
    let copy = (fsctl::SRV_COPYCHUNK, asked[1].1, Some(&bytes[..]));
    assert_eq!(asked, [(fsctl::SRV_REQUEST_RESUME_KEY, id, None), copy, copy]);
}

#[test]
fn what_maximum_allowed_comes_to_takes_nothing_from_others_and_is_asked_for_once() {
    const MAXIMUM_ALLOWED: u32 = 0x0200_0000;
    let mut rig = Rig::new();
    rig.put("a", 77, b"text");
    rig.put("b", 78, b"text");
    rig.negotiate();
    rig.log_in("alice");
    let mut asked = create(&rig, "a", 0);
    asked[Header::LEN + 24..][..4].copy_from_slice(&MAXIMUM_ALLOWED.to_le_bytes());
    assert_eq!(rig.ask(asked).0, Status::SUCCESS);
    open(&mut rig, "b", 0);
    let accesses = |rig: &Rig, node: usize| -> Vec<_> {
        let creates = rig.nodes[node].seen(Command::CREATE).into_iter();
        let parsed = creates.map(|(_, msg)| create::Request::parse(msg).unwrap());
        parsed.map(|asked| (asked.name.to_string_lossy(), asked.desired_access)).collect()
    };
    rig.fail_over();
    assert_eq!(accesses(&rig, 1), [("b".to_owned(), 3), ("a".to_owned(), MAXIMUM_ALLOWED)]);
    rig.up[0] = true;
    rig.fail_over();
    assert_eq!(accesses(&rig, 0), [("a".to_owned(), GRANTED), ("b".to_owned(), 3)]);
}
