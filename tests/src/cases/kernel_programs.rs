//! Programs on kernel mounts that outlive their nodes: git, sqlite3 and tar, with what they do to files and names. The same
//! programs work on a local directory, and what comes of both must be equal.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Case, Report, Scale,
    kernel::{Death, kill_and_restart},
};
use crate::rig::{Rig, Site, kernel::Guest};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "programs-git",
        shows: "git clones, commits, moves, deletes and packs on a kernel mount while its nodes are killed: the same objects and files as on a local disk",
        soak: 5,
        run: |scale| programs(scale, &GIT),
    },
    Case {
        name: "programs-sqlite",
        shows: "pairs of sqlite3 write to one database, and two mounts count in one file, each with its own kind of lock, while the nodes are killed",
        soak: 5,
        run: |scale| programs(scale, &SQLITE),
    },
    Case {
        name: "programs-tar",
        shows: "tar extracts thousands of files on a kernel mount and archives them while its nodes are killed",
        soak: 5,
        run: |scale| programs(scale, &TAR),
    },
];

const SCRIPT: &str = include_str!("programs.sh");

/// What is run.
struct Programs {
    mounts: usize,
    /// Lines of the guest's workload: `program WHAT ARGUMENTS` of the script.
    workload: &'static str,
    /// The same on the host.
    local: &'static [&'static [&'static str]],
    quick: Size,
    soak: Size,
}

/// How much of it.
struct Size {
    variables: &'static str,
    /// How often all is done, each time in a directory of its own.
    rounds: usize,
    /// Between two deaths.
    rhythm: Duration,
    /// At least so many nodes have to die in the work.
    deaths: usize,
}

const SECOND: Duration = Duration::from_secs(1);
const RHYTHM: Duration = Duration::from_secs(5);

const GIT: Programs = Programs {
    mounts: 1,
    workload: "
        program clone
        program commit
    ",
    local: &[&["clone"], &["commit"]],
    quick: Size { variables: "FILES=100 COMMITS=1", rounds: 1, rhythm: SECOND, deaths: 2 },
    soak: Size { variables: "FILES=1000 COMMITS=6", rounds: 3, rhythm: RHYTHM, deaths: 12 },
};

const SQLITE: Programs = Programs {
    mounts: 2,
    workload: r#"
        program databases
        program write wal unix 1 &
        program write wal unix 2 &
        program write dot unix-dotfile 1 &
        program write dot unix-dotfile 2 &
        program count &
        share=$share2 program count &
        wait
    "#,
    local: &[
        &["databases"],
        &["write", "wal", "unix", "1"],
        &["write", "wal", "unix", "2"],
        &["write", "dot", "unix-dotfile", "1"],
        &["write", "dot", "unix-dotfile", "2"],
        &["count"],
        &["count"],
    ],
    quick: Size { variables: "ROWS=12", rounds: 1, rhythm: SECOND, deaths: 2 },
    soak: Size { variables: "ROWS=80", rounds: 3, rhythm: RHYTHM, deaths: 12 },
};

const TAR: Programs = Programs {
    mounts: 1,
    workload: "
        program extract
        forget
        program archive
    ",
    local: &[&["extract"], &["archive"]],
    quick: Size { variables: "FILES=600", rounds: 1, rhythm: SECOND, deaths: 2 },
    soak: Size { variables: "FILES=5000", rounds: 3, rhythm: RHYTHM, deaths: 12 },
};

const PROLOGUE: &str = r#"
    export PATH=$PATH:/usr/local/bin
    forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }
    program() {
        local what=$1
        shift
        say "begin $what $*"
        try "$what $*" bash "$results/programs.sh" "$what" "$results/source" "$share/$round" "$@"
    }
"#;

