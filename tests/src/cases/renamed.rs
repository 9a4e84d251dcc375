//! One client has files open, another one renames the directory that they are in, and the node dies.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    encode,
    header::{Command, Status},
};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, READ, Setup, User, guid, utf16},
    rig::{Rig, Site, net::FLOATING, node::Settings},
};

/// FileRenameInformation (MS-FSCC 2.4.42).
const RENAME: u8 = 10;
/// SMB2_LEASE_READ_CACHING (MS-SMB2 2.2.13.2.8).
const READ_CACHING: u32 = 1;
/// FILE_DIRECTORY_FILE (MS-SMB2 2.2.13); FILE_LIST_DIRECTORY with reading attributes, and DELETE beside (2.2.13.1.2).
const DIRECTORY: u32 = 1;
const LIST: u32 = 0x0010_0081;
const DELETE: u32 = 0x0001_0000;

pub(super) const CASES: &[Case] = &[Case {
    name: "renamed-elsewhere",
    shows: "the node dies while another client renames the directory beneath which one has files and a stream open: every handle goes on, and the rename is done once",
    soak: 4,
    run: in_flight,
}];

/// Streams need a module, and newer nodes are told not to refuse what older ones allow: renaming a directory beneath
/// which another client has files open.
fn site() -> Site {
    let share = vec!["vfs objects = streams_xattr", "strict rename = no"];
    Site { samba: Settings { share, ..Settings::default() }, ..Site::default() }
}

/// What the first client has open.
struct Held {
    plain: File,
    leased: File,
    stream: File,
    deep: File,
    directory: File,
}

fn text(name: &str) -> Vec<u8> {
    format!("the bytes of {name}").into_bytes()
}

fn enter(rig: &Rig) -> Result<(Client, At)> {
    let mut client = Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
    let at = client.enter(User::KNOWN, "share")?;
    Ok((client, at))
}

impl Held {
    /// `directory`, and what is in it.
    fn open(rig: &Rig, client: &mut Client, at: At, directory: &str) -> Result<Self> {
        let path = rig.data().join(directory);
        // Made by a client, so that the node keeps the times at which they were created.
        for name in [directory.to_owned(), format!("{directory}\\sub")] {
            let open = Open { disposition: FILE_OPEN_IF, options: DIRECTORY, ..Open::of(&name) };
            let made = client.open(at, &Open { access: LIST, ..open })?;
            client.close(made)?;
        }
        for name in ["plain", "leased", "base", "sub/deep"] {
            fs::write(path.join(name), text(name))?;
        }
        let within = |name: &str| format!("{directory}\\{name}");
        // A file of which a stream is open no node renames.
        let stream = client
            .open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&within("base:extra")) })
            .context("a stream")?;
        client.write(stream, 0, &text("stream"))?;
        let plain = client.open(at, &Open::of(&within("plain")))?;
        let name = within("LEASED");
        let open = Open { access: READ, ..Open::of(&name) };
        let leased = client.open(at, &open.leased(2, guid(), READ_CACHING))?;
        let deep = client.open(at, &Open::of(&within("sub\\deep")))?;
        let directory = client.open(at, &Open { access: LIST, options: DIRECTORY, ..Open::of(directory) })?;
        Ok(Self { plain, leased, stream, deep, directory })
    }

    fn check(&self, client: &mut Client) -> Result<()> {
        let files = [
            (self.plain, "plain"),
            (self.leased, "leased"),
            (self.stream, "stream"),
            (self.deep, "sub/deep"),
        ];
        for (file, name) in files {
            let read = client.read(file, 0, 100).with_context(|| format!("reading {name}"))?;
            ensure!(read == text(name), "{name} has other bytes");
        }
        // FileStandardInformation says that it is a directory (MS-FSCC 2.4.45).
        let standard = client.query_info(self.directory, 5).context("the directory")?;
        ensure!(standard.get(21) == Some(&1), "it is no directory any more");
        Ok(())
    }

    /// What is written now arrives in the file that has the new name.
    fn write(&self, client: &mut Client, path: &Path) -> Result<()> {
        for (file, name) in [(self.plain, "plain"), (self.deep, "sub/deep")] {
            client.write(file, 0, b"THE")?;
            let bytes = fs::read(path.join(name)).with_context(|| format!("{name} on the disk"))?;
            ensure!(bytes.starts_with(b"THE bytes"), "{name} was not written to");
            client.write(file, 0, b"the")?;
        }
        Ok(())
    }
}

fn send_rename(client: &mut Client, file: File, name: &str) -> Result<u64> {
    let name = utf16(name);
    let length = u32::try_from(name.len())?.to_le_bytes();
    let buffer = [&[0; 16][..], &length, &name].concat();
    client.send(file.at, Command::SET_INFO, 1, |header| {
        encode::set_info(header, 1, RENAME, 0, file.id, &buffer)
    })
}

fn open_directory(client: &mut Client, at: At, name: &str) -> Result<File> {
    client.open(at, &Open { access: LIST | DELETE, options: DIRECTORY, ..Open::of(name) })
}

fn in_flight(scale: &Scale) -> Result<Report> {
    let rounds = if scale.soak { 25 } else { 3 };
    let mut rig = Rig::new(&site())?;
    let (mut done, mut told) = (0, 0);
    for round in 0..rounds {
        let (old, new) = (format!("dir-{round}"), format!("moved-{round}"));
        let (mut holder, at) = enter(&rig)?;
        let (mut other, from) = enter(&rig)?;
        let held = Held::open(&rig, &mut holder, at, &old)?;
        let directory = open_directory(&mut other, from, &old)?;
        let id = send_rename(&mut other, directory, &new)?;
        let dead = rig.kill_serving()?;
        done += usize::from(rig.data().join(&new).exists());
        let status = other.wait(id)?.status();
        ensure!(status == Status::SUCCESS, "round {round}: the rename is told {status:?}");
        ensure!(rig.data().join(&new).exists() && !rig.data().join(&old).exists(), "it is not renamed");
        held.check(&mut holder).with_context(|| format!("round {round}"))?;
        held.write(&mut holder, &rig.data().join(&new))?;
        told += 2;
        rig.await_takeovers("crash", told)?;
        rig.restart(dead)?;
    }
    let lost = rig.metric("takeover_opens_total{result=\"lost\"}")?;
    ensure!(lost == 0.0, "{lost} Opens are lost");
    let note = format!("{rounds} crashes; the dead node had renamed the directory in {done}");
    Ok(Report { notes: vec![note], ..Report::default() })
}
