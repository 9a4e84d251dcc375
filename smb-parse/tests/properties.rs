//! What must hold for all messages.

use proptest::prelude::*;
use smb_parse::{
    FileId,
    cmd::{close, create, flush, ioctl, lock, negotiate, oplock_break, query_directory, query_info, read},
    cmd::{session_setup, set_info, tree_connect, write},
    compound::elements,
    create_context::{Lease, RequestContext, tag},
    encode,
    frame::{PREFIX, frame_len},
    header::{Command, Flags, Header, Status, Target},
    patch,
};

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;
#[path = "../examples/support/exercise.rs"]
mod exercise;

use corpus::{ask, page};

fn any_header() -> impl Strategy<Value = Header> {
    let target = prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(reserved, tree_id)| Target::Sync { reserved, tree_id }),
        any::<u64>().prop_map(|async_id| Target::Async { async_id }),
    ];
    (any::<[u16; 3]>(), any::<[u32; 3]>(), any::<[u64; 2]>(), target, any::<[u8; 16]>()).prop_map(
        |(
            [credit_charge, command, credits],
            [status, flags, next_command],
            [message_id, session_id],
            target,
            signature,
        )| {
            let flags = match target {
                Target::Sync { .. } => Flags(flags).without(Flags::ASYNC),
                Target::Async { .. } => Flags(flags) | Flags::ASYNC,
            };
            let command = Command(command);
            Header {
                credit_charge,
                status,
                command,
                credits,
                flags,
                next_command,
                message_id,
                target,
                session_id,
                signature,
            }
        },
    )
}

fn any_id() -> impl Strategy<Value = FileId> {
    any::<[u8; 16]>().prop_map(FileId::from_bytes)
}

fn any_bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

fn any_lease() -> impl Strategy<Value = Lease> {
    (any::<[[u8; 16]; 2]>(), any::<[u32; 2]>(), any::<u64>(), any::<u16>(), any::<bool>()).prop_map(
        |([key, parent], [state, flags], duration, epoch, second)| {
            let (parent_key, epoch, version) = if second { (parent, epoch, 2) } else { ([0; 16], 0, 1) };
            Lease { key, state, flags, duration, parent_key, epoch, version }
        },
    )
}

