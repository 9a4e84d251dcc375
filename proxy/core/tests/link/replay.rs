//! What of a compound that changes names, of a delete and of a CREATE that empties was done when the node died: each cut
//! anywhere.

use smb_parse::{
    FileId,
    cmd::{close, create},
    encode::{self, CreateParams},
    header::{Command, Status},
};

use crate::{
    names::{LINK, RENAME, TEXT, two},
    node::{Habits, MINUTE, NOW},
    related,
    rig::Rig,
};

/// CreateDisposition and CreateOptions (MS-SMB2 2.2.13), CreateAction (2.2.14).
const OPEN: u32 = 1;
const CREATE: u32 = 2;
const OPEN_IF: u32 = 3;
const DELETE_ON_CLOSE: u32 = 0x1000;
const OPENED: u32 = 1;
const CREATED: u32 = 2;
/// FileDispositionInformation (MS-FSCC 2.4.11).
const DISPOSITION: u8 = 13;

fn at_work() -> Rig {
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.negotiate();
    rig.log_in("alice");
    rig
}

fn status(rig: &Rig, id: u64) -> Status {
    Status(rig.answer(id).0.status)
}

fn create(rig: &Rig, name: &str, disposition: u32, options: u32) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let params = CreateParams {
        oplock_level: 0,
        impersonation_level: 2,
        desired_access: 0x1_0003,
        file_attributes: 0,
        share_access: 7,
        create_disposition: disposition,
        create_options: options,
        name_utf16: &name,
        contexts: &[],
    };
    encode::create(&rig.header(Command::CREATE, 0), &params)
}

fn dispose(rig: &Rig, file: FileId) -> Vec<u8> {
    encode::set_info(&rig.header(Command::SET_INFO, 0), 1, DISPOSITION, 0, file, &[1])
}

fn close(rig: &Rig, file: FileId) -> Vec<u8> {
    encode::close(&rig.header(Command::CLOSE, 0), close::POSTQUERY_ATTRIB, file)
}

/// What Linux sends for a file that it does not have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Rename,
    Link,
    Dispose,
    DeleteOnClose,
}

impl Deed {
    const ALL: [Self; 4] = [Self::Rename, Self::Link, Self::Dispose, Self::DeleteOnClose];

    fn compound(self, rig: &Rig) -> Vec<Vec<u8>> {
        let options = if self == Self::DeleteOnClose { DELETE_ON_CLOSE } else { 0 };
        let change = match self {
            Self::Rename => Some(rig.set_name(0, FileId::ALL_ONES, RENAME, "new", false)),
            Self::Link => Some(rig.set_name(0, FileId::ALL_ONES, LINK, "new", false)),
            Self::Dispose => Some(dispose(rig, FileId::ALL_ONES)),
            Self::DeleteOnClose => None,
        };
        let behind = change.into_iter().chain([close(rig, FileId::ALL_ONES)]).map(related);
        [create(rig, "file", OPEN, options)].into_iter().chain(behind).collect()
    }

    /// What is under `file` and under `new` when it is done once.
    fn outcome(self) -> [&'static [u8]; 2] {
        match self {
            Self::Rename => [b"", TEXT],
            Self::Link => [TEXT, TEXT],
            Self::Dispose | Self::DeleteOnClose => [b"", b""],
        }
    }

    /// How many members have to be done for that.
    fn takes(self) -> usize {
        if matches!(self, Self::Dispose) { 3 } else { 2 }
    }
}

/// Sends a compound to a node that answers some of its members, does some more, and dies.
fn cut(rig: &mut Rig, compound: impl Fn(&Rig) -> Vec<Vec<u8>>, answered: usize, done: usize) -> Vec<u64> {
    let compound = compound(rig);
    let commands: Vec<_> =
        compound.iter().map(|msg| smb_parse::header::Header::parse(msg).unwrap().command).collect();
    rig.nodes[0].habits.swallows = commands[answered..done].to_vec();
    rig.nodes[0].habits.mute = commands[done..].to_vec();
    rig.send(&compound)
}

