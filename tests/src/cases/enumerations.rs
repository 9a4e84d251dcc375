//! Large directories that are read while nodes die: each name comes once, whatever the order in which a node has them, the
//! size of the pages, and how many of them are asked for at a time.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result, bail, ensure};
use smb_parse::{
    FileId,
    cmd::query_directory,
    encode::{self, QueryDirectoryParams},
    header::{Command, Header, Status},
};

use super::{
    Case, Report, Scale,
    kernel::{Death, kill_and_restart},
    names::Dice,
};
use crate::{
    client::{Answer, At, Client, File, Open, READ, Setup, User, guid, utf16},
    rig::{Rig, Site, net::FLOATING},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "enumerations",
    shows: "directories of 10,000 entries read in many ways while nodes with different orders die at random points: each name once",
    soak: 100,
    run: enumerations,
}];

const ENTRIES: usize = 10_000;
/// FILE_DIRECTORY_FILE.
const DIRECTORY: u32 = 1;
/// `SMB2_RESTART_SCANS`, `SMB2_RETURN_SINGLE_ENTRY`, `SMB2_REOPEN` (MS-SMB2 2.2.33).
const RESTART: u8 = 0x01;
/// See [`RESTART`].
const SINGLE: u8 = 0x02;
/// See [`RESTART`].
const REOPEN: u8 = 0x10;
/// FileDirectoryInformation, FileFullDirectoryInformation, FileBothDirectoryInformation, FileNamesInformation,
/// FileIdBothDirectoryInformation, FileIdFullDirectoryInformation (MS-FSCC 2.4).
const CLASSES: [u8; 6] = [1, 2, 3, 12, 37, 38];
/// Bytes of a page.
const PAGES: [u32; 4] = [512, 2_048, 16_384, 65_536];
/// About so many steps does it take.
const STEPS: usize = 120;

/// How much is asked for before an answer is waited for.
#[derive(Debug, Clone, Copy)]
enum Style {
    OneByOne,
    Pipelined,
    /// Two in one frame, the second related to the first.
    Compound,
}

/// One directory handle of a client and what it has brought.
#[derive(Debug)]
struct Listing {
    file: File,
    class: u8,
    pattern: &'static str,
    style: Style,
    /// How often each name came since the last beginning.
    names: BTreeMap<String, u32>,
    ended: bool,
    /// The flags with which it still has to be begun anew.
    again: Vec<u8>,
    /// Those of the next request.
    flags: u8,
}

/// What a step has asked for: the MessageIds.
struct Step {
    listing: usize,
    asked: Vec<u64>,
}

struct Reader {
    client: Client,
    listings: Vec<Listing>,
}

