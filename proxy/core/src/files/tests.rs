use super::{remembered::REMEMBERED, *};

const A: LinkId = LinkId(1);
const B: LinkId = LinkId(2);
const C: LinkId = LinkId(3);

/// A first instant; the rest is virtual.
#[allow(clippy::disallowed_methods, reason = "see above")]
fn now() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn key(name: &str) -> FileKey {
    FileKey(name.into())
}

fn name(path: &str) -> Name {
    let path: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
    Name::new("share", &path)
}

fn file(birth: u64, number: Option<u64>) -> FileIdentity {
    FileIdentity { birth: Birth::set(birth), number }
}

/// Asked for at once, and answered at `at` by the node of that generation.
fn opened_as(
    files: &mut Files,
    (link, open): (LinkId, u64),
    path: &str,
    file: FileIdentity,
    (at, generation): (Instant, u64),
) {
    let (open, name) = (OpenToken(open), name(path));
    let event = FileEvent::Opened { open, name, file, asked: now(), generation, deletes: false };
    files.handle(at, link, event);
}

fn opened(files: &mut Files, link: LinkId, open: u64, path: &str) {
    opened_as(files, (link, open), path, file(5, None), (now(), 1));
}

/// Asked for and answered at `at`.
fn renamed(files: &mut Files, link: LinkId, open: u64, to: &str, at: Instant) {
    files.handle(
        at,
        link,
        FileEvent::Renamed { open: OpenToken(open), to: name(to), asked: at, found: false },
    );
}

fn path(files: &Files, link: LinkId, open: u64) -> String {
    let place = files.place(link, OpenToken(open)).expect("it is open");
    smb_parse::Utf16(&place.name.path).to_string_lossy()
}

fn is_blocked(files: &Files, path: &str) -> bool {
    files.is_blocked(&name(path).key)
}

fn reclaimed(files: &mut Files, link: LinkId, open: u64) {
    files.handle(now(), link, FileEvent::Reclaimed { open: OpenToken(open), generation: 2 });
}

#[test]
fn a_barrier_stands_until_the_last_open_of_the_file_is_back_or_given_up() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    opened(&mut files, A, 2, "y");
    opened(&mut files, B, 1, "x");
    assert!(!files.is_opening_blocked());
    files.all_lost(now(), 2);
    assert!(files.is_opening_blocked() && is_blocked(&files, "x") && is_blocked(&files, "y"));
    reclaimed(&mut files, A, 1);
    assert!(is_blocked(&files, "x"), "B's Open is not back");
    let version = files.version();
    files.handle(now(), B, FileEvent::GivenUp { open: OpenToken(1), deleted: false });
    assert!(!is_blocked(&files, "x") && files.version() > version);
    assert!(files.is_opening_blocked() && is_blocked(&files, "y"));
    files.link_gone(A);
    assert_eq!((files.is_opening_blocked(), files.opens()), (false, 0));
}

#[test]
fn a_file_is_flagged_to_be_deleted_when_all_its_opens_are_back() {
    let unflagged = |files: &mut Files, link, open| {
        files.handle(now(), link, FileEvent::Unflagged { open: OpenToken(open), generation: 2 })
    };
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    opened(&mut files, A, 2, "x");
    opened(&mut files, B, 1, "x");
    opened(&mut files, B, 2, "y");
    files.all_lost(now(), 2);
    unflagged(&mut files, A, 1);
    reclaimed(&mut files, A, 2);
    assert!(!files.may_flag(A, OpenToken(1)), "B's Open is not back");
    unflagged(&mut files, B, 1);
    assert!(files.may_flag(A, OpenToken(1)) && files.may_flag(B, OpenToken(1)), "y is another file");
    files.handle(now(), B, FileEvent::Lost);
    assert!(!files.may_flag(A, OpenToken(1)), "B's Open is lost again");
    let version = files.version();
    files.handle(now(), B, FileEvent::GivenUp { open: OpenToken(1), deleted: false });
    assert!(files.may_flag(A, OpenToken(1)) && files.version() > version);
    assert!(is_blocked(&files, "x"), "nobody may open it before");
    reclaimed(&mut files, A, 1);
    assert!(!is_blocked(&files, "x"));
}

/// Its Link is still to be told of the node after that.
#[test]
fn what_is_had_again_on_a_node_that_serves_no_more_is_not_back() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    opened(&mut files, A, 2, "x");
    files.all_lost(now(), 2);
    files.all_lost(now(), 3);
    files.handle(now(), A, FileEvent::Unflagged { open: OpenToken(1), generation: 2 });
    files.handle(now(), A, FileEvent::Reclaimed { open: OpenToken(2), generation: 2 });
    assert!(files.unreclaimed() == 2 && !files.may_flag(A, OpenToken(1)));
    files.handle(now(), A, FileEvent::Unflagged { open: OpenToken(1), generation: 3 });
    files.handle(now(), A, FileEvent::Reclaimed { open: OpenToken(2), generation: 3 });
    assert!(files.unreclaimed() == 1 && files.may_flag(A, OpenToken(1)));
}

