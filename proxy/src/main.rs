//! Understudy: a transparent SMB2/3 failover proxy. See README.md; for its design ARCHITECTURE.md.

mod admin;
mod check;
mod config;
mod credentials;
mod driver;
mod fence;
mod fleet;
mod metrics;
mod net;
mod probe;
mod random;
mod server;
mod shared;
mod telemetry;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::config::Config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps SMB clients at work while their Samba node dies.
///
/// Clients connect to one floating address. Understudy passes their traffic to one of several Samba nodes on shared
/// storage, and carries sessions, open files, locks and requests in flight over to another node when it dies. The
/// clients' connections are never dropped.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Serve clients until SIGTERM
    ///
    /// SIGTERM and SIGINT stop it: no new connections, requests in flight are answered (at most shutdown_grace), exit
    /// status 0.
    Run(Options),
    /// Look for mistakes in the configuration, the smbpasswd file, the store, the nodes and the addresses
    ///
    /// Prints everything it finds, each mistake with its line and a remedy. Exit status 0 if nothing is wrong.
    Check(Options),
}

#[derive(Args)]
struct Options {
    /// The configuration, TOML
    #[arg(long, short, value_name = "FILE", default_value = "/etc/understudy/understudy.toml")]
    config: PathBuf,
    /// Allow what loses state on a restart (a memory store with several nodes)
    #[arg(long)]
    demo: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.action {
        Action::Run(options) => run(&options),
        Action::Check(options) => check(&options),
    }
}

fn run(options: &Options) -> ExitCode {
    let Some(config) = load(&options.config, options.demo) else { return ExitCode::from(2) };
    telemetry::init(config.log_format, &config.log_level);
    match server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("understudy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(options: &Options) -> ExitCode {
    let Some(config) = load(&options.config, options.demo) else { return ExitCode::from(2) };
    println!("ok    {}: no mistake", options.config.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(check::check(&config))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("understudy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration, or says all that is wrong with it.
fn load(path: &Path, demo: bool) -> Option<Config> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("understudy: {}: {error}. Name the configuration by --config", path.display());
            return None;
        }
    };
    match Config::parse(&text, demo) {
        Ok(config) => Some(config),
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("understudy: {}: {mistake}", path.display());
            }
            eprintln!("understudy: {} mistake(s) in the configuration", mistakes.len());
            None
        }
    }
}
