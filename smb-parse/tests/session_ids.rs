//! SessionIds stand in three places: the header, the SESSION_SETUP that takes a session over, and the header of sealed
//! messages.

use smb_parse::{
    cmd::session_setup,
    header::{Command, Header},
    patch, transform,
};

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;

const NEW: u64 = 0x1122_3344_5566_7788;

#[test]
fn the_previous_session_is_changed_where_there_is_one() {
    for sample in corpus::corpus() {
        let header = Header::parse(&sample.msg).unwrap();
        let has_one = header.command == Command::SESSION_SETUP && !header.is_response();
        let mut msg = sample.msg.clone();
        assert_eq!(patch::set_previous_session_id(&mut msg, NEW), has_one, "{}", sample.name);
        if has_one {
            let before = session_setup::Request::parse(&sample.msg).unwrap();
            let after = session_setup::Request::parse(&msg).unwrap();
            assert_eq!(after, session_setup::Request { previous_session_id: NEW, ..before });
            assert_eq!(Header::parse(&msg), Ok(header));
            for len in 0..88 {
                assert!(!patch::set_previous_session_id(&mut msg[..len], NEW), "{len}");
            }
        } else {
            assert_eq!(msg, sample.msg, "{}", sample.name);
        }
    }
}

#[test]
fn the_session_of_a_sealed_message_is_changed() {
    let mut body = vec![7; 60];
    assert!(!patch::set_transform_session_id(&mut body, NEW));
    assert_eq!(body, [7; 60]);
    body[..4].copy_from_slice(b"\xfdSMB");
    let before = transform::Header::parse(&body).unwrap();
    assert!(patch::set_transform_session_id(&mut body, NEW));
    assert_eq!(transform::Header::parse(&body), Ok(transform::Header { session_id: NEW, ..before }));
    assert_eq!(body[52..], [7; 8]);
    assert!(!patch::set_transform_session_id(&mut body[..51], NEW));
}
