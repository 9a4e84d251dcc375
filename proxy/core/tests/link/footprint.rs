//! What an Open takes in memory, by the bytes that come free when the Link and Files that know of it end.
#![allow(unsafe_code, reason = "an allocator is unsafe to write")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    rc::Rc,
};

use smb_parse::{
    create_context::{Lease, tag},
    encode,
    header::Status,
};
use understudy_core::{effect::Mutation, files::Files, ids::LinkId};
use understudy_state::{Change, record::OpenRecord};

use crate::{node::Disk, rig::Rig};

/// How many Opens a client has.
const OPENS: u64 = 2_500;
/// What one may take beyond its path.
const TARGET: usize = 1024;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// Counts what each thread has, by the size classes of the allocator that the proxy uses.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// What jemalloc takes for so many bytes: a multiple of 16, from 128 on four classes for each doubling.
fn class(size: usize) -> i64 {
    let step = if size <= 128 { 16 } else { (size - 1).next_power_of_two() >> 3 };
    i64::try_from(size.next_multiple_of(step)).unwrap_or(i64::MAX)
}

fn count(bytes: i64) {
    // A thread that ends frees more after this is gone.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: it does what the system's allocator does, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(class(layout.size()));
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-class(layout.size()));
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(class(size) - class(layout.size()));
        // SAFETY: as our caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What comes free when something ends.
fn freed<T>(what: T) -> usize {
    let before = HELD.get();
    drop(what);
    usize::try_from(before - HELD.get()).unwrap()
}

fn path(number: u64) -> String {
    format!("Projects\\Customer {}\\Drawings\\Part {number:06}.dwg", number % 50)
}

/// Bytes of a path: in UTF-16 as it is spelt, and in UTF-8 as it is told from others.
fn path_takes() -> usize {
    3 * path(0).len()
}

/// A client that has so many files open, as Windows opens them.
fn at_work(opens: u64) -> Rig {
    let mut rig = Rig::with(LinkId(1), Rig::new().users(), &Disk::default(), &Rc::default());
    for node in &mut rig.nodes {
        (node.habits.keeps, node.habits.lease) = (true, Some((7, 5)));
    }
    rig.negotiate();
    rig.log_in("alice");
    for number in 0..opens {
        rig.put(&path(number), 1000 + number, b"");
        let key = u128::from(number + 1).to_le_bytes();
        let lease = Lease { key, state: 7, flags: 0, duration: 0, parent_key: key, epoch: 0, version: 2 };
        let contexts: [(&[u8], Vec<u8>); 3] = [
            (tag::DH2Q, encode::durable_v2_request(60_000, key)),
            (tag::RQLS, encode::lease(&lease)),
            (tag::QFID, Vec::new()),
        ];
        let (status, _) = rig.ask(rig.open_request(&path(number), 0xff, &contexts));
        assert_eq!(status, Status::SUCCESS);
        rig.inbox.clear();
    }
    rig
}

/// What the Link and Files have of so many Opens.
fn present(opens: u64) -> [usize; 2] {
    let Rig { link, files, .. } = at_work(opens);
    [freed(link), freed(Rc::into_inner(files))]
}

/// What Files has of so many whose clients are away, as it knows them after a start.
fn absent(opens: u64) -> usize {
    let rig = at_work(1);
    let record = rig.stored.iter().find_map(|mutation| match mutation {
        Mutation::PutOpen(record) => Some(OpenRecord::clone(record)),
        _ => None,
    });
    let mut record = record.unwrap();
    let mut files = Files::default();
    for number in 0..opens {
        record.path = path(number).encode_utf16().flat_map(u16::to_le_bytes).collect();
        record.file_id.persistent = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Change::Put(_, value) = record.to_change().unwrap() else { panic!("a record is put") };
        files.load(rig.now, OpenRecord::from_bytes(&value).unwrap(), None);
    }
    assert_eq!(files.absent(), usize::try_from(opens).unwrap());
    freed(files)
}

fn each(many: usize, none: usize) -> usize {
    (many - none) / usize::try_from(OPENS).unwrap()
}

#[test]
fn an_open_takes_less_than_a_kibibyte_beyond_its_path() {
    let (many, none) = (present(OPENS), present(0));
    let (by_link, by_files) = (each(many[0], none[0]), each(many[1], none[1]));
    println!("{by_link} bytes in the Link, {by_files} in Files; the path takes {}", path_takes());
    assert!(by_link + by_files < TARGET + path_takes());
}

#[test]
fn so_does_one_whose_client_is_away() {
    let by_files = each(absent(OPENS), absent(0));
    println!("{by_files} bytes in Files; the path takes {}", path_takes());
    assert!(by_files < TARGET + path_takes());
}
