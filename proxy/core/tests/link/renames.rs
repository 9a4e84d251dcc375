//! Files are the same files for all Links, whatever they are called.

use std::time::Duration;

use smb_parse::{
    FileId,
    cmd::{create, read},
    create_context::tag,
    encode::{self, CreateParams},
    header::{Command, Status},
};
use understudy_core::{
    event::FileEvent,
    files::{Birth, FileIdentity, Name},
    ids::{LinkId, OpenToken},
};

use crate::{
    names::{lose, settle, status, two},
    related,
    rig::Rig,
};

/// FileRenameInformation, FileDispositionInformation (MS-FSCC 2.4.42, 2.4.11).
const RENAME: u8 = 10;
const DISPOSITION: u8 = 13;
const TEXT: &[u8] = b"the very file";

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Two clients at work on the same files; the Opens of the first: a directory, a file in it, and a stream of that.
fn at_work() -> ([Rig; 2], [FileId; 3]) {
    let mut rigs = two();
    rigs[0].put("dir", 70, b"");
    rigs[0].put(r"dir\file", 77, TEXT);
    rigs[0].put(r"dir\file:s", 78, TEXT);
    let files = ["dir", r"DIR\file", r"dir\FILE:s"];
    // The node knows no case.
    let files = files.map(|name| rigs[0].open(0, &name.to_lowercase()));
    (rigs, files)
}

fn reads(rig: &mut Rig, file: FileId) {
    let (status, msg) = rig.ask(rig.read(0, file, 0, 100));
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(read::Response::parse(&msg).unwrap().data, TEXT);
}

/// The node dies for both, and the other one serves; `first` hears of it first.
fn fail_over(rigs: &mut [Rig; 2], first: usize) {
    for at in [first, 1 - first] {
        if rigs[at].leg.is_some() {
            rigs[at].crash();
        }
    }
    for at in [first, 1 - first] {
        rigs[at].assign(1);
    }
    settle(rigs);
}

/// How often the second node was asked for another name.
fn asked(rig: &Rig) -> usize {
    rig.nodes[1].seen(Command::SET_INFO).len()
}

/// The names by which the second node was asked for files.
fn names(rig: &Rig) -> Vec<String> {
    let creates = rig.nodes[1].seen(Command::CREATE).into_iter();
    creates.map(|(_, msg)| create::Request::parse(msg).unwrap().name.to_string_lossy()).collect()
}

fn lost(rigs: &[Rig]) -> u32 {
    rigs.iter().flat_map(|rig| &rig.takeovers).map(|takeover| takeover.opens_lost).sum()
}

#[test]
fn what_another_client_has_renamed_is_found_by_its_new_name() {
    for (from, to) in [("dir", "moved"), (r"dir\file", "moved")] {
        for late in [false, true] {
            let (mut rigs, [_, file, stream]) = at_work();
            let by = rigs[1].open(0, from);
            if late {
                rigs[0].crash();
            }
            let rename = rigs[1].set_name(0, by, RENAME, to, false);
            assert_eq!(rigs[1].ask(rename).0, Status::SUCCESS);
            fail_over(&mut rigs, 0);
            reads(&mut rigs[0], file);
            reads(&mut rigs[0], stream);
            assert_eq!((lost(&rigs), rigs[0].files.borrow().opens()), (0, 4), "{from}, late: {late}");
        }
    }
}

#[test]
fn a_rename_of_another_client_that_was_in_flight_is_followed_whoever_is_back_first() {
    for done in [false, true] {
        for first in [0, 1] {
            let (mut rigs, [_, file, stream]) = at_work();
            let by = rigs[1].open(0, "dir");
            let id = lose(&mut rigs[1], done, |rig| rig.set_name(0, by, RENAME, "moved", false));
            fail_over(&mut rigs, first);
            assert_eq!(status(&rigs[1], id), Status::SUCCESS, "done: {done}, {first} is first");
            assert_eq!(asked(&rigs[1]), usize::from(!done), "it is not done twice");
            // Each has a node of its own here, and the other one's does not hear of what is done now.
            if done {
                reads(&mut rigs[0], file);
                reads(&mut rigs[0], stream);
            }
            assert_eq!(lost(&rigs), 0);
        }
    }
}