fn programs(scale: &Scale, programs: &Programs) -> Result<Report> {
    let size = if scale.soak { &programs.soak } else { &programs.quick };
    let mut rig = Rig::new(&Site::default())?;
    let results = Guest::prepare(&rig)?;
    fs::write(results.join("programs.sh"), SCRIPT)?;
    let local = Local {
        script: results.join("programs.sh"),
        source: results.join("source"),
        variables: size.variables,
    };
    let expected = rig.dir.path().join("expected");
    fs::create_dir_all(&expected)?;
    local.run(&["make"], &expected)?;
    for arguments in programs.local {
        local.run(arguments, &expected)?;
    }
    let shown = local.run(&["show"], &expected)?;

    let workload = format!(
        "{PROLOGUE}
        export {}
        say \"begin all\"
        for ((round = 1; round <= {}; round++)); do
            mkdir \"$share/$round\"
            {}
            forget
            program show
        done
        ",
        size.variables, size.rounds, programs.workload
    );
    let mut guest = Guest::boot_mounts(&rig, "vers=3.1.1,sign", programs.mounts, &workload)?;
    let deaths = kill_meanwhile(&mut rig, &mut guest, programs.mounts, size.rhythm)?;
    guest.finish()?.noticed_nothing_on(programs.mounts)?;

    let seen = fs::read_to_string(results.join("output"))?;
    let same = seen.matches(&shown).count();
    ensure!(
        same == size.rounds,
        "the guest sees {same} rounds right; the last: {}",
        first_difference(&shown, &seen)
    );
    for round in 1..=size.rounds {
        let there = local.run(&["show"], &rig.data().join(round.to_string()))?;
        ensure!(there == shown, "round {round}: {}", first_difference(&shown, &there));
    }
    let count = |series: &str| rig.metric(&format!("takeover_{series}"));
    let lost = count("opens_total{result=\"lost\"}")?;
    ensure!(lost == 0.0, "{lost} opens were lost");
    let failed = count("requests_total{result=\"failed\"}")?;
    ensure!(failed == 0.0, "{failed} requests in flight were failed");
    ensure!(deaths.len() >= size.deaths, "only {} deaths fell into the work", deaths.len());
    let (back, again) =
        (count("opens_total{result=\"reclaimed\"}")?, count("requests_total{result=\"replayed\"}")?);
    let mut during: BTreeMap<&str, usize> = BTreeMap::new();
    deaths.iter().for_each(|what| *during.entry(what).or_default() += 1);
    let all = deaths.len();
    let note = format!("{all} deaths {during:?}, {back} opens reclaimed, {again} requests sent again");
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// Kills the serving node in that rhythm until the guest has ended; what was begun last before each death. A second has to
/// pass behind a takeover: what is in flight at two deaths in a row is not sent again.
fn kill_meanwhile(rig: &mut Rig, guest: &mut Guest, mounts: usize, rhythm: Duration) -> Result<Vec<String>> {
    guest.until("the work begins", |g| g.has_said("begin all"))?;
    let mut deaths = Vec::new();
    let mut next = Instant::now() + rhythm / 2;
    loop {
        guest.until("it is time for a death", |g| g.has_said("end") || Instant::now() >= next)?;
        if guest.has_said("end") {
            return Ok(deaths);
        }
        let killed = Instant::now();
        deaths.push(guest.last("begin ").unwrap_or_default());
        kill_and_restart(rig, Death::Sudden)?;
        let all = f64::from(u32::try_from(deaths.len() * mounts)?);
        guest.until("the mounts are taken over", |g| {
            let taken = rig.metric("takeovers_total{cause=\"crash\",result=\"ok\"}");
            g.has_said("end") || taken.is_ok_and(|count| count >= all)
        })?;
        next = (killed + rhythm).max(Instant::now() + SECOND);
    }
}

/// The script on the host.
struct Local {
    script: PathBuf,
    source: PathBuf,
    variables: &'static str,
}

impl Local {
    /// What it prints.
    fn run(&self, arguments: &[&str], dir: &Path) -> Result<String> {
        let (what, rest) = arguments.split_first().context("nothing to do")?;
        let output = Command::new("bash")
            .arg(&self.script)
            .arg(what)
            .args([&self.source, dir])
            .args(rest)
            .envs(self.variables.split(' ').filter_map(|pair| pair.split_once('=')))
            .output()
            .context("bash")?;
        if !output.status.success() {
            bail!("{arguments:?} on the host: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The first line in which what is there is not as it should be.
fn first_difference(expected: &str, there: &str) -> String {
    let start = there.lines().count().saturating_sub(expected.lines().count());
    let pair = expected.lines().zip(there.lines().skip(start)).find(|(a, b)| a != b);
    pair.map_or_else(|| "lines are missing".to_owned(), |(a, b)| format!("expected {a}, there is {b}"))
}
