//! How far a side channel reaches: a second connection, bound to the session of a first one, straight to one node.
//!
//! A tool, and no case: what it finds depends on the Samba. It tries everything for each way in which a session can be
//! made, and tells which ways came to what.

mod breaks;
mod cost;
mod handles;
mod refused;
mod tickets;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Result, ensure};
use smb_parse::header::Command;
use understudy_core::crypto::{Dialect, sealing::Cipher};

use crate::{
    client::{At, Client, File, Open, Setup, User, guid},
    rig::{
        Scratch,
        net::Net,
        node::{Node, STRANGER, Settings, USER},
        realm::{GHOST, Kind, Realm},
    },
};

/// FILE_OPEN_IF with everything a file can be asked for, and nobody else admitted.
fn alone(name: &str) -> Open<'_> {
    Open { share: 0, disposition: crate::client::FILE_OPEN_IF, ..Open::of(name) }
}

/// One way to make a session.
struct Way {
    name: &'static str,
    setup: Setup,
}

fn ways() -> Vec<Way> {
    let signed =
        |name, dialect, algs| Way { name, setup: Setup { dialect, signing_algs: algs, ..Setup::default() } };
    let sealed = |name, dialect, cipher| Way {
        name,
        setup: Setup { dialect, cipher: Some(cipher), sealing: true, ..Setup::default() },
    };
    vec![
        signed("2.1", Dialect::SMB210, &[]),
        signed("3.0", Dialect::SMB300, &[]),
        signed("3.0.2", Dialect::SMB302, &[]),
        signed("3.1.1 CMAC", Dialect::SMB311, &[1]),
        signed("3.1.1 GMAC", Dialect::SMB311, &[2]),
        sealed("3.0 sealed", Dialect::SMB300, Cipher::Aes128Ccm),
        sealed("3.0.2 sealed", Dialect::SMB302, Cipher::Aes128Ccm),
        sealed("3.1.1 AES-128-CCM", Dialect::SMB311, Cipher::Aes128Ccm),
        sealed("3.1.1 AES-128-GCM", Dialect::SMB311, Cipher::Aes128Gcm),
        sealed("3.1.1 AES-256-CCM", Dialect::SMB311, Cipher::Aes256Ccm),
        sealed("3.1.1 AES-256-GCM", Dialect::SMB311, Cipher::Aes256Gcm),
    ]
}

/// What is tried, and what to call it.
type Trial = (&'static str, fn(&Stage<'_>) -> Result<String>);

