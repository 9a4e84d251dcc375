//! Requests that change names, in flight when their node dies: done or not, and never twice.

use std::{cell::RefCell, rc::Rc};

use smb_parse::{
    FileId,
    cmd::create,
    create_context::tag,
    encode::{self, CreateParams},
    header::{Command, Header, Status},
};

use understudy_core::{
    event::{Event, FileEvent},
    files::{Deed, FileKey, Files},
    ids::LinkId,
};

use crate::{
    node::{Disk, MINUTE, NOW, Node},
    related,
    rig::{Rig, Users},
};

/// FileRenameInformation (MS-FSCC 2.4.42).
pub(crate) const RENAME: u8 = 10;
/// FileLinkInformation (MS-FSCC 2.4.28).
pub(crate) const LINK: u8 = 11;
/// FILE_CREATE (MS-SMB2 2.2.13); FILE_CREATED, a CreateAction (2.2.14).
const CREATE: u32 = 2;
const CREATED: u32 = 2;
pub(crate) const TEXT: &[u8] = b"the very file";

/// A client that has `file` open.
fn at_work() -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.negotiate();
    rig.log_in("alice");
    let file = rig.open(0, "file");
    (rig, file)
}

/// The node dies before it has done what it is asked, or after.
pub(crate) fn lose(rig: &mut Rig, done: bool, message: impl Fn(&Rig) -> Vec<u8>) -> u64 {
    let msg = message(rig);
    let command = Header::parse(&msg).unwrap().command;
    let habits = &mut rig.nodes[0].habits;
    (habits.mute, habits.swallows) = if done { (vec![], vec![command]) } else { (vec![command], vec![]) };
    rig.send(&[msg])[0]
}

pub(crate) fn status(rig: &Rig, id: u64) -> Status {
    Status(rig.answer(id).0.status)
}

/// How often the second node was asked for another name.
fn asked(rig: &Rig) -> usize {
    rig.nodes[1].seen(Command::SET_INFO).len()
}

/// The next node takes over, too.
fn fail_over_again(rig: &mut Rig) {
    let known = rig.users();
    rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
    rig.up = vec![true, true];
    rig.fail_over();
}

fn reads_its_file(rig: &mut Rig, file: FileId) {
    let (status, msg) = rig.ask(rig.read(0, file, 0, 100));
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(smb_parse::cmd::read::Response::parse(&msg).unwrap().data, TEXT);
}

#[test]
fn a_rename_is_done_once_wherever_the_node_died() {
    for done in [false, true] {
        for replace in [false, true] {
            let (mut rig, file) = at_work();
            if replace {
                rig.put("new", 5, b"to be replaced");
            }
            let id = lose(&mut rig, done, |rig| rig.set_name(0, file, RENAME, "new", replace));
            rig.fail_over();
            assert_eq!(status(&rig, id), Status::SUCCESS);
            assert_eq!(asked(&rig), usize::from(!done), "it is not done twice");
            assert_eq!((rig.get("file"), rig.get("new")), (vec![], TEXT.to_vec()));
            assert_eq!(rig.takeovers[0].opens_reclaimed, 1);
            reads_its_file(&mut rig, file);
            fail_over_again(&mut rig);
            reads_its_file(&mut rig, file);
        }
    }
}

#[test]
fn a_rename_that_collides_still_does() {
    let (mut rig, file) = at_work();
    rig.put("new", 5, b"in the way");
    let id = lose(&mut rig, false, |rig| rig.set_name(0, file, RENAME, "new", false));
    rig.fail_over();
    assert_eq!(status(&rig, id), Status::OBJECT_NAME_COLLISION);
    assert_eq!((rig.get("file"), rig.get("new")), (TEXT.to_vec(), b"in the way".to_vec()));
    reads_its_file(&mut rig, file);
}

#[test]
fn of_several_renames_in_flight_the_one_that_shows_is_told_done_and_of_the_others_nobody_can_tell() {
    const UNTOLD: Status = Status::INTERNAL_ERROR;
    for (done, told, asks, name) in [
        (0, [Status::SUCCESS; 2], 2, "second"),
        (1, [Status::SUCCESS, UNTOLD], 0, "first"),
        (2, [UNTOLD, Status::SUCCESS], 0, "second"),
    ] {
        let (mut rig, file) = at_work();
        let ids = [1, 2].map(|n| {
            let name = if n == 1 { "first" } else { "second" };
            lose(&mut rig, n <= done, |rig| rig.set_name(0, file, RENAME, name, false))
        });
        rig.fail_over();
        assert_eq!(ids.map(|id| status(&rig, id)), told);
        assert_eq!((asked(&rig), rig.get(name)), (asks, TEXT.to_vec()));
        reads_its_file(&mut rig, file);
        fail_over_again(&mut rig);
        reads_its_file(&mut rig, file);
    }
}