#[test]
fn what_was_reclaimed_and_lost_again_counts_once() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    files.all_lost(now(), 2);
    files.handle(now(), A, FileEvent::Lost);
    assert_eq!(files.unreclaimed(), 1);
    reclaimed(&mut files, A, 1);
    reclaimed(&mut files, A, 1);
    assert_eq!(files.unreclaimed(), 0);
    files.handle(now(), A, FileEvent::Lost);
    assert_eq!(files.unreclaimed(), 1);
}

#[test]
fn what_a_lost_node_has_opened_is_not_back_although_it_is_heard_of_later() {
    let mut files = Files::default();
    files.all_lost(now(), 2);
    let version = files.version();
    opened_as(&mut files, (A, 1), "x", file(5, None), (now(), 1));
    assert!(is_blocked(&files, "x") && files.version() > version);
    files.handle(now(), A, FileEvent::Lost);
    assert_eq!(files.unreclaimed(), 1);
    reclaimed(&mut files, A, 1);
    opened_as(&mut files, (B, 1), "x", file(5, None), (now(), 2));
    assert_eq!(files.unreclaimed(), 0);
}

#[test]
fn a_rename_takes_every_open_of_the_name_along() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "old");
    opened(&mut files, B, 1, "old");
    opened(&mut files, B, 2, "new");
    let version = files.version();
    renamed(&mut files, A, 1, "new", now());
    assert!(files.version() > version);
    files.handle(now(), B, FileEvent::Lost);
    assert!(is_blocked(&files, "new") && !is_blocked(&files, "old"));
    reclaimed(&mut files, B, 1);
    assert!(is_blocked(&files, "new"));
    reclaimed(&mut files, B, 2);
    assert!(!is_blocked(&files, "new"));
    assert_eq!(files.files.get(&name("new").key).map(|file| file.opens.len()), Some(3));
}

#[test]
fn a_rename_takes_along_what_is_beneath_and_streams_of_every_link() {
    let mut files = Files::default();
    let names = [r"Dir", r"dir\F", r"dir\F:s", r"DIR\sub\g", r"dir2\h", "directory"];
    for (open, name) in (1..).zip(names) {
        opened(&mut files, A, open, name);
        opened(&mut files, B, open, name);
    }
    renamed(&mut files, B, 1, r"To", later(5));
    let taken = [r"To", r"To\F", r"To\F:s", r"To\sub\g", r"dir2\h", "directory"];
    for (open, name) in (1..).zip(taken) {
        assert_eq!((path(&files, A, open), path(&files, B, open)), (name.into(), name.into()));
    }
    renamed(&mut files, A, 2, "f", later(9));
    assert_eq!((path(&files, B, 2), path(&files, B, 3)), ("f".into(), "f:s".into()));
    let gone = |name: &str| files.remover(&self::name(name).key, now());
    assert_eq!((gone(r"dir\sub\g"), gone(r"to\f"), gone("f")), {
        (Remover::Known, Remover::Known, Remover::Unclear)
    });
}

#[test]
fn another_file_under_the_old_name_is_not_taken_along() {
    let mut files = Files::default();
    opened_as(&mut files, (A, 1), "x", file(5, None), (now(), 1));
    opened_as(&mut files, (B, 1), "x", file(6, None), (now(), 1));
    opened_as(&mut files, (B, 2), "x", file(6, Some(7)), (now(), 1));
    renamed(&mut files, A, 1, "y", now());
    assert_eq!(path(&files, B, 1), "x", "it was opened after the rename");
    files.handle(now(), A, FileEvent::Identified { open: OpenToken(1), file: file(5, Some(7)) });
    renamed(&mut files, A, 1, "x", later(9));
    renamed(&mut files, A, 1, "z", later(10));
    assert_eq!((path(&files, B, 1), path(&files, B, 2)), ("x".into(), "z".into()));
}

/// `A`'s Open 1 is about to be renamed, for a client that asked for it at once.
fn renaming(files: &mut Files, from: &str, to: &str) {
    let (open, from, to) = (Some(OpenToken(1)), name(from), name(to));
    files.handle(now(), A, FileEvent::Renaming { open, from, to, asked: now(), id: 1 });
}

