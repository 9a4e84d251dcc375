//! Logins on a connection that has been taken over, and logins that a death cuts off.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, kill_process};
use smb_parse::{
    encode,
    header::{Command, Status},
};
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{Case, Report, Scale};
use crate::{
    client::{At, Client, Exchange, FILE_OPEN_IF, File, Open, Setup, User, utf16},
    rig::{
        Rig, Site,
        net::FLOATING,
        node::{Settings, USER},
    },
};

pub(super) const DIALECTS: [Dialect; 5] =
    [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302, Dialect::SMB311];

const LOGINS_ASKED: &str = "messages_total{command=\"session_setup\",direction=\"request\"}";

/// A client that seals all it sends, with the cipher of its dialect.
pub(super) fn sealing(dialect: Dialect) -> Setup {
    let cipher = if dialect == Dialect::SMB311 { Cipher::Aes128Gcm } else { Cipher::Aes128Ccm };
    Setup { dialect, cipher: Some(cipher), sealing: true, ..Setup::default() }
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "second-user-after-takeover",
        shows: "after a takeover a further user logs in on the same connection, and survives the next one; every dialect",
        soak: 5,
        run: second_user,
    },
    Case {
        name: "reauth-after-takeover",
        shows: "sessions are authenticated anew before and after a takeover, as the same user, as another, and in vain",
        soak: 5,
        run: reauth,
    },
    Case {
        name: "logins-sealed",
        shows: "the same in sealed sessions, by the client's will and by the nodes'",
        soak: 5,
        run: sealed,
    },
    Case {
        name: "login-cut-by-death",
        shows: "an NTLM exchange forged, or cut off by the node's death, becomes no session; one not yet answered goes on",
        soak: 5,
        run: cut_by_death,
    },
    Case {
        name: "dies-in-login",
        shows: "the node dies with the first token of a client's first login unanswered: it goes on at the next node",
        soak: 5,
        run: dies_in_login,
    },
    Case {
        name: "guest-refused",
        shows: "a node that does not know the user and maps to guest gets neither the user's session nor a new login",
        soak: 5,
        run: guest_refused,
    },
    Case {
        name: "previous-session",
        shows: "who connects again and names the earlier session ends it, before and after a takeover; nobody else does",
        soak: 5,
        run: previous_session,
    },
    Case {
        name: "negotiate-validated",
        shows: "after a takeover to another node FSCTL_VALIDATE_NEGOTIATE_INFO says what the first node had said",
        soak: 5,
        run: validated,
    },
];

/// A file of a session of its own.
pub(super) struct Work {
    pub(super) file: File,
    bytes: Vec<u8>,
}

impl Work {
    pub(super) fn begin(client: &mut Client, session: u64, name: &str) -> Result<Self> {
        let at = client.tree(session, "share")?;
        let open = Open { disposition: FILE_OPEN_IF, share: 0, ..Open::of(name) };
        let file = client.open(at, &open)?;
        let bytes = name.bytes().cycle().take(50_000).collect::<Vec<_>>();
        client.write(file, 0, &bytes)?;
        Ok(Self { file, bytes })
    }

    pub(super) fn goes_on(&self, client: &mut Client) -> Result<()> {
        let got = client.read(self.file, 0, 50_000)?;
        ensure!(got == self.bytes, "it reads something else");
        client.write(self.file, 0, &self.bytes)
    }

    /// What a READ is told.
    fn status(&self, client: &mut Client) -> Result<Status> {
        let id = client.send_read(self.file, 0, 100)?;
        Ok(client.wait(id)?.status())
    }
}

/// Kills the serving node, waits until all are on the next one, and brings the dead one back.
pub(super) fn fail_over(rig: &mut Rig, takeovers: usize) -> Result<()> {
    let dead = rig.kill_serving()?;
    rig.await_takeovers("crash", takeovers)?;
    rig.restart(dead)
}

fn second_user(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site::default())?;
    second_user_of(rig, &DIALECTS.map(|dialect| Setup { dialect, ..Setup::default() }))
}

