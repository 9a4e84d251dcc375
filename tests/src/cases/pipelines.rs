//! Long pipelines: compounds in flight at a crash, and credits that have to last.

use std::{collections::VecDeque, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use smb_parse::{FileId, encode, header::Command};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_OPEN_IF, File, Open, Setup, User, build_query, data, written},
    rig::{Rig, Site, net::FLOATING, wait_until},
};

/// FileAllInformation (MS-FSCC 2.4.2).
const ALL: u8 = 18;
const OPENS: &str = "opens";
const MIB: usize = 1 << 20;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "compounds-in-flight",
        shows: "related Create, QueryInfo and Close in flight at a crash are each answered once, and leave no Open",
        soak: 5,
        run: |_| compounds(&Setup::default()),
    },
    Case {
        name: "credits-last",
        shows: "more than 20,000 requests that use every credit, large ones among them, after one and two crashes",
        soak: 5,
        run: credits,
    },
];

pub(super) fn compounds(setup: &Setup) -> Result<Report> {
    const COUNT: usize = 1_000;
    const WINDOW: usize = 40;
    let mut rig = Rig::new(&Site::default())?;
    fs::write(rig.data().join("looked-at.bin"), vec![7; 4_242])?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup { credits: 256, ..*setup })?;
    let at = client.enter(User::KNOWN, "share")?;
    let kept = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("kept.bin") })?;
    let before = rig.metric(OPENS)?;
    ensure!(before == 1.0, "{before} Opens are recorded, one is open");

    let mut waiting: VecDeque<[u64; 3]> = VecDeque::new();
    let (mut sent, mut done, mut in_flight) = (0, 0, 0);
    while done < COUNT {
        while sent < COUNT && waiting.len() < WINDOW {
            waiting.push_back(look_at(&mut client, at)?);
            sent += 1;
        }
        if done == COUNT / 3 {
            rig.kill_serving()?;
            in_flight = client.pending();
        }
        let ids = waiting.pop_front().context("nothing is waited for")?;
        for (id, what) in ids.into_iter().zip(["CREATE", "QUERY_INFO", "CLOSE"]) {
            let answer = client.wait(id)?;
            answer.success().with_context(|| format!("{what} of compound {done}"))?;
        }
        done += 1;
    }
    ensure!(client.pending() == 0, "something is not answered");
    let mut opens = 0.0;
    let lasting = wait_until("no Open is left of the compounds", Duration::from_secs(10), || {
        opens = rig.metric(OPENS).unwrap_or(-1.0);
        opens == before
    });
    lasting.with_context(|| format!("{opens} Opens are recorded, one is open"))?;
    client.write(kept, 0, b"still here").context("the handle beside them")?;
    rig.await_takeovers("crash", 1)?;
    let note = format!("{in_flight} requests in flight at the kill");
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// What the Linux client sends for a stat.
fn look_at(client: &mut Client, at: At) -> Result<[u64; 3]> {
    let open = Open { access: 0x80, ..Open::of("looked-at.bin") };
    let last = FileId::ALL_ONES;
    let mut draft = client.draft_compound(
        at,
        &[
            (Command::CREATE, &|header| open.build(header)),
            (Command::QUERY_INFO, &|header| build_query(header, last, ALL)),
            (Command::CLOSE, &|header| encode::close(header, 0, last)),
        ],
    )?;
    client.sign(&mut draft);
    client.post(&draft)?;
    draft.ids.as_slice().try_into().context("a compound of three")
}

fn credits(_: &Scale) -> Result<Report> {
    const COUNT: usize = 21_000;
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup { credits: 512, ..Setup::default() })?;
    let at = client.enter(User::KNOWN, "share")?;
    let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("credits.bin") })?;
    let pattern: Vec<u8> = (0..MIB).map(|n| (n % 241) as u8).collect();
    client.write(file, 0, &pattern)?;
    let mut mixture = Mixture { file, pattern, waiting: VecDeque::new(), sent: 0, most: 0 };
    mixture.run(&mut client, 500).context("in Relay")?;
    let dead = rig.kill_serving()?;
    mixture.run(&mut client, COUNT).context("after the first crash")?;
    mixture.drain(&mut client)?;
    rig.restart(dead)?;
    mixture.run(&mut client, 1_000).context("before the second crash")?;
    rig.kill_serving()?;
    mixture.run(&mut client, COUNT).context("after the second crash")?;
    mixture.drain(&mut client)?;
    let note = format!("{} requests, {} in flight at most", client.finals, mixture.most);
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// Small and large requests one after the other, as many as credits allow.
struct Mixture {
    file: File,
    pattern: Vec<u8>,
    waiting: VecDeque<(u64, Kind)>,
    sent: usize,
    most: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Echo,
    Read(usize),
    Write(usize),
}

impl Mixture {
    fn run(&mut self, client: &mut Client, count: usize) -> Result<()> {
        for _ in 0..count {
            self.sent += 1;
            let kind = match self.sent {
                n if n % 256 == 0 => Kind::Read(MIB),
                n if n % 256 == 128 => Kind::Write(MIB),
                n if n % 16 == 0 => Kind::Read(100_000),
                n if n % 16 == 8 => Kind::Write(100_000),
                n if n % 4 == 1 => Kind::Echo,
                n if n % 4 == 2 => Kind::Write(512),
                _ => Kind::Read(512),
            };
            let file = self.file;
            let id = match kind {
                Kind::Echo => client.send(file.at, Command::ECHO, 1, encode::echo)?,
                Kind::Read(len) => client.send_read(file, 0, u32::try_from(len)?)?,
                Kind::Write(len) => {
                    client.send_write(file, 0, self.pattern.get(..len).unwrap_or_default())?
                }
            };
            self.waiting.push_back((id, kind));
            self.most = self.most.max(client.pending());
            while let Some((id, kind)) = self.waiting.front().copied() {
                let Some(answer) = client.take_ready(id) else { break };
                self.waiting.pop_front();
                self.judge(kind, answer)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, client: &mut Client) -> Result<()> {
        while let Some((id, kind)) = self.waiting.pop_front() {
            let answer = client.wait(id)?;
            self.judge(kind, answer)?;
        }
        Ok(())
    }

    fn judge(&self, kind: Kind, answer: crate::client::Answer) -> Result<()> {
        match kind {
            Kind::Echo => answer.success().map(|_| ()),
            Kind::Read(len) => {
                let same = self.pattern.get(..len) == Some(&data(answer)?);
                ensure!(same, "a read of {len} bytes brought something else");
                Ok(())
            }
            Kind::Write(len) => written(answer, len),
        }
    }
}