#[test]
fn what_was_open_before_the_rename_was_sent_is_taken_along_whatever_time_the_file_shows() {
    let derived = |time| FileIdentity { birth: Birth::derived(time), number: None };
    let open = |files: &mut Files, link, open, file| opened_as(files, (link, open), "x", file, (now(), 1));
    let mut files = Files::default();
    // It is read, the time moves; an attribute is set, the time is kept.
    open(&mut files, B, 1, derived(4));
    open(&mut files, B, 2, derived(5));
    open(&mut files, B, 3, file(6, Some(8)));
    open(&mut files, A, 1, file(6, None));
    renaming(&mut files, "x", "y");
    open(&mut files, B, 4, derived(5));
    open(&mut files, B, 5, file(6, None));
    files.handle(now(), A, FileEvent::Identified { open: OpenToken(1), file: file(6, Some(7)) });
    renamed(&mut files, A, 1, "y", now());
    let names = [1, 2, 3, 4, 5].map(|open| path(&files, B, open));
    assert_eq!(names, ["y", "y", "x", "x", "y"], "3 is another file, 4 may be");
    let born = |open| files.place(B, OpenToken(open)).map(|place| place.birth);
    assert_eq!(born(1), Some(Birth::set(6)), "it is found by what was seen last");
    // Once more: it counts from when it was sent first.
    renaming(&mut files, "y", "z");
    open(&mut files, B, 6, derived(5));
    renamed(&mut files, B, 6, "y", now());
    renaming(&mut files, "y", "z");
    renamed(&mut files, A, 1, "z", now());
    assert_eq!((path(&files, B, 1), path(&files, B, 6)), ("z".into(), "y".into()));
}

#[test]
fn an_open_that_was_on_its_way_while_its_file_was_renamed_has_the_new_name() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    renamed(&mut files, A, 1, "y", later(5));
    opened_as(&mut files, (B, 1), "x", file(5, None), (later(6), 1));
    opened_as(&mut files, (B, 2), "x", file(6, None), (later(6), 1));
    assert_eq!((path(&files, B, 1), path(&files, B, 2)), ("y".into(), "x".into()));
    files.handle(later(7), A, FileEvent::Lost);
    assert!(files.is_open_blocked(B, OpenToken(1)) && !files.is_open_blocked(B, OpenToken(2)));
}

#[test]
fn a_file_is_blocked_by_whatever_name_it_is_open() {
    let mut files = Files::default();
    opened_as(&mut files, (A, 1), "x", file(5, Some(1)), (now(), 1));
    opened_as(&mut files, (B, 1), "link", file(5, Some(1)), (now(), 1));
    opened_as(&mut files, (B, 2), "other", file(5, Some(2)), (now(), 1));
    files.handle(now(), A, FileEvent::Lost);
    let blocked = |files: &Files| [1, 2].map(|open| files.is_open_blocked(B, OpenToken(open)));
    assert_eq!(blocked(&files), [true, false]);
    files.handle(now(), A, FileEvent::Identified { open: OpenToken(1), file: file(5, Some(2)) });
    assert_eq!(blocked(&files), [false, true]);
    let version = files.version();
    reclaimed(&mut files, A, 1);
    assert_eq!((blocked(&files), files.version() > version), ([false, false], true));
}

#[test]
fn a_time_of_creation_that_is_set_is_that_of_every_open_of_the_file() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    opened(&mut files, B, 1, "x");
    opened_as(&mut files, (B, 2), "x", file(6, None), (now(), 1));
    files.handle(now(), A, FileEvent::Born { open: OpenToken(1), birth: Birth::set(9) });
    let birth = |open| files.place(B, OpenToken(open)).map(|place| place.birth);
    assert_eq!((birth(1), birth(2)), (Some(Birth::set(9)), Some(Birth::set(6))));
}

#[test]
fn a_name_is_gone_with_the_last_close_of_a_file_that_is_to_be_deleted() {
    for by_option in [false, true] {
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        let (open, name, asked) = (OpenToken(1), name("x"), now());
        let file = file(5, None);
        let event = FileEvent::Opened { open, name, file, asked, generation: 1, deletes: by_option };
        files.handle(now(), B, event);
        if !by_option {
            files.handle(now(), B, FileEvent::Doomed { open, doomed: true });
            renamed(&mut files, B, 1, "y", later(5));
            renamed(&mut files, B, 1, "x", later(6));
            assert!(files.place(A, open).is_some_and(|place| place.doomed));
        }
        let gone = |files: &Files| files.remover(&self::name("x").key, later(7));
        files.handle(later(8), B, FileEvent::Closed { open });
        assert_eq!(gone(&files), Remover::Nobody, "A has it open");
        files.handle(later(9), A, FileEvent::Closed { open });
        assert_eq!(gone(&files), Remover::Known);
    }
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    files.handle(now(), A, FileEvent::Doomed { open: OpenToken(1), doomed: true });
    files.handle(now(), A, FileEvent::Doomed { open: OpenToken(1), doomed: false });
    files.handle(now(), A, FileEvent::Closed { open: OpenToken(1) });
    assert_eq!(files.remover(&name("x").key, now()), Remover::Nobody);
}

