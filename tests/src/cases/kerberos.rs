//! Users who log in with Kerberos.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Case, Report, Scale,
    copies::{FILE, TAKEN_OVER, crash_at, survive, survive_one},
};
use crate::{
    client::{Client, FILE_OPEN_IF, Open, Setup, User},
    rig::{
        Rig, Site,
        copy::{Copy, Fault, Way, Who, gave_up},
        net::FLOATING,
        node::{PASSWORD, STRANGER, USER},
        realm::{Cache, GHOST, KEYTAB, Kind, NAME, REALM, STALE_KEYTAB, WRONG_KEYTAB},
    },
};

const SEALED: Who = Who { protection: "encrypt", ..Who::KERBEROS };

const fn signed(dialect: &'static str) -> Who {
    Who { dialect, ..Who::KERBEROS }
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kerberos-mit-realm",
        shows: "a client copies with a ticket for the floating name, and the service's key can be changed",
        soak: 1,
        run: |scale| realm(scale, Kind::Mit),
    },
    Case {
        name: "kerberos-ad-realm",
        shows: "the same with Samba's domain controller, and two nodes that are members under one account",
        soak: 1,
        run: |scale| realm(scale, Kind::Ad),
    },
    Case {
        name: "krb-mit-signed",
        shows: "get and put as a Kerberos user, signed, survive kill -9 of the serving node",
        soak: 20,
        run: |scale| crash_at(&site(Kind::Mit), scale, &Who::KERBEROS),
    },
    Case {
        name: "krb-mit-sealed",
        shows: "the same, sealed",
        soak: 20,
        run: |scale| crash_at(&site(Kind::Mit), scale, &SEALED),
    },
    Case {
        name: "krb-ad-signed",
        shows: "the same, signed, in an Active Directory domain",
        soak: 20,
        run: |scale| crash_at(&site(Kind::Ad), scale, &Who::KERBEROS),
    },
    Case {
        name: "krb-ad-sealed",
        shows: "the same, sealed",
        soak: 20,
        run: |scale| crash_at(&site(Kind::Ad), scale, &SEALED),
    },
    Case {
        name: "krb-mit-3.0.2-signed",
        shows: "the same of an MIT realm on SMB 3.0.2, signed",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &signed("SMB3_02")),
    },
    Case {
        name: "krb-mit-3.0-signed",
        shows: "the same on SMB 3.0",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &signed("SMB3_00")),
    },
    Case {
        name: "krb-mit-2.1-signed",
        shows: "the same on SMB 2.1",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &signed("SMB2_10")),
    },
    Case {
        name: "krb-mit-2.0.2-signed",
        shows: "the same on SMB 2.0.2",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &signed("SMB2_02")),
    },
    Case {
        name: "krb-mit-3.0-sealed",
        shows: "the same on SMB 3.0, sealed",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &Who { protection: "encrypt", ..signed("SMB3_00") }),
    },
    Case {
        name: "krb-mit-aes128",
        shows: "the same on SMB 3.1.1 with a service key for AES-128",
        soak: 3,
        run: |scale| encryption_type(scale, "aes128-cts-hmac-sha1-96"),
    },
    Case {
        name: "krb-mit-rc4",
        shows: "the same with a service key for RC4",
        soak: 3,
        run: |scale| encryption_type(scale, "arcfour-hmac"),
    },
    Case {
        name: "krb-not-in-smbpasswd",
        shows: "a Kerberos user of whom the smbpasswd file knows nothing is protected all the same",
        soak: 3,
        run: |scale| crash_at(&site(Kind::Mit), scale, &Who { user: Some(STRANGER), ..Who::KERBEROS }),
    },
    Case {
        name: "krb-keytab-rotated",
        shows: "the service gets a new key during a copy; that copy, and one with a ticket for the new key, survive a crash",
        soak: 5,
        run: |scale| rotated(scale, Kind::Mit),
    },
    Case {
        name: "krb-ad-password-changed",
        shows: "the same with the password of the nodes' account in a domain",
        soak: 5,
        run: |scale| rotated(scale, Kind::Ad),
    },
    Case {
        name: "krb-no-keytab",
        shows: "without a keytab a Kerberos login is passed on, counted and logged, and lost with its node, alone",
        soak: 3,
        run: |scale| unprotected(&Site { keytab: None, ..site(Kind::Mit) }, scale, "no_keytab"),
    },
    Case {
        name: "krb-stale-keytab",
        shows: "the same with a keytab that has only a former key",
        soak: 3,
        run: |scale| {
            unprotected(&Site { keytab: Some(STALE_KEYTAB), ..site(Kind::Mit) }, scale, "service_key")
        },
    },
    Case {
        name: "krb-wrong-keytab",
        shows: "the same with a keytab that has another key under the right number",
        soak: 3,
        run: |scale| unprotected(&Site { keytab: Some(WRONG_KEYTAB), ..site(Kind::Mit) }, scale, "ticket"),
    },
    Case {
        name: "krb-clock",
        shows: "the same with a proxy whose clock is ten minutes ahead",
        soak: 3,
        run: |scale| unprotected(&Site { clock: Some("+10m"), ..site(Kind::Mit) }, scale, "clock"),
    },
    Case {
        name: "krb-expiry-after-crash",
        shows: "a session ends on the new node with its ticket, and is authenticated anew there, twice (smbtorture)",
        soak: 3,
        run: expiry,
    },
    Case {
        name: "krb-user-unknown",
        shows: "a Kerberos user whom no node knows is refused as by the node, and nobody else is disturbed",
        soak: 3,
        run: unknown,
    },
];

