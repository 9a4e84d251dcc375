//! What the clients do, and what must stand on the disk when it is done.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use smb_parse::{
    FileId,
    cmd::create,
    encode,
    header::{Command, Header, Status},
};

use super::NAMES;
use crate::{
    client::{At, Client, DELETE_ON_CLOSE, FILE_CREATE, FILE_OPEN_IF, File, Open, utf16},
    rig::Rig,
};

/// FileRenameInformation, FileLinkInformation, FileDispositionInformation (MS-FSCC 2.4.42, 2.4.28, 2.4.11).
const RENAME: u8 = 10;
const LINK: u8 = 11;
const DISPOSITION: u8 = 13;
/// FILE_OVERWRITE_IF (MS-SMB2 2.2.13); FILE_CREATED and FILE_OVERWRITTEN, CreateActions (2.2.14).
const FILE_OVERWRITE_IF: u32 = 5;
const CREATED: u32 = 2;
const OVERWRITTEN: u32 = 3;
/// FILE_APPEND_DATA and FILE_READ_DATA, READ_CONTROL and SYNCHRONIZE, reading attributes; DELETE and reading attributes.
const APPENDING: u32 = 0x0012_0085;
const DELETING: u32 = 0x0001_0080;

/// A kind of request, or of a compound of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    /// FILE_CREATE of one name by all clients.
    Create,
    /// FILE_OPEN_IF of a new name.
    OpenIf,
    /// FILE_OVERWRITE_IF of a file with something in it.
    Overwrite,
    /// Rename, link and delete by a handle; the delete is closed in a frame of its own.
    Rename,
    Link,
    Delete,
    /// CREATE, SET_INFO, CLOSE in one frame.
    RenameByName,
    LinkByName,
    DisposeByName,
    /// CREATE(FILE_DELETE_ON_CLOSE), CLOSE in one frame.
    DeleteByName,
    /// The same by all clients at once, who share the file with nobody.
    Prey,
    /// All clients give a name of their own to one file.
    Prize,
    /// WRITE at the end by a handle that may only append.
    Append,
}

impl Deed {
    pub(super) const ALL: [Self; 13] = [
        Self::Create,
        Self::OpenIf,
        Self::Overwrite,
        Self::Rename,
        Self::Link,
        Self::Delete,
        Self::RenameByName,
        Self::LinkByName,
        Self::DisposeByName,
        Self::DeleteByName,
        Self::Prey,
        Self::Prize,
        Self::Append,
    ];

    /// Whether all clients are after the same.
    pub(super) fn is_contended(self) -> bool {
        matches!(self, Self::Create | Self::Prey | Self::Prize)
    }

    /// What has to be there before.
    fn has_source(self) -> bool {
        !matches!(self, Self::Create | Self::OpenIf)
    }

    /// By a handle that is open before.
    fn has_handle(self) -> bool {
        matches!(self, Self::Rename | Self::Link | Self::Delete | Self::Append)
    }
}

/// A request in flight: what it is, and of which name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) deed: Deed,
    pub(super) n: usize,
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Done,
    /// Another one has done it.
    Refused,
    /// That nobody can tell.
    Unknown,
}

/// One client and what it waits for.
pub(super) struct Actor {
    pub(super) client: Client,
    pub(super) number: usize,
    at: At,
    asked: Vec<(Asked, Vec<u64>)>,
    handles: Vec<(Asked, File)>,
}

/// A file's own text.
const TEXT: &str = "text of ";
const MORE: &str = ", and more";

impl Actor {
    pub(super) fn new(client: Client, at: At, number: usize) -> Self {
        Self { client, number, at, asked: Vec::new(), handles: Vec::new() }
    }

    /// The name that is there before, or that all clients are after.
    fn source(&self, round: u64, asked: Asked) -> String {
        let Asked { deed, n } = asked;
        let owner = if deed.is_contended() { 0 } else { self.number };
        format!("{deed:?}-{round}-{owner}-{n}")
    }

    /// The name that it is given.
    fn target(&self, round: u64, asked: Asked) -> String {
        format!("{:?}-{round}-{}-{}-new", asked.deed, self.number, asked.n)
    }

