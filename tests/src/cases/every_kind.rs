//! One of each kind of Open, on a node that is killed: each works on the other node, as it was.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    FileId,
    cmd::{create, query_directory},
    create_context::tag,
    encode::{self, QueryDirectoryParams},
    fsctl,
    header::{Command, Header, Status},
};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, DELETE_ON_CLOSE, FILE_CREATE, FILE_OPEN_IF, File, Open, READ, Setup, User, utf16},
    rig::{Rig, Site, net::FLOATING, node::Settings},
};

/// MAXIMUM_ALLOWED (MS-SMB2 2.2.13.1).
const MAXIMUM_ALLOWED: u32 = 0x0200_0000;
/// FILE_DIRECTORY_FILE, FILE_OPEN_REPARSE_POINT (MS-SMB2 2.2.13).
const DIRECTORY: u32 = 0x1;
const REPARSE_POINT: u32 = 0x0020_0000;
/// FILE_ATTRIBUTE_READONLY (MS-FSCC 2.6).
const READONLY: u32 = 0x1;
/// FileBasicInformation, FileDispositionInformation, FileNamesInformation (MS-FSCC 2.4).
const BASIC: u8 = 4;
const DISPOSITION: u8 = 13;
const NAMES: u8 = 12;
/// How many files are in the directory.
const ENTRIES: usize = 300;
/// A snapshot, and its time in units of 100 ns since 1601.
const SNAPSHOT: &str = "@GMT-2024.01.02-03.04.05";
const SNAPSHOT_TIME: u64 = 133_486_382_450_000_000;

pub(super) const CASES: &[Case] = &[Case {
    name: "every-open-moved",
    shows: "one of each kind of handle on a node that is killed: streams, directories half read, read-only files, what is to be deleted, previous versions, resume keys, pipes and more go on",
    soak: 5,
    run: moved,
}];

/// A client at work on a share with snapshots and streams.
struct Work {
    rig: Rig,
    client: Client,
    at: At,
}

impl Work {
    fn open(&mut self, open: &Open<'_>) -> Result<File> {
        self.client.open(self.at, open)
    }

    fn made(&mut self, name: &str) -> Result<File> {
        let file = self.open(&Open { disposition: FILE_OPEN_IF, ..Open::of(name) })?;
        self.client.write(file, 0, name.as_bytes())?;
        Ok(file)
    }

    /// The file has its own name in it, and takes more.
    fn goes_on(&mut self, name: &str, file: File) -> Result<()> {
        let length = u32::try_from(name.len())?;
        let read = self.client.read(file, 0, length).with_context(|| format!("reading {name}"))?;
        ensure!(read == name.as_bytes(), "{name} has something else in it");
        self.client.write(file, 100, b"more").with_context(|| format!("writing {name}"))
    }

    fn status(&mut self, file: File) -> Result<Status> {
        let id = self.client.send_read(file, 0, 1)?;
        Ok(self.client.wait(id)?.status())
    }

    /// Some more names of a directory; none at its end.
    fn names(&mut self, directory: File) -> Result<Vec<String>> {
        let params = QueryDirectoryParams {
            file_id: directory.id,
            info_class: NAMES,
            flags: 0,
            file_index: 0,
            output_buffer_length: 4096,
            pattern_utf16: &utf16("*"),
        };
        let answer = self
            .client
            .call(self.at, Command::QUERY_DIRECTORY, 1, |header| encode::query_directory(header, &params))?;
        if answer.status() == Status::NO_MORE_FILES {
            return Ok(Vec::new());
        }
        let answer = answer.success()?;
        let buffer = query_directory::Response::parse(&answer.msg)?.buffer;
        let entries = query_directory::entries(NAMES, buffer).collect::<Result<Vec<_>, _>>()?;
        Ok(entries.iter().map(|entry| entry.name.to_string_lossy()).collect())
    }
}