#[test]
fn of_two_files_that_had_a_name_each_is_doomed_by_itself() {
    let mut files = Files::default();
    opened_as(&mut files, (A, 1), "x", file(5, None), (now(), 1));
    files.handle(now(), A, FileEvent::Doomed { open: OpenToken(1), doomed: true });
    opened_as(&mut files, (B, 1), "x", file(6, None), (now(), 1));
    files.handle(now(), B, FileEvent::Doomed { open: OpenToken(1), doomed: true });
    files.handle(later(1), A, FileEvent::Closed { open: OpenToken(1) });
    assert!(files.is_doomed(&name("x").key), "the second one");
    opened_as(&mut files, (A, 2), "x", file(6, None), (now(), 1));
    files.handle(later(3), B, FileEvent::GivenUp { open: OpenToken(1), deleted: false });
    assert_eq!(files.remover(&name("x").key, later(2)), Remover::Nobody, "A has it open");
    files.handle(later(4), A, FileEvent::Closed { open: OpenToken(2) });
    assert_eq!(files.remover(&name("x").key, later(2)), Remover::Known);
}

#[test]
fn a_doomed_file_is_not_succeeded_by_one_that_had_the_name_before() {
    let mut files = Files::default();
    let doomed = FileEvent::Doomed { open: OpenToken(1), doomed: true };
    opened_as(&mut files, (A, 1), "x", file(6, None), (later(1), 1));
    files.handle(later(1), A, doomed.clone());
    // It was asked for before anything was heard of the other.
    opened_as(&mut files, (B, 1), "x", file(5, None), (later(2), 1));
    assert!(files.place(A, OpenToken(1)).is_some_and(|place| place.doomed));
    assert_eq!(files.remover(&name("x").key, now()), Remover::Nobody);
    files.handle(later(3), B, doomed);
    opened_as(&mut files, (B, 2), "x", file(7, None), (later(4), 1));
    assert_eq!(files.remover(&name("x").key, now()), Remover::Known, "a younger one has succeeded both");
    assert!(!files.place(A, OpenToken(1)).is_some_and(|place| place.doomed));
}

#[test]
fn an_open_whose_connection_is_lost_keeps_no_file_from_being_deleted() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    opened(&mut files, B, 1, "x");
    files.handle(later(1), B, FileEvent::Doomed { open: OpenToken(1), doomed: true });
    files.handle(later(2), A, FileEvent::Lost);
    assert!(!files.is_removed(A, OpenToken(1)));
    files.handle(later(3), B, FileEvent::Closed { open: OpenToken(1) });
    assert!(files.is_removed(A, OpenToken(1)), "nobody but A has it open");
    assert_eq!(files.remover(&name("x").key, later(2)), Remover::Known);
    files.handle(later(9), A, FileEvent::GivenUp { open: OpenToken(1), deleted: false });
    assert_eq!(files.remover(&name("x").key, later(5)), Remover::Nobody, "it was gone by then");
}

fn made(files: &mut Files, name: &str, time: u64, at: Instant) {
    files.handle(now(), A, FileEvent::Made { key: key(name), birth: Birth::set(time), at });
}

fn gone(files: &mut Files, name: &str, time: u64, at: Instant) {
    files.handle(at, A, FileEvent::Gone { key: key(name), birth: Some(Birth::set(time)) });
}

#[test]
fn of_two_made_at_once_the_younger_has_the_name_whichever_is_heard_of_first() {
    let mut files = Files::default();
    let made = |files: &mut Files, time, asked, heard| {
        files.handle(heard, A, FileEvent::Made { key: key("x"), birth: Birth::set(time), at: asked });
    };
    let holder = |files: &Files| files.holder(&key("x")).map(|(birth, _)| birth);
    made(&mut files, 6, later(2), later(3));
    made(&mut files, 5, later(1), later(4));
    assert_eq!(holder(&files), Some(Birth::set(6)));
    assert!(files.left_behind(&key("x"), None).iter().any(|left| left.birth == Birth::set(5)));
    made(&mut files, 4, later(5), later(6));
    assert_eq!(
        holder(&files),
        Some(Birth::set(4)),
        "asked for when the other was heard of: it was renamed so"
    );
}

#[test]
fn what_was_found_to_be_gone_is_the_file_that_had_the_name_last() {
    let mut files = Files::default();
    made(&mut files, "x", 5, now());
    assert_eq!(files.holder(&key("x")).map(|(birth, _)| birth), Some(Birth::set(5)));
    files.handle(later(1), A, FileEvent::Gone { key: key("x"), birth: None });
    assert_eq!(
        files.holder(&key("x")),
        None,
        "else each of those who want it deleted is told that it has done it"
    );
    assert_eq!(files.remover(&key("x"), now()), Remover::Known);
    let taken = |files: &Files, since| files.was_taken(&key("x"), since, since);
    assert!(taken(&files, now()) && !taken(&files, later(2)));
}

