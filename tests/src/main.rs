//! End-to-end tests of Understudy against real Samba, in network namespaces of their own.

mod bench;
mod cases;
mod client;
mod demo;
mod rig;
mod side_channel;
mod soak;
mod torture;
mod wire;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use cases::Scale;
use rig::janitor::Janitor;

const MIB: u64 = 1 << 20;

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Runs every case once, or those whose name contains the word.
    Run {
        /// Part of the names to run.
        filter: Option<String>,
        /// MiB of each copy.
        #[arg(long, default_value_t = 96)]
        mib: u64,
    },
    /// Runs every case as often as its claim needs, and keeps the results.
    Soak {
        /// Part of the names to run.
        filter: Option<String>,
        /// Instead of each case's own count.
        #[arg(long)]
        runs: Option<u32>,
        /// MiB of each copy.
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Where results are kept.
        #[arg(long, default_value = "out/soak")]
        out: PathBuf,
    },
    /// Parses capture files, or the directories they are in, and names what the parser does not know.
    Captures {
        /// Files and directories.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// How many messages are wrong on purpose.
        #[arg(long, default_value_t = 0)]
        expect_errors: usize,
    },
    /// Compares what the parser and tshark say of capture files, message by message.
    Tshark {
        /// Files and directories.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Measures Understudy beside HAProxy and direct access.
    Bench(bench::Options),
    /// Tries what a second connection, bound to a client's session, can do, on each dialect, and prints a table.
    ///
    /// SAMBA_ROOT= takes another Samba than the system's.
    SideChannel {
        /// Part of the names of the trials to run.
        filter: Option<String>,
        /// Log in by Kerberos, in a realm of the rig's own; otherwise by NTLM.
        #[arg(long)]
        realm: Option<rig::realm::Kind>,
    },
    /// Runs smbtorture's tests of SMB2 directly and through the proxy, and compares what passes with the lists in
    /// tests/torture.
    ///
    /// SAMBA_ROOT= takes Samba, smbtorture too, from elsewhere than the system.
    Torture(torture::Options),
    /// Names the cases and what they show.
    List,
    /// Copies a file down and up while its node is killed, and tells of it.
    ///
    /// Two real Samba servers, the proxy and a client, in network namespaces of their own. Nothing is left behind. KEEP=1
    /// keeps the directory with configurations and logs.
    Demo {
        /// MiB of the file.
        #[arg(long, default_value_t = 512, hide = true)]
        mib: u64,
    },
}

fn main() -> ExitCode {
    let _janitor = Janitor::start();
    match obey(&Arguments::parse().order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(order: &Order) -> Result<()> {
    match order {
        Order::List => {
            for case in cases::all() {
                println!("{:<24} {}", case.name, case.shows);
            }
            Ok(())
        }
        Order::Demo { mib } => {
            require_root()?;
            demo::run(*mib)
        }
        Order::Captures { paths, expect_errors } => wire::captures::report(paths, *expect_errors),
        Order::Tshark { paths } => tshark(paths),
        Order::SideChannel { filter, realm } => {
            require_root()?;
            side_channel::run(filter.as_deref().unwrap_or_default(), *realm)
        }
        Order::Torture(options) => {
            require_root()?;
            torture::run(options)
        }
        Order::Bench(options) => {
            require_root()?;
            bench::run(options)
        }
        Order::Run { filter, mib } => {
            require_root()?;
            run(filter.as_deref().unwrap_or_default(), &Scale { copy: *mib * MIB, soak: false })
        }
        Order::Soak { filter, runs, mib, out } => {
            require_root()?;
            soak::run(&soak::Plan {
                filter: filter.as_deref().unwrap_or_default(),
                runs: *runs,
                out,
                scale: Scale { copy: *mib * MIB, soak: true },
            })
        }
    }
}

fn tshark(paths: &[PathBuf]) -> Result<()> {
    let mut all = wire::tshark::Agreement::default();
    for path in wire::captures::files(paths)? {
        let agreement = wire::tshark::compare(&path)?;
        println!("{}: {agreement}", path.display());
        all.add(agreement);
    }
    println!("{all}");
    all.check()
}

fn run(filter: &str, scale: &Scale) -> Result<()> {
    let (mut passed, mut failed) = (0, 0);
    for case in cases::all().iter().filter(|c| c.name.contains(filter)) {
        if cases::run(case, scale).is_ok() {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 || passed == 0 {
        bail!("not every case passed");
    }
    Ok(())
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        let words = std::env::args().collect::<Vec<_>>().join(" ");
        bail!(
            "this makes network namespaces and starts Samba servers of its own in them, which only root may do.\n\
             Run it with sudo: sudo {words}"
        );
    }
    Ok(())
}
