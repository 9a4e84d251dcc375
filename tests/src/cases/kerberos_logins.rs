//! Logins by Kerberos on a connection that has been taken over, and tokens in no wrapping.

use anyhow::{Context, Result, ensure};
use smb_parse::header::Status;
use understudy_core::{auth::spnego, crypto::Dialect};

use super::{
    Case, Report, Scale,
    kerberos::site,
    logins::{DIALECTS, Work, fail_over, is_no_session, is_over, sealing},
};
use crate::{
    client::{Client, Exchange, Setup, User},
    rig::{
        Rig,
        net::FLOATING,
        node::{STRANGER, USER},
        realm::{GHOST, Kind},
    },
};

const COUNTED: &str = "sessions{protection=\"kerberos\"}";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "krb-second-user-after-takeover",
        shows: "after a takeover further users log in by Kerberos on the same connection, and survive the next; every dialect, sealed too",
        soak: 5,
        run: second_user,
    },
    Case {
        name: "krb-reauth-after-takeover",
        shows: "sessions are authenticated anew by ticket and password after takeovers; a damaged AP-REQ ends one",
        soak: 5,
        run: reauth,
    },
    Case {
        name: "krb-raw-token",
        shows: "a login whose AP-REQ is in no SPNEGO survives a crash, and there is a further one after it; every dialect",
        soak: 3,
        run: raw,
    },
];

fn signed(dialect: Dialect) -> Setup {
    Setup { dialect, ..Setup::default() }
}

fn second_user(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    let realm = rig.realm()?;
    let node = rig.nodes.first().context("no node")?;
    let [alice, mallory, ghost] = [USER, STRANGER, GHOST].map(|user| realm.ticket(&rig.net, node, user));
    let [alice, mallory, ghost] = [alice?, mallory?, ghost?];
    let setups = DIALECTS.map(signed).into_iter().chain([Dialect::SMB300, Dialect::SMB311].map(sealing));
    let mut clients = Vec::new();
    for (index, setup) in setups.enumerate() {
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let session = client.login(User::Ticket(&alice))?;
        let first = Work::begin(&mut client, session, &format!("first-{index}"))?;
        let refusal = client.begin_login(User::Ticket(&ghost), 0)?;
        let refusal = refused(&mut client, refusal)?;
        clients.push((setup.dialect, client, first, refusal));
    }
    fail_over(&mut rig, clients.len())?;
    let mut seconds = Vec::new();
    for (index, (dialect, client, first, refusal)) in clients.iter_mut().enumerate() {
        // Of the second user no hash is known. Of the third, who has one, the password is asked.
        let session = client.login(User::Ticket(&mallory)).with_context(|| format!("{dialect:?}"))?;
        ensure!(session != first.file.at.session, "two sessions have one id");
        let second = Work::begin(client, session, &format!("second-{index}"))?;
        let third = client.login(User::SECOND).with_context(|| format!("{dialect:?}, by NTLM"))?;
        client.log_off(third)?;
        let again = client.begin_login(User::Ticket(&ghost), 0)?;
        let again = refused(client, again)?;
        ensure!(again == *refusal, "{dialect:?}: whom no node knows got {again:x?}, in Relay {refusal:x?}");
        first.goes_on(client)?;
        seconds.push(second);
    }
    let count = clients.len();
    let counted = rig.metric(COUNTED)?;
    ensure!(counted == 2.0 * f64::from(u32::try_from(count)?), "{counted} sessions are counted");
    fail_over(&mut rig, 2 * count)?;
    for ((dialect, client, first, _), second) in clients.iter_mut().zip(&seconds) {
        first.goes_on(client).with_context(|| format!("{dialect:?}, the first user"))?;
        second.goes_on(client).with_context(|| format!("{dialect:?}, the second user"))?;
        client.log_off(second.file.at.session).context("logging off")?;
        first.goes_on(client)?;
    }
    let counted = rig.metric(COUNTED)?;
    ensure!(counted == f64::from(u32::try_from(count)?), "{counted} sessions are counted");
    for ((_, client, ..), second) in clients.iter_mut().zip(&seconds) {
        is_over(client, second)?;
    }
    Ok(Report::default())
}

/// A login that a node refuses.
fn refused(client: &mut Client, mut exchange: Exchange) -> Result<Status> {
    let status = client.finish_login(&mut exchange)?;
    ensure!(status.is_error(), "{status:x?}");
    Ok(status)
}

