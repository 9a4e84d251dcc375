//! Names made and changed by many clients while their node dies: never twice, never lost, and each client is told right.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result, bail, ensure};
use smb_parse::{
    cmd::create,
    encode,
    header::{Command, Status},
};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_CREATE, FILE_OPEN_IF, File, Open, Setup, User, guid, utf16},
    rig::{Rig, Site, net::FLOATING},
};

/// FileRenameInformation, FileLinkInformation (MS-FSCC 2.4.42, 2.4.28).
const RENAME: u8 = 10;
const LINK: u8 = 11;
/// FILE_CREATED, a CreateAction (MS-SMB2 2.2.14).
const CREATED: u32 = 2;
/// Names of each kind, in each round; those that are created all clients are after.
const NAMES: usize = 8;

pub(super) const CASES: &[Case] = &[Case {
    name: "names-in-flight",
    shows: "exclusive creates, renames and links of several clients in flight at a crash: each done once, each told so",
    soak: 1,
    run: storm,
}];

/// One client and what it waits for.
struct Actor {
    client: Client,
    at: At,
    asked: Vec<(Asked, u64)>,
    sources: Vec<File>,
}

/// A request in flight: what it is, and which name of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Create(usize),
    Rename(usize),
    Link(usize),
}

/// Draws the same numbers for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn draw(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

fn storm(scale: &Scale) -> Result<Report> {
    let (clients, rounds) = if scale.soak { (8, 40) } else { (4, 3) };
    let mut rig = Rig::new(&Site::default())?;
    let mut actors = (0..clients)
        .map(|_| {
            let setup = Setup { client_guid: guid(), credits: 256, ..Setup::default() };
            let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
            let at = client.enter(User::KNOWN, "share")?;
            Ok(Actor { client, at, asked: Vec::new(), sources: Vec::new() })
        })
        .collect::<Result<Vec<_>>>()?;
    let (mut outcomes, mut in_flight, mut told) = ([0; 3], 0, 0);
    for round in 0..rounds {
        let mut dice = Dice(round);
        for (number, actor) in actors.iter_mut().enumerate() {
            actor.prepare(round, number)?;
        }
        let orders = orders(&mut dice, clients);
        let kill_at = dice.draw(orders.len());
        let mut dead = 0;
        for (sent, (number, asked)) in orders.iter().enumerate() {
            if sent == kill_at {
                in_flight += actors.iter().map(|actor| actor.client.pending()).sum::<usize>();
                dead = rig.kill_serving()?;
            }
            let actor = actors.get_mut(*number).context("no such client")?;
            actor.ask(round, *number, *asked)?;
        }
        let judged = judge(&rig, &mut actors, round).with_context(|| format!("round {round}"))?;
        for (sum, count) in outcomes.iter_mut().zip(judged) {
            *sum += count;
        }
        told += 1;
        rig.await_takeovers("crash", clients * told)?;
        rig.restart(dead)?;
    }
    let [creates, renames, links] = outcomes;
    let note = format!(
        "{rounds} crashes, {in_flight} requests in flight at them; {creates} exclusive creates, {renames} renames, {links} links"
    );
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// What all clients ask in one round, mixed.
fn orders(dice: &mut Dice, clients: usize) -> Vec<(usize, Asked)> {
    let mut orders: Vec<_> = (0..clients)
        .flat_map(|client| {
            let each = |n| [Asked::Create(n), Asked::Rename(n), Asked::Link(n)];
            (0..NAMES).flat_map(each).map(move |asked| (client, asked))
        })
        .collect();
    for last in (1..orders.len()).rev() {
        orders.swap(last, dice.draw(last + 1));
    }
    orders
}

fn own(kind: &str, round: u64, client: usize, n: usize) -> String {
    format!("{kind}-{round}-{client}-{n}")
}

impl Actor {
    /// The files that are to be renamed and linked.
    fn prepare(&mut self, round: u64, number: usize) -> Result<()> {
        for n in 0..NAMES {
            let name = own("source", round, number, n);
            let file = self.client.open(self.at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
            self.client.write(file, 0, name.as_bytes())?;
            self.sources.push(file);
        }
        Ok(())
    }

    fn ask(&mut self, round: u64, number: usize, asked: Asked) -> Result<()> {
        let id = match asked {
            Asked::Create(n) => {
                let name = format!("lock-{round}-{n}");
                let open = Open { disposition: FILE_CREATE, ..Open::of(&name) };
                self.client.send(self.at, Command::CREATE, 1, |header| open.build(header))?
            }
            Asked::Rename(n) => self.give_name(n, RENAME, &own("renamed", round, number, n))?,
            Asked::Link(n) => self.give_name(n, LINK, &own("link", round, number, n))?,
        };
        self.asked.push((asked, id));
        Ok(())
    }

    fn give_name(&mut self, n: usize, class: u8, name: &str) -> Result<u64> {
        let name = utf16(name);
        let length = u32::try_from(name.len())?.to_le_bytes();
        let buffer = [&[0; 16][..], &length, &name].concat();
        let id = self.sources.get(n).context("no such source")?.id;
        self.client
            .send(self.at, Command::SET_INFO, 1, |header| encode::set_info(header, 1, class, 0, id, &buffer))
    }
}

/// Every outcome of a round against what stands on the disk; how many there were of each kind.
fn judge(rig: &Rig, actors: &mut [Actor], round: u64) -> Result<[usize; 3]> {
    let mut counts = [0; 3];
    let mut makers = [0; NAMES];
    for (number, actor) in actors.iter_mut().enumerate() {
        for (asked, id) in std::mem::take(&mut actor.asked) {
            let answer = actor.client.wait(id)?;
            let status = answer.status();
            match asked {
                Asked::Create(n) => {
                    counts[0] += 1;
                    match status {
                        Status::SUCCESS => {
                            let response = create::Response::parse(&answer.msg)?;
                            ensure!(response.create_action == CREATED, "CreateAction of a created file");
                            *makers.get_mut(n).context("no such name")? += 1;
                            actor.client.close(File { at: actor.at, id: response.file_id })?;
                        }
                        Status::OBJECT_NAME_COLLISION => {}
                        other => bail!("client {number}, {asked:?}: {other:x?}"),
                    }
                }
                Asked::Rename(_) | Asked::Link(_) => {
                    let [_, renames, links] = &mut counts;
                    *if matches!(asked, Asked::Rename(_)) { renames } else { links } += 1;
                    ensure!(status == Status::SUCCESS, "client {number}, {asked:?}: {status:x?}");
                }
            }
        }
        for (n, file) in std::mem::take(&mut actor.sources).into_iter().enumerate() {
            let old = own("source", round, number, n);
            let path = |kind| rig.data().join(own(kind, round, number, n));
            ensure!(!path("source").exists(), "{old} is still there");
            ensure!(fs::read_to_string(path("renamed"))? == old, "{old} was not renamed");
            let inodes = [fs::metadata(path("renamed"))?.ino(), fs::metadata(path("link"))?.ino()];
            ensure!(inodes[0] == inodes[1], "the link of {old} is another file");
            ensure!(actor.client.read(file, 0, 100)? == old.as_bytes(), "the handle of {old}");
            actor.client.close(file)?;
        }
    }
    for (n, makers) in makers.iter().enumerate() {
        ensure!(*makers == 1, "lock-{round}-{n} was created by {makers} clients");
        ensure!(rig.data().join(format!("lock-{round}-{n}")).exists(), "lock-{round}-{n} is not there");
    }
    Ok(counts)
}
