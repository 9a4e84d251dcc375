//! Understudy: a transparent SMB2/3 failover proxy. See README.md; for its design ARCHITECTURE.md.

mod admin;
mod check;
mod config;
mod credentials;
mod driver;
mod fence;
mod find;
mod fleet;
mod ha;
#[cfg(feature = "k8s")]
mod k8s;
mod metrics;
mod net;
mod nodes;
mod persist;
mod probe;
mod random;
mod server;
mod shared;
mod store;
mod telemetry;
mod vip;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::config::Config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Options of the allocator, read as it starts. By default memory of 8 MiB and more goes back to the kernel as soon as it
/// is freed: a bulk frame is that large, and its pages would be unmapped, mapped and cleared again for every one.
#[allow(unsafe_code, reason = "the allocator finds its options by this name; nothing else is called so")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 21] = b"oversize_threshold:0\0";

/// Keeps SMB clients at work while their Samba node dies.
///
/// Clients connect to one floating address. Understudy passes their traffic to one
/// of several Samba nodes on shared storage. When that node dies, it carries
/// sessions, open files, locks and requests in flight over to another, and the
/// clients' connections stay. README.md says what is covered and what is not yet.
#[derive(Parser)]
#[command(version, verbatim_doc_comment, after_long_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

const AFTER: &str = "\
Exit status:
  0  told to stop (SIGTERM, SIGINT); check: nothing is wrong
  1  cannot serve: an address, the store or the smbpasswd file; check: something is wrong;
     store dump: the store cannot be read; step-down: no other proxy is to serve
  2  a mistake in the configuration or on the command line
  3  one of several proxies that leads no more: to be started again, to stand by";

#[derive(Subcommand)]
enum Action {
    /// Serve clients until SIGTERM
    ///
    /// SIGTERM and SIGINT stop it: no new connections, requests in flight are
    /// answered (for at most shutdown_grace), exit status 0. It logs to standard
    /// error; RUST_LOG in the environment goes before [log] level.
    #[command(verbatim_doc_comment)]
    Run(Options),
    /// Look for mistakes: configuration, smbpasswd file, store, fence, nodes, addresses
    ///
    /// Prints everything it finds, each mistake in the configuration with its line
    /// and a remedy, and in what the nodes differ; a difference that would break
    /// clients is a mistake. Nothing is changed. Beside a running understudy its addresses
    /// are in use, of course.
    #[command(verbatim_doc_comment)]
    Check(Options),
    /// Let another proxy serve
    ///
    /// Asks the understudy that runs with this configuration, by its admin page, to hand its
    /// clients over to one that stands by. It ends with exit status 3, to be started again.
    #[command(verbatim_doc_comment)]
    StepDown(Options),
    /// Look into the store
    #[command(subcommand)]
    Store(StoreAction),
}

#[derive(Subcommand)]
enum StoreAction {
    /// Print every record, one line of JSON each: {"key":...,"value":...}
    ///
    /// What a running understudy has open for itself (a file: or memory: store) is asked
    /// of its admin page. Nothing is changed.
    #[command(verbatim_doc_comment)]
    Dump(Options),
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
        Action::StepDown(options) => step_down(&options),
        Action::Store(StoreAction::Dump(options)) => dump(&options),
    }
}

fn run(options: &Options) -> ExitCode {
    let Some(config) = load(&options.config, options.demo) else { return ExitCode::from(2) };
    telemetry::init(config.log_format, &config.log_level);
    match server::run(config) {
        Ok(status) => status,
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

fn dump(options: &Options) -> ExitCode {
    asked(options, async |config| store::print(config).await)
}

fn step_down(options: &Options) -> ExitCode {
    asked(options, async |config| {
        print!("{}", store::running(config, "POST /step-down").await?);
        Ok(())
    })
}

/// Does what needs the configuration alone.
fn asked(options: &Options, act: impl AsyncFnOnce(&Config) -> anyhow::Result<()>) -> ExitCode {
    let Some(config) = load(&options.config, options.demo) else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(act(&config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("understudy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration, or says all that is wrong with it.
fn load(path: &Path, demo: bool) -> Option<Config> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::NotFound => {
                    ". Name the configuration by --config; README.md has one to begin with"
                }
                _ => "",
            };
            eprintln!("understudy: {}: {error}{remedy}", path.display());
            return None;
        }
    };
    match Config::parse(&text, demo) {
        Ok(config) => Some(config),
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("understudy: {}: {mistake}", path.display());
            }
            let count = mistakes.len();
            eprintln!(
                "understudy: {count} mistake{} in the configuration",
                if count == 1 { "" } else { "s" }
            );
            None
        }
    }
}