#[test]
fn a_rename_within_a_compound_in_flight_is_followed_by_others() {
    for first in [0, 1] {
        let (mut rigs, [_, file, stream]) = at_work();
        rigs[1].nodes[0].habits.swallows = vec![Command::CREATE, Command::SET_INFO, Command::CLOSE];
        let compound = {
            let rig = &rigs[1];
            let close = encode::close(&rig.header(Command::CLOSE, 0), 0, FileId::ALL_ONES);
            let rename = rig.set_name(0, FileId::ALL_ONES, RENAME, "moved", false);
            [rig.create(0, r"dir\file", 1), related(rename), related(close)]
        };
        rigs[1].send(&compound);
        assert_eq!(rigs[0].get("moved"), TEXT);
        fail_over(&mut rigs, first);
        reads(&mut rigs[0], file);
        reads(&mut rigs[0], stream);
        assert_eq!(lost(&rigs), 0);
    }
}

#[test]
fn only_the_very_file_is_taken_for_what_another_client_has_renamed() {
    let (mut rigs, [_, file, _]) = at_work();
    let by = rigs[1].open(0, r"dir\file");
    lose(&mut rigs[1], false, |rig| rig.set_name(0, by, RENAME, "moved", false));
    rigs[0].put("moved", 79, b"a stranger");
    rigs[0].disk.borrow_mut().remove(r"dir\file");
    fail_over(&mut rigs, 0);
    assert_eq!(rigs[0].ask(rigs[0].read(0, file, 0, 100)).0, Status::FILE_CLOSED);
    assert_eq!(lost(&rigs), 2);
    assert_eq!(rigs[0].nodes[1].opens.len(), 2, "the stranger is closed again");
}

#[test]
fn what_became_of_a_rename_nobody_can_tell_if_others_have_renamed_the_file_too() {
    for (done, name) in [(false, "theirs"), (true, "mine")] {
        for answered in [false, true] {
            let (mut rigs, [_, file, _]) = at_work();
            let by = rigs[1].open(0, r"dir\file");
            let theirs = |rig: &Rig| rig.set_name(0, by, RENAME, "theirs", false);
            if answered {
                let rename = theirs(&rigs[1]);
                assert_eq!(rigs[1].ask(rename).0, Status::SUCCESS);
            } else {
                lose(&mut rigs[1], true, theirs);
            }
            // Each has a node of its own here: this one's is to know.
            rigs[0].nodes[0].opens.values_mut().filter(|name| **name == r"dir\file").for_each(|name| {
                *name = "theirs".into();
            });
            let id = lose(&mut rigs[0], done, |rig| rig.set_name(0, file, RENAME, "mine", false));
            assert_eq!(rigs[0].get(name), TEXT);
            fail_over(&mut rigs, 0);
            let told = if done { Status::SUCCESS } else { Status::INTERNAL_ERROR };
            assert_eq!((status(&rigs[0], id), asked(&rigs[0])), (told, 0), "answered: {answered}");
            reads(&mut rigs[0], file);
            assert_eq!(lost(&rigs), 0);
        }
    }
}

#[test]
fn a_rename_of_others_that_is_long_past_leaves_no_doubt() {
    let (mut rigs, [_, file, _]) = at_work();
    let by = rigs[1].open(0, r"dir\file");
    let rename = rigs[1].set_name(0, by, RENAME, "theirs", false);
    assert_eq!(rigs[1].ask(rename).0, Status::SUCCESS);
    rigs[0].wait(Duration::from_secs(5));
    let id = lose(&mut rigs[0], false, |rig| rig.set_name(0, file, RENAME, "mine", false));
    fail_over(&mut rigs, 0);
    assert_eq!((status(&rigs[0], id), rigs[0].get("mine")), (Status::SUCCESS, TEXT.to_vec()));
    reads(&mut rigs[0], file);
}