/// A body of noise behind a header that makes sense.
fn noise_with_header() -> impl Strategy<Value = Vec<u8>> {
    (any_header(), 0u16..20, any::<bool>(), 0u8..100, any_bytes(300)).prop_map(
        |(mut header, command, response, size, body)| {
            header.command = Command(command);
            header.next_command = 0;
            header.flags = if response {
                header.flags | Flags::SERVER_TO_REDIR
            } else {
                header.flags.without(Flags::SERVER_TO_REDIR)
            };
            let mut msg = vec![0; 64];
            header.write(&mut msg);
            msg.extend([size, 0]);
            msg.extend(body);
            msg
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn noise_never_panics(bytes in any_bytes(600)) {
        exercise::exercise(&bytes);
    }

    #[test]
    fn noise_behind_a_header_never_panics(msg in noise_with_header()) {
        exercise::exercise(&msg);
    }

    #[test]
    fn headers_round_trip(header in any_header()) {
        let mut msg = [0; 64];
        header.write(&mut msg);
        prop_assert_eq!(Header::parse(&msg), Ok(header));
        prop_assert_eq!(header.tree_id().is_some(), header.async_id().is_none());
    }

    #[test]
    fn patches_change_their_field_only(header in any_header(), n in any::<u64>(), signature in any::<[u8; 16]>()) {
        let mut msg = vec![0; 64];
        header.write(&mut msg);
        let check = |f: &dyn Fn(&mut [u8]) -> bool, wanted: Header| {
            let mut patched = msg.clone();
            assert!(f(&mut patched));
            assert_eq!(Header::parse(&patched), Ok(wanted));
            for len in 0..64 {
                f(&mut patched[..len]);
            }
        };
        let (w, d) = (n as u16, n as u32);
        let tree = Target::Sync { reserved: 0, tree_id: d };
        check(&|m| patch::set_message_id(m, n), Header { message_id: n, ..header });
        check(&|m| patch::set_session_id(m, n), Header { session_id: n, ..header });
        check(&|m| patch::set_credits(m, w), Header { credits: w, ..header });
        check(&|m| patch::set_credit_charge(m, w), Header { credit_charge: w, ..header });
        check(&|m| patch::set_status(m, Status(d)), Header { status: d, ..header });
        check(&|m| patch::set_next_command(m, d), Header { next_command: d, ..header });
        check(&|m| patch::set_signature(m, signature), Header { signature, ..header });
        check(&|m| patch::set_async_id(m, n), Header { target: Target::Async { async_id: n }, flags: header.flags | Flags::ASYNC, ..header });
        check(&|m| patch::set_sync(m, d), Header { target: tree, flags: header.flags.without(Flags::ASYNC), ..header });
        if let Target::Sync { reserved, .. } = header.target {
            check(&|m| patch::set_tree_id(m, d), Header { target: Target::Sync { reserved, tree_id: d }, ..header });
        } else {
            prop_assert!(!patch::set_tree_id(&mut msg.clone(), d));
        }
    }

    #[test]
    fn compounds_round_trip(bodies in prop::collection::vec(any_bytes(40), 1..6)) {
        let msgs: Vec<_> = bodies.iter().map(|body| {
            let mut msg = encode::echo(&ask(Command::ECHO));
            msg.extend(body);
            msg
        }).collect();
        let frame = encode::frame(encode::compound(&msgs));
        prop_assert_eq!(frame_len(*frame.first_chunk().unwrap()), Ok(frame.len()));
        let body = &frame[PREFIX..];
        let found: Vec<_> = elements(body).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(found.len(), msgs.len());
        prop_assert_eq!(found.last().unwrap().range.end, body.len());
        for (element, msg) in found.iter().zip(&msgs) {
            prop_assert_eq!(element.msg.len() - msg.len() < 8, true);
            prop_assert_eq!(&element.msg[24..msg.len()], &msg[24..]);
        }
    }

    #[test]
    fn a_wrong_next_command_is_an_error(next in any::<u32>()) {
        let mut msg = encode::compound(&[encode::echo(&ask(Command::ECHO)), encode::echo(&ask(Command::ECHO))]);
        patch::set_next_command(&mut msg, next);
        let first = elements(&msg).next().unwrap();
        let inside = next == 0 || (next.is_multiple_of(8) && next >= 64 && (next as usize) < msg.len());
        prop_assert_eq!(first.is_ok(), inside);
    }

    #[test]
    fn creates_round_trip(
        numbers in any::<[u32; 6]>(), level in any::<u8>(), name in any_bytes(60), lease in any_lease(),
        id in any_id(), guid in any::<[u8; 16]>(), timestamp in any::<u64>(), unknown in any_bytes(20),
    ) {
        let [impersonation_level, desired_access, file_attributes, share_access, create_disposition, create_options] = numbers;
        let contexts: [(&[u8], Vec<u8>); 8] = [
            (tag::RQLS, encode::lease(&lease)),
            (tag::DHNQ, encode::durable_request()),
            (tag::DHNC, encode::durable_reconnect(id)),
            (tag::DH2Q, encode::durable_v2_request(impersonation_level, guid)),
            (tag::DH2C, encode::durable_v2_reconnect(id, guid, share_access)),
            (tag::QFID, encode::query_on_disk_id()),
            (b"None", unknown.clone()),
            (tag::TWRP, encode::timewarp(timestamp)),
        ];
        let params = encode::CreateParams {
            oplock_level: level, impersonation_level, desired_access, file_attributes, share_access,
            create_disposition, create_options, name_utf16: &name, contexts: &contexts,
        };
        let msg = encode::create(&ask(Command::CREATE), &params);
        let r = create::Request::parse(&msg).unwrap();
        prop_assert_eq!(r.requested_oplock_level, level);
        prop_assert_eq!([r.impersonation_level, r.desired_access, r.file_attributes, r.share_access, r.create_disposition, r.create_options], numbers);
        prop_assert_eq!(r.name.0, &name[..]);
        let raw: Vec<_> = r.contexts().collect::<Result<_, _>>().unwrap();
        let found: Vec<_> = raw.iter().map(RequestContext::parse).collect();
        prop_assert_eq!(found, vec![
            RequestContext::Lease(lease),
            RequestContext::Durable,
            RequestContext::DurableReconnect { file_id: id },
            RequestContext::DurableV2 { timeout: impersonation_level, flags: 0, create_guid: guid },
            RequestContext::DurableReconnectV2 { file_id: id, create_guid: guid, flags: share_access },
            RequestContext::OnDiskId,
            RequestContext::Unknown(smb_parse::create_context::Context { tag: b"None", data: &unknown }),
            RequestContext::Timewarp { timestamp },
        ]);
    }

    #[test]
    fn negotiates_round_trip(
        mut dialects in prop::collection::vec(any::<u16>(), 0..6), guid in any::<[u8; 16]>(), capabilities in any::<u32>(),
        salt in any_bytes(40), ciphers in prop::collection::vec(any::<u16>(), 1..5), algs in prop::collection::vec(any::<u16>(), 1..5),
    ) {
        dialects.push(0x0311);
        let params = encode::NegotiateParams {
            dialects: &dialects, security_mode: 3, capabilities, client_guid: guid, preauth_salt: &salt,
            ciphers: &ciphers, signing_algs: &algs, netname: Some("n\u{e4}me"),
        };
        let msg = encode::negotiate(&ask(Command::NEGOTIATE), &params);
        let r = negotiate::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.security_mode, r.capabilities, r.client_guid), (3, capabilities, guid));
        prop_assert_eq!(r.dialects().collect::<Vec<_>>(), dialects);
        let mut met = Vec::new();
        for context in r.contexts() {
            match context.unwrap() {
                negotiate::Context::PreauthIntegrity { hash_algorithms, salt: s } => {
                    prop_assert_eq!(hash_algorithms.iter().collect::<Vec<_>>(), vec![1]);
                    prop_assert_eq!(s, &salt[..]);
                    met.push(1);
                }
                negotiate::Context::Encryption { ciphers: c } => {
                    prop_assert_eq!(c.iter().collect::<Vec<_>>(), ciphers.clone());
                    met.push(2);
                }
                negotiate::Context::Signing { algorithms } => {
                    prop_assert_eq!(algorithms.iter().collect::<Vec<_>>(), algs.clone());
                    met.push(8);
                }
                negotiate::Context::Netname { name } => {
                    prop_assert_eq!(name.to_string_lossy(), "n\u{e4}me");
                    met.push(5);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert_eq!(met, vec![1, 2, 8, 5]);
    }

    #[test]
    fn plain_requests_round_trip(id in any_id(), n in any::<u64>(), d in any::<u32>(), w in any::<u16>(), b in any::<u8>(), data in any_bytes(100)) {
        let msg = encode::close(&ask(Command::CLOSE), w, id);
        prop_assert_eq!(close::Request::parse(&msg), Ok(close::Request { flags: w, file_id: id }));
        let msg = encode::flush(&ask(Command::FLUSH), id);
        prop_assert_eq!(flush::Request::parse(&msg), Ok(flush::Request { file_id: id }));
        let msg = encode::read(&ask(Command::READ), id, n, d, 5);
        let r = read::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.file_id, r.offset, r.length, r.minimum_count), (id, n, d, 5));
        let msg = encode::write(&ask(Command::WRITE), id, n, d, &data);
        let r = write::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.file_id, r.offset, r.length as usize, r.flags, r.data), (id, n, data.len(), d, &data[..]));
        let msg = encode::set_info(&ask(Command::SET_INFO), b, 9, d, id, &data);
        let wanted = set_info::Request { info_type: b, file_info_class: 9, additional_information: d, file_id: id, buffer: &data };
        prop_assert_eq!(set_info::Request::parse(&msg), Ok(wanted));
        let params = encode::QueryInfoParams { info_type: b, file_info_class: 9, output_buffer_length: d, additional_information: 1, flags: 2, file_id: id, input: &data };
        let msg = encode::query_info(&ask(Command::QUERY_INFO), &params);
        let wanted = query_info::Request { info_type: b, file_info_class: 9, output_buffer_length: d, additional_information: 1, flags: 2, file_id: id, input: &data };
        prop_assert_eq!(query_info::Request::parse(&msg), Ok(wanted));
        let params = encode::QueryDirectoryParams { info_class: b, flags: 1, file_index: d, file_id: id, pattern_utf16: &data, output_buffer_length: 3 };
        let msg = encode::query_directory(&ask(Command::QUERY_DIRECTORY), &params);
        let r = query_directory::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.info_class, r.file_index, r.file_id, r.pattern.0, r.output_buffer_length), (b, d, id, &data[..], 3));
        let msg = encode::ioctl(&ask(Command::IOCTL), &encode::IoctlParams { ctl_code: d, file_id: id, input: &data, max_output: 9 });
        let r = ioctl::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.ctl_code, r.file_id, r.input, r.max_output, r.flags), (d, id, &data[..], 9, 1));
        let params = encode::SessionSetupParams { flags: b, security_mode: 1, capabilities: d, previous_session_id: n, token: &data };
        let msg = encode::session_setup(&ask(Command::SESSION_SETUP), &params);
        let r = session_setup::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.flags, r.capabilities, r.previous_session_id, r.security_buffer), (b, d, n, &data[..]));
        let msg = encode::tree_connect(&ask(Command::TREE_CONNECT), &data);
        prop_assert_eq!(tree_connect::Request::parse(&msg).unwrap().path.0, &data[..]);
    }

    #[test]
    fn locks_round_trip(id in any_id(), sequence in any::<u32>(), locks in prop::collection::vec(any::<(u64, u64, u32)>(), 0..20)) {
        let locks: Vec<_> = locks.into_iter().map(|(offset, length, flags)| lock::Lock { offset, length, flags }).collect();
        let msg = encode::lock(&ask(Command::LOCK), id, sequence, &locks);
        let r = lock::Request::parse(&msg).unwrap();
        prop_assert_eq!((r.file_id, r.lock_sequence, usize::from(r.lock_count)), (id, sequence, locks.len()));
        prop_assert_eq!(r.locks().collect::<Result<Vec<_>, _>>(), Ok(locks));
    }

    #[test]
    fn answers_round_trip(id in any_id(), n in any::<[u64; 6]>(), d in any::<u32>(), w in any::<u16>(), data in any_bytes(100)) {
        let header = corpus::answer(Command::READ, Status::SUCCESS);
        let msg = encode::read_response(&header, &data);
        prop_assert_eq!(read::Response::parse(&msg).unwrap().data, &data[..]);
        let msg = encode::write_response(&header, d);
        prop_assert_eq!(write::Response::parse(&msg), Ok(write::Response { count: d, remaining: 0 }));
        let msg = encode::ioctl_response(&header, d, id, &data);
        let r = ioctl::Response::parse(&msg).unwrap();
        prop_assert_eq!((r.ctl_code, r.file_id, r.output), (d, id, &data[..]));
        let msg = encode::query_directory_response(&header, &data);
        prop_assert_eq!(query_directory::Response::parse(&msg).unwrap().buffer, &data[..]);
        let [creation_time, last_access_time, last_write_time, change_time, allocation_size, end_of_file] = n;
        let closed = close::Response { flags: w, creation_time, last_access_time, last_write_time, change_time, allocation_size, end_of_file, file_attributes: d };
        prop_assert_eq!(close::Response::parse(&encode::close_response(&header, &closed)), Ok(closed));
    }

    #[test]
    fn breaks_round_trip(id in any_id(), level in any::<u8>(), key in any::<[u8; 16]>(), d in any::<[u32; 3]>(), epoch in any::<u16>()) {
        let header = corpus::answer(Command::OPLOCK_BREAK, Status::SUCCESS);
        let msg = encode::oplock_break_notification(&header, id, level);
        prop_assert_eq!(oplock_break::Notification::parse(&msg), Ok(oplock_break::Notification::Oplock { oplock_level: level, file_id: id }));
        let msg = encode::oplock_break_ack_response(&header, id, level);
        prop_assert_eq!(oplock_break::Ack::parse(&msg), Ok(oplock_break::Ack::Oplock { oplock_level: level, file_id: id }));
        let [flags, current, new] = d;
        let notice = encode::LeaseBreak { epoch, flags, key, current, new };
        let msg = encode::lease_break_notification(&header, &notice);
        let wanted = oplock_break::Notification::Lease {
            new_epoch: epoch, flags, lease_key: key, current_lease_state: current, new_lease_state: new,
            break_reason: 0, access_mask_hint: 0, share_mask_hint: 0,
        };
        prop_assert_eq!(oplock_break::Notification::parse(&msg), Ok(wanted));
        let msg = encode::lease_break_ack_response(&header, key, current);
        let wanted = oplock_break::Ack::Lease { flags: 0, lease_key: key, lease_state: current, lease_duration: 0 };
        prop_assert_eq!(oplock_break::Ack::parse(&msg), Ok(wanted));
    }

    #[test]
    fn pages_round_trip(which in 0..corpus::CLASSES.len(), names in prop::collection::vec(any_bytes(30), 1..8)) {
        let (class, len_at, name_at) = corpus::CLASSES[which];
        let buffer = page(len_at, name_at, &names);
        let entries: Vec<_> = query_directory::entries(class, &buffer).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(entries.iter().map(|e| e.name.0.to_vec()).collect::<Vec<_>>(), names);
        let whole: Vec<u8> = entries.iter().flat_map(|e| buffer[e.range.clone()].to_vec()).collect();
        prop_assert_eq!(whole, buffer.clone());
        prop_assert!(query_directory::entries(99, &buffer).next().unwrap().is_err());
    }
}