fn reauth(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    reauth_of(&mut rig, &Setup::default(), &mut 0)?;
    Ok(Report::default())
}

fn sealed(_: &Scale) -> Result<Report> {
    let setups = [Dialect::SMB300, Dialect::SMB302, Dialect::SMB311].map(sealing);
    for global in ["server smb encrypt = desired", "server smb encrypt = required"] {
        let samba = Settings { global: vec![global, "map to guest = never"], ..Settings::default() };
        let site = Site { samba, ..Site::default() };
        let mut rig = Rig::new(&site)?;
        let mut takeovers = 0;
        for setup in &setups {
            reauth_of(&mut rig, setup, &mut takeovers)
                .with_context(|| format!("{global}, {:?}", setup.dialect))?;
        }
        second_user_of(Rig::new(&site)?, &setups).context(global)?;
    }
    Ok(Report::default())
}

/// First one user a client, and after a takeover a second one.
fn second_user_of(mut rig: Rig, setups: &[Setup]) -> Result<Report> {
    let mut clients = Vec::new();
    for setup in setups {
        let dialect = setup.dialect;
        let mut client = Client::connect(&rig.net, FLOATING, setup)?;
        let session = client.login(User::KNOWN)?;
        let name = format!("first-{:x}", dialect.0);
        let first = Work::begin(&mut client, session, &name)?;
        clients.push((dialect, client, first));
    }
    fail_over(&mut rig, clients.len())?;
    let mut seconds = Vec::new();
    for (dialect, client, first) in &mut clients {
        let session = client.login(User::SECOND).with_context(|| format!("{dialect:?}"))?;
        ensure!(session != first.file.at.session, "two sessions have one id");
        let second = Work::begin(client, session, &format!("second-{:x}", dialect.0))?;
        first.goes_on(client)?;
        // A guest, and whom the proxy does not know: admitted, and refused.
        if setups.iter().all(|setup| !setup.sealing) {
            client.login(User::Guest).context("a guest")?;
        }
        let mut stranger = client.begin_login(User::STRANGER, 0)?;
        let status = client.finish_login(&mut stranger)?;
        ensure!(status == Status::REQUEST_NOT_ACCEPTED, "{dialect:?}: the stranger got {status:x?}");
        second.goes_on(client)?;
        seconds.push(second);
    }
    let all = clients.len() * 2;
    fail_over(&mut rig, all)?;
    for ((dialect, client, first), second) in clients.iter_mut().zip(&seconds) {
        first.goes_on(client).with_context(|| format!("{dialect:?}, the first user"))?;
        second.goes_on(client).with_context(|| format!("{dialect:?}, the second user"))?;
        client.log_off(second.file.at.session).context("logging off")?;
        first.goes_on(client)?;
    }
    let sessions = rig.metric("sessions{protection=\"ntlm\"}")?;
    ensure!(sessions == f64::from(u32::try_from(clients.len())?), "{sessions} sessions are counted");
    for ((_, client, _), second) in clients.iter_mut().zip(&seconds) {
        is_over(client, second)?;
    }
    Ok(Report::default())
}

/// One client; `takeovers` counts those of its rig.
fn reauth_of(rig: &mut Rig, setup: &Setup, takeovers: &mut usize) -> Result<()> {
    let mut client = Client::connect(&rig.net, FLOATING, setup)?;
    let session = client.login(User::KNOWN)?;
    let work = Work::begin(&mut client, session, "work.bin")?;
    let status = client.reauthenticate(session, User::KNOWN)?;
    ensure!(status == Status::SUCCESS, "in Relay: {status:x?}");
    work.goes_on(&mut client)?;
    for user in [User::KNOWN, User::SECOND, User::KNOWN] {
        *takeovers += 1;
        fail_over(rig, *takeovers)?;
        work.goes_on(&mut client)?;
        let status = client.reauthenticate(session, user)?;
        ensure!(status == Status::SUCCESS, "as {user:?} in Bridge: {status:x?}");
        work.goes_on(&mut client)?;
    }
    // Whoever fails has no session any more, and holds nothing.
    let mut exchange = half_way(&mut client, User::KNOWN, session)?;
    forge(&mut exchange)?;
    let id = client.send_login(&mut exchange)?;
    let status = client.take_login(&mut exchange, id)?;
    ensure!(status == Status::LOGON_FAILURE, "a forged proof got {status:x?}");
    let mut other = Client::connect(&rig.net, FLOATING, setup)?;
    let second = other.login(User::SECOND)?;
    let held = Work::begin(&mut other, second, "work.bin").context("what was open is still open")?;
    held.goes_on(&mut other)?;
    is_over(&mut client, &work)
}

