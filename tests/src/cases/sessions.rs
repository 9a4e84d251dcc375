//! Several sessions and trees on one connection, and a directory that is read across a crash.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use smb_parse::{
    cmd::query_directory,
    encode::{self, QueryDirectoryParams},
    header::{Command, Status},
};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, READ, Setup, User, data, utf16, written},
    rig::{Rig, Site, net::FLOATING, node::Settings},
};

/// FileIdBothDirectoryInformation, FileNamesInformation (MS-FSCC 2.4.22, 2.4.33).
const CLASSES: [u8; 2] = [37, 12];
/// FILE_DIRECTORY_FILE.
const DIRECTORY: u32 = 1;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "many-sessions",
        shows: "several users and shares on one connection go on after a crash, each with its own files",
        soak: 5,
        run: many_sessions,
    },
    Case {
        name: "directory-listing",
        shows: "a directory of 2,000 entries read across a crash shows each name exactly once",
        soak: 5,
        run: directory_listing,
    },
];

fn many_sessions(_: &Scale) -> Result<Report> {
    let samba = Settings { share: vec!["[second]", "copy = share"], ..Settings::default() };
    let mut rig = Rig::new(&Site { samba, ..Site::default() })?;
    let setup = Setup { signing: false, ..Setup::default() };
    let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
    let mut files = Vec::new();
    for user in [User::KNOWN, User::KNOWN, User::Guest] {
        let session = client.login(user)?;
        for share in ["share", "second", "share"] {
            let at = client.tree(session, share)?;
            files.push(filled(&mut client, at, files.len())?);
        }
    }
    check(&mut client, &files)?;
    // A WRITE and a READ of each are in flight when the node dies: it stands still before it can answer.
    let serving = rig.serving()?;
    let node = rig.nodes.get(serving).context("no such node")?;
    node.freeze(true);
    let mut waiting = Vec::new();
    for (file, bytes) in &files {
        let write = client.send_write(*file, 100_000, bytes)?;
        waiting.push((write, client.send_read(*file, 0, 60_000)?, bytes));
    }
    rig.kill_serving()?;
    for (write, read, bytes) in waiting {
        written(client.wait(write)?, bytes.len()).context("a write in flight")?;
        ensure!(&data(client.wait(read)?)? == bytes, "a read in flight brought something else");
    }
    check(&mut client, &files)?;
    // A further login is answered, be it only by a refusal; a further tree is had.
    let refused = client.login(User::KNOWN).err().map(|error| format!("{error:#}"));
    ensure!(refused.as_ref().is_none_or(|e| e.contains("SESSION_SETUP")), "a further login: {refused:?}");
    let first = files.first().context("no files")?.0.at;
    let at = client.tree(first.session, "second").context("a further tree")?;
    let more = filled(&mut client, at, files.len())?;
    files.push(more);
    check(&mut client, &files)?;
    let note = format!("{} trees of 3 sessions, {} files", files.len(), files.len());
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// A file with bytes of its own.
fn filled(client: &mut Client, at: At, index: usize) -> Result<(File, Vec<u8>)> {
    let name = format!("session-{index}.bin");
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
    let bytes: Vec<u8> = (0..60_000_usize).map(|n| ((n + 31 * index) % 249) as u8).collect();
    client.write(file, 0, &bytes)?;
    Ok((file, bytes))
}

fn check(client: &mut Client, files: &[(File, Vec<u8>)]) -> Result<()> {
    for (index, (file, bytes)) in files.iter().enumerate() {
        let got = client.read(*file, 0, 60_000).with_context(|| format!("file {index}"))?;
        ensure!(&got == bytes, "file {index} reads something else");
    }
    Ok(())
}

fn directory_listing(_: &Scale) -> Result<Report> {
    const ENTRIES: usize = 2_000;
    let mut rig = Rig::new(&Site::default())?;
    let directory = rig.data().join("many");
    fs::create_dir(&directory)?;
    for n in 0..ENTRIES {
        fs::write(directory.join(format!("entry number {n:05}.txt")), b"")?;
    }
    let mut notes = Vec::new();
    for class in CLASSES {
        let mut listing = Listing::open(&rig, class)?;
        listing.pages(|names| names < ENTRIES / 2)?;
        let seen = listing.names.len();
        ensure!(seen < ENTRIES, "there was no second half");
        // One page is asked for and not answered when the node dies.
        let dead = rig.serving()?;
        let node = rig.nodes.get(dead).context("no such node")?;
        node.freeze(true);
        let asked = listing.ask()?;
        rig.kill_serving()?;
        listing.page(asked)?;
        listing.pages(|_| true)?;
        let twice: Vec<_> = listing.names.iter().filter(|(_, count)| **count > 1).collect();
        ensure!(
            twice.is_empty(),
            "class {class}: {} names came more than once: {:?}",
            twice.len(),
            twice.first()
        );
        // "." and ".." are entries, too.
        let names = listing.names.len();
        ensure!(names == ENTRIES + 2, "class {class}: {names} names of {}", ENTRIES + 2);
        notes.push(format!("class {class}: {seen} names before the crash, {names} in all"));
        rig.restart(dead)?;
    }
    Ok(Report { notes, ..Report::default() })
}

/// A directory as it is read page by page.
struct Listing {
    client: Client,
    file: File,
    class: u8,
    /// How often each name came.
    names: BTreeMap<String, u32>,
    ended: bool,
}

impl Listing {
    fn open(rig: &Rig, class: u8) -> Result<Self> {
        let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let at = client.enter(User::KNOWN, "share")?;
        let open = Open { access: READ, options: DIRECTORY, ..Open::of("many") };
        let file = client.open(at, &open)?;
        Ok(Self { client, file, class, names: BTreeMap::new(), ended: false })
    }

    fn ask(&mut self) -> Result<u64> {
        let (file, pattern) = (self.file, utf16("*"));
        let params = QueryDirectoryParams {
            info_class: self.class,
            flags: 0,
            file_index: 0,
            file_id: file.id,
            pattern_utf16: &pattern,
            output_buffer_length: 8_192,
        };
        self.client
            .send(file.at, Command::QUERY_DIRECTORY, 1, |header| encode::query_directory(header, &params))
    }

    fn page(&mut self, asked: u64) -> Result<()> {
        let answer = self.client.wait(asked)?;
        if answer.status() == Status::NO_MORE_FILES {
            self.ended = true;
            return Ok(());
        }
        let answer = answer.success()?;
        let page = query_directory::Response::parse(&answer.msg)?;
        for entry in query_directory::entries(self.class, page.buffer) {
            *self.names.entry(entry?.name.to_string_lossy()).or_default() += 1;
        }
        Ok(())
    }

    /// Page after page while `more` says so of the number of names.
    fn pages(&mut self, more: impl Fn(usize) -> bool) -> Result<()> {
        while !self.ended && more(self.names.len()) {
            let asked = self.ask()?;
            self.page(asked)?;
        }
        Ok(())
    }
}
