//! One valid message of every kind, each made so that its last byte means something.

use smb_parse::{
    FileId,
    cmd::{close, lock::Lock},
    create_context::{Lease, tag},
    encode, fsctl,
    header::{Command, Flags, Header, Status},
};

/// The id that every message of the corpus is about.
pub(crate) const ID: FileId = FileId { persistent: 0x1111_2222_3333_4444, volatile: 0x5555_6666_7777_8888 };

/// A message, and the class of entries if it is a page of a directory.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) msg: Vec<u8>,
    pub(crate) class: Option<u8>,
}

/// A request header.
pub(crate) fn ask(command: Command) -> Header {
    Header { session_id: 0x4000_0001, ..Header::request(command, 7) }
}

/// An answer's header.
pub(crate) fn answer(command: Command, status: Status) -> Header {
    Header { status: status.0, flags: Flags::SERVER_TO_REDIR, ..ask(command) }
}

/// A message of a body as it is.
fn raw(header: &Header, body: &[&[u8]]) -> Vec<u8> {
    let mut msg = vec![0; Header::LEN];
    header.write(&mut msg);
    msg.extend(body.concat());
    msg
}

/// UTF-16LE.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Everything.
pub(crate) fn corpus() -> Vec<Sample> {
    let mut all = Vec::new();
    logins(&mut all);
    creates(&mut all);
    file_requests(&mut all);
    file_answers(&mut all);
    ioctls(&mut all);
    breaks(&mut all);
    pages(&mut all);
    all
}

fn push(all: &mut Vec<Sample>, name: &'static str, msg: Vec<u8>) {
    all.push(Sample { name, msg, class: None });
}