/// Nothing is to be had by a session that has ended. Who seals in its name is of no session, and is disconnected
/// (MS-SMB2 3.3.5.2.1.1).
pub(super) fn is_over(client: &mut Client, work: &Work) -> Result<()> {
    match work.status(client) {
        Ok(Status::USER_SESSION_DELETED) => Ok(()),
        Err(_) if client.is_sealing() => client.wait_for_end().map(|_| ()),
        other => bail!("a session is still there: {other:x?}"),
    }
}

/// A login of which the node has asked for more.
fn half_way(client: &mut Client, user: User<'_>, session: u64) -> Result<Exchange> {
    let mut exchange = client.begin_login(user, session)?;
    let id = client.send_login(&mut exchange)?;
    let status = client.take_login(&mut exchange, id)?;
    ensure!(status == Status::MORE_PROCESSING_REQUIRED, "the first token got {status:x?}");
    Ok(exchange)
}

/// Breaks the NTLMv2 proof: the first byte of NtChallengeResponse (MS-NLMP 2.2.1.3).
fn forge(exchange: &mut Exchange) -> Result<()> {
    let start = exchange.token.windows(8).position(|w| w == b"NTLMSSP\0").context("no NTLM message")?;
    let field = exchange.token.get(start + 24..start + 28).context("no NtChallengeResponse")?;
    let offset = usize::try_from(u32::from_le_bytes(field.try_into()?))?;
    *exchange.token.get_mut(start + offset).context("no NtChallengeResponse")? ^= 1;
    Ok(())
}

/// No tree is to be had by a session that is none.
pub(super) fn is_no_session(client: &mut Client, session: u64) -> Result<()> {
    let path = utf16(&format!("\\\\{FLOATING}\\share"));
    let at = At { session, tree: 0 };
    let answer = client.call(at, Command::TREE_CONNECT, 1, |header| encode::tree_connect(header, &path))?;
    ensure!(answer.status() == Status::USER_SESSION_DELETED, "it got a tree: {:x?}", answer.status());
    Ok(())
}

