//! `rewrite_file_ids` finds every id of a message, the hidden ones too, and touches nothing else.

use smb_parse::{
    FileId, encode, fsctl,
    header::{Command, Header},
    patch,
};

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;

use corpus::{ID, corpus};

const NEW: FileId = FileId { persistent: 0xaaaa_bbbb_cccc_dddd, volatile: 0xeeee_ffff_0000_1111 };

/// Where the bytes of an id stand.
fn positions(msg: &[u8], id: FileId) -> Vec<usize> {
    let id = id.to_bytes();
    msg.windows(16).enumerate().filter(|(_, window)| *window == id).map(|(at, _)| at).collect()
}

/// How many ids a message of the corpus has.
fn expected(name: &str) -> usize {
    match name {
        "close"
        | "flush"
        | "read"
        | "write"
        | "lock"
        | "query directory"
        | "change notify"
        | "query info"
        | "set info"
        | "ioctl pipe"
        | "ioctl copychunk limits"
        | "create response"
        | "create response with contexts"
        | "oplock break"
        | "oplock break ack"
        | "oplock break response"
        | "create DHnC"
        | "create DH2C"
        | "create QFid before DHnC" => 1,
        "create with all contexts"
        | "ioctl copychunk"
        | "ioctl copychunk write"
        | "ioctl clone"
        | "ioctl clone ex"
        | "ioctl resume key" => 2,
        _ => 0,
    }
}

#[test]
fn every_id_and_nothing_else() {
    for sample in corpus() {
        let places = positions(&sample.msg, ID);
        assert_eq!(places.len(), expected(sample.name), "{}", sample.name);
        let mut msg = sample.msg.clone();
        let mut calls = 0;
        patch::rewrite_file_ids(&mut msg, &mut |id| {
            assert_eq!(id, ID, "{}", sample.name);
            calls += 1;
            NEW
        });
        assert_eq!(calls, places.len(), "{}", sample.name);
        let mut wanted = sample.msg.clone();
        for at in places {
            wanted[at..at + 16].copy_from_slice(&NEW.to_bytes());
        }
        assert_eq!(msg, wanted, "{}", sample.name);
        patch::rewrite_file_ids(&mut msg, &mut |_| ID);
        assert_eq!(msg, sample.msg, "{} and back", sample.name);
    }
}

#[test]
fn the_related_id_is_left_alone() {
    let header = Header::request(Command::CLOSE, 1);
    for msg in [
        encode::close(&header, 0, FileId::ALL_ONES),
        encode::ioctl_response(&header, fsctl::VALIDATE_NEGOTIATE_INFO, FileId::ALL_ONES, &[0; 24]),
    ] {
        let mut patched = msg.clone();
        patch::rewrite_file_ids(&mut patched, &mut |_| unreachable!("no id"));
        assert_eq!(patched, msg);
    }
}

#[test]
fn the_id_of_the_fixed_part_is_read_and_set() {
    for sample in corpus() {
        let mut msg = sample.msg.clone();
        let header = Header::parse(&msg).unwrap();
        let (had, set) = if header.is_response() {
            (patch::response_file_id(&msg), patch::set_response_file_id(&mut msg, NEW))
        } else {
            (patch::request_file_id(&msg), patch::set_request_file_id(&mut msg, NEW))
        };
        assert_eq!(had.is_some(), set, "{}", sample.name);
        if let Some(had) = had {
            assert_eq!(had, ID, "{}", sample.name);
            assert_eq!(positions(&msg, NEW).len(), 1, "{}", sample.name);
        } else {
            assert_eq!(msg, sample.msg, "{}", sample.name);
        }
    }
}

#[test]
fn an_error_body_has_no_id() {
    let header = corpus::answer(Command::CREATE, smb_parse::header::Status::ACCESS_DENIED);
    let mut msg = encode::error_response(&header);
    msg.resize(300, 7);
    assert_eq!(patch::response_file_id(&msg), None);
    let before = msg.clone();
    assert!(!patch::set_response_file_id(&mut msg, NEW));
    patch::rewrite_file_ids(&mut msg, &mut |_| NEW);
    assert_eq!(msg, before);
}