#[test]
fn a_compound_that_changes_names_is_done_once_wherever_it_was_cut() {
    for deed in Deed::ALL {
        let members = deed.compound(&at_work()).len();
        for (answered, done) in (0..=members).flat_map(|done| (0..=done).map(move |a| (a, done))) {
            let mut rig = at_work();
            let ids = cut(&mut rig, |rig| deed.compound(rig), answered, done);
            let what = format!("{deed:?}: {answered} answered, {done} done");
            rig.fail_over();
            for id in &ids {
                assert_eq!(status(&rig, *id), Status::SUCCESS, "{what}");
            }
            assert_eq!([rig.get("file"), rig.get("new")], deed.outcome(), "{what}");
            let again = rig.nodes[1].seen(Command::SET_INFO).len();
            if done >= deed.takes() && matches!(deed, Deed::Rename | Deed::Link) {
                assert_eq!(again, 0, "{what}: it is not done twice");
            }
            let left =
                (rig.nodes[1].opens.len(), rig.files.borrow().opens(), rig.files.borrow().is_in_doubt());
            assert_eq!(left, (0, 0, false), "{what}: nothing is left open");
        }
    }
}

#[test]
fn a_compound_that_was_done_tells_of_the_file_that_stands_there() {
    let mut rig = at_work();
    let ids = cut(&mut rig, |rig| Deed::Rename.compound(rig), 0, 3);
    rig.fail_over();
    let opened = create::Response::parse(rig.answer(ids[0]).1).unwrap();
    assert_eq!((opened.create_action, opened.creation_time), (OPENED, 77));
    assert_eq!(opened.end_of_file, TEXT.len() as u64);
    let closed = close::Response::parse(rig.answer(ids[2]).1).unwrap();
    assert_eq!((closed.flags, closed.end_of_file), (close::POSTQUERY_ATTRIB, TEXT.len() as u64));
}

#[test]
fn a_compound_that_was_not_done_finds_what_is_there() {
    for deed in [Deed::Rename, Deed::Link] {
        let mut rig = at_work();
        rig.put("new", 5, b"in the way");
        let ids = cut(&mut rig, |rig| deed.compound(rig), 0, 0);
        rig.fail_over();
        assert_eq!(status(&rig, ids[1]), Status::OBJECT_NAME_COLLISION, "{deed:?}");
        assert_eq!([rig.get("file"), rig.get("new")], [TEXT.to_vec(), b"in the way".to_vec()]);
        assert_eq!((rig.nodes[1].opens.len(), rig.files.borrow().opens()), (0, 0));
    }
}

#[test]
fn a_new_name_that_was_not_given_just_now_is_no_rename() {
    let mut rig = at_work();
    rig.put("new", 78, b"old");
    rig.disk.borrow_mut().remove("file");
    rig.nodes[1].habits.unchanged = true;
    let ids = cut(&mut rig, |rig| Deed::Rename.compound(rig), 0, 0);
    rig.fail_over();
    assert_eq!(status(&rig, ids[0]), Status::OBJECT_NAME_NOT_FOUND);
}

#[test]
fn what_cannot_be_told_fails_as_a_whole_and_leaves_nothing_open() {
    for deed in Deed::ALL {
        let mut rig = at_work();
        let mut compound = deed.compound(&rig);
        // Of a shape that nobody sends.
        let last = compound.pop().unwrap();
        compound.push(related(encode::flush(&rig.header(Command::FLUSH, 0), FileId::ALL_ONES)));
        compound.push(last);
        let ids = cut(&mut rig, |_| compound.to_vec(), 0, 0);
        rig.fail_over();
        for id in ids {
            assert_eq!(status(&rig, id), Status::INTERNAL_ERROR, "{deed:?}");
        }
        assert_eq!((rig.nodes[1].opens.len(), rig.get("file")), (0, TEXT.to_vec()), "{deed:?}");
        assert!(!rig.files.borrow().is_in_doubt());
    }
}

#[test]
fn a_compound_on_a_node_that_lives_is_done_once() {
    for deed in Deed::ALL {
        for done in [0, deed.compound(&at_work()).len()] {
            let mut rig = at_work();
            let ids = cut(&mut rig, |rig| deed.compound(rig), 0, done);
            rig.crash();
            rig.nodes[0].habits = Habits::default();
            rig.up[0] = true;
            rig.assign(0);
            for id in ids {
                assert_eq!(status(&rig, id), Status::SUCCESS, "{deed:?}");
            }
            assert_eq!([rig.get("file"), rig.get("new")], deed.outcome());
        }
    }
}