#[test]
fn what_others_have_open_may_have_had_another_name_when_it_was_renamed() {
    let taken = |files: &Files, since| files.was_taken(&name("x").key, since, since);
    for (shared, is_taken) in [(false, true), (true, false)] {
        let mut files = Files::default();
        opened(&mut files, A, 1, "x");
        if shared {
            opened(&mut files, B, 2, "x");
        }
        renamed(&mut files, A, 1, "y", later(1));
        files.handle(later(1), A, FileEvent::Gone { key: name("x").key, birth: Some(Birth::set(5)) });
        files.handle(later(1), A, FileEvent::Closed { open: OpenToken(1) });
        assert_eq!(taken(&files, now()), is_taken);
        opened_as(&mut files, (B, 3), "x", file(9, None), (later(2), 1));
        files.handle(later(2), B, FileEvent::Closed { open: OpenToken(3) });
        assert!(!taken(&files, now()), "it may have waited for that");
    }
}

#[test]
fn whether_a_file_is_to_be_deleted_is_not_known_while_a_node_is_asked_for_it() {
    let mut files = Files::default();
    opened(&mut files, A, 1, "x");
    let (open, id) = (OpenToken(1), 7);
    let doomed = |files: &Files| files.is_doomed(&name("x").key);
    for over in [FileEvent::DeletingOver { id }, FileEvent::Lost] {
        files.handle(now(), A, FileEvent::Deleting { open, id });
        files.handle(now(), B, FileEvent::Doubtful);
        let version = files.version();
        assert!(doomed(&files));
        files.handle(now(), A, over);
        assert!(!doomed(&files) && files.version() > version, "B looks again");
    }
    files.handle(now(), A, FileEvent::Deleting { open, id });
    files.handle(now(), A, FileEvent::Doomed { open, doomed: true });
    files.handle(now(), A, FileEvent::DeletingOver { id });
    assert!(doomed(&files));
    files.handle(now(), A, FileEvent::Closed { open });
    assert!(!doomed(&files), "it is gone");
}

#[test]
fn every_file_is_remembered_that_had_a_name_and_was_not_removed() {
    let mut files = Files::default();
    let left = |files: &Files, but: Option<u64>| {
        files.left_behind(&key("x"), but.map(Birth::set)).map(|left| left.birth)
    };
    for time in [5, 6, 7] {
        made(&mut files, "x", time, now());
    }
    assert_eq!(left(&files, None), Some(Birth::set(6)));
    gone(&mut files, "x", 6, later(8));
    assert_eq!(left(&files, None), Some(Birth::set(5)));
    assert_eq!(left(&files, Some(5)), None, "that stands there");
    for _ in 0..2 {
        files.handle(later(9), A, FileEvent::Gone { key: key("x"), birth: None });
    }
    assert_eq!((files.holder(&key("x")), left(&files, None)), (None, None), "both were deleted");
}

fn maker(files: &Files, name: &str, time: u64) -> Maker {
    files.maker(&key(name), Birth::set(time), now())
}

fn later(seconds: u64) -> Instant {
    now() + std::time::Duration::from_secs(seconds)
}

#[test]
fn a_file_is_held_from_others_until_its_client_is_done_or_gone() {
    let mut files = Files::default();
    let (a, b) = (OpenToken(1), OpenToken(2));
    opened(&mut files, A, 1, r"share\x");
    opened(&mut files, B, 2, r"share\x");
    opened(&mut files, B, 3, r"share\y");
    files.handle(now(), A, FileEvent::Held { open: a });
    assert!(files.is_something_held() && files.is_held(B, b) && !files.is_held(A, a));
    assert!(!files.is_held(B, OpenToken(3)) && files.is_name_held(B, &key(r"other\x")));
    assert!(!files.is_name_held(A, &key(r"share\x")) && !files.is_name_held(B, &key(r"share\y")));
    for end in [FileEvent::Released { open: a }, FileEvent::Closed { open: a }] {
        files.handle(now(), A, FileEvent::Held { open: a });
        let version = files.version();
        files.handle(now(), A, end);
        assert!(!files.is_something_held() && files.version() > version);
    }
    files.handle(now(), A, FileEvent::Held { open: a });
    assert!(!files.is_something_held(), "it is closed");
    opened(&mut files, A, 1, r"share\x");
    files.handle(now(), A, FileEvent::Held { open: a });
    files.link_gone(A);
    assert!(!files.is_something_held());
}

#[test]
fn another_may_have_changed_a_file_just_before_it_lost_its_node_or_on_a_node_that_lives() {
    let mut files = Files::default();
    let (a, b) = (OpenToken(1), OpenToken(2));
    opened(&mut files, A, 1, "x");
    opened(&mut files, B, 2, "x");
    files.handle(now(), A, FileEvent::Writes { open: a });
    assert!(!files.may_others_have_written(B, b, false), "it has not lately");
    assert!(files.may_others_have_written(B, b, true) && !files.may_others_have_written(A, a, true));
    files.handle(now(), A, FileEvent::Wrote { open: a });
    files.all_lost(now(), 2);
    files.link_gone(A);
    assert!(files.may_others_have_written(B, b, false), "the node may not have come to tell of it");
}