fn cut_by_death(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let session = client.login(User::KNOWN)?;
    let work = Work::begin(&mut client, session, "work.bin")?;
    // From Relay, then from Bridge: each kind of cut.
    for round in 0..2 {
        let mut takeovers = 3 * round;
        // The proof is not sent when the node dies.
        let mut cut = half_way(&mut client, User::SECOND, 0)?;
        takeovers += 1;
        fail_over(&mut rig, takeovers)?;
        let id = client.send_login(&mut cut)?;
        let status = client.take_login(&mut cut, id)?;
        ensure!(status == Status::USER_SESSION_DELETED, "round {round}: the rest of a login got {status:x?}");
        is_no_session(&mut client, cut.session)?;
        work.goes_on(&mut client)?;
        // The proof is sent and not answered; a forged one likewise.
        let mut cut = half_way(&mut client, User::SECOND, 0)?;
        if round == 1 {
            forge(&mut cut)?;
        }
        frozen(&rig)?;
        let id = client.send_login(&mut cut)?;
        takeovers += 1;
        fail_over(&mut rig, takeovers)?;
        let status = client.take_login(&mut cut, id)?;
        ensure!(status == Status::USER_SESSION_DELETED, "round {round}: a proof in flight got {status:x?}");
        is_no_session(&mut client, cut.session)?;
        work.goes_on(&mut client)?;
        // Nothing is answered yet: it begins on the next node.
        frozen(&rig)?;
        let mut fresh = client.begin_login(User::SECOND, 0)?;
        let id = client.send_login(&mut fresh)?;
        takeovers += 1;
        fail_over(&mut rig, takeovers)?;
        let status = client.take_login(&mut fresh, id)?;
        ensure!(status == Status::MORE_PROCESSING_REQUIRED, "round {round}: a beginning got {status:x?}");
        let status = client.finish_login(&mut fresh)?;
        ensure!(status == Status::SUCCESS, "round {round}: the login came to {status:x?}");
        client.log_off(fresh.session)?;
        work.goes_on(&mut client)?;
    }
    // Forged, cut short, and of another exchange, on a living node.
    for fault in 0..3 {
        let mut exchange = half_way(&mut client, User::SECOND, 0)?;
        match fault {
            0 => forge(&mut exchange)?,
            1 => exchange.token.truncate(exchange.token.len() / 2),
            _ => {
                // The proof answers the challenge of a login that has ended well.
                let token = exchange.token.clone();
                let status = client.finish_login(&mut exchange)?;
                ensure!(status == Status::SUCCESS, "a login came to {status:x?}");
                client.log_off(exchange.session)?;
                exchange = half_way(&mut client, User::SECOND, 0)?;
                exchange.token = token;
            }
        }
        // A node may wait for the rest of a token that is cut short.
        let id = client.send_login(&mut exchange)?;
        let status = client.wait(id)?.status();
        ensure!(status.is_error(), "fault {fault} got {status:x?}");
        is_no_session(&mut client, exchange.session)?;
    }
    work.goes_on(&mut client)?;
    // The process that serves the client stands still, and the judge's connection with it; then it dies, and its node
    // lives on.
    let process = rig.nodes.get(rig.serving()?).and_then(|node| node.pid_with(&rig.data().join("work.bin")));
    let process = process.context("no process has the file open")?;
    kill_process(process, Signal::STOP)?;
    let mut fresh = client.begin_login(User::SECOND, 0)?;
    let id = client.send_login(&mut fresh)?;
    kill_process(process, Signal::KILL)?;
    let status = client.take_login(&mut fresh, id)?;
    ensure!(status == Status::MORE_PROCESSING_REQUIRED, "on a leg that was lost: {status:x?}");
    let second = client.complete(&mut fresh)?;
    Work::begin(&mut client, second, "second.bin")?.goes_on(&mut client)?;
    work.goes_on(&mut client)?;
    Ok(Report::default())
}

fn dies_in_login(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    for (round, dialect) in DIALECTS.into_iter().enumerate() {
        let setup = Setup { dialect, ..Setup::default() };
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let theirs = Setup { dialect, ..Setup::default() };
        let mut stranger = Client::connect(&rig.net, FLOATING, &theirs)?;
        frozen(&rig)?;
        let mut login = client.begin_login(User::KNOWN, 0)?;
        let mut theirs = stranger.begin_login(User::STRANGER, 0)?;
        let asked = rig.metric(LOGINS_ASKED)?;
        let (id, their_id) = (client.send_login(&mut login)?, stranger.send_login(&mut theirs)?);
        rig.await_metric(LOGINS_ASKED, asked + 2.0)?;
        fail_over(&mut rig, 2 * (round + 1))?;
        let status = client.take_login(&mut login, id)?;
        ensure!(status == Status::MORE_PROCESSING_REQUIRED, "{dialect:?}: {status:x?}");
        let session = client.complete(&mut login).with_context(|| format!("{dialect:?}"))?;
        Work::begin(&mut client, session, "work.bin")?.goes_on(&mut client)?;
        client.log_off(session)?;
        // Whom the proxy does not know cannot be served like this: they are to connect again, and do.
        let status = stranger.take_login(&mut theirs, their_id)?;
        ensure!(status == Status::MORE_PROCESSING_REQUIRED, "{dialect:?}: the stranger got {status:x?}");
        let their_id = stranger.send_login(&mut theirs)?;
        let answer = stranger.wait(their_id).ok().map(|answer| answer.status());
        ensure!(answer.is_none(), "{dialect:?}: the stranger got {answer:x?}");
        Client::connect(&rig.net, FLOATING, &setup)?.enter(User::STRANGER, "share")?;
    }
    Ok(Report::default())
}