fn trials(realm: Option<Kind>) -> Vec<Trial> {
    [
        &[("bind", bind as fn(&Stage<'_>) -> Result<String>), ("echo", echo)][..],
        handles::TRIALS,
        breaks::TRIALS,
    ]
    .into_iter()
    .chain([refused::TRIALS, cost::TRIALS])
    .chain(realm.map(|_| tickets::TRIALS))
    .chain((realm == Some(Kind::Mit)).then_some(tickets::ENDS))
    .flatten()
    .copied()
    .collect()
}

/// One node, and how sessions are made on it.
struct Stage<'a> {
    net: &'a Net,
    node: &'a Node,
    /// One without multichannel.
    single: &'a Node,
    data: &'a Path,
    setup: Setup,
    realm: Option<&'a Realm>,
    /// Who logs in, and somebody else.
    user: User<'a>,
    other: User<'a>,
}

/// A client's connection, and one that is bound to its session.
struct Pair {
    main: Client,
    side: Client,
    at: At,
}

impl Stage<'_> {
    /// A connection with a ClientGuid that no other has.
    fn setup(&self) -> Setup {
        Setup { client_guid: guid(), ..self.setup }
    }

    fn connect(&self, setup: &Setup) -> Result<Client> {
        Client::connect(self.net, &self.node.address, setup)
    }

    /// Another client altogether.
    fn stranger(&self) -> Result<(Client, At)> {
        let mut client = self.connect(&self.setup())?;
        let at = client.enter(self.user, "share")?;
        Ok((client, at))
    }

    fn pair(&self) -> Result<Pair> {
        let setup = self.setup();
        let mut main = self.connect(&setup)?;
        let at = main.enter(self.user, "share")?;
        let mut side = self.connect(&setup)?;
        side.bind(&main, at.session, self.user)?;
        Ok(Pair { main, side, at })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }
}

impl Pair {
    /// The first connection goes on, and nobody has told it of a break.
    fn is_undisturbed(&mut self, file: File) -> Result<()> {
        self.main.write(file, 0, b"undisturbed")?;
        ensure!(self.main.read(file, 0, 11)? == b"undisturbed", "read something else");
        for client in [&mut self.main, &mut self.side] {
            client.echo(At::default())?;
            ensure!(client.breaks.is_empty(), "a break");
        }
        Ok(())
    }
}

/// Tries everything in every way. With a realm the users log in with its tickets, else by NTLM.
pub(crate) fn run(filter: &str, kind: Option<Kind>) -> Result<()> {
    let dir = Scratch::new()?;
    let mut net = Net::new()?;
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data)?;
    let realm = kind.map(|kind| Realm::start(&mut net, dir.path(), kind)).transpose()?;
    let mut on = Settings::default();
    if let Some(realm) = &realm {
        on.membership = realm.membership();
        on.environment.extend(realm.environment());
    }
    let mut node = Node::new(&mut net, dir.path(), 0, &data, &on)?;
    node.add_users()?;
    realm.as_ref().map_or(Ok(()), |realm| realm.join(&node))?;
    node.start(&net)?;
    let off = Settings { global: vec!["server multi channel support = no"], ..on };
    let mut single = Node::new(&mut net, dir.path(), 1, &data, &off)?;
    single.copy_users(&node)?;
    single.start(&net)?;
    println!("{}", node.version()?);
    let somebody_else = if kind == Some(Kind::Ad) { GHOST } else { STRANGER };
    let tickets = realm.as_ref().map(|realm| {
        anyhow::Ok([realm.ticket(&net, &node, USER)?, realm.ticket(&net, &node, somebody_else)?])
    });
    let tickets = tickets.transpose()?;
    let [user, other] = tickets
        .as_ref()
        .map_or([User::KNOWN, User::STRANGER], |tickets| tickets.each_ref().map(User::Ticket));
    let ways = ways();
    for (name, trial) in trials(kind).into_iter().filter(|(name, _)| name.contains(filter)) {
        println!("{name}");
        let mut found: Vec<(String, Vec<&str>)> = Vec::new();
        for way in &ways {
            let (net, node, single, data, realm) = (&net, &node, &single, &data, realm.as_ref());
            let stage = Stage { net, node, single, data, setup: way.setup, realm, user, other };
            let result = trial(&stage).unwrap_or_else(|error| format!("no: {error:#}"));
            match found.iter_mut().find(|(known, _)| *known == result) {
                Some((_, names)) => names.push(way.name),
                None => found.push((result, vec![way.name])),
            }
        }
        for (result, names) in found {
            println!("    {result}  [{}]", names.join(", "));
        }
    }
    Ok(())
}

/// How long it takes, and how many bytes, from the first SYN to the last answer.
fn bind(stage: &Stage<'_>) -> Result<String> {
    const TIMES: u32 = 20;
    let setup = stage.setup();
    let mut main = stage.connect(&setup)?;
    let at = main.enter(stage.user, "share")?;
    let (mut took, mut bytes) = (std::time::Duration::ZERO, (0, 0));
    for _ in 0..TIMES {
        let begun = Instant::now();
        let mut side = stage.connect(&setup)?;
        side.bind(&main, at.session, stage.user)?;
        took += begun.elapsed();
        bytes = side.traffic;
    }
    main.echo(at)?;
    Ok(format!("{:.1} ms, {} B out, {} B in", took.as_secs_f64() * 1e3 / f64::from(TIMES), bytes.0, bytes.1))
}

/// In the session's name, and without a session.
fn echo(stage: &Stage<'_>) -> Result<String> {
    let mut pair = stage.pair()?;
    pair.side.echo(pair.at)?;
    let bare = pair.side.call(At::default(), Command::ECHO, 1, smb_parse::encode::echo)?;
    bare.success()?;
    Ok("yes".into())
}