#[test]
fn who_made_a_file_is_remembered_by_name_and_time() {
    let mut files = Files::default();
    made(&mut files, r"share\dir\x", 5, now());
    assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Known);
    assert_eq!(maker(&files, r"share\dir\x", 6), Maker::Nobody, "another one since");
    assert_eq!(maker(&files, r"other\x", 5), Maker::Unclear, "a share of the same directory");
    assert_eq!(maker(&files, r"share\dir\y", 5), Maker::Nobody);
    for n in 0..REMEMBERED {
        made(&mut files, &n.to_string(), 1, now());
    }
    assert_eq!(maker(&files, r"share\dir\x", 5), Maker::Unclear, "it is forgotten");
    let since = later(1);
    assert_eq!(files.maker(&key("y"), Birth::set(1), since), Maker::Nobody, "what came since is known");
    files.handle(now(), B, FileEvent::Unseen);
    assert_eq!(files.maker(&key("y"), Birth::set(1), since), Maker::Unclear);
}

#[test]
fn who_made_what_is_gone_has_hardly_made_what_stands_there_now() {
    let mut files = Files::default();
    made(&mut files, r"share\x", 5, now());
    gone(&mut files, r"share\x", 5, later(1));
    assert_eq!(maker(&files, r"share\x", 6), Maker::Nobody);
    assert_eq!(maker(&files, r"share\x", 5), Maker::Unclear, "it is there all the same");
    made(&mut files, r"share\x", 5, later(2));
    assert_eq!(maker(&files, r"share\x", 5), Maker::Known, "it was made again");
    made(&mut files, r"share\x", 5, later(3));
    gone(&mut files, r"share\x", 5, later(4));
    assert_eq!(maker(&files, r"share\x", 5), Maker::Unclear, "that was told twice");
    gone(&mut files, r"share\y", 5, later(2));
    made(&mut files, r"share\y", 5, later(1));
    assert_eq!(maker(&files, r"share\y", 5), Maker::Unclear, "who removed it was heard first");
}

#[test]
fn that_a_name_was_removed_is_remembered() {
    let mut files = Files::default();
    let remover = |files: &Files, name: &str, since| files.remover(&key(name), since);
    assert_eq!(remover(&files, r"share\dir\x", now()), Remover::Nobody);
    gone(&mut files, r"share\dir\x", 5, later(5));
    assert_eq!(remover(&files, r"share\dir\x", later(5)), Remover::Known);
    assert_eq!(remover(&files, r"share\dir\x", later(6)), Remover::Nobody, "it was before");
    assert_eq!(remover(&files, r"share\dir\y", now()), Remover::Nobody);
    assert_eq!(remover(&files, r"other\x", now()), Remover::Unclear, "a share of the same directory");
    gone(&mut files, r"share\dir", 5, later(7));
    assert_eq!(remover(&files, r"share\dir\y\z", later(7)), Remover::Known, "the directory is gone");
    assert_eq!(remover(&files, r"share\directory\y", later(7)), Remover::Nobody);
    for n in 0..REMEMBERED {
        gone(&mut files, &n.to_string(), 1, later(8));
    }
    assert_eq!(remover(&files, r"share\dir\x", now()), Remover::Unclear, "it is forgotten");
    assert_eq!(remover(&files, r"share\dir\x", later(9)), Remover::Nobody, "what came since is known");
    files.handle(now(), B, FileEvent::Unseen);
    assert_eq!(remover(&files, r"share\dir\x", later(9)), Remover::Unclear);
}

#[test]
fn what_was_found_under_another_name_was_not_removed_by_what_was_answered() {
    let mut files = Files::default();
    made(&mut files, "share\\x", 5, now());
    opened(&mut files, A, 1, "x");
    gone(&mut files, "share\\x", 4, later(1));
    let (open, asked) = (OpenToken(1), later(1));
    let found = FileEvent::Renamed { open, to: name("y"), asked, found: true };
    files.handle(later(2), A, found);
    let remover = |files: &Files, since| files.remover(&name("x").key, since);
    assert_eq!(remover(&files, later(1)), Remover::Moved(Birth::set(5)));
    assert_eq!(remover(&files, later(3)), Remover::Nobody, "it was before");
    assert_eq!((path(&files, A, 1), files.holder(&name("x").key)), ("y".into(), None));
    opened_as(&mut files, (B, 1), "x", file(7, None), (now(), 1));
    files.handle(later(2), B, FileEvent::Renamed { open, to: name("w"), asked, found: true });
    let of = |birth| files.remover_from(&name("x").key, Birth::set(birth), later(1));
    assert_eq!((of(5), of(7)), (Remover::Moved(Birth::set(5)), Remover::Moved(Birth::set(7))));
    assert_eq!(of(4), Remover::Moved(Birth::set(7)), "it was removed before");
    gone(&mut files, "share\\x", 5, later(3));
    assert_eq!(remover(&files, later(1)), Remover::Known, "who renamed it was told");
    files.handle(later(4), A, FileEvent::Renamed { open, to: name("z"), asked, found: true });
    assert_eq!(files.remover(&name("y\\f").key, later(1)), Remover::Unclear, "beneath it");
}