fn reauth(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    let realm = rig.realm()?;
    let node = rig.nodes.first().context("no node")?;
    let [alice, mallory] = [USER, STRANGER].map(|user| realm.ticket(&rig.net, node, user));
    let (alice, mallory) = (alice?, mallory?);
    let users = [User::Ticket(&alice), User::Ticket(&mallory), User::KNOWN, User::Ticket(&alice)];
    let mut takeovers = 0;
    for setup in
        [signed(Dialect::SMB210), signed(Dialect::SMB302), signed(Dialect::SMB311), sealing(Dialect::SMB311)]
    {
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let session = client.login(User::Ticket(&alice))?;
        let work = Work::begin(&mut client, session, "work.bin")?;
        let status = client.reauthenticate(session, User::Ticket(&alice))?;
        ensure!(status == Status::SUCCESS, "{:?}, in Relay: {status:x?}", setup.dialect);
        for user in users {
            takeovers += 1;
            fail_over(&mut rig, takeovers)?;
            work.goes_on(&mut client)?;
            let status = client.reauthenticate(session, user)?;
            ensure!(status == Status::SUCCESS, "{:?}, as {user:?} in Bridge: {status:x?}", setup.dialect);
            work.goes_on(&mut client)?;
        }
        // Whoever fails has no session any more, and holds nothing.
        let mut exchange = client.begin_login(User::Ticket(&alice), session)?;
        damage(&mut exchange)?;
        refused(&mut client, exchange)?;
        let mut other = Client::connect(&rig.net, FLOATING, &setup)?;
        let second = other.login(User::SECOND)?;
        let held = Work::begin(&mut other, second, "work.bin").context("what was open is still open")?;
        held.goes_on(&mut other)?;
        is_over(&mut client, &work)?;
    }
    Ok(Report::default())
}

/// Breaks the proof: its checksum is the end of the authenticator, which is the end of all.
fn damage(exchange: &mut Exchange) -> Result<()> {
    *exchange.token.last_mut().context("no token")? ^= 1;
    Ok(())
}

/// A login with the mechanism's own token.
fn begin_raw(client: &Client, user: User<'_>) -> Result<Exchange> {
    let mut exchange = client.begin_login(user, 0)?;
    exchange.token = spnego::unwrap(&exchange.token).token.context("no mechanism's token")?.to_vec();
    Ok(exchange)
}

fn raw(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    let realm = rig.realm()?;
    let node = rig.nodes.first().context("no node")?;
    let [alice, mallory] = [USER, STRANGER].map(|user| realm.ticket(&rig.net, node, user));
    let (alice, mallory) = (alice?, mallory?);
    let mut clients = Vec::new();
    for dialect in DIALECTS {
        let mut client = Client::connect(&rig.net, FLOATING, &signed(dialect))?;
        let mut login = begin_raw(&client, User::Ticket(&alice))?;
        let session = client.complete(&mut login)?;
        let first = Work::begin(&mut client, session, &format!("first-{:x}", dialect.0))?;
        clients.push((dialect, client, first));
    }
    let count = clients.len();
    let counted = rig.metric(COUNTED)?;
    ensure!(counted == f64::from(u32::try_from(count)?), "{counted} sessions are protected");
    fail_over(&mut rig, count)?;
    let mut seconds = Vec::new();
    for (dialect, client, first) in &mut clients {
        first.goes_on(client).with_context(|| format!("{dialect:?}"))?;
        let mut broken = begin_raw(client, User::Ticket(&mallory))?;
        damage(&mut broken)?;
        let id = client.send_login(&mut broken)?;
        let answer = client.wait(id)?;
        ensure!(answer.status().is_error(), "{dialect:?}: a damaged one got {:x?}", answer.status());
        is_no_session(client, answer.header.session_id)?;
        let mut login = begin_raw(client, User::Ticket(&mallory))?;
        let session = client.complete(&mut login).with_context(|| format!("{dialect:?} in Bridge"))?;
        seconds.push(Work::begin(client, session, &format!("second-{:x}", dialect.0))?);
    }
    fail_over(&mut rig, 2 * count)?;
    for ((dialect, client, first), second) in clients.iter_mut().zip(&seconds) {
        first.goes_on(client).with_context(|| format!("{dialect:?}, the first user"))?;
        second.goes_on(client).with_context(|| format!("{dialect:?}, the second user"))?;
    }
    Ok(Report::default())
}
