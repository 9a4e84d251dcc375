//! A share that requires encryption beside one that does not, in one session on one connection.

use std::fs;

use anyhow::{Context, Result, ensure};
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, FILE_CREATE, FILE_OPEN_IF, File, Open, Setup, User, data, written},
    rig::{Rig, Site, net::FLOATING, node::Settings},
};

/// Bytes of one request, and how many of them a file is made of.
const BLOCK: usize = 60_000;
const BLOCKS: usize = 64;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "sealed-share-beside",
        shows: "a share that requires encryption and one that does not, in one session, go on after a crash",
        soak: 20,
        run: |_| {
            for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Ccm] {
                beside(Dialect::SMB311, cipher).with_context(|| format!("{cipher:?}"))?;
            }
            Ok(Report::default())
        },
    },
    Case {
        name: "sealed-share-beside-3.0",
        shows: "the same on SMB 3.0 and 3.0.2",
        soak: 3,
        run: |_: &Scale| {
            for dialect in [Dialect::SMB300, Dialect::SMB302] {
                beside(dialect, Cipher::Aes128Ccm).with_context(|| format!("{dialect:x?}"))?;
            }
            Ok(Report::default())
        },
    },
];

fn beside(dialect: Dialect, cipher: Cipher) -> Result<()> {
    let share = vec!["server smb encrypt = off", "[vault]", "copy = share", "server smb encrypt = required"];
    let mut rig = Rig::new(&Site { samba: Settings { share, ..Settings::default() }, ..Site::default() })?;
    let setup = Setup { dialect, cipher: Some(cipher), ..Setup::default() };
    let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
    let session = client.login(User::KNOWN)?;
    let trees = ["share", "vault"].map(|share| client.tree(session, share));
    let mut works = Vec::new();
    for (tree, name) in trees.into_iter().zip(["plain.bin", "sealed.bin"]) {
        let at = tree?;
        ensure!(client.is_sealed(at) == (name == "sealed.bin"), "{name}: sealed is {}", client.is_sealed(at));
        works.push(Work::begin(&mut client, at, name)?);
    }
    for work in &works {
        work.write(&mut client, 0..BLOCKS / 3)?;
    }
    // Requests on both shares are in flight when the node dies: it stands still before it can answer.
    let serving = rig.serving()?;
    rig.nodes.get(serving).context("no such node")?.freeze(true);
    let mut waiting = Vec::new();
    for work in &works {
        waiting.push(work.send(&mut client, BLOCKS / 3..BLOCKS * 2 / 3)?);
    }
    let asked =
        works.iter().map(|w| client.send_read(w.file, 0, BLOCK as u32)).collect::<Result<Vec<_>>>()?;
    rig.kill_serving()?;
    for id in waiting.into_iter().flatten() {
        written(client.wait(id)?, BLOCK).context("a write in flight")?;
    }
    for (id, work) in asked.into_iter().zip(&works) {
        ensure!(data(client.wait(id)?)? == block(work.seed, 0), "{}: a read in flight differs", work.name);
    }
    for work in &works {
        work.write(&mut client, BLOCKS * 2 / 3..BLOCKS)?;
        work.check(&mut client, &rig)?;
    }
    // A tree more, which is sealed from its first request on.
    let again = client.tree(session, "vault").context("a further tree")?;
    let open = Open { disposition: FILE_OPEN_IF, ..Open::of("sealed.bin") };
    let more = client.open(again, &open)?;
    ensure!(client.read(more, 0, BLOCK as u32)? == block(1, 0), "a further tree reads something else");
    client.close(more)?;
    ensure!(rig.metric("connections_total")? == 1.0, "the client connected more than once");
    rig.await_takeovers("crash", 1)
}

/// A file that is being written.
struct Work {
    file: File,
    name: &'static str,
    seed: usize,
}

impl Work {
    fn begin(client: &mut Client, at: At, name: &'static str) -> Result<Self> {
        let file = client.open(at, &Open { disposition: FILE_CREATE, ..Open::of(name) })?;
        Ok(Self { file, name, seed: usize::from(name == "sealed.bin") })
    }

    fn send(&self, client: &mut Client, blocks: std::ops::Range<usize>) -> Result<Vec<u64>> {
        let offset = |index| u64::try_from(index * BLOCK);
        blocks.map(|index| client.send_write(self.file, offset(index)?, &block(self.seed, index))).collect()
    }

    fn write(&self, client: &mut Client, blocks: std::ops::Range<usize>) -> Result<()> {
        for id in self.send(client, blocks)? {
            written(client.wait(id)?, BLOCK).context(self.name)?;
        }
        Ok(())
    }

    /// What the client reads, and what is in the file.
    fn check(&self, client: &mut Client, rig: &Rig) -> Result<()> {
        for index in 0..BLOCKS {
            let got = client.read(self.file, u64::try_from(index * BLOCK)?, BLOCK as u32)?;
            ensure!(got == block(self.seed, index), "{}: block {index} reads something else", self.name);
        }
        let whole: Vec<u8> = (0..BLOCKS).flat_map(|index| block(self.seed, index)).collect();
        ensure!(fs::read(rig.data().join(self.name))? == whole, "{}: the bytes differ", self.name);
        Ok(())
    }
}

/// Bytes that are no other block's.
fn block(seed: usize, index: usize) -> Vec<u8> {
    (0..BLOCK).map(|n| ((n + 31 * index + 7 * seed) % 251) as u8).collect()
}