#[test]
fn no_close_overtakes_a_rename_that_is_in_doubt() {
    for done in [false, true] {
        let (mut rig, file) = at_work();
        let id = lose(&mut rig, done, |rig| rig.set_name(0, file, RENAME, "new", false));
        let close = lose(&mut rig, false, |rig| encode::close(&rig.header(Command::CLOSE, 0), 0, file));
        rig.fail_over();
        assert_eq!((status(&rig, id), status(&rig, close)), (Status::SUCCESS, Status::SUCCESS));
        assert_eq!((rig.get("new"), asked(&rig)), (TEXT.to_vec(), usize::from(!done)));
    }
}

#[test]
fn another_file_under_the_old_name_hides_no_rename() {
    let (mut rig, file) = at_work();
    let id = lose(&mut rig, true, |rig| rig.set_name(0, file, RENAME, "new", false));
    rig.put("file", 78, b"a stranger");
    rig.fail_over();
    assert_eq!((status(&rig, id), asked(&rig)), (Status::SUCCESS, 0));
    reads_its_file(&mut rig, file);
    assert_eq!(rig.nodes[1].opens.len(), 1, "the stranger is closed again");
}

#[test]
fn another_file_under_the_new_name_is_no_rename() {
    let (mut rig, file) = at_work();
    let id = lose(&mut rig, true, |rig| rig.set_name(0, file, RENAME, "new", false));
    rig.put("new", 78, b"a stranger");
    rig.fail_over();
    assert_eq!((status(&rig, id), asked(&rig)), (Status::FILE_CLOSED, 0));
    assert!(rig.nodes[1].opens.is_empty());
}

#[test]
fn every_handle_follows_a_rename_that_was_done() {
    let (mut rig, _) = at_work();
    rig.put("dir", 6, b"");
    rig.put(r"dir\sub\file", 7, TEXT);
    let [dir, again, beneath] = ["dir", "dir", r"dir\sub\file"].map(|name| rig.open(0, name));
    let id = lose(&mut rig, true, |rig| rig.set_name(0, dir, RENAME, "moved", false));
    rig.fail_over();
    assert_eq!((status(&rig, id), asked(&rig)), (Status::SUCCESS, 0));
    reads_its_file(&mut rig, beneath);
    fail_over_again(&mut rig);
    reads_its_file(&mut rig, beneath);
    assert_eq!(rig.ask(rig.write(0, again, 0, b"x")).0, Status::SUCCESS);
    assert_eq!(rig.takeovers.iter().map(|t| t.opens_lost).sum::<u32>(), 0);
    assert_eq!(rig.files.borrow().opens(), 4);
}

/// Only the connection is lost: its node lives.
fn cut(rig: &mut Rig) {
    rig.crash();
    rig.nodes[0].habits.mute.clear();
    rig.nodes[0].habits.swallows.clear();
    rig.up[0] = true;
    rig.assign(0);
}

#[test]
fn on_a_node_that_lives_a_rename_is_done_once() {
    for done in [false, true] {
        let (mut rig, file) = at_work();
        let id = lose(&mut rig, done, |rig| rig.set_name(0, file, RENAME, "new", false));
        cut(&mut rig);
        assert_eq!(status(&rig, id), Status::SUCCESS);
        assert_eq!(rig.nodes[0].seen(Command::SET_INFO).len(), usize::from(!done), "asked anew");
        assert_eq!(rig.get("new"), TEXT);
        reads_its_file(&mut rig, file);
    }
}

#[test]
fn a_rename_in_flight_at_two_deaths_is_not_sent_again() {
    for done in [false, true] {
        let (mut rig, file) = at_work();
        rig.nodes[1].habits.swallows = if done { vec![Command::SET_INFO] } else { vec![] };
        rig.nodes[1].habits.mute = if done { vec![] } else { vec![Command::SET_INFO] };
        let id = lose(&mut rig, false, |rig| rig.set_name(0, file, RENAME, "new", false));
        rig.fail_over();
        assert!(rig.final_answer(id).is_none());
        fail_over_again(&mut rig);
        assert_eq!(status(&rig, id), Status::INTERNAL_ERROR);
        assert!(rig.nodes[0].seen(Command::SET_INFO).is_empty());
        reads_its_file(&mut rig, file);
    }
}

