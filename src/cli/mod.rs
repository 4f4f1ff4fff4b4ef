//! The command line: its grammar, and which command does what.
//!
//! One file per noun (`image`, `snapshot`, `client`, `disk`, `range`, `session`, `doctor`) speaks to the admin API
//! through `remote`; `output` prints; `failure` has the exit codes. `serve`,
//! `check-config`, `psql`, `doctor` and `storm` are done on the spot. No rule of values lives here: the server has
//! them, and tells every violation at once.

mod client;
mod difference;
mod disk;
mod doctor;
mod failure;
mod image;
mod output;
mod range;
mod remote;
mod server;
mod session;
mod snapshot;
mod storm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use failure::Failure;

use crate::config::Config;

/// Boot server for diskless machines.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 refused by a rule (wrong
/// values, a name in use); 5 the server can't be reached or does not let us in.
#[derive(Debug, Parser)]
#[command(name = "dls", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that may stand before or after the command.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: /etc/dls/dls.toml if it is there]
    #[arg(long, global = true, env = "DLS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Admin API of the server [default: the configuration's admin.listen, on this host]
    #[arg(long, global = true, env = "DLS_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File with the admin token [default: admin.token in the configuration's state_dir]
    #[arg(long, global = true, env = "DLS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve {
        /// End by SIGKILL at a step, for tests
        #[cfg(any(debug_assertions, feature = "steps"))]
        #[arg(long, hide = true, value_name = "STEP")]
        die_at: Option<crate::steps::Step>,
    },
    /// Check a configuration file and say everything that is wrong with it
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Say what is missing for the server to work, or does not agree, and what mends it
    Doctor(doctor::Doctor),
    /// Open the configured database with psql
    Psql {
        /// Run one command and exit
        #[arg(short = 'c', long = "command", value_name = "SQL")]
        command: Option<String>,
        /// Further arguments for psql
        #[arg(last = true, value_name = "ARGS")]
        more: Vec<String>,
    },
    /// Boot many machines that are not there, check every byte, and say how long it took
    Storm(Box<storm::Options>),
    /// What machines boot
    #[command(subcommand)]
    Image(image::Command),
    /// What machines boot, in versions
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// The machines
    #[command(subcommand)]
    Client(client::Command),
    /// What machines write to, and how much they may
    #[command(subcommand)]
    Disk(disk::Command),
    /// The networks, and how they are served
    #[command(subcommand)]
    Range(range::Command),
    /// The servers that share the catalog
    #[command(subcommand)]
    Server(server::Command),
    /// Boots, running and past
    #[command(subcommand)]
    Session(session::Command),
}

/// Parses the arguments, runs the one command, tells its failure, returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match run(&global, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

fn run(global: &Global, command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve {
            #[cfg(any(debug_assertions, feature = "steps"))]
            die_at,
        } => {
            #[cfg(any(debug_assertions, feature = "steps"))]
            if let Some(step) = die_at {
                crate::steps::arm(step);
            }
            crate::app::serve(&configuration(global)?).map_err(|e| Failure::failed(&e))
        }
        Command::CheckConfig { file } => {
            Config::load(Some(&file)).map_err(|e| Failure::Failed(e.to_string()))?;
            output::line(&format!("{} is right", file.display()))
        }
        Command::Doctor(doctor) => match doctor.part {
            None | Some(doctor::Part::System) => doctor::run(&configuration(global)?, global.json),
            Some(doctor::Part::Storage(wanted)) => {
                remotely(global, |remote| doctor::storage::run(remote, wanted))
            }
        },
        Command::Psql { command, more } => {
            crate::app::psql(&configuration(global)?, command.as_deref(), &more)
                .map_err(|e| Failure::failed(&e))
        }
        Command::Storm(options) => storm::run(&options, global.json),
        Command::Image(command) => remotely(global, |remote| image::run(remote, command)),
        Command::Snapshot(command) => remotely(global, |remote| snapshot::run(remote, command)),
        Command::Client(command) => remotely(global, |remote| client::run(remote, command)),
        Command::Disk(command) => remotely(global, |remote| disk::run(remote, command)),
        Command::Range(command) => remotely(global, |remote| range::run(remote, command)),
        Command::Server(command) => remotely(global, |remote| server::run(remote, command)),
        Command::Session(command) => remotely(global, |remote| session::run(remote, command)),
    }
}

fn configuration(global: &Global) -> Result<Config, Failure> {
    Config::load(global.config.as_deref()).map_err(|e| Failure::Failed(e.to_string()))
}

/// Runs a command that speaks to the server.
fn remotely<F>(global: &Global, command: impl FnOnce(remote::Remote) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let remote = remote::Remote::new(global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("can't start: {e}")))?;
    runtime.block_on(command(remote))
}