fn enumerations(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    fill(&rig.data().join("many"))?;
    sort_on_second_node(&mut rig)?;
    let seed = u64::from_le_bytes(guid()[..8].try_into()?);
    let mut dice = Dice(seed);
    let mut deaths = 0;
    for round in 0..2 {
        deaths += one(&mut rig, &mut dice).with_context(|| format!("round {round} of seed {seed:#x}"))?;
    }
    let failed = rig.metric("takeover_requests_total{result=\"failed\"}")?;
    ensure!(failed == 0.0, "{failed} requests in flight were failed");
    let note = format!("{deaths} deaths, seed {seed:#x}");
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// Several handles, each read to the end, twice and more, while nodes die; how many did.
fn one(rig: &mut Rig, dice: &mut Dice) -> Result<usize> {
    let mut reader = Reader::open(rig, dice)?;
    let kills: Vec<usize> = (0..3).map(|_| dice.draw(STEPS)).collect();
    let mut deaths = 0;
    for number in 0.. {
        let Some(listing) = reader.next(dice) else { break };
        let dies = kills.contains(&number);
        let unanswered = dies && dice.draw(2) == 0;
        if unanswered {
            let serving = rig.serving()?;
            rig.nodes.get(serving).context("no such node")?.freeze(true);
        }
        let step = reader.ask(listing, dice)?;
        if dies {
            kill_and_restart(rig, Death::Sudden)?;
            deaths += 1;
        }
        reader.take(&step)?;
    }
    // What has ended is ended on the next node, too.
    kill_and_restart(rig, Death::Sudden)?;
    for listing in 0..reader.listings.len() {
        let step = reader.ask(listing, dice)?;
        reader.take(&step)?;
    }
    Ok(deaths + 1)
}

impl Reader {
    fn open(rig: &Rig, dice: &mut Dice) -> Result<Self> {
        let mut client =
            Client::connect(&rig.net, FLOATING, &Setup { client_guid: guid(), ..Setup::default() })?;
        let at = client.enter(User::KNOWN, "share")?;
        let mut listings = Vec::new();
        for style in [Style::OneByOne, Style::Pipelined, Style::Compound] {
            let again = [vec![], vec![RESTART], vec![REOPEN], vec![REOPEN, RESTART]];
            listings.push(Listing {
                file: directory(&mut client, at)?,
                class: pick(dice, &CLASSES)?,
                pattern: pick(dice, &["*", "*", "*number*", "entry*", "nothing*"])?,
                style,
                names: BTreeMap::new(),
                ended: false,
                again: again.get(dice.draw(again.len())).context("no such flags")?.clone(),
                flags: 0,
            });
        }
        Ok(Self { client, listings })
    }

    /// One that is not through, if there is one.
    fn next(&mut self, dice: &mut Dice) -> Option<usize> {
        for listing in &mut self.listings {
            if let Some(flags) = listing.again.pop().filter(|_| listing.ended) {
                (listing.flags, listing.ended) = (flags, false);
                listing.names.clear();
            }
        }
        let open: Vec<usize> =
            self.listings.iter().enumerate().filter(|(_, l)| !l.ended).map(|(index, _)| index).collect();
        (!open.is_empty()).then(|| open.get(dice.draw(open.len())).copied())?
    }

    fn ask(&mut self, index: usize, dice: &mut Dice) -> Result<Step> {
        let listing = self.listings.get_mut(index).context("no such listing")?;
        let (file, class, pattern) = (listing.file, listing.class, utf16(listing.pattern));
        let mut page = |related: bool| {
            let single = if dice.draw(8) == 0 { SINGLE } else { 0 };
            let (flags, size) = (std::mem::take(&mut listing.flags) | single, pick(dice, &PAGES)?);
            let pattern = pattern.clone();
            anyhow::Ok(move |header: &Header| {
                encode::query_directory(
                    header,
                    &QueryDirectoryParams {
                        info_class: class,
                        flags,
                        file_index: 0,
                        file_id: if related { FileId::ALL_ONES } else { file.id },
                        pattern_utf16: &pattern,
                        output_buffer_length: size,
                    },
                )
            })
        };
        let command = Command::QUERY_DIRECTORY;
        let mut asked = Vec::new();
        match listing.style {
            Style::OneByOne => asked.push(self.client.send(file.at, command, 1, page(false)?)?),
            Style::Pipelined => {
                for _ in 0..3 {
                    asked.push(self.client.send(file.at, command, 1, page(false)?)?);
                }
            }
            Style::Compound => {
                let (first, second) = (page(false)?, page(true)?);
                let mut draft =
                    self.client.draft_compound(file.at, &[(command, &first), (command, &second)])?;
                self.client.sign(&mut draft);
                self.client.post(&draft)?;
                asked.extend(draft.ids);
            }
        }
        Ok(Step { listing: index, asked })
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        for id in &step.asked {
            let answer = self.client.wait(*id)?;
            let listing = self.listings.get_mut(step.listing).context("no such listing")?;
            listing.page(answer).with_context(|| {
                format!("class {}, {:?}, {}", listing.class, listing.style, listing.pattern)
            })?;
        }
        Ok(())
    }
}

impl Listing {
    fn page(&mut self, answer: Answer) -> Result<()> {
        match answer.status() {
            Status::NO_MORE_FILES if !self.ended => {
                self.ended = true;
                return self.check();
            }
            Status::NO_MORE_FILES => return Ok(()),
            Status::NO_SUCH_FILE if self.pattern == "nothing*" => {
                self.ended = true;
                return Ok(());
            }
            _ => {}
        }
        let answer = answer.success()?;
        ensure!(!self.ended, "names came behind the end");
        let page = query_directory::Response::parse(&answer.msg)?;
        ensure!(!page.buffer.is_empty(), "an answer without names");
        for entry in query_directory::entries(self.class, page.buffer) {
            *self.names.entry(entry?.name.to_string_lossy()).or_default() += 1;
        }
        Ok(())
    }

    /// Each name once.
    fn check(&self) -> Result<()> {
        let fits = |name: &str| match self.pattern {
            "*number*" => name.contains("number"),
            "entry*" => name.to_lowercase().starts_with("entry"),
            "nothing*" => false,
            _ => true,
        };
        let all = (0..ENTRIES).map(entry).chain([".".to_owned(), "..".to_owned()]);
        let expected: BTreeMap<String, u32> = all.filter(|name| fits(name)).map(|name| (name, 1)).collect();
        if self.names == expected {
            return Ok(());
        }
        let twice: Vec<_> = self.names.iter().filter(|(_, count)| **count > 1).collect();
        let missing: Vec<_> = expected.keys().filter(|name| !self.names.contains_key(*name)).collect();
        bail!(
            "{} names; {} came more than once ({:?} ...), {} never ({:?} ...)",
            self.names.len(),
            twice.len(),
            twice.first(),
            missing.len(),
            missing.first()
        );
    }
}

fn directory(client: &mut Client, at: At) -> Result<File> {
    client.open(at, &Open { access: READ, options: DIRECTORY, ..Open::of("many") })
}

fn pick<T: Copy>(dice: &mut Dice, from: &[T]) -> Result<T> {
    from.get(dice.draw(from.len())).copied().context("nothing to pick from")
}

/// A name, of one of two lengths, and in two cases.
fn entry(number: usize) -> String {
    match number % 3 {
        0 => format!("entry number {number}.txt"),
        1 => format!("Entry {number:05}.TXT"),
        _ => format!("entry whose name is much longer than that of the others {number}.txt"),
    }
}

/// Made out of order.
fn fill(directory: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    for number in 0..ENTRIES {
        fs::write(directory.join(entry(number * 7_919 % ENTRIES)), b"")?;
    }
    Ok(())
}

/// The second node tells names in the order of the alphabet.
fn sort_on_second_node(rig: &mut Rig) -> Result<()> {
    let config = rig.nodes.get(1).context("no second node")?.config();
    fs::OpenOptions::new().append(true).open(config)?.write_all(b"   vfs objects = dirsort\n")?;
    rig.nodes.get_mut(1).context("no second node")?.kill();
    rig.restart(1)?;
    rig.await_metric("node_up{node=\"samba-1\"}", 1.0)?;
    let orders = rig.nodes.iter().map(|node| first_names(rig, &node.address)).collect::<Result<Vec<_>>>()?;
    ensure!(orders.first() != orders.last(), "both nodes have the same order");
    Ok(())
}

fn first_names(rig: &Rig, address: &str) -> Result<Vec<String>> {
    let mut client = Client::connect(&rig.net, address, &Setup { client_guid: guid(), ..Setup::default() })?;
    let at = client.enter(User::KNOWN, "share")?;
    let (file, pattern) = (directory(&mut client, at)?, utf16("*"));
    let params = QueryDirectoryParams {
        info_class: 12,
        flags: 0,
        file_index: 0,
        file_id: file.id,
        pattern_utf16: &pattern,
        output_buffer_length: 4_096,
    };
    let answer =
        client.call(at, Command::QUERY_DIRECTORY, 1, |header| encode::query_directory(header, &params))?;
    let answer = answer.success()?;
    let page = query_directory::Response::parse(&answer.msg)?;
    query_directory::entries(12, page.buffer).map(|entry| Ok(entry?.name.to_string_lossy())).collect()
}