/// Both clients lose the node and get the other.
fn fail_over(rigs: &mut [Rig; 2], first: usize) {
    rigs[first].crash();
    rigs[1 - first].crash();
    rigs[first].assign(1);
    rigs[1 - first].assign(1);
    for _ in 0..4 {
        for rig in &mut *rigs {
            rig.show_files();
            rig.pump();
        }
    }
}

#[test]
fn of_two_clients_that_change_one_name_one_has_done_it() {
    for deed in Deed::ALL {
        for done_by in [None, Some(0), Some(1)] {
            for first in [0, 1] {
                let mut rigs = two();
                rigs[0].put("file", 77, TEXT);
                let mut ids = [vec![], vec![]];
                for at in [0, 1] {
                    let compound = deed.compound(&rigs[at]);
                    let done = if done_by == Some(at) { compound.len() } else { 0 };
                    ids[at] = cut(&mut rigs[at], |_| compound.to_vec(), 0, done);
                }
                fail_over(&mut rigs, first);
                let told: Vec<Vec<_>> =
                    (0..2).map(|at| ids[at].iter().map(|id| status(&rigs[at], *id)).collect()).collect();
                let done = told.iter().filter(|all| all.iter().all(|s| *s == Status::SUCCESS)).count();
                let refused = told.iter().filter(|all| {
                    all.iter()
                        .any(|s| [Status::OBJECT_NAME_NOT_FOUND, Status::OBJECT_NAME_COLLISION].contains(s))
                });
                assert_eq!(
                    (done, refused.count()),
                    (1, 1),
                    "{deed:?}, done by {done_by:?}, {first} first: {told:?}"
                );
                assert_eq!([rigs[0].get("file"), rigs[0].get("new")], deed.outcome());
            }
        }
    }
}

#[test]
fn what_another_client_has_made_anew_is_not_deleted() {
    for deed in [Deed::Dispose, Deed::DeleteOnClose] {
        for answered in [0, 1] {
            let mut rigs = two();
            // It is known to have been there.
            let (_, msg) = rigs[1].ask(create(&rigs[1], "file", CREATE, 0));
            let known = create::Response::parse(&msg).unwrap().file_id;
            assert_eq!(rigs[1].ask(close(&rigs[1], known)).0, Status::SUCCESS);
            let compound = deed.compound(&rigs[0]);
            let ids = cut(&mut rigs[0], |_| compound.to_vec(), answered, compound.len());
            let anew = create(&rigs[1], "file", CREATE, 0);
            assert_eq!(rigs[1].ask(anew).0, Status::SUCCESS);
            fail_over(&mut rigs, 0);
            for id in ids {
                assert_eq!(status(&rigs[0], id), Status::SUCCESS, "{deed:?}, {answered} answered");
            }
            assert!(rigs[0].disk.borrow().contains_key("file"), "{deed:?}, {answered} answered");
        }
    }
}

#[test]
fn a_delete_in_flight_by_an_open_is_done_once() {
    for (disposed, closed) in [(false, false), (true, false), (true, true)] {
        let mut rig = at_work();
        let (_, msg) = rig.ask(create(&rig, "file", OPEN, 0));
        let file = create::Response::parse(&msg).unwrap().file_id;
        let habits = &mut rig.nodes[0].habits;
        for (command, done) in [(Command::SET_INFO, disposed), (Command::CLOSE, closed)] {
            if done { habits.swallows.push(command) } else { habits.mute.push(command) }
        }
        let ids = [rig.send(&[dispose(&rig, file)])[0], rig.send(&[close(&rig, file)])[0]];
        rig.fail_over();
        assert_eq!(ids.map(|id| status(&rig, id)), [Status::SUCCESS; 2], "{disposed}, {closed}");
        assert!(!rig.disk.borrow().contains_key("file"));
    }
}

fn action(rig: &Rig, id: u64) -> u32 {
    assert_eq!(status(rig, id), Status::SUCCESS);
    create::Response::parse(rig.answer(id).1).unwrap().create_action
}

#[test]
fn a_create_that_opens_what_exists_is_told_what_it_has_made() {
    for (exists, done) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = at_work();
        let name = if exists { "file" } else { "new" };
        let id = cut(&mut rig, |rig| vec![create(rig, name, OPEN_IF, 0)], 0, usize::from(done))[0];
        rig.fail_over();
        assert_eq!(action(&rig, id), if exists { OPENED } else { CREATED }, "{name}, done: {done}");
        assert_eq!((rig.nodes[1].opens.len(), rig.files.borrow().opens()), (1, 1));
    }
}