#[test]
fn a_name_may_be_gone_by_a_request_that_was_answered_or_in_flight() {
    let mut files = Files::default();
    let gone_since = |files: &Files, name: &str, since| files.may_be_gone_since(&key(name), since);
    assert!(!gone_since(&files, r"share\dir\x", now()));
    let perhaps = |name: &str, deed, coming| FileEvent::Perhaps { key: key(name), deed, coming };
    files.handle(later(5), A, perhaps(r"share\dir", Deed::Taken, false));
    assert!(gone_since(&files, r"share\dir\x", later(5)) && gone_since(&files, r"share\dir", now()));
    assert!(!gone_since(&files, r"share\dir\x", later(6)), "it was asked for before");
    assert!(!gone_since(&files, r"share\y", now()));
    gone(&mut files, r"share\y", 5, later(5));
    assert!(gone_since(&files, r"share\y", later(5)) && !gone_since(&files, r"share\y", later(6)));
    assert_eq!(files.remover(&key(r"share\dir\x"), now()), Remover::Nobody, "nobody was told so");
    files.handle(later(5), A, perhaps(r"share\w", Deed::Deleted, true));
    assert!(gone_since(&files, r"share\w", later(9)), "its client has left: the node may still do it");
    assert!(files.may_be_deleted_since(&key(r"share\w"), later(9)));
    files.all_lost(later(7), 2);
    assert!(gone_since(&files, r"share\w", later(7)) && !gone_since(&files, r"share\w", later(9)));
    files.handle(now(), B, FileEvent::Unseen);
    assert!(gone_since(&files, r"share\z", later(9)), "nobody would see it");
}

#[test]
fn nobody_finds_out_while_a_link_has_not_heard_that_its_node_is_lost() {
    for goes in [false, true] {
        let mut files = Files::default();
        for link in [A, B] {
            files.handle(now(), link, FileEvent::Served { generation: 1 });
        }
        files.all_lost(now(), 2);
        files.handle(now(), A, FileEvent::Doubtful);
        files.handle(now(), A, FileEvent::Lost);
        files.handle(now(), A, FileEvent::Served { generation: 2 });
        files.handle(now(), A, FileEvent::Deciding);
        let version = files.version();
        assert!(files.is_in_doubt() && !files.may_decide(A));
        if goes {
            files.link_gone(B);
        } else {
            files.handle(now(), B, FileEvent::Lost);
        }
        assert!(files.may_decide(A) && files.version() > version);
        files.handle(now(), A, FileEvent::Decided);
        assert!(!files.is_in_doubt());
        files.handle(now(), B, FileEvent::Served { generation: 1 });
        assert!(files.is_in_doubt(), "it comes to a node that is lost by now");
    }
}

#[test]
fn links_in_doubt_have_their_turns() {
    let mut files = Files::default();
    files.handle(now(), A, FileEvent::Doubtful);
    files.handle(now(), B, FileEvent::Doubtful);
    assert!(files.is_in_doubt() && !files.may_decide(A));
    files.handle(now(), B, FileEvent::Deciding);
    files.handle(now(), A, FileEvent::Deciding);
    assert!(files.may_decide(B) && !files.may_decide(A), "B was ready first");
    files.handle(now(), B, FileEvent::Doubtful);
    assert!(files.may_decide(A), "B has lost its node again");
    files.handle(now(), B, FileEvent::Deciding);
    files.handle(now(), A, FileEvent::Deferring);
    assert!(files.may_decide(B) && !files.may_decide(A), "A lets it go first");
    files.handle(now(), B, FileEvent::RenameOver { id: 1, known: true });
    assert!(files.may_decide(B), "it is still at it");
    files.handle(now(), B, FileEvent::Deferring);
    assert!(files.may_decide(A), "A does not wait any more");
    files.handle(now(), A, FileEvent::Deferring);
    assert!([A, B].into_iter().filter(|link| files.may_decide(*link)).count() == 1, "both wait");
    let version = files.version();
    files.handle(now(), A, FileEvent::Decided);
    assert!(files.is_in_doubt() && files.version() > version);
    files.link_gone(B);
    assert!(!files.is_in_doubt());
}