    /// Makes what is to be there, and opens what is to be open.
    pub(super) fn prepare(&mut self, round: u64) -> Result<()> {
        let each = |deed| (0..NAMES).map(move |n| Asked { deed, n });
        for asked in Deed::ALL.into_iter().filter(|deed| deed.has_source()).flat_map(each) {
            if asked.deed.is_contended() && self.number > 0 {
                continue;
            }
            let name = self.source(round, asked);
            let file = self.client.open(self.at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
            self.client.write(file, 0, format!("{TEXT}{name}").as_bytes())?;
            if asked.deed == Deed::Append {
                self.client.close(file)?;
                let file = self.client.open(self.at, &Open { access: APPENDING, ..Open::of(&name) })?;
                self.handles.push((asked, file));
            } else if asked.deed.has_handle() {
                self.handles.push((asked, file));
            } else {
                self.client.close(file)?;
            }
        }
        Ok(())
    }

    fn handle(&self, asked: Asked) -> Result<File> {
        self.handles.iter().find(|(of, _)| *of == asked).map(|(_, file)| *file).context("no such handle")
    }

    pub(super) fn ask(&mut self, round: u64, asked: Asked) -> Result<()> {
        let (source, target) = (self.source(round, asked), self.target(round, asked));
        let open = Open::of(&source);
        let ids = match asked.deed {
            Deed::Create => vec![self.create(&Open { disposition: FILE_CREATE, ..open })?],
            Deed::OpenIf => vec![self.create(&Open { disposition: FILE_OPEN_IF, ..open })?],
            Deed::Overwrite => vec![self.create(&Open { disposition: FILE_OVERWRITE_IF, ..open })?],
            Deed::Rename => vec![self.change(asked, RENAME, &name_info(&target)?)?],
            Deed::Link => vec![self.change(asked, LINK, &name_info(&target)?)?],
            Deed::Delete => {
                let id = self.handle(asked)?.id;
                let change = self.change(asked, DISPOSITION, &[1])?;
                vec![change, self.client.send(self.at, Command::CLOSE, 1, |h| encode::close(h, 1, id))?]
            }
            Deed::RenameByName | Deed::Prize => {
                self.compound(&Open { access: DELETING, ..open }, Some((RENAME, &name_info(&target)?)))?
            }
            Deed::LinkByName => {
                self.compound(&Open { access: DELETING, ..open }, Some((LINK, &name_info(&target)?)))?
            }
            Deed::DisposeByName => {
                self.compound(&Open { access: DELETING, ..open }, Some((DISPOSITION, &[1])))?
            }
            Deed::DeleteByName => {
                self.compound(&Open { access: DELETING, options: DELETE_ON_CLOSE, ..open }, None)?
            }
            Deed::Prey => {
                let open = Open { access: DELETING, options: DELETE_ON_CLOSE, share: 0, ..open };
                self.compound(&open, None)?
            }
            Deed::Append => {
                let end = u64::try_from(TEXT.len() + source.len())?;
                vec![self.client.send_write(self.handle(asked)?, end, MORE.as_bytes())?]
            }
        };
        self.asked.push((asked, ids));
        Ok(())
    }

    fn create(&mut self, open: &Open<'_>) -> Result<u64> {
        self.client.send(self.at, Command::CREATE, 1, |header| open.build(header))
    }

    fn change(&mut self, asked: Asked, class: u8, buffer: &[u8]) -> Result<u64> {
        let id = self.handle(asked)?.id;
        self.client.send(self.at, Command::SET_INFO, 1, |h| encode::set_info(h, 1, class, 0, id, buffer))
    }

    fn compound(&mut self, open: &Open<'_>, change: Option<(u8, &[u8])>) -> Result<Vec<u64>> {
        let create = |h: &Header| open.build(h);
        let set = |h: &Header| {
            let (class, buffer) = change.unwrap_or_default();
            encode::set_info(h, 1, class, 0, FileId::ALL_ONES, buffer)
        };
        let close = |h: &Header| encode::close(h, 1, FileId::ALL_ONES);
        let mut draft = if change.is_some() {
            self.client.draft_compound(
                self.at,
                &[(Command::CREATE, &create), (Command::SET_INFO, &set), (Command::CLOSE, &close)],
            )?
        } else {
            self.client.draft_compound(self.at, &[(Command::CREATE, &create), (Command::CLOSE, &close)])?
        };
        self.client.sign(&mut draft);
        self.client.post(&draft)?;
        Ok(draft.ids)
    }

    /// Waits for all answers.
    pub(super) fn hear(&mut self) -> Result<Vec<(Asked, Told)>> {
        let mut heard = Vec::new();
        for (asked, ids) in std::mem::take(&mut self.asked) {
            let mut statuses = Vec::new();
            for id in ids {
                let answer = self.client.wait(id)?;
                let status = answer.status();
                if status == Status::SUCCESS
                    && matches!(asked.deed, Deed::Create | Deed::OpenIf | Deed::Overwrite)
                {
                    let response = create::Response::parse(&answer.msg)?;
                    let action = if asked.deed == Deed::Overwrite { OVERWRITTEN } else { CREATED };
                    ensure!(response.create_action == action, "{asked:?}: {}", response.create_action);
                    self.client.close(File { at: self.at, id: response.file_id })?;
                }
                statuses.push(status);
            }
            if asked.deed == Deed::Delete {
                self.handles.retain(|(of, _)| *of != asked);
            }
            let told = told(asked.deed, &statuses)
                .with_context(|| format!("client {}, {asked:?}: {statuses:x?}", self.number))?;
            heard.push((asked, told));
        }
        Ok(heard)
    }

    /// Whether it stands on the disk as it must when it is done.
    pub(super) fn inspect(&mut self, rig: &Rig, round: u64, asked: Asked) -> Result<()> {
        let (source, target) = (self.source(round, asked), self.target(round, asked));
        let path = |name: &str| -> PathBuf { rig.data().join(name) };
        let text = |name: &str| fs::read_to_string(path(name)).with_context(|| format!("{name} on the disk"));
        let own = format!("{TEXT}{source}");
        match asked.deed {
            Deed::Create | Deed::OpenIf | Deed::Overwrite => {
                ensure!(text(&source)?.is_empty(), "it is not empty");
            }
            Deed::Rename | Deed::RenameByName | Deed::Prize => {
                ensure!(!path(&source).exists(), "it has its old name still");
                ensure!(text(&target)? == own, "another file");
            }
            Deed::Link | Deed::LinkByName => {
                let inodes = [fs::metadata(path(&source))?.ino(), fs::metadata(path(&target))?.ino()];
                ensure!(inodes[0] == inodes[1], "the link is another file");
            }
            Deed::Delete | Deed::DisposeByName | Deed::DeleteByName | Deed::Prey => {
                ensure!(!path(&source).exists(), "it is there still");
            }
            Deed::Append => ensure!(text(&source)? == format!("{own}{MORE}"), "{}", text(&source)?),
        }
        if asked.deed == Deed::Rename {
            let file = self.handle(asked)?;
            ensure!(self.client.read(file, 0, 100)? == own.as_bytes(), "the handle");
        }
        Ok(())
    }

    /// Closes what is open.
    pub(super) fn tidy(&mut self) -> Result<()> {
        for (_, file) in std::mem::take(&mut self.handles) {
            self.client.close(file)?;
        }
        Ok(())
    }
}

/// What the answers to one frame or two come to.
fn told(deed: Deed, statuses: &[Status]) -> Result<Told> {
    const REFUSALS: [Status; 4] = [
        Status::OBJECT_NAME_COLLISION,
        Status::OBJECT_NAME_NOT_FOUND,
        Status::SHARING_VIOLATION,
        Status::DELETE_PENDING,
    ];
    if statuses.iter().all(|status| *status == Status::SUCCESS) {
        return Ok(Told::Done);
    }
    if statuses.contains(&Status::INTERNAL_ERROR) {
        return Ok(Told::Unknown);
    }
    if deed.is_contended() && statuses.iter().any(|status| REFUSALS.contains(status)) {
        return Ok(Told::Refused);
    }
    bail!("an answer that nobody expects")
}

fn name_info(name: &str) -> Result<Vec<u8>> {
    let name = utf16(name);
    let length = u32::try_from(name.len())?.to_le_bytes();
    Ok([&[0; 16][..], &length, &name].concat())
}