#[test]
fn what_a_lost_node_has_opened_is_waited_for_although_it_is_heard_of_later() {
    let (mut rigs, _) = at_work();
    rigs[1].put("new", 80, b"");
    let now = rigs[0].now;
    rigs[0].files.borrow_mut().all_lost(now, 2);
    rigs[0].open(0, "new");
    assert_eq!(rigs[0].files.borrow().unreclaimed(), 4);
    fail_over(&mut rigs, 0);
    assert_eq!(rigs[0].files.borrow().unreclaimed(), 0);
    rigs[0].open(0, "new");
    assert_eq!(rigs[0].files.borrow().unreclaimed(), 0);
}

#[test]
fn a_version_of_the_past_is_not_renamed() {
    let mut rigs = two();
    rigs[0].put("file", 77, TEXT);
    let name = utf16("file");
    let params = CreateParams {
        oplock_level: 0,
        impersonation_level: 2,
        desired_access: 1,
        file_attributes: 0,
        share_access: 7,
        create_disposition: 1,
        create_options: 0,
        name_utf16: &name,
        contexts: &[(tag::TWRP, 5_u64.to_le_bytes().to_vec())],
    };
    let past = encode::create(&rigs[0].header(Command::CREATE, 0), &params);
    assert_eq!(rigs[0].ask(past).0, Status::SUCCESS);
    let by = rigs[1].open(0, "file");
    let rename = rigs[1].set_name(0, by, RENAME, "moved", false);
    assert_eq!(rigs[1].ask(rename).0, Status::SUCCESS);
    fail_over(&mut rigs, 0);
    assert_eq!(names(&rigs[0]), ["file"]);
}

#[test]
fn what_another_client_lets_live_is_not_deleted() {
    for lives in [false, true] {
        let (mut rigs, [_, file, _]) = at_work();
        let other = rigs[1].open(0, r"dir\file");
        let dispose = |rig: &Rig, file, flag| {
            encode::set_info(&rig.header(Command::SET_INFO, 0), 1, DISPOSITION, 0, file, &[flag])
        };
        let doom = dispose(&rigs[0], file, 1);
        assert_eq!(rigs[0].ask(doom).0, Status::SUCCESS);
        if lives {
            let spare = dispose(&rigs[1], other, 0);
            assert_eq!(rigs[1].ask(spare).0, Status::SUCCESS);
        }
        fail_over(&mut rigs, 0);
        assert_eq!(asked(&rigs[0]), usize::from(!lives));
    }
}

#[test]
fn a_hard_link_is_behind_the_barrier_of_its_file() {
    let mut rigs = two();
    rigs[0].put("link", 77, TEXT);
    let link = rigs[0].open(0, "link");
    fail_over(&mut rigs, 0);
    // The other client has the same file open by another name, and has lost its leg.
    let (other, open) = (LinkId(3), OpenToken(1));
    for (number, waits) in [(78, false), (77, true)] {
        let (name, file) =
            (Name::new("share", &utf16("file")), FileIdentity { birth: Birth::set(1), number: Some(number) });
        let (asked, generation) = (rigs[0].now, u64::MAX);
        rigs[0].file_event(other, FileEvent::Opened { open, name, file, asked, generation, deletes: false });
        rigs[0].file_event(other, FileEvent::Lost);
        rigs[0].show_files();
        let read = rigs[0].read(0, link, 0, 100);
        let id = rigs[0].send(&[read])[0];
        assert_eq!(rigs[0].final_answer(id).is_none(), waits);
        rigs[0].file_event(other, FileEvent::Closed { open });
        settle(&mut rigs);
        assert_eq!(status(&rigs[0], id), Status::SUCCESS);
    }
}