#[test]
fn counts_agree_with_the_opens_whatever_happens() {
    let mut files = Files::default();
    let mut seed = 7_u64;
    let mut draw = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    for step in 0..20_000 {
        let (link, open, name) = (LinkId(draw(4)), draw(6), format!("f{}", draw(3)));
        let known = files.links.get(&link).is_some_and(|o| o.contains_key(&OpenToken(open)));
        match draw(8) {
            0..=2 if !known => opened(&mut files, link, open, &name),
            0..=2 => files.handle(now(), link, FileEvent::Closed { open: OpenToken(open) }),
            3 => renamed(&mut files, link, open, &name, now()),
            4 => reclaimed(&mut files, link, open),
            5 if step % 3 == 0 => files.handle(now(), link, FileEvent::Lost),
            5 => files.handle(now(), link, FileEvent::Unflagged { open: OpenToken(open), generation: 2 }),
            6 if step % 50 == 0 => files.all_lost(now(), 1),
            7 if step % 50 == 0 => files.link_gone(link),
            7 if step % 3 == 0 => {
                let file = file(5, Some(draw(3)));
                files.handle(now(), link, FileEvent::Identified { open: OpenToken(open), file });
            }
            _ => files.handle(now(), link, FileEvent::GivenUp { open: OpenToken(open), deleted: false }),
        }
        let entries = || files.links.values().flat_map(BTreeMap::values);
        assert_eq!(files.unreclaimed, entries().filter(|e| !e.reclaimed).count() as u64);
        for (key, file) in &files.files {
            let of_file = || entries().filter(|e| e.name.key == *key);
            assert_eq!(file.opens.len(), of_file().count(), "{key:?} at step {step}");
            let barrier = file.barrier;
            assert_eq!(barrier.unreclaimed as usize, of_file().filter(|e| !e.reclaimed).count());
            assert_eq!(barrier.unflagged as usize, of_file().filter(|e| e.unflagged).count());
            assert!(of_file().all(|e| !(e.reclaimed && e.unflagged)));
        }
        for (number, barrier) in &files.numbers {
            let of_file = || entries().filter(|e| e.file.number == Some(*number) && !e.reclaimed);
            assert_eq!(barrier.unreclaimed as usize, of_file().count(), "number {number} at step {step}");
            assert_eq!(barrier.unflagged as usize, of_file().filter(|e| e.unflagged).count());
        }
    }
}

#[test]
fn who_finds_out_on_a_node_that_lives_waits_for_what_others_have_under_way() {
    let asked = |files: &mut Files| std::iter::from_fn(|| files.poll_asked()).collect::<BTreeSet<_>>();
    let mut files = Files::default();
    for link in [A, B, C] {
        files.handle(now(), link, FileEvent::Served { generation: 1 });
    }
    files.handle(now(), A, FileEvent::Doubtful);
    for link in [A, C] {
        files.handle(now(), link, FileEvent::LeftRunning { generation: 1 });
        files.handle(now(), link, FileEvent::Lost);
    }
    assert_eq!(files.under_way(A), UnderWay::Unasked);
    files.handle(now(), A, FileEvent::RunsNoMore { ended: true });
    files.handle(now(), A, FileEvent::Served { generation: 1 });
    files.handle(now(), A, FileEvent::Asking);
    files.handle(now(), A, FileEvent::Asking);
    assert_eq!(asked(&mut files), [B].into(), "C has lost its leg, too");
    let told = FileEvent::Told { deeds: vec![(key(r"share\dir"), Deed::Taken)] };
    files.handle(now(), B, told);
    assert_eq!(files.under_way(A), UnderWay::Awaited, "what C had in flight may still be done");
    let version = files.version();
    files.handle(now(), C, FileEvent::RunsNoMore { ended: true });
    assert!(files.under_way(A) == UnderWay::Known && files.version() > version);
    assert!(files.may_be_changing(&key(r"other\dir\file")), "one directory may be in two shares");
    assert!(!files.may_be_changing(&key(r"share\file")));
    files.handle(now(), A, FileEvent::Decided);
    assert_eq!(files.under_way(A), UnderWay::Unasked, "the next time they are asked anew");
    assert!(!files.may_be_changing(&key(r"share\dir")));
    files.handle(now(), A, FileEvent::Asking);
    assert_eq!(asked(&mut files), [B].into());
    files.link_gone(B);
    assert_eq!(files.under_way(A), UnderWay::Known, "it has left its traces");
    files.handle(now(), C, FileEvent::LeftRunning { generation: 1 });
    files.handle(now(), C, FileEvent::RunsNoMore { ended: false });
    assert_eq!(files.under_way(A), UnderWay::Anything, "nobody will know what C had in flight");
    files.all_lost(now(), 2);
    assert_eq!(files.under_way(A), UnderWay::Unasked);
    files.handle(now(), C, FileEvent::LeftRunning { generation: 1 });
    files.handle(now(), A, FileEvent::Asking);
    assert_eq!(files.under_way(A), UnderWay::Known, "that node does nothing any more");
}
