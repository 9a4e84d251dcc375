//! A kernel mount that outlives its nodes.

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale, kerberos::site};
use crate::rig::{
    Rig, Site,
    copy::{sha256, write_noise},
    kernel::{self, Guest},
    realm::Kind,
    wait_until,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kernel-mount",
        shows: "the Linux kernel mounts through the proxy, lists, reads and writes",
        soak: 1,
        run: mount,
    },
    Case {
        name: "kernel-multichannel",
        shows: "a mount that would have more channels gets none around the proxy, and works",
        soak: 1,
        run: multichannel,
    },
    Case {
        name: "kernel-crash-soft",
        shows: "dd and small files on a kernel mount survive kill -9 of each node in turn, unnoticed",
        soak: 10,
        run: |scale| crash(scale, &Site::default(), "vers=3.1.1,sign,soft", Death::Sudden),
    },
    Case {
        name: "kernel-crash-hard",
        shows: "the same on a hard mount",
        soak: 10,
        run: |scale| crash(scale, &Site::default(), "vers=3.1.1,sign,hard", Death::Sudden),
    },
    Case {
        name: "kernel-crash-unanswered",
        shows: "the same, with requests in flight at every death: the nodes fall silent a moment before",
        soak: 3,
        run: |scale| crash(scale, &Site::default(), "vers=3.1.1,sign,soft", Death::WithUnanswered),
    },
    Case {
        name: "kernel-crash-dialects",
        shows: "an upload and small files on mounts with SMB 2.1, 3.0 and 3.0.2 survive kill -9, unnoticed",
        soak: 3,
        run: dialects,
    },
    Case {
        name: "kernel-seal",
        shows: "dd and small files on a sealed kernel mount survive kill -9 of each node in turn, unnoticed",
        soak: 5,
        run: |scale| crash(scale, &Site::default(), "vers=3.1.1,seal,soft", Death::Sudden),
    },
    Case {
        name: "kernel-krb5",
        shows: "the same on a mount with sec=krb5, signed",
        soak: 5,
        run: |scale| crash(scale, &site(Kind::Mit), "vers=3.1.1,sign,soft", Death::Sudden),
    },
    Case {
        name: "kernel-krb5-realm",
        shows: "the Linux kernel mounts with a ticket, sealed too, lists, reads and writes",
        soak: 1,
        run: tickets,
    },
    Case {
        name: "krb-ticket-expired",
        shows: "a node dies after a ticket's end: the session is lost, for that reason, and the kernel gets a new ticket",
        soak: 3,
        run: expired,
    },
];

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    Sudden,
    /// Stopped first, and killed when the client has asked something more: its answer can never come.
    WithUnanswered,
}

const SMALL_FILES: usize = 500;
/// Copies that fill the guest's memory show its limits, not the proxy's.
const LARGEST: u64 = 256 << 20;

/// Two copies, then all small files twice; before each part the guest's caches are emptied, so that it asks again.
const COPIES_AND_SMALL_FILES: &str = r#"
forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }
try upload dd if="$results/up.bin" of="$share/up.bin" bs=1M conv=fsync
await ready-for-download
try download dd if="$share/down.bin" of="$results/down.bin" bs=1M conv=fsync
cd "$share/small"
for round in 1 2; do
    await "ready-for-round-$round"
    forget
    try list ls -l
    try stat stat *
    # Each line comes when its file has been read, for it goes to a terminal.
    try read eval 'sha256sum --check ../sums >/dev/tty1'
done
cd /
"#;

fn mount(_: &Scale) -> Result<Report> {
    use_a_little(&Site::default(), "vers=3.1.1,sign")
}

fn tickets(_: &Scale) -> Result<Report> {
    let site = Site { realm: Some(Kind::Mit), ..Site::default() };
    use_a_little(&site, "vers=3.1.1,sign")?;
    use_a_little(&site, "vers=3.1.1,seal")
}

fn use_a_little(site: &Site, options: &str) -> Result<Report> {
    let rig = Rig::new(site)?;
    fs::write(rig.data().join("hello"), "hello\n")?;
    let guest = Guest::boot(
        &rig,
        options,
        r#"
        try list ls -l "$share"
        try stat stat "$share/hello"
        try read grep -q hello "$share/hello"
        try write cp "$share/hello" "$share/copy"
        "#,
    )?;
    guest.finish()?.noticed_nothing()?;
    Ok(Report::default())
}

