//! Puts any bytes through everything that a peer's bytes can reach. Whatever they are, nothing may panic.

use smb_parse::{
    FileId, Utf16,
    cmd::{self, error::Symlink, query_directory},
    compound::elements,
    compression,
    create_context::{RequestContext, ResponseContext, contexts},
    frame,
    header::{Flags, Header, Status},
    patch, smb1, transform,
    walk::walk,
};

macro_rules! every_parser {
    ($msg:expr, $($module:ident: $($kind:ident)+),+) => {
        $($(let _ = cmd::$module::$kind::parse($msg);)+)+
    };
}

/// Everything.
pub(crate) fn exercise(bytes: &[u8]) {
    if let Some(prefix) = bytes.first_chunk() {
        let _ = frame::frame_len(*prefix);
    }
    let _ = (frame::protocol(bytes), transform::Header::parse(bytes), Symlink::parse(bytes));
    let _ = (compression::Header::parse(bytes), smb1::Negotiate::parse(bytes).map(|n| n.offers_smb2()));
    let _ = Utf16(bytes).to_string_lossy();
    parsers(bytes);
    let mut covered = 0;
    for element in elements(bytes).map_while(Result::ok) {
        assert_eq!(element.range.start, covered, "elements follow on one another");
        assert_eq!(bytes.get(element.range.clone()), Some(element.msg));
        covered = element.range.end;
        for class in [None, Some(1), Some(12), Some(37), Some(63)] {
            let _ = walk(&element.header, element.msg, class, &mut |_| {});
        }
        patches(element.msg);
    }
    for class in 0..=u8::MAX {
        let mut at = 0;
        for entry in query_directory::entries(class, bytes).map_while(Result::ok) {
            assert_eq!(entry.range.start, at, "entries follow on one another");
            assert!(entry.range.end > at && entry.range.end <= bytes.len());
            at = entry.range.end;
        }
    }
    for context in contexts(bytes).map_while(Result::ok) {
        let _ = (RequestContext::parse(&context), ResponseContext::parse(&context));
    }
    patches(bytes);
}

fn parsers(msg: &[u8]) {
    every_parser!(msg, negotiate: Request Response, session_setup: Request Response, logoff: Request Response,
        tree_connect: Request Response, tree_disconnect: Request Response, create: Request Response,
        close: Request Response, flush: Request Response, read: Request Response, write: Request Response,
        lock: Request Response, ioctl: Request Response, cancel: Request, echo: Request Response,
        query_directory: Request Response, change_notify: Request Response, query_info: Request Response,
        set_info: Request Response, oplock_break: Request Response Notification, notification: Response,
        error: Response);
}

fn patches(msg: &[u8]) {
    let mut same = msg.to_vec();
    patch::rewrite_file_ids(&mut same, &mut |id| id);
    assert_eq!(same, msg, "the identity changes nothing");
    let mut m = msg.to_vec();
    patch::rewrite_file_ids(&mut m, &mut |id| FileId { persistent: !id.persistent, volatile: !id.volatile });
    let _ = (patch::request_file_id(&m), patch::response_file_id(&m));
    let id = FileId { persistent: 1, volatile: 2 };
    patch::set_request_file_id(&mut m, id);
    patch::set_response_file_id(&mut m, id);
    patch::set_message_id(&mut m, 1);
    patch::set_session_id(&mut m, 2);
    patch::set_tree_id(&mut m, 3);
    patch::set_async_id(&mut m, 4);
    patch::set_sync(&mut m, 5);
    patch::set_credits(&mut m, 6);
    patch::set_credit_charge(&mut m, 7);
    patch::set_status(&mut m, Status::PENDING);
    patch::set_flags(&mut m, Flags::SIGNED);
    patch::set_next_command(&mut m, 8);
    patch::set_signature(&mut m, [9; 16]);
    patch::set_previous_session_id(&mut m, 10);
    patch::set_transform_session_id(&mut m, 11);
    assert_eq!(m.len(), msg.len());
    if let Ok(header) = Header::parse(msg) {
        header.write(&mut m);
    }
}