/// The dispositions with which the second node was asked to open that name.
fn dispositions(rig: &Rig, name: &str) -> Vec<u32> {
    let seen = rig.nodes[1].seen(Command::CREATE).into_iter();
    let asked = seen.filter_map(|(_, msg)| create::Request::parse(msg).ok());
    asked.filter(|asked| asked.name.to_string_lossy() == name).map(|a| a.create_disposition).collect()
}

fn created(rig: &Rig, id: u64) -> FileId {
    let (header, msg) = rig.answer(id);
    assert_eq!(Status(header.status), Status::SUCCESS);
    let response = create::Response::parse(msg).unwrap();
    assert_eq!(response.create_action, CREATED);
    response.file_id
}

#[test]
fn an_exclusive_create_is_done_once_wherever_the_node_died() {
    for done in [false, true] {
        let (mut rig, _) = at_work();
        let id = lose(&mut rig, done, |rig| rig.create(0, "new", CREATE));
        rig.fail_over();
        let file = created(&rig, id);
        assert_eq!(dispositions(&rig, "new"), [1, if done { 1 } else { CREATE }], "looked for, then had");
        assert_eq!(rig.nodes[1].opens.len(), 2, "what was looked at is closed again");
        assert_eq!(rig.ask(rig.write(0, file, 0, TEXT)).0, Status::SUCCESS);
        assert!(!rig.files.borrow().is_in_doubt());
        fail_over_again(&mut rig);
        reads_its_file(&mut rig, file);
        assert_eq!(rig.ask(rig.create(0, "new", CREATE)).0, Status::OBJECT_NAME_COLLISION);
    }
}

#[test]
fn what_an_exclusive_create_has_not_made_is_not_taken_for_its_own() {
    let cases: [(u64, &[u8], Status); 4] = [
        (5, b"", Status::OBJECT_NAME_COLLISION),
        (NOW - 2 * MINUTE, b"", Status::OBJECT_NAME_COLLISION),
        (NOW - MINUTE / 2, b"", Status::INTERNAL_ERROR),
        (NOW + 1, b"not empty", Status::INTERNAL_ERROR),
    ];
    for (birth, data, expected) in cases {
        let (mut rig, _) = at_work();
        rig.put("new", birth, data);
        let id = lose(&mut rig, true, |rig| rig.create(0, "new", CREATE));
        rig.fail_over();
        assert_eq!(status(&rig, id), expected, "{birth}");
        assert_eq!(dispositions(&rig, "new").len(), 1 + usize::from(expected != Status::INTERNAL_ERROR));
        assert_eq!(rig.nodes[1].opens.len(), 1, "nothing is left open");
        assert!(!rig.files.borrow().is_in_doubt());
    }
}

/// An exclusive create of `new` with options and contexts.
fn create_with(rig: &Rig, options: u32, contexts: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let name: Vec<u8> = "new".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let params = CreateParams {
        oplock_level: 0,
        impersonation_level: 2,
        desired_access: 3,
        file_attributes: 0,
        share_access: 7,
        create_disposition: CREATE,
        create_options: options,
        name_utf16: &name,
        contexts,
    };
    encode::create(&rig.header(Command::CREATE, 0), &params)
}

#[test]
fn what_may_have_been_deleted_since_is_not_made_again() {
    const DELETE_ON_CLOSE: u32 = 0x1000;
    for done in [false, true] {
        let (mut rig, _) = at_work();
        let id = lose(&mut rig, done, |rig| create_with(rig, DELETE_ON_CLOSE, &[]));
        rig.fail_over();
        if done {
            created(&rig, id);
        } else {
            assert_eq!(status(&rig, id), Status::INTERNAL_ERROR);
            assert_eq!(dispositions(&rig, "new"), [1]);
        }
    }
}

#[test]
fn what_may_be_half_done_is_not_called_done() {
    for done in [false, true] {
        let (mut rig, _) = at_work();
        let id = lose(&mut rig, done, |rig| create_with(rig, 0, &[(tag::SECD, vec![0; 20])]));
        rig.fail_over();
        let expected = if done { Status::INTERNAL_ERROR } else { Status::SUCCESS };
        assert_eq!(status(&rig, id), expected, "its security descriptor may not have been set");
    }
}

#[test]
fn an_exclusive_create_within_a_compound_goes_on_with_it() {
    for done in [false, true] {
        let (mut rig, _) = at_work();
        let habits = &mut rig.nodes[0].habits;
        habits.mute = if done { vec![Command::CLOSE] } else { vec![Command::CREATE, Command::CLOSE] };
        habits.swallows = if done { vec![Command::CREATE] } else { vec![] };
        let close = related(encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES));
        let ids = rig.send(&[rig.create(0, "new", CREATE), close]);
        rig.fail_over();
        created(&rig, ids[0]);
        assert_eq!(status(&rig, ids[1]), Status::SUCCESS);
        assert_eq!((rig.nodes[1].opens.len(), rig.files.borrow().opens()), (1, 1));
    }
}

