//! The parse path does not allocate: frames, compounds, headers, every body with all its contexts and entries, and the
//! patching in place. Counted by the allocator itself, over the whole corpus, whole, cut and damaged.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use smb_parse::{
    FileId,
    cmd::query_directory,
    compound::elements,
    compression, encode,
    frame::{frame_len, protocol, write_prefix},
    header::{Flags, Header, Status},
    patch, smb1, transform,
    walk::walk,
};

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;
#[path = "../examples/support/mutate.rs"]
mod mutate;

/// The system's allocator, counting the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` allocates.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    f();
    CALLS.get() - before
}

/// Everything that is done with a message on its way.
fn pass(frame: &mut [u8], class: Option<u8>) {
    let _ = black_box(frame.first_chunk().map(|prefix| frame_len(*prefix)));
    let Some(body) = frame.get_mut(4..) else { return };
    let _ = black_box((protocol(body), transform::Header::parse(body), compression::Header::parse(body)));
    let _ = black_box(smb1::Negotiate::parse(body).map(|n| n.offers_smb2()));
    for element in elements(body).map_while(Result::ok) {
        let mut notes = 0_u32;
        let _ = black_box(walk(&element.header, element.msg, class, &mut |_| notes += 1));
        black_box(notes);
        let _ = black_box((patch::request_file_id(element.msg), patch::response_file_id(element.msg)));
    }
    if let Some(class) = class {
        let _ = black_box(query_directory::entries(class, body).map_while(Result::ok).count());
    }
    patch::rewrite_file_ids(body, &mut |id| FileId { persistent: !id.persistent, ..id });
    patch::set_message_id(body, 1);
    patch::set_session_id(body, 2);
    patch::set_previous_session_id(body, 2);
    patch::set_credits(body, 3);
    patch::set_status(body, Status::SUCCESS);
    patch::set_flags(body, Flags::SIGNED);
    patch::set_async_id(body, 4);
    patch::set_sync(body, 5);
    if let Ok(header) = Header::parse(body) {
        header.write(body);
    }
    write_prefix(frame, 100);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(vec![1_u8; 10]))), 1);
}

#[test]
fn no_message_of_the_corpus_allocates() {
    let samples = corpus::corpus();
    let compound = encode::compound(&samples.iter().map(|sample| &sample.msg).collect::<Vec<_>>());
    let mut frames: Vec<_> = samples.iter().map(|s| (s.name, encode::frame(&s.msg), s.class)).collect();
    frames.push(("all in one compound", encode::frame(compound), None));
    for (name, frame, class) in &frames {
        for len in (0..frame.len().min(600)).chain([frame.len()]) {
            let mut cut = frame[..len].to_vec();
            assert_eq!(allocations(|| pass(&mut cut, *class)), 0, "{name} cut to {len}");
        }
    }
}

/// Errors are values: what is wrong costs no memory either.
#[test]
fn no_damaged_message_allocates() {
    let corpus: Vec<_> = corpus::corpus().into_iter().map(|sample| encode::frame(&sample.msg)).collect();
    let mut rng = mutate::Rng::new(7);
    for round in 0..20_000 {
        let mut frame = mutate::mutate(&mut rng, &corpus);
        assert_eq!(allocations(|| pass(&mut frame, Some(37))), 0, "round {round}");
    }
}