fn logins(all: &mut Vec<Sample>) {
    use Command as C;
    let ok = |command| answer(command, Status::SUCCESS);
    let params = encode::NegotiateParams {
        dialects: &[0x0202, 0x0311],
        security_mode: 1,
        capabilities: 0x7f,
        client_guid: [3; 16],
        preauth_salt: &[4; 32],
        ciphers: &[2, 1],
        signing_algs: &[2, 1, 0],
        netname: Some("server"),
    };
    push(all, "negotiate request", encode::negotiate(&ask(C::NEGOTIATE), &params));
    let contexts: [(u16, &[u8]); 7] = [
        (1, &[1, 0, 4, 0, 1, 0, 9, 9, 9, 9]),
        (2, &[1, 0, 2, 0]),
        (3, &[1, 0, 0, 0, 1, 0, 0, 0, 3, 0]),
        (6, &[1, 0, 0, 0]),
        (7, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        (0x100, &[8; 16]),
        (8, &[1, 0, 2, 0]),
    ];
    let mut chain = Vec::new();
    for (kind, data) in contexts {
        chain.resize(chain.len().next_multiple_of(8), 0);
        chain.extend([&kind.to_le_bytes()[..], &(data.len() as u16).to_le_bytes(), &[0; 4], data].concat());
    }
    let fixed =
        [&[65, 0, 1, 0, 0x11, 3, 7, 0][..], &[5; 16], &[1, 0, 0, 0], &[0, 0, 0x80, 0].repeat(3), &[6; 16]];
    let body = [&fixed.concat()[..], &[128, 0, 8, 0, 136, 0, 0, 0], b"security", &chain];
    push(all, "negotiate response", raw(&ok(C::NEGOTIATE), &body));
    let params = encode::SessionSetupParams {
        flags: 1,
        security_mode: 2,
        capabilities: 3,
        previous_session_id: 4,
        token: b"NTLMSSP",
    };
    push(all, "session setup request", encode::session_setup(&ask(C::SESSION_SETUP), &params));
    let more = answer(C::SESSION_SETUP, Status::MORE_PROCESSING_REQUIRED);
    push(all, "session setup response", raw(&more, &[&[9, 0, 1, 0, 72, 0, 5, 0], b"token"]));
    push(all, "tree connect request", encode::tree_connect(&ask(C::TREE_CONNECT), &utf16(r"\\srv\share")));
    let extension = [
        &[9, 0, 4, 0, 88, 0, 4, 0][..],
        &[32, 0, 0, 0, 1, 0],
        &[0; 10],
        &utf16("ab"),
        &[0; 4],
        &[1, 0, 3, 0, 0, 0, 0, 0, 7, 7, 7],
    ];
    push(all, "tree connect request, extended", raw(&ask(C::TREE_CONNECT), &extension));
    push(all, "tree connect response", raw(&ok(C::TREE_CONNECT), &[&[16, 0, 1, 0], &[7; 12]]));
    push(all, "logoff", encode::logoff(&ask(C::LOGOFF)));
    push(all, "logoff response", raw(&ok(C::LOGOFF), &[&[4, 0, 0, 0]]));
    push(all, "tree disconnect", encode::tree_disconnect(&ask(C::TREE_DISCONNECT)));
    push(all, "tree disconnect response", raw(&ok(C::TREE_DISCONNECT), &[&[4, 0, 0, 0]]));
    push(all, "echo", encode::echo(&ask(C::ECHO)));
    push(all, "echo response", encode::echo_response(&ok(C::ECHO)));
    push(all, "cancel", encode::cancel(&ask(C::CANCEL)));
    let notification = raw(&ok(C::SERVER_TO_CLIENT_NOTIFICATION), &[&[4, 0, 0, 0, 0, 0, 0, 0]]);
    push(all, "notification", notification);
}

/// A CREATE with these contexts.
pub(crate) fn create_with(contexts: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let name_utf16 = &utf16("dir\\file.txt")[..];
    encode::create(
        &ask(Command::CREATE),
        &encode::CreateParams {
            oplock_level: 0xff,
            impersonation_level: 2,
            desired_access: 0x0012_019f,
            file_attributes: 0x80,
            share_access: 7,
            create_disposition: 1,
            create_options: 0x40,
            name_utf16,
            contexts,
        },
    )
}

/// A lease of either version.
pub(crate) fn lease(version: u8) -> Lease {
    let (parent_key, epoch) = if version == 2 { ([8; 16], 5) } else { ([0; 16], 0) };
    Lease { key: [7; 16], state: 7, flags: 0, duration: 0, parent_key, epoch, version }
}

#[allow(clippy::expect_used, reason = "a sample that is not valid must stop the run")]
fn creates(all: &mut Vec<Sample>) {
    push(all, "create", create_with(&[]));
    let contexts: [(&'static str, &[u8], Vec<u8>); 16] = [
        ("create ExtA", tag::EXTA, vec![1; 20]),
        ("create SecD", tag::SECD, vec![1; 20]),
        ("create DHnQ", tag::DHNQ, encode::durable_request()),
        ("create DHnC", tag::DHNC, encode::durable_reconnect(ID)),
        ("create AlSi", tag::ALSI, vec![1; 8]),
        ("create MxAc", tag::MXAC, vec![1; 8]),
        ("create TWrp", tag::TWRP, encode::timewarp(77)),
        ("create RqLs 1", tag::RQLS, encode::lease(&lease(1))),
        ("create RqLs 2", tag::RQLS, encode::lease(&lease(2))),
        ("create DH2Q", tag::DH2Q, encode::durable_v2_request(1000, [6; 16])),
        ("create DH2C", tag::DH2C, encode::durable_v2_reconnect(ID, [6; 16], 0)),
        ("create AppInstanceId", tag::APP_INSTANCE_ID, [&[20, 0, 0, 0][..], &[5; 16]].concat()),
        ("create AppInstanceVersion", tag::APP_INSTANCE_VERSION, [&[24, 0][..], &[0; 6], &[1; 16]].concat()),
        ("create SVHDX", tag::SVHDX, vec![1; 156]),
        ("create POSX", tag::POSX, vec![1; 4]),
        ("create unknown", b"What", vec![1; 3]),
    ];
    for (name, tag, data) in &contexts {
        push(all, name, create_with(&[(tag, data.clone())]));
    }
    let together: Vec<_> = contexts.iter().map(|(_, tag, data)| (*tag, data.clone())).collect();
    push(all, "create with all contexts", create_with(&together));
    push(
        all,
        "create QFid before DHnC",
        create_with(&[(tag::QFID, encode::query_on_disk_id()), (tag::DHNC, encode::durable_reconnect(ID))]),
    );
    let granted: [(&[u8], Vec<u8>); 8] = [
        (tag::DHNQ, vec![0; 8]),
        (tag::MXAC, vec![0; 8]),
        (tag::QFID, vec![3; 32]),
        (tag::DH2Q, vec![0; 8]),
        (tag::SVHDX, vec![3; 64]),
        (tag::POSX, vec![3; 40]),
        (tag::RQLS, encode::lease(&lease(1))),
        (tag::RQLS, encode::lease(&lease(2))),
    ];
    let bare = [&[89, 0, 8, 0, 1, 0, 0, 0][..], &[2; 52], &[0; 4], &ID.to_bytes(), &[0; 8]];
    let bare = raw(&answer(Command::CREATE, Status::SUCCESS), &bare);
    let response = smb_parse::cmd::create::Response::parse(&bare).expect("a valid answer");
    let header = answer(Command::CREATE, Status::SUCCESS);
    push(all, "create response", encode::create_response(&header, &response, &[]));
    push(all, "create response with contexts", encode::create_response(&header, &response, &granted));
}

fn file_requests(all: &mut Vec<Sample>) {
    use Command as C;
    push(all, "close", encode::close(&ask(C::CLOSE), 1, ID));
    push(all, "flush", encode::flush(&ask(C::FLUSH), ID));
    let mut read = encode::read(&ask(C::READ), ID, 4096, 65536, 1);
    read.truncate(112);
    push(all, "read", read);
    push(all, "write", encode::write(&ask(C::WRITE), ID, 4096, 1, b"some data"));
    let range = |offset| Lock { offset, length: 10, flags: 2 };
    push(all, "lock", encode::lock(&ask(C::LOCK), ID, 0x11, &[range(0), range(100)]));
    let params = encode::QueryDirectoryParams {
        info_class: 37,
        flags: 1,
        file_index: 0,
        file_id: ID,
        pattern_utf16: &utf16("*"),
        output_buffer_length: 65536,
    };
    push(all, "query directory", encode::query_directory(&ask(C::QUERY_DIRECTORY), &params));
    let notify = [&[32, 0, 1, 0, 0, 1, 0, 0][..], &ID.to_bytes(), &[0xff, 0, 0, 0, 0, 0, 0, 0]];
    push(all, "change notify", raw(&ask(C::CHANGE_NOTIFY), &notify));
    let params = encode::QueryInfoParams {
        info_type: 1,
        file_info_class: 15,
        output_buffer_length: 1000,
        additional_information: 0,
        flags: 0,
        file_id: ID,
        input: b"input",
    };
    push(all, "query info", encode::query_info(&ask(C::QUERY_INFO), &params));
    push(all, "set info", encode::set_info(&ask(C::SET_INFO), 1, 13, 0, ID, &[1]));
}

fn file_answers(all: &mut Vec<Sample>) {
    use Command as C;
    let ok = |command| answer(command, Status::SUCCESS);
    push(all, "close response", encode::close_response(&ok(C::CLOSE), &close::Response::default()));
    push(all, "flush response", raw(&ok(C::FLUSH), &[&[4, 0, 0, 0]]));
    push(all, "read response", encode::read_response(&ok(C::READ), b"some data"));
    let mut write = encode::write_response(&ok(C::WRITE), 9);
    write.truncate(80);
    push(all, "write response", write);
    push(all, "lock response", raw(&ok(C::LOCK), &[&[4, 0, 0, 0]]));
    push(all, "query info response", raw(&ok(C::QUERY_INFO), &[&[9, 0, 72, 0, 4, 0, 0, 0], b"info"]));
    push(all, "set info response", raw(&ok(C::SET_INFO), &[&[2, 0]]));
    let mut error = encode::error_response(&answer(C::CREATE, Status::ACCESS_DENIED));
    error.truncate(72);
    push(all, "error", error);
    let link = [
        &[36, 0, 0, 0][..],
        b"SYML",
        &[0x0c, 0, 0, 0xa0, 20, 0, 0, 0, 0, 0, 4, 0, 4, 0, 4, 0, 1, 0, 0, 0],
        &utf16("abcd"),
    ]
    .concat();
    let context = [&(link.len() as u32).to_le_bytes()[..], &[0; 4], &link].concat();
    let len = (context.len() as u32).to_le_bytes();
    let stopped = answer(C::CREATE, Status::STOPPED_ON_SYMLINK);
    push(all, "error with symlink", raw(&stopped, &[&[9, 0, 1, 0], &len, &context]));
    let len = (link.len() as u32).to_le_bytes();
    push(all, "error with bare symlink", raw(&stopped, &[&[9, 0, 0, 0], &len, &link]));
}

fn ioctls(all: &mut Vec<Sample>) {
    let header = ask(Command::IOCTL);
    let request = |ctl_code, input: &[u8]| {
        encode::ioctl(&header, &encode::IoctlParams { ctl_code, file_id: ID, input, max_output: 100 })
    };
    let id = ID.to_bytes();
    push(all, "ioctl pipe", request(fsctl::PIPE_TRANSCEIVE, b"rpc"));
    push(all, "ioctl copychunk", request(fsctl::SRV_COPYCHUNK, &[&id[..], &[0; 8], &[1; 32]].concat()));
    push(all, "ioctl copychunk write", request(fsctl::SRV_COPYCHUNK_WRITE, &[&id[..], &[0; 40]].concat()));
    push(all, "ioctl clone", request(fsctl::DUPLICATE_EXTENTS, &[&id[..], &[1; 24]].concat()));
    let clone_ex = [&[48, 0, 0, 0, 0, 0, 0, 0][..], &id, &[1; 32]].concat();
    push(all, "ioctl clone ex", request(fsctl::DUPLICATE_EXTENTS_EX, &clone_ex));
    let ok = answer(Command::IOCTL, Status::SUCCESS);
    let key = [&id[..], &[0; 12]].concat();
    push(all, "ioctl resume key", encode::ioctl_response(&ok, fsctl::SRV_REQUEST_RESUME_KEY, ID, &key));
    let limits = answer(Command::IOCTL, Status::INVALID_PARAMETER);
    push(all, "ioctl copychunk limits", encode::ioctl_response(&limits, fsctl::SRV_COPYCHUNK, ID, &[1; 12]));
}

fn breaks(all: &mut Vec<Sample>) {
    let mut header = answer(Command::OPLOCK_BREAK, Status::SUCCESS);
    push(all, "oplock break response", encode::oplock_break_ack_response(&header, ID, 1));
    push(all, "lease break response", encode::lease_break_ack_response(&header, [7; 16], 1));
    header.message_id = u64::MAX;
    push(all, "oplock break", encode::oplock_break_notification(&header, ID, 1));
    let notice = encode::LeaseBreak { epoch: 4, flags: 1, key: [7; 16], current: 7, new: 1 };
    push(all, "lease break", encode::lease_break_notification(&header, &notice));
    let header = ask(Command::OPLOCK_BREAK);
    push(all, "oplock break ack", encode::oplock_break_ack(&header, ID, 1));
    push(all, "lease break ack", encode::lease_break_ack(&header, [7; 16], 1));
}

/// A page of a directory: where FileNameLength and the name stand, by class.
pub(crate) const CLASSES: [(u8, usize, usize); 12] = [
    (1, 60, 64),
    (2, 60, 68),
    (3, 60, 94),
    (12, 8, 12),
    (37, 60, 104),
    (38, 60, 80),
    (60, 60, 88),
    (63, 60, 114),
    (78, 60, 80),
    (79, 60, 106),
    (80, 60, 96),
    (81, 60, 122),
];

/// A page with these names.
pub(crate) fn page(len_at: usize, name_at: usize, names: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let mut entry = vec![0; name_at];
        entry[len_at..len_at + 4].copy_from_slice(&(name.len() as u32).to_le_bytes());
        entry.extend(name);
        if index + 1 < names.len() {
            entry.resize(entry.len().next_multiple_of(8), 0);
            let next = entry.len() as u32;
            entry[..4].copy_from_slice(&next.to_le_bytes());
        }
        out.extend(entry);
    }
    out
}

fn pages(all: &mut Vec<Sample>) {
    let header = answer(Command::QUERY_DIRECTORY, Status::SUCCESS);
    for (class, len_at, name_at) in CLASSES {
        let page = page(len_at, name_at, &[utf16("."), utf16(".."), utf16("file.txt")]);
        let msg = encode::query_directory_response(&header, &page);
        all.push(Sample { name: "query directory response", msg, class: Some(class) });
    }
    let change = |next: u32, name: &str| {
        let name = utf16(name);
        [&next.to_le_bytes()[..], &[1, 0, 0, 0], &(name.len() as u32).to_le_bytes(), &name].concat()
    };
    let changes = [change(16, "ab"), change(0, "new")].concat();
    let len = (changes.len() as u32).to_le_bytes();
    let header = answer(Command::CHANGE_NOTIFY, Status::SUCCESS);
    push(all, "change notify response", raw(&header, &[&[9, 0, 72, 0], &len, &changes]));
}