#[test]
fn a_link_is_made_once_wherever_the_node_died() {
    for done in [false, true] {
        let (mut rig, file) = at_work();
        let id = lose(&mut rig, done, |rig| rig.set_name(0, file, LINK, "new", false));
        rig.fail_over();
        assert_eq!((status(&rig, id), asked(&rig)), (Status::SUCCESS, usize::from(!done)));
        assert_eq!((rig.get("file"), rig.get("new")), (TEXT.to_vec(), TEXT.to_vec()));
        assert_eq!(rig.nodes[1].opens.len(), 1);
        reads_its_file(&mut rig, file);
    }
}

#[test]
fn another_file_in_the_way_is_no_link() {
    for replace in [false, true] {
        let (mut rig, file) = at_work();
        rig.put("new", 5, b"in the way");
        let id = lose(&mut rig, false, |rig| rig.set_name(0, file, LINK, "new", replace));
        rig.fail_over();
        let expected = if replace { Status::SUCCESS } else { Status::OBJECT_NAME_COLLISION };
        assert_eq!((status(&rig, id), asked(&rig)), (expected, 1));
        assert_eq!(rig.get("new"), if replace { TEXT } else { b"in the way" });
    }
}

/// What another Link has at the node that was lost, and lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Nothing,
    /// In flight, on another name.
    Elsewhere,
    /// In flight, on that name.
    InTheWay,
    /// In flight when its own leg was lost, and it is gone.
    Loose,
}

#[test]
fn on_a_node_that_lives_what_was_done_is_found_out_once_others_have_told_what_they_do() {
    for link in [false, true] {
        for done in [false, true] {
            for others in [Others::Nothing, Others::Elsewhere, Others::InTheWay, Others::Loose] {
                let (mut rig, file) = at_work();
                let other = LinkId(2);
                rig.file_event(other, FileEvent::Served { generation: 1 });
                let id = lose(&mut rig, done, |rig| {
                    if link {
                        rig.set_name(0, file, LINK, "new", false)
                    } else {
                        rig.create(0, "new", CREATE)
                    }
                });
                if others == Others::Loose {
                    rig.file_event(other, FileEvent::LeftRunning { generation: 1 });
                    rig.files.borrow_mut().link_gone(other);
                }
                cut(&mut rig);
                if others != Others::Loose {
                    assert_eq!(rig.files.borrow_mut().poll_asked(), Some(other));
                    assert_eq!(rig.files.borrow_mut().poll_asked(), None, "but not of itself");
                    assert!(rig.final_answer(id).is_none(), "the other has not told");
                    let name = match others {
                        Others::Elsewhere => Some(r"share\other"),
                        Others::InTheWay => Some(r"share\dir\NEW"),
                        _ => None,
                    };
                    let key = |name: &str| FileKey(name.to_lowercase().into());
                    let deeds = name.map(|name| (key(name), Deed::Made)).into_iter().collect();
                    rig.file_event(other, FileEvent::Told { deeds });
                    rig.show_files();
                    rig.pump();
                }
                let told = status(&rig, id);
                if matches!(others, Others::InTheWay | Others::Loose) {
                    assert_eq!(told, Status::INTERNAL_ERROR, "{link} {done} {others:?}");
                } else {
                    assert_eq!(told, Status::SUCCESS, "{link} {done} {others:?}");
                    assert!(rig.disk.borrow().contains_key("new"));
                }
                assert!(!rig.files.borrow().is_in_doubt());
            }
        }
    }
}

#[test]
fn a_link_that_is_asked_tells_what_it_has_in_flight() {
    let (mut rig, _) = at_work();
    for (name, disposition) in [("new", CREATE), ("file", 1)] {
        lose(&mut rig, true, |rig| rig.create(0, name, disposition));
    }
    rig.link.handle_asked();
    let told = std::iter::from_fn(|| rig.link.poll_event()).find_map(|event| match event {
        Event::File(FileEvent::Told { deeds }) => Some(deeds),
        _ => None,
    });
    assert_eq!(told, Some(vec![(FileKey(r"share\new".into()), Deed::Made)]), "an open makes nothing");
}