fn moved(_: &Scale) -> Result<Report> {
    let share = vec![
        "vfs objects = streams_xattr shadow_copy2",
        "shadow:snapdir = .snapshots",
        "shadow:snapdirseverywhere = yes",
        "store dos attributes = yes",
    ];
    // What serves pipes is started when it is asked for.
    let samba = Settings { share, global: vec!["rpc start on demand helpers = yes"], ..Settings::default() };
    let rig = Rig::new(&Site { samba, ..Site::default() })?;
    let old = rig.data().join(".snapshots").join(SNAPSHOT);
    fs::create_dir_all(&old)?;
    fs::write(old.join("versioned"), b"as it was")?;
    fs::write(rig.data().join("versioned"), b"as it is")?;
    fs::create_dir(rig.data().join("dir"))?;
    for n in 0..ENTRIES {
        fs::write(rig.data().join(format!("dir/entry-{n:03}")), b"")?;
    }
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = client.enter(User::KNOWN, "share")?;
    let mut work = Work { rig, client, at };

    let plain = work.made("plain")?;
    let stream = work.made("plain:stream")?;
    let maximum = work.open(&Open { access: MAXIMUM_ALLOWED, ..Open::of("plain") })?;
    let reparse = work.open(&Open { options: REPARSE_POINT, ..Open::of("plain") })?;
    let born_read_only = read_only_from_birth(&mut work, "object")?;
    let made_read_only = work.made("made-read-only")?;
    set_attributes(&mut work, made_read_only, READONLY)?;
    let by_option =
        work.open(&Open { disposition: FILE_OPEN_IF, options: DELETE_ON_CLOSE, ..Open::of("by-option") })?;
    let beside = work.open(&Open::of("by-option"))?;
    let by_flag = work.made("by-flag")?;
    let with_flag = work.open(&Open::of("by-flag"))?;
    work.client.set_info(by_flag, DISPOSITION, &[1])?.success()?;
    let version = Open {
        access: READ,
        contexts: vec![(tag::TWRP, encode::timewarp(SNAPSHOT_TIME))],
        ..Open::of("versioned")
    };
    let version = work.open(&version)?;
    let directory = work.open(&Open { access: READ, options: DIRECTORY, ..Open::of("dir") })?;
    let mut names = work.names(directory)?;
    ensure!(names.len() < ENTRIES, "all names came at once");
    let key = work.client.fsctl(plain, fsctl::SRV_REQUEST_RESUME_KEY, &[])?;
    copy_by_key(&mut work, &key, "copied-before").context("before the crash")?;
    let ipc = work.client.tree(at.session, "IPC$")?;
    let pipe = open_pipe(&mut work, ipc)?;
    ensure!(bind(&mut work, pipe)? == BIND_ACK, "no service behind the pipe");

    // No process of the node may get to delete anything when the others die.
    work.rig.nodes.get(work.rig.serving()?).context("no such node")?.freeze(true);
    work.rig.kill_serving()?;

    for (name, file) in [("plain", plain), ("plain:stream", stream), ("plain", maximum), ("plain", reparse)] {
        work.goes_on(name, file)?;
    }
    for (name, file) in [("object", born_read_only), ("made-read-only", made_read_only)] {
        work.goes_on(name, file)?;
        ensure!(attributes(&mut work, file)? & READONLY != 0, "{name} is not read-only any more");
        let denied = work.client.call(at, Command::CREATE, 1, |header| Open::of(name).build(header))?;
        ensure!(denied.status() == Status::ACCESS_DENIED, "{name} can be opened: {:x?}", denied.status());
    }
    ensure!(work.client.read(version, 0, 100)? == b"as it was", "another version is read");
    loop {
        let more = work.names(directory)?;
        if more.is_empty() {
            break;
        }
        names.extend(more);
    }
    let distinct: BTreeSet<_> = names.iter().collect();
    ensure!(distinct.len() == names.len(), "a name came twice");
    ensure!(names.len() == ENTRIES + 2, "{} of {ENTRIES} names, and two, came", names.len());

    work.client.close(by_option)?;
    ensure!(work.rig.data().join("by-option").exists(), "it is still open");
    work.client.close(beside)?;
    ensure!(!work.rig.data().join("by-option").exists(), "it was to be deleted on close");
    let again = work.client.call(at, Command::CREATE, 1, |header| Open::of("by-flag").build(header))?;
    ensure!(again.status() == Status::DELETE_PENDING, "it is to be deleted: {:x?}", again.status());
    work.goes_on("by-flag", with_flag)?;
    work.client.close(by_flag)?;
    work.client.close(with_flag)?;
    ensure!(!work.rig.data().join("by-flag").exists(), "it was to be deleted");

    copy_by_key(&mut work, &key, "copied-after").context("after the crash")?;
    ensure!(work.status(pipe)? == Status::PIPE_DISCONNECTED, "the pipe: {:x?}", work.status(pipe)?);
    work.client.close(pipe)?;
    let pipe = open_pipe(&mut work, ipc)?;
    ensure!(bind(&mut work, pipe)? == BIND_ACK, "no service behind the new pipe");
    let lost = work.rig.metric("takeover_opens_total{result=\"lost\"}")?;
    ensure!(lost == 1.0, "{lost} were lost; it is the pipe alone");
    Ok(Report::default())
}