/// A site with a realm, and a proxy that has the keytab of the nodes.
pub(super) fn site(kind: Kind) -> Site {
    Site { realm: Some(kind), keytab: Some(KEYTAB), ..Site::default() }
}

/// A proxy without keytab passes the login on, as it passes everything.
fn realm(scale: &Scale, kind: Kind) -> Result<Report> {
    let mut rig = Rig::new(&Site { realm: Some(kind), ..Site::default() })?;
    let len = scale.copy.min(8 << 20);
    for way in [Way::Get, Way::Put] {
        Copy::start(&rig, &Who::KERBEROS, way, FILE, len)?.run(&mut rig, Vec::new())?;
        std::fs::remove_file(rig.data().join(FILE))?;
    }
    let tickets = rig.realm()?.log_in(&rig.net, USER)?;
    list(&rig, &tickets)?;
    let listed = tickets.list(&rig.net)?;
    ensure!(
        listed.contains(&format!("cifs/{NAME}@{REALM}")),
        "not by a ticket for the floating name: {listed}"
    );
    // A new key does not make old tickets void, for the nodes still have the old one.
    rig.realm()?.rotate(&rig.nodes)?;
    list(&rig, &tickets)?;
    list(&rig, &rig.realm()?.log_in(&rig.net, USER)?)?;
    Ok(Report::default())
}

/// Lists the share with these tickets.
fn list(rig: &Rig, tickets: &Cache) -> Result<()> {
    let output = tickets
        .smbclient(&rig.net)
        .arg(format!("//{NAME}/share"))
        .args(Who::KERBEROS.arguments())
        .args(["-c", "ls"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "smbclient: {}", said.trim());
    Ok(())
}

/// Tickets are for the service's newest key.
fn encryption_type(scale: &Scale, name: &str) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    rig.realm()?.rotate_to(name)?;
    let tickets = rig.realm()?.log_in(&rig.net, USER)?;
    list(&rig, &tickets)?;
    let listed = tickets.list(&rig.net)?;
    let service = listed.lines().skip_while(|line| !line.contains(NAME)).nth(1).unwrap_or_default();
    ensure!(service.contains(name), "the ticket is of another type: {listed}");
    survive(&mut rig, scale, &|rig, way| Copy::start(rig, &Who::KERBEROS, way, FILE, scale.copy))
}

fn rotated(scale: &Scale, kind: Kind) -> Result<Report> {
    let mut rig = Rig::new(&site(kind))?;
    // A change of the key must be over before the copy is.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(if kind == Kind::Ad { 10 } else { 3 }))?;
    let rotation = Fault::at(scale.copy / 8, |rig| rig.realm()?.rotate(&rig.nodes));
    let start = |rig: &Rig, way| Copy::start(rig, &Who::KERBEROS, way, FILE, scale.copy);
    survive_one(&mut rig, scale, Way::Get, &start, Some(rotation))?;
    rig.net.stretch_copies(scale.copy, Duration::from_secs(2))?;
    let outcome = survive_one(&mut rig, scale, Way::Put, &start, None)?;
    Ok(Report { stalls_ms: vec![outcome.stall.as_millis()], ..Report::default() })
}