#[test]
fn a_node_lost_while_it_is_asked_leaves_the_question_to_the_next() {
    let mut rig = Rig::new();
    rig.negotiate();
    rig.log_in("alice");
    rig.nodes[1].habits.mute = vec![Command::CREATE];
    let id = lose(&mut rig, true, |rig| rig.create(0, "new", CREATE));
    rig.fail_over();
    assert!(rig.final_answer(id).is_none() && rig.files.borrow().is_in_doubt());
    fail_over_again(&mut rig);
    created(&rig, id);
    assert!(!rig.files.borrow().is_in_doubt());
}

/// Two clients on one disk.
pub(crate) fn two() -> [Rig; 2] {
    let (disk, files): (Disk, Rc<RefCell<Files>>) = Default::default();
    [1, 2].map(|id| {
        let users = Users([("alice".to_owned(), 3)].into());
        let mut rig = Rig::with(LinkId(id), users, &disk, &files);
        rig.negotiate();
        rig.log_in("alice");
        rig
    })
}

/// Both see Files as they are, until nothing is left to do.
pub(crate) fn settle(rigs: &mut [Rig; 2]) {
    for _ in 0..4 {
        for rig in &mut *rigs {
            rig.show_files();
            rig.pump();
        }
    }
}

#[test]
fn of_two_clients_after_one_name_one_has_it() {
    for done in [None, Some(0), Some(1)] {
        for first in [0, 1] {
            let mut rigs = two();
            let mut ids = [0; 2];
            for at in [0, 1] {
                ids[at] = lose(&mut rigs[at], done == Some(at), |rig| rig.create(0, "lock", CREATE));
            }
            rigs[first].crash();
            rigs[1 - first].crash();
            rigs[first].assign(1);
            rigs[1 - first].assign(1);
            settle(&mut rigs);
            let statuses = [status(&rigs[0], ids[0]), status(&rigs[1], ids[1])];
            let have = statuses.iter().filter(|s| **s == Status::SUCCESS).count();
            let refused = statuses.iter().filter(|s| **s == Status::OBJECT_NAME_COLLISION).count();
            assert_eq!((have, refused), (1, 1), "{statuses:?}, done by {done:?}, {first} is first");
            assert!(!rigs[0].files.borrow().is_in_doubt());
        }
    }
}

#[test]
fn one_client_at_a_time_finds_out() {
    let mut rigs = two();
    let ids = [0, 1].map(|at| lose(&mut rigs[at], at == 0, |rig| rig.create(0, "lock", CREATE)));
    rigs[0].crash();
    rigs[1].crash();
    rigs[0].nodes[1].habits.mute = vec![Command::CREATE];
    rigs[0].assign(1);
    rigs[1].assign(1);
    settle(&mut rigs);
    assert_eq!(dispositions(&rigs[0], "lock"), [1], "it is not answered");
    assert!(dispositions(&rigs[1], "lock").is_empty(), "the other one waits");
    rigs[0].crash();
    settle(&mut rigs);
    created(&rigs[1], ids[1]);
    rigs[0].up[0] = true;
    rigs[0].assign(0);
    settle(&mut rigs);
    assert_eq!(status(&rigs[0], ids[0]), Status::OBJECT_NAME_COLLISION);
}

#[test]
fn what_an_answered_client_has_made_is_its_own() {
    for closed in [false, true] {
        let mut rigs = two();
        let (status_of_first, msg) = {
            let create = rigs[0].create(0, "lock", CREATE);
            rigs[0].ask(create)
        };
        assert_eq!(status_of_first, Status::SUCCESS);
        if closed {
            let file = create::Response::parse(&msg).unwrap().file_id;
            let close = encode::close(&rigs[0].header(Command::CLOSE, 0), 0, file);
            assert_eq!(rigs[0].ask(close).0, Status::SUCCESS);
        }
        let id = lose(&mut rigs[1], true, |rig| rig.create(0, "lock", CREATE));
        rigs[1].crash();
        rigs[0].crash();
        rigs[0].assign(1);
        rigs[1].assign(1);
        settle(&mut rigs);
        assert_eq!(status(&rigs[1], id), Status::OBJECT_NAME_COLLISION, "closed: {closed}");
    }
}

#[test]
fn fresh_requests_wait_while_it_is_open_what_became_of_others() {
    let mut rigs = two();
    rigs[0].put("file", 77, TEXT);
    let id = lose(&mut rigs[1], false, |rig| rig.create(0, "lock", CREATE));
    rigs[1].crash();
    rigs[0].show_files();
    let create = rigs[0].create(0, "lock", CREATE);
    let fresh = rigs[0].send(&[create])[0];
    assert!(rigs[0].final_answer(fresh).is_none());
    rigs[1].assign(1);
    settle(&mut rigs);
    created(&rigs[1], id);
    assert_eq!(status(&rigs[0], fresh), Status::OBJECT_NAME_COLLISION);
}