/// As git makes an object on a Linux mount: read-only, and written by the handle that has made it.
fn read_only_from_birth(work: &mut Work, name: &str) -> Result<File> {
    let open = Open { disposition: FILE_CREATE, ..Open::of(name) };
    let answer = work.client.call(work.at, Command::CREATE, 1, |header| {
        let mut msg = open.build(header);
        // FileAttributes (MS-SMB2 2.2.13).
        if let Some(field) = msg.get_mut(Header::LEN + 28..Header::LEN + 32) {
            field.copy_from_slice(&READONLY.to_le_bytes());
        }
        msg
    })?;
    let file = File::from(work.at, answer)?;
    ensure!(attributes(work, file)? & READONLY != 0, "{name} is not read-only");
    work.client.write(file, 0, name.as_bytes())?;
    Ok(file)
}

fn set_attributes(work: &mut Work, file: File, attributes: u32) -> Result<()> {
    let buffer = [&[0; 32][..], &attributes.to_le_bytes(), &[0; 4]].concat();
    work.client.set_info(file, BASIC, &buffer)?.success().map(|_| ())
}

fn attributes(work: &mut Work, file: File) -> Result<u32> {
    let info = work.client.query_info(file, BASIC)?;
    Ok(u32::from_le_bytes(info.get(32..36).context("a short answer")?.try_into()?))
}

/// FSCTL_SRV_COPYCHUNK (MS-SMB2 2.2.31.1) of the first bytes, by a key that the dead node has given out.
fn copy_by_key(work: &mut Work, key: &[u8], name: &str) -> Result<()> {
    let copy = work.open(&Open { disposition: FILE_CREATE, ..Open::of(name) })?;
    let chunk = [&0_u64.to_le_bytes()[..], &0_u64.to_le_bytes(), &5_u32.to_le_bytes(), &[0; 4]].concat();
    let key = key.get(..24).context("a short key")?;
    let input = [key, &1_u32.to_le_bytes(), &[0; 4], &chunk].concat();
    work.client.fsctl(copy, fsctl::SRV_COPYCHUNK, &input).context("copying by a resume key")?;
    ensure!(work.client.read(copy, 0, 5)? == b"plain", "something else was copied");
    Ok(())
}

fn open_pipe(work: &mut Work, ipc: At) -> Result<File> {
    let open = Open { access: 0x0012_019f, ..Open::of("srvsvc") };
    let answer = work.client.call(ipc, Command::CREATE, 1, |header| open.build(header))?;
    let answer = answer.success().context("opening a pipe")?;
    let id: FileId = create::Response::parse(&answer.msg)?.file_id;
    Ok(File { at: ipc, id })
}

/// The type of the PDU that answers a bind (MS-RPCE, C706 12.6.4.4).
const BIND_ACK: u8 = 12;

/// Binds to the server service; the type of the answer.
fn bind(work: &mut Work, pipe: File) -> Result<u8> {
    // Interface 4b324fc8-1670-01d3-1278-5a47bf6ee188, version 3; NDR, version 2.
    const SRVSVC: [u8; 20] = *b"\xc8\x4f\x32\x4b\x70\x16\xd3\x01\x12\x78\x5a\x47\xbf\x6e\xe1\x88\x03\0\0\0";
    const NDR: [u8; 20] = *b"\x04\x5d\x88\x8a\xeb\x1c\xc9\x11\x9f\xe8\x08\0\x2b\x10\x48\x60\x02\0\0\0";
    let head = *b"\x05\0\x0b\x03\x10\0\0\0\x48\0\0\0\x01\0\0\0\xb8\x10\xb8\x10\0\0\0\0\x01\0\0\0\0\0\x01\0";
    let pdu = [&head[..], &SRVSVC, &NDR].concat();
    let answer = work.client.fsctl(pipe, fsctl::PIPE_TRANSCEIVE, &pdu)?;
    answer.get(2).copied().context("a short answer")
}
