//! The command line: a file per command. A flag wins over the variable `HUB_…` of its name, the
//! variable over the file, the file over the default.

mod backup;
mod config;
mod dev;
mod file;
mod layers;
mod length;
mod limits;
mod migrate;
mod operator_key;
mod reference;
mod run;
mod serve;
mod server;
mod settings;
mod size;
mod store;
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use layers::Layers;

pub use length::{KeyAge, Length};
pub use size::Size;

/// The integration platform of a software suite: events between products, durably and in order.
#[derive(Debug, Parser)]
#[command(name = "hub", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// File with settings; else `hub.toml` here, if it is there.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HUB_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a demo: SQLite, a tenant with all products, keys, and a simulated suite.
    Dev(dev::Dev),
    /// Serve.
    Serve(serve::Serve),
    /// Bring the tables of the database up to date.
    Migrate(migrate::Migrate),
    /// Show, check and explain the settings.
    #[command(subcommand)]
    Config(config::Config),
    /// Make a new operator key in place of a lost one.
    OperatorKey(operator_key::OperatorKey),
    /// Copy the SQLite database into a file, also while a hub serves.
    Backup(backup::Backup),
    /// Put a backup in the place of the SQLite database.
    Restore(backup::Restore),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "hub: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut layers = Layers::variables(|name| std::env::var_os(name));
    // Which file, is told by a flag; what the file says, are defaults of flags.
    let first = parse(&layers)?.0;
    if let Command::Config(config) = first.command {
        return config.run(layers, first.config.as_deref());
    }
    layers.read(first.config.as_deref())?;
    layers.refuse()?;
    match parse(&layers)?.0.command {
        Command::Dev(dev) => dev.run(),
        Command::Serve(serve) => serve.run(),
        Command::Migrate(migrate) => migrate.run(),
        Command::OperatorKey(key) => key.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Config(_) => Ok(()),
    }
}

/// Reads the command line; one that is wrong ends the process with status 2.
fn parse(layers: &Layers) -> Result<(Cli, clap::ArgMatches), String> {
    let matches = layers.command(Cli::command()).get_matches();
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => Ok((cli, matches)),
        Err(error) => error.exit(),
    }
}

/// Runs a command that does one thing on the database and ends.
fn offline<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let _logging = crate::telemetry::log(crate::telemetry::LogFormat::Auto, "warn")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use hub_core::limits::Limits;

    use super::*;

    fn command() -> clap::Command {
        Layers::variables(|_| None).command(Cli::command())
    }

    #[test]
    fn the_commands_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_setting_has_its_variable_in_every_command() {
        let command = command();
        let settings = settings::all();
        for name in ["serve", "dev", "migrate", "backup"] {
            let command = command.find_subcommand(name).unwrap();
            for arg in command.get_arguments() {
                let long = arg.get_long().unwrap_or_default();
                let Some(setting) = settings.iter().find(|setting| setting.flag == long) else {
                    continue;
                };
                let variable = arg.get_env().and_then(|name| name.to_str()).unwrap();
                assert_eq!(variable, setting.variable);
            }
        }
    }

    #[test]
    fn every_flag_of_the_servers_is_a_setting() {
        let settings = settings::all();
        for name in ["serve", "dev"] {
            let command = command();
            let command = command.find_subcommand(name).unwrap();
            for arg in command.get_arguments() {
                let long = arg.get_long().unwrap();
                assert!(
                    settings.iter().any(|setting| setting.flag == long),
                    "{long}"
                );
            }
        }
    }

    #[test]
    fn limits_are_flags_with_their_defaults() {
        let matches = command()
            .try_get_matches_from(["hub", "serve", "--group-linger", "5ms"])
            .unwrap();
        let Command::Serve(serve) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command");
        };
        let limits = serve.server.limits();
        assert_eq!(limits.group_linger, std::time::Duration::from_millis(5));
        let expected = Limits {
            group_linger: limits.group_linger,
            ..Limits::default()
        };
        assert_eq!(format!("{limits:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_flag_wins_over_the_file_and_a_switch_can_be_turned_off() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hub.toml");
        std::fs::write(
            &file,
            "insecure = true\ndrain_timeout = \"3s\"\njson_bytes_max = 1\n",
        )
        .unwrap();
        let mut layers = Layers::variables(|_| None);
        layers.read(Some(&file)).unwrap();
        assert_eq!(layers.problems, []);
        let command = layers.command(Cli::command());
        let given = ["hub", "serve", "--drain-timeout", "4s", "--insecure=false"];
        let matches = command.try_get_matches_from(given).unwrap();
        let Command::Serve(serve) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command");
        };
        assert!(!serve.server.listening.insecure);
        assert_eq!(
            serve.server.limits().drain_timeout,
            std::time::Duration::from_secs(4)
        );
        assert_eq!(serve.server.limits().json_bytes_max, 1);
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_told_with_its_name() {
        let set = |name: &str| (name == "HUB_DRAIN_TIMEOUT").then(|| "soon".into());
        let layers = Layers::variables(set);
        assert!(
            layers
                .refuse()
                .unwrap_err()
                .contains("HUB_DRAIN_TIMEOUT: write it as")
        );
    }
}