/// The serving node stands still before it can answer.
fn frozen(rig: &Rig) -> Result<()> {
    let serving = rig.serving()?;
    rig.nodes.get(serving).context("no such node")?.freeze(true);
    Ok(())
}

fn guest_refused(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut client = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let first = client.login(User::KNOWN)?;
    let first = Work::begin(&mut client, first, "first.bin")?;
    let second = client.login(User::SECOND)?;
    let second = Work::begin(&mut client, second, "second.bin")?;
    let mut alone = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let session = alone.login(User::KNOWN)?;
    Work::begin(&mut alone, session, "alone.bin")?;
    let other = rig.nodes.get(1 - rig.serving()?).context("no such node")?;
    other.remove_user(USER)?;
    rig.kill_serving()?;
    second.goes_on(&mut client).context("the user whom the node knows")?;
    let status = first.status(&mut client)?;
    ensure!(status == Status::USER_SESSION_DELETED, "the user whom it does not know got {status:x?}");
    alone.wait_for_end()?;
    ensure!(rig.metric("client_closed_total{reason=\"takeover_failed\"}")? == 1.0, "not counted");
    // Nor do they get a new session there, as a guest or otherwise.
    let mut again = client.begin_login(User::KNOWN, 0)?;
    let status = client.finish_login(&mut again)?;
    ensure!(status == Status::REQUEST_NOT_ACCEPTED, "a further login got {status:x?}");
    second.goes_on(&mut client)?;
    Ok(Report::default())
}

fn previous_session(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut first = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let session = first.login(User::KNOWN)?;
    let mut work = Work::begin(&mut first, session, "work.bin")?;
    for after_takeover in [true, false] {
        if after_takeover {
            fail_over(&mut rig, 1)?;
        }
        // Another user says the same: nothing happens.
        let mut other = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let mut exchange = other.begin_login(User::SECOND, 0)?;
        exchange.previous = work.file.at.session;
        let others = other.complete(&mut exchange)?;
        work.goes_on(&mut first).context("another user has named the session")?;
        // The user comes back, and has the file to themselves again.
        let mut again = Client::connect(&rig.net, FLOATING, &Setup::default())?;
        let mut exchange = again.begin_login(User::KNOWN, 0)?;
        exchange.previous = work.file.at.session;
        let session = again.complete(&mut exchange)?;
        let next = Work::begin(&mut again, session, "work.bin").context("the file is still held")?;
        is_over(&mut first, &work)?;
        next.goes_on(&mut again)?;
        other.log_off(others)?;
        let sessions = rig.metric("sessions{protection=\"ntlm\"}")?;
        ensure!(sessions == 1.0, "{sessions} sessions are counted, after a takeover: {after_takeover}");
        (first, work) = (again, next);
    }
    Ok(Report::default())
}

fn validated(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let mut clients = Vec::new();
    for dialect in DIALECTS.into_iter().filter(|d| *d < Dialect::SMB311) {
        let mut client = Client::connect(&rig.net, FLOATING, &Setup { dialect, ..Setup::default() })?;
        let at = client.enter(User::KNOWN, "share")?;
        client.validate_negotiate(at).with_context(|| format!("{dialect:?} in Relay"))?;
        clients.push((dialect, client, at));
    }
    fail_over(&mut rig, clients.len())?;
    for (dialect, client, at) in &mut clients {
        client.validate_negotiate(*at).with_context(|| format!("{dialect:?} in Bridge"))?;
        client.echo(*at)?;
    }
    Ok(Report::default())
}