fn multichannel(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site::default())?;
    fs::write(rig.data().join("hello"), "hello\n")?;
    let mut guest = Guest::boot(
        &rig,
        "vers=3.1.1,sign,multichannel,max_channels=4",
        r#"
        try read grep -q hello "$share/hello"
        try write cp "$share/hello" "$share/copy"
        await ready
        try again cmp "$share/hello" "$share/copy"
        "#,
    )?;
    guest.until("it is mounted and written to", |g| g.has_said("done write"))?;
    for node in &rig.nodes {
        let output = rig.net.command(&node.name, "ss").args(["-Htn", "state", "established"]).output()?;
        let connections = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(!connections.contains(kernel::ADDRESS), "around the proxy: {connections}");
    }
    guest.allow("ready")?;
    guest.finish()?.noticed_nothing()?;
    let count = rig.metric("connections_total")?;
    Ok(Report { notes: vec![format!("{count} connections to the proxy")], ..Report::default() })
}

fn crash(scale: &Scale, site: &Site, options: &str, death: Death) -> Result<Report> {
    let len = scale.copy.min(LARGEST);
    let mut rig = Rig::new(site)?;
    let data = rig.data();
    make_small_files(&data)?;
    write_noise(&data.join("down.bin"), len)?;
    let results = Guest::prepare(&rig)?;
    write_noise(&results.join("up.bin"), len)?;
    let mut guest = Guest::boot(&rig, options, COPIES_AND_SMALL_FILES)?;

    guest.until("a third has been written", |_| {
        fs::metadata(data.join("up.bin")).is_ok_and(|m| m.len() >= len / 3)
    })?;
    let mut dead = vec![kill_and_restart(&mut rig, death)?];
    guest.until("the upload ends", |g| g.has_said("done upload"))?;

    let before = bytes(&rig, "to_client")?;
    guest.allow("ready-for-download")?;
    let third = len as f64 / 3.0;
    guest.until("a third has been read", |_| {
        bytes(&rig, "to_client").is_ok_and(|now| now >= before + third)
    })?;
    dead.push(kill_and_restart(&mut rig, death)?);
    guest.until("the download ends", |g| g.has_said("done download"))?;

    for round in 0..2 {
        guest.allow(&format!("ready-for-round-{}", round + 1))?;
        let some = round * SMALL_FILES + SMALL_FILES / 3;
        guest.until("a third of the files has been read", |g| g.count(": OK") >= some)?;
        dead.push(kill_and_restart(&mut rig, death)?);
    }
    guest.finish()?.noticed_nothing()?;

    ensure!(dead.windows(2).all(|pair| pair[0] != pair[1]), "not each node was killed in turn: {dead:?}");
    let metrics = rig.proxy.metrics(&rig.net)?;
    let taken = |series: &str| metrics.get(series).copied().unwrap_or_default();
    let requests =
        |result: &str| taken(&format!("understudy_takeover_requests_total{{result=\"{result}\"}}"));
    ensure!(taken("understudy_takeover_opens_total{result=\"lost\"}") == 0.0, "opens were lost");
    ensure!(requests("failed") == 0.0, "requests in flight were failed");
    ensure!(death == Death::Sudden || requests("replayed") >= 1.0, "no request was in flight");
    ensure!(sha256(&results.join("up.bin"))? == sha256(&data.join("up.bin"))?, "the upload differs");
    ensure!(sha256(&results.join("down.bin"))? == sha256(&data.join("down.bin"))?, "the download differs");
    Ok(Report { notes: vec![format!("takeovers: {} ms", takeovers(&rig))], ..Report::default() })
}

fn dialects(_: &Scale) -> Result<Report> {
    for version in ["2.1", "3.0", "3.0.2"] {
        dialect(version).with_context(|| format!("SMB {version}"))?;
    }
    Ok(Report::default())
}

fn dialect(version: &str) -> Result<()> {
    let mut rig = Rig::new(&Site::default())?;
    let data = rig.data();
    make_small_files(&data)?;
    let results = Guest::prepare(&rig)?;
    write_noise(&results.join("up.bin"), 32 << 20)?;
    let mut guest = Guest::boot(
        &rig,
        &format!("vers={version},sign"),
        r#"
        try upload dd if="$results/up.bin" of="$share/up.bin" bs=1M conv=fsync
        cd "$share/small"
        await ready
        try read eval 'sha256sum --check ../sums >/dev/tty1'
        cd /
        "#,
    )?;
    guest.until("a third has been written", |_| {
        fs::metadata(data.join("up.bin")).is_ok_and(|m| m.len() >= 10 << 20)
    })?;
    kill_and_restart(&mut rig, Death::Sudden)?;
    guest.allow("ready")?;
    guest.until("a third of the files has been read", |g| g.count(": OK") >= SMALL_FILES / 3)?;
    kill_and_restart(&mut rig, Death::Sudden)?;
    guest.finish()?.noticed_nothing()?;
    ensure!(sha256(&results.join("up.bin"))? == sha256(&data.join("up.bin"))?, "the upload differs");
    Ok(())
}

