//! Enumerations that a takeover cuts, on nodes that tell names in different orders.

use bytes::BytesMut;
use smb_parse::{
    FileId,
    cmd::query_directory,
    encode::{self, QueryDirectoryParams},
    frame::PREFIX,
    header::{Command, Header, Status},
};

use crate::{node::Node, related, rig::Rig};

/// FileNamesInformation (MS-FSCC 2.4.33).
const NAMES: u8 = 12;
/// `SMB2_RESTART_SCANS` (MS-SMB2 2.2.33).
const RESTART: u8 = 1;
/// So many names are there.
const COUNT: usize = 20;

/// A client that has the directory open. The second node tells its names from the last to the first.
fn at_work() -> (Rig, FileId) {
    let mut rig = Rig::new();
    for n in 0..COUNT {
        rig.put(&format!("n{n:02}"), n as u64 + 1, b"");
    }
    rig.negotiate();
    rig.log_in("alice");
    rig.nodes[1].habits.counts_down = true;
    let directory = rig.open(0, "n00");
    (rig, directory)
}

/// A request for so many names.
fn ask(rig: &Rig, directory: FileId, flags: u8, count: u32) -> Vec<u8> {
    encode::query_directory(
        &rig.header(Command::QUERY_DIRECTORY, 0),
        &QueryDirectoryParams {
            info_class: NAMES,
            flags,
            file_index: 0,
            file_id: directory,
            pattern_utf16: b"*\0",
            output_buffer_length: 32 * count,
        },
    )
}

/// The names that an answer brought; `None` at the end.
fn names(rig: &Rig, id: u64) -> Option<Vec<String>> {
    let (header, msg) = rig.answer(id);
    if Status(header.status) == Status::NO_MORE_FILES {
        return None;
    }
    assert_eq!(Status(header.status), Status::SUCCESS);
    let page = query_directory::Response::parse(msg).unwrap();
    let names: Vec<_> =
        query_directory::entries(NAMES, page.buffer).map(|e| e.unwrap().name.to_string_lossy()).collect();
    assert!(!names.is_empty(), "an answer without names");
    Some(names)
}

fn read(rig: &mut Rig, directory: FileId, flags: u8, count: u32) -> Option<Vec<String>> {
    let id = rig.send(&[ask(rig, directory, flags, count)])[0];
    names(rig, id)
}

fn read_to_the_end(rig: &mut Rig, directory: FileId, count: u32, seen: &mut Vec<String>) {
    while let Some(more) = read(rig, directory, 0, count) {
        seen.extend(more);
    }
}

/// Sends each message in a frame of its own, before anything is answered.
fn at_once(rig: &mut Rig, msgs: &[Vec<u8>]) -> Vec<u64> {
    let mut ids = Vec::new();
    for msg in msgs {
        let frame = rig.cover(std::slice::from_ref(msg));
        ids.push(Header::parse(&frame[PREFIX..]).unwrap().message_id);
        rig.link.handle_client_frame(rig.now, BytesMut::from(&frame[..]));
    }
    rig.pump();
    ids
}

fn are_all(mut seen: Vec<String>) {
    seen.sort();
    let all: Vec<_> = (0..COUNT).map(|n| format!("n{n:02}")).collect();
    assert_eq!(seen, all);
}

fn fail_over_again(rig: &mut Rig) {
    let known = rig.users();
    rig.nodes[0] = Node::new(0x7000, &rig.disk, &known);
    rig.up = vec![true, true];
    rig.fail_over();
}

#[test]
fn each_name_comes_once_whatever_the_order_and_the_pages() {
    for before in [1, 3, 7, 20] {
        for page in [1, 3, 25] {
            let (mut rig, directory) = at_work();
            let mut seen = read(&mut rig, directory, 0, before).unwrap();
            rig.fail_over();
            seen.extend(read(&mut rig, directory, 0, page).unwrap_or_default());
            fail_over_again(&mut rig);
            read_to_the_end(&mut rig, directory, page, &mut seen);
            are_all(seen);
            fail_over_again_to_second(&mut rig);
            assert_eq!(read(&mut rig, directory, 0, page), None, "it has ended");
            let mut anew = read(&mut rig, directory, RESTART, page).unwrap();
            read_to_the_end(&mut rig, directory, page, &mut anew);
            are_all(anew);
        }
    }
}

fn fail_over_again_to_second(rig: &mut Rig) {
    let known = rig.users();
    rig.nodes[1] = Node::new(0x8000, &rig.disk, &known);
    rig.nodes[1].habits.counts_down = true;
    rig.up = vec![true, true];
    rig.fail_over();
}

#[test]
fn two_handles_of_a_directory_stand_where_each_of_them_did() {
    let (mut rig, first) = at_work();
    let second = rig.open(0, "n00");
    let mut seen = [read(&mut rig, first, 0, 15).unwrap(), read(&mut rig, second, 0, 2).unwrap()];
    rig.fail_over();
    read_to_the_end(&mut rig, second, 4, &mut seen[1]);
    read_to_the_end(&mut rig, first, 4, &mut seen[0]);
    seen.into_iter().for_each(are_all);
}

/// What the client asks for at once, alone or in one frame: the end never comes before names.
#[test]
fn names_come_in_the_order_in_which_they_were_asked_for() {
    let ways = |n: usize| (n & 1 != 0, n & 2 != 0, n & 4 != 0);
    for (compounded, in_flight, other_order) in (0..8).map(ways) {
        for page in [4, 10, 12] {
            let (mut rig, directory) = at_work();
            rig.nodes[1].habits.counts_down = other_order;
            let mut seen = read(&mut rig, directory, 0, 12).unwrap();
            if in_flight {
                rig.nodes[0].habits.mute.push(Command::QUERY_DIRECTORY);
            } else {
                rig.fail_over();
            }
            let asked: Vec<_> = (0..6).map(|_| ask(&rig, directory, 0, page)).collect();
            let ids = if compounded {
                let of_the_one_before = ask(&rig, FileId::ALL_ONES, 0, page);
                let rest = std::iter::repeat_n(related(of_the_one_before), 5);
                rig.send(&[asked[0].clone()].into_iter().chain(rest).collect::<Vec<_>>())
            } else {
                at_once(&mut rig, &asked)
            };
            if in_flight {
                rig.fail_over();
            }
            let mut ended = false;
            for id in ids {
                match names(&rig, id) {
                    Some(more) if !ended => seen.extend(more),
                    Some(more) => panic!("{more:?} behind the end; {compounded} {in_flight} {other_order}"),
                    None => ended = true,
                }
            }
            are_all(seen);
        }
    }
}

#[test]
fn who_begins_anew_with_one_request_goes_on_with_the_next() {
    for compounded in [false, true] {
        let (mut rig, directory) = at_work();
        let mut seen = Vec::new();
        read_to_the_end(&mut rig, directory, 20, &mut seen);
        are_all(seen);
        rig.fail_over();
        let anew = ask(&rig, directory, RESTART, 12);
        let on = ask(&rig, directory, 0, 12);
        let ids = if compounded {
            rig.send(&[anew, related(ask(&rig, FileId::ALL_ONES, 0, 12))])
        } else {
            at_once(&mut rig, &[anew, on])
        };
        let seen = ids.into_iter().filter_map(|id| names(&rig, id)).flatten().collect();
        are_all(seen);
    }
}