/// FILE_SUPERSEDE, FILE_OVERWRITE, FILE_OVERWRITE_IF, and the CreateAction of each where a file exists.
const EMPTYING: [(u32, u32); 3] = [(0, 0), (4, 3), (5, 3)];

#[test]
fn a_create_that_empties_is_told_what_it_has_done() {
    for (disposition, does) in EMPTYING {
        for (exists, done) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut rig = at_work();
            let name = if exists { "file" } else { "new" };
            let id = cut(&mut rig, |rig| vec![create(rig, name, disposition, 0)], 0, usize::from(done))[0];
            rig.fail_over();
            if disposition == 4 && !exists {
                assert_eq!(status(&rig, id), Status::OBJECT_NAME_NOT_FOUND);
                continue;
            }
            assert_eq!(
                action(&rig, id),
                if exists { does } else { CREATED },
                "{disposition}, {name}, {done}"
            );
            assert_eq!(rig.get(name), b"");
        }
    }
}

#[test]
fn what_others_have_written_since_is_not_emptied_again() {
    for (disposition, _) in EMPTYING {
        for (written, open) in [(None, true), (Some(NOW), true), (Some(NOW), false)] {
            let mut rigs = two();
            rigs[0].put("file", 77, TEXT);
            let other = rigs[1].open(0, "file");
            let create = create(&rigs[0], "file", disposition, 0);
            let id = cut(&mut rigs[0], |_| vec![create.clone()], 0, 1)[0];
            let write = rigs[1].write(0, other, 0, b"since");
            assert_eq!(rigs[1].ask(write).0, Status::SUCCESS);
            if !open {
                let close = close(&rigs[1], other);
                assert_eq!(rigs[1].ask(close).0, Status::SUCCESS);
            }
            rigs[0].nodes[1].habits.written = written;
            fail_over(&mut rigs, 0);
            let expected = if written.is_some() { Status::INTERNAL_ERROR } else { Status::SUCCESS };
            assert_eq!(status(&rigs[0], id), expected, "{disposition}, {written:?}");
            // A file that was not written since its CREATE came cannot have been emptied either.
            assert_eq!(rigs[0].get("file").is_empty(), written.is_none());
        }
    }
}

#[test]
fn what_others_have_open_is_not_emptied_twice() {
    for (disposition, does) in EMPTYING {
        let mut rigs = two();
        rigs[0].put("file", 77, TEXT);
        rigs[1].open(0, "file");
        let create = create(&rigs[0], "file", disposition, 0);
        let id = cut(&mut rigs[0], |_| vec![create.clone()], 0, 1)[0];
        rigs[0].nodes[1].habits.written = Some(NOW);
        fail_over(&mut rigs, 0);
        assert_eq!(action(&rigs[0], id), does);
        let asked = rigs[0].nodes[1].seen(Command::CREATE).into_iter();
        let asked: Vec<_> = asked.filter_map(|(_, msg)| create::Request::parse(msg).ok()).collect();
        assert!(asked.iter().all(|asked| asked.create_disposition == OPEN), "it is empty as it is");
    }
}

#[test]
fn a_compound_that_makes_and_writes_a_file_is_done_once() {
    for done in 0..=3 {
        let mut rig = at_work();
        let work = related(rig.write(0, FileId::ALL_ONES, 0, TEXT));
        let compound = [create(&rig, "new", CREATE, 0), work, related(close(&rig, FileId::ALL_ONES))];
        let ids = cut(&mut rig, |_| compound.to_vec(), 0, done);
        rig.fail_over();
        assert_eq!(action(&rig, ids[0]), CREATED, "{done} done");
        assert_eq!(ids.iter().filter(|id| status(&rig, **id) == Status::SUCCESS).count(), 3);
        assert_eq!((rig.get("new"), rig.nodes[1].opens.len()), (TEXT.to_vec(), 0));
    }
}

#[test]
fn what_is_old_is_not_told_as_created() {
    let mut rig = at_work();
    rig.put("old", NOW - 2 * MINUTE, b"");
    let id = cut(&mut rig, |rig| vec![create(rig, "old", OPEN_IF, 0)], 0, 1)[0];
    rig.fail_over();
    assert_eq!(action(&rig, id), OPENED);
}