/// A copy by a login that the proxy cannot act for, and beside it a user whom it can.
fn unprotected(site: &Site, scale: &Scale, reason: &str) -> Result<Report> {
    let mut rig = Rig::new(site)?;
    let mut other = Client::connect(&rig.net, FLOATING, &Setup::default())?;
    let at = other.enter(User::KNOWN, "share")?;
    let file = other.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of("theirs.bin") })?;
    other.write(file, 0, b"before")?;

    // It must not be over before its node is dead.
    rig.net.stretch_copies(scale.copy, Duration::from_secs(3))?;
    let copy = Copy::start(&rig, &Who::KERBEROS, Way::Put, FILE, scale.copy)?;
    let kill = Fault::at(scale.copy / 3, |rig| {
        let shown = rig.metric(&format!("sessions{{protection=\"{reason}\"}}"))?;
        ensure!(shown == 1.0, "{shown} sessions are shown as unprotected for this reason: {reason}");
        rig.kill_serving().map(drop)
    });
    let error = copy.run(&mut rig, vec![kill]).err().context("the copy ended well")?;
    ensure!(gave_up(&error), "{error:#}");
    rig.await_metric("client_closed_total{reason=\"unprotected\"}", 1.0)?;
    ensure!(rig.metric("client_closed_total{reason=\"unprotected\"}")? == 1.0, "not counted as disconnected");
    let counted = rig.metric(&format!("unprotected_sessions_total{{reason=\"{reason}\"}}"))?;
    ensure!(counted == 1.0, "{counted} sessions were counted as unprotected for this reason: {reason}");
    let told =
        rig.proxy.log().into_iter().any(|line| line["level"] == "WARN" && line["protection"] == reason);
    ensure!(told, "no warning gives this reason: {reason}");

    ensure!(other.read(file, 0, 6)? == b"before", "the protected user reads something else");
    other.write(file, 6, b"after").context("writing as the protected user")?;
    // A further login is passed on like the first.
    Copy::start(&rig, &Who::KERBEROS, Way::Put, "after.bin", 1 << 20)?.run(&mut rig, Vec::new())?;
    Ok(Report::default())
}

fn unknown(scale: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    let tickets = rig.realm()?.log_in(&rig.net, GHOST)?;
    let refusal = Fault::at(scale.copy / 8, |rig| {
        let refused = list(rig, &tickets).err().context("a user whom no node knows was let in")?;
        ensure!(format!("{refused:#}").contains("session setup failed"), "not as by the node: {refused:#}");
        ensure!(
            rig.metric("sessions{protection=\"kerberos\"}")? == 1.0,
            "a refused login is shown as a session"
        );
        Ok(())
    });
    rig.net.stretch_copies(scale.copy, Duration::from_secs(2))?;
    let copy = Copy::start(&rig, &Who::KERBEROS, Way::Get, FILE, scale.copy)?;
    let kill = Fault::at(scale.copy / 3, |rig| rig.kill_serving().map(drop));
    copy.run(&mut rig, vec![refusal, kill])?;
    ensure!(rig.metric("connections_total")? == 2.0, "the client connected more than once");
    ensure!(rig.metric(TAKEN_OVER)? == 1.0, "the copy was over before its node died");
    Ok(Report::default())
}

/// Samba's own test gets tickets for four seconds, and expects STATUS_NETWORK_SESSION_EXPIRED after ten, each time.
fn expiry(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    let tickets = rig.realm()?.log_in(&rig.net, USER)?;
    let child = tickets
        .samba(&rig.net, "smbtorture")
        .args([&format!("//{NAME}/share"), "--use-kerberos=required", "smb2.session.expire1s"])
        .arg(format!("-U{USER}%{PASSWORD}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting smbtorture")?;
    rig.await_metric("opens", 1.0)?;
    // Its file is to be deleted on close: no process of the node may get to that when the others die.
    rig.nodes.get(rig.serving()?).context("no such node")?.freeze(true);
    rig.kill_serving()?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("success: expire1s"), "smbtorture: {}", said.trim());
    ensure!(rig.metric("takeover_opens_total{result=\"reclaimed\"}")? == 1.0, "the file was not kept");
    ensure!(rig.metric("connections_total")? == 1.0, "the client connected more than once");
    Ok(Report::default())
}
