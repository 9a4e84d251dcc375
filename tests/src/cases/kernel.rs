//! A kernel mount that outlives its nodes.

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Report, Scale};
use crate::rig::{
    Rig, Site,
    copy::{sha256, write_noise},
    kernel::Guest,
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
        name: "kernel-crash-soft",
        shows: "dd and small files on a kernel mount survive kill -9 of each node in turn, unnoticed",
        soak: 10,
        run: |scale| crash(scale, "vers=3.1.1,sign,soft"),
    },
    Case {
        name: "kernel-crash-hard",
        shows: "the same on a hard mount",
        soak: 10,
        run: |scale| crash(scale, "vers=3.1.1,sign,hard"),
    },
];

const SMALL_FILES: usize = 500;

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
    let rig = Rig::new(&Site::default())?;
    fs::write(rig.data().join("hello"), "hello\n")?;
    let guest = Guest::boot(
        &rig,
        "vers=3.1.1,sign",
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

fn crash(scale: &Scale, options: &str) -> Result<Report> {
    let mut rig = Rig::new(&Site::default())?;
    let data = rig.data();
    make_small_files(&data)?;
    write_noise(&data.join("down.bin"), scale.copy)?;
    let results = Guest::prepare(&rig)?;
    write_noise(&results.join("up.bin"), scale.copy)?;
    let mut guest = Guest::boot(&rig, options, COPIES_AND_SMALL_FILES)?;

    guest.until("a third has been written", |_| {
        fs::metadata(data.join("up.bin")).is_ok_and(|m| m.len() >= scale.copy / 3)
    })?;
    let mut dead = vec![kill_and_restart(&mut rig)?];
    guest.until("the upload ends", |g| g.has_said("done upload"))?;

    let before = sent_to_client(&rig)?;
    guest.allow("ready-for-download")?;
    let third = scale.copy as f64 / 3.0;
    guest.until("a third has been read", |_| sent_to_client(&rig).is_ok_and(|now| now >= before + third))?;
    dead.push(kill_and_restart(&mut rig)?);
    guest.until("the download ends", |g| g.has_said("done download"))?;

    for round in 0..2 {
        guest.allow(&format!("ready-for-round-{}", round + 1))?;
        let some = round * SMALL_FILES + SMALL_FILES / 3;
        guest.until("a third of the files has been read", |g| g.count(": OK") >= some)?;
        dead.push(kill_and_restart(&mut rig)?);
    }
    guest.finish()?.noticed_nothing()?;

    ensure!(dead.windows(2).all(|pair| pair[0] != pair[1]), "not each node was killed in turn: {dead:?}");
    let lost = "understudy_takeover_opens_total{result=\"lost\"}";
    ensure!(rig.proxy.metrics(&rig.net)?.get(lost) == Some(&0.0), "opens were lost");
    ensure!(sha256(&results.join("up.bin"))? == sha256(&data.join("up.bin"))?, "the upload differs");
    ensure!(sha256(&results.join("down.bin"))? == sha256(&data.join("down.bin"))?, "the download differs");
    Ok(Report { stall_ms: None, notes: vec![format!("takeovers: {} ms", takeovers(&rig))] })
}

/// How long each takeover took, in milliseconds.
fn takeovers(rig: &Rig) -> String {
    let took: Vec<String> =
        rig.proxy.log().iter().filter_map(|l| Some(format!("{:.0}", l.get("total_ms")?.as_f64()?))).collect();
    took.join(", ")
}

/// Kills the node that serves and starts it again. It is not needed again before it is known to be up.
fn kill_and_restart(rig: &mut Rig) -> Result<usize> {
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

fn sent_to_client(rig: &Rig) -> Result<f64> {
    let series = "understudy_bytes_total{direction=\"to_client\"}";
    rig.proxy.metrics(&rig.net)?.get(series).copied().context("no such series")
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
