//! WRITE to the end of a file, in flight when its node dies: done or not, by one client or two, and never twice.

use smb_parse::{
    FileId,
    cmd::write,
    header::{Command, Status},
};

use crate::{
    names::{TEXT, lose, settle, status, two},
    node::Node,
    rig::Rig,
};

const END: u64 = u64::MAX;

/// A client that has `file` open, and has appended to it.
fn at_work() -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.put("file", 77, TEXT);
    rig.negotiate();
    rig.log_in("alice");
    let file = rig.open(0, "file");
    append(&mut rig, file, b"line");
    (rig, file)
}

fn append(rig: &mut Rig, file: FileId, data: &[u8]) {
    let msg = rig.write(0, file, END, data);
    assert_eq!(rig.ask(msg).0, Status::SUCCESS);
}

/// What stands behind the text.
fn appended(rig: &Rig) -> Vec<u8> {
    rig.get("file")[TEXT.len()..].to_vec()
}

/// How often the second node was asked to write.
fn asked(rig: &Rig) -> usize {
    rig.nodes[1].seen(Command::WRITE).len()
}

#[test]
fn an_append_is_done_once_wherever_the_node_died() {
    for done in [false, true] {
        // The same that was appended, and answered, before is another append.
        for data in [b"line" as &[u8], b"other"] {
            let (mut rig, file) = at_work();
            let id = lose(&mut rig, done, |rig| rig.write(0, file, END, data));
            rig.fail_over();
            assert_eq!(status(&rig, id), Status::SUCCESS);
            let answer = write::Response::parse(rig.answer(id).1).unwrap();
            assert_eq!(answer.count as usize, data.len());
            assert_eq!(asked(&rig), usize::from(!done), "it is not done twice");
            assert_eq!(appended(&rig), [b"line", data].concat());
            assert!(!rig.files.borrow().is_in_doubt());
        }
    }
}

#[test]
fn what_was_appended_after_a_takeover_is_counted_too() {
    for done in [false, true] {
        let (mut rig, file) = at_work();
        let first = lose(&mut rig, done, |rig| rig.write(0, file, END, b"1"));
        rig.fail_over();
        assert_eq!(status(&rig, first), Status::SUCCESS);
        append(&mut rig, file, b"2");
        let known = rig.users();
        rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
        rig.nodes[1].habits.swallows = vec![Command::WRITE];
        let msg = rig.write(0, file, END, b"3");
        let last = rig.send(&[msg])[0];
        rig.up = vec![true, true];
        rig.fail_over();
        assert_eq!(status(&rig, last), Status::SUCCESS);
        assert_eq!(appended(&rig), b"line123", "the first done: {done}");
    }
}

#[test]
fn of_several_appends_in_flight_each_is_done_once() {
    for done in 0..=3 {
        let (mut rig, file) = at_work();
        let ids =
            [1, 2, 3].map(|n: u8| lose(&mut rig, n <= done, |rig| rig.write(0, file, END, &[b'0' + n; 4])));
        rig.fail_over();
        assert_eq!(ids.map(|id| status(&rig, id)), [Status::SUCCESS; 3], "{done} done");
        assert_eq!(appended(&rig), b"line111122223333", "{done} done");
    }
}

#[test]
fn an_append_that_nobody_can_tell_of_is_not_done_again() {
    // Cut off; written in part; something else, of as many bytes; more than is in flight.
    for tail in [b"" as &[u8], b"linemo", b"lineless", b"linemoremore"] {
        let (mut rig, file) = at_work();
        let id = lose(&mut rig, false, |rig| rig.write(0, file, END, b"more"));
        rig.put("file", 77, &[TEXT, tail].concat());
        rig.fail_over();
        assert_eq!((status(&rig, id), asked(&rig)), (Status::INTERNAL_ERROR, 0));
    }
}

#[test]
fn what_else_writes_a_file_makes_its_end_unknown() {
    // What is written before the end is no matter.
    for (by_write, offset, told) in [
        (true, 0, Status::SUCCESS),
        (true, TEXT.len() as u64, Status::INTERNAL_ERROR),
        (false, 0, Status::INTERNAL_ERROR),
    ] {
        let (mut rig, file) = at_work();
        if by_write {
            let msg = rig.write(0, file, offset, b"T");
            assert_eq!(rig.ask(msg).0, Status::SUCCESS);
        } else {
            let msg = smb_parse::encode::set_info(
                &rig.header(Command::SET_INFO, 0),
                1,
                20,
                0,
                file,
                &0_u64.to_le_bytes(),
            );
            rig.ask(msg);
        }
        let id = lose(&mut rig, true, |rig| rig.write(0, file, END, b"more"));
        rig.fail_over();
        let written = rig.nodes[1].seen(Command::WRITE).len();
        assert_eq!((status(&rig, id), written), (told, 0), "{by_write}, {offset}");
    }
}

#[test]
fn an_append_on_a_node_that_lives_is_not_found_out() {
    let (mut rig, file) = at_work();
    let id = lose(&mut rig, false, |rig| rig.write(0, file, END, b"more"));
    rig.crash();
    rig.up[0] = true;
    rig.assign(0);
    assert_eq!(status(&rig, id), Status::INTERNAL_ERROR);
}

#[test]
fn appends_of_two_clients_are_each_done_once() {
    for done in [[false, false], [true, false], [false, true], [true, true]] {
        for first in [0, 1] {
            let mut rigs = two();
            rigs[0].put("file", 77, TEXT);
            let files = [0, 1].map(|at| rigs[at].open(0, "file"));
            for at in [0, 1] {
                append(&mut rigs[at], files[at], b"line");
            }
            let ids = [0, 1].map(|at| {
                let data: &[u8] = if at == 0 { b"from A" } else { b"from B" };
                lose(&mut rigs[at], done[at], |rig| rig.write(0, files[at], END, data))
            });
            rigs[first].crash();
            rigs[1 - first].crash();
            rigs[first].assign(1);
            rigs[1 - first].assign(1);
            settle(&mut rigs);
            let told = [0, 1].map(|at| status(&rigs[at], ids[at]));
            assert_eq!(told, [Status::SUCCESS; 2], "{done:?}, {first} first");
            let text = String::from_utf8(appended(&rigs[0])).unwrap();
            assert_eq!(text.len(), 20, "{text}");
            assert!(text.contains("from A") && text.contains("from B"), "{text}");
        }
    }
}