/// A ticket lasts so long in the case of one that ends.
const LIFETIME: Duration = Duration::from_secs(8);

fn expired(_: &Scale) -> Result<Report> {
    let mut rig = Rig::new(&site(Kind::Mit))?;
    rig.realm()?.limit_tickets(LIFETIME)?;
    fs::write(rig.data().join("hello"), "hello\n")?;
    let mut guest = Guest::boot(
        &rig,
        "vers=3.1.1,sign,hard",
        r#"
        try read grep -q hello "$share/hello"
        await ready
        echo 3 >/proc/sys/vm/drop_caches
        try read-again grep -q hello "$share/hello"
        try write cp "$share/hello" "$share/copy"
        await seen
        "#,
    )?;
    guest.until("the mount is used", |g| g.has_said("done read"))?;
    ensure!(rig.metric("sessions{protection=\"kerberos\"}")? == 1.0, "the session is not protected");
    // The mount lies idle, so that it is the crash that shows it.
    std::thread::sleep(LIFETIME);
    rig.kill_serving()?;
    rig.await_metric("sessions_lost_total{reason=\"ticket_expired\"}", 1.0)?;
    rig.await_log("the ticket has expired")?;
    guest.allow("ready")?;
    guest.until("the mount is used again", |g| g.has_said("done write"))?;
    // Samba takes an ended ticket for minutes, and ends its session at once: the kernel may try it first. The end of that
    // connection may be seen after the next has begun.
    wait_until("there is one session, with a new ticket", Duration::from_secs(10), || {
        rig.metric("sessions{protection=\"kerberos\"}").is_ok_and(|now| now == 1.0)
    })?;
    guest.allow("seen")?;
    guest.finish()?.no_program_failed()?;
    Ok(Report::default())
}

/// How long each takeover took, in milliseconds.
fn takeovers(rig: &Rig) -> String {
    let took: Vec<String> =
        rig.proxy.log().iter().filter_map(|l| Some(format!("{:.0}", l.get("total_ms")?.as_f64()?))).collect();
    took.join(", ")
}

/// Kills the node that serves and starts it again. It is not needed again before it is known to be up.
pub(super) fn kill_and_restart(rig: &mut Rig, death: Death) -> Result<usize> {
    if death == Death::WithUnanswered {
        let serving = rig.serving()?;
        rig.nodes.get(serving).context("no such node")?.freeze(true);
        let before = bytes(rig, "from_client")?;
        wait_until("the client asks a stopped node", Duration::from_secs(20), || {
            bytes(rig, "from_client").is_ok_and(|now| now > before)
        })?;
    }
    let dead = rig.kill_serving()?;
    let name = rig.nodes.get(dead).context("no such node")?.name.clone();
    let is_up = |rig: &Rig, up: f64| {
        let series = format!("understudy_node_up{{node=\"{name}\"}}");
        rig.proxy.metrics(&rig.net).is_ok_and(|m| m.get(&series) == Some(&up))
    };
    wait_until("the death is known", Duration::from_secs(20), || is_up(rig, 0.0))?;
    rig.restart(dead)?;
    wait_until("the node is known to be up again", Duration::from_secs(20), || is_up(rig, 1.0))?;
    Ok(dead)
}

/// Bytes that the proxy has exchanged with its clients.
fn bytes(rig: &Rig, direction: &str) -> Result<f64> {
    let series = format!("understudy_bytes_total{{direction=\"{direction}\"}}");
    rig.proxy.metrics(&rig.net)?.get(&series).copied().context("no such series")
}

/// Small files of different contents, and the list of their checksums beside them.
fn make_small_files(data: &Path) -> Result<()> {
    let small = data.join("small");
    fs::create_dir_all(&small)?;
    let mut sums = String::new();
    for index in 0..SMALL_FILES {
        let name = format!("file-{index:03}");
        let path = small.join(&name);
        fs::write(&path, format!("{name}\n").repeat(1 + index * 7 % 400))?;
        writeln!(sums, "{}  {name}", sha256(&path)?)?;
    }
    Ok(fs::write(data.join("sums"), sums)?)
}
