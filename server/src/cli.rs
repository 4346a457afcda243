//! The command line: a file per command. A flag wins over the variable `HUB_…` of its name.

mod dev;
mod length;
mod limits;
mod run;
mod serve;
mod server;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use length::Length;

/// The integration platform of a software suite: events between products, durably and in order.
#[derive(Debug, Parser)]
#[command(name = "hub", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a demo: SQLite, a tenant with all products, keys, and a simulated suite.
    Dev(dev::Dev),
    /// Serve.
    Serve(serve::Serve),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = with_variables(Cli::command()).get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Dev(dev) => dev.run(),
        Command::Serve(serve) => serve.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("hub: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Gives every flag of every command its variable: `--data-dir` reads `HUB_DATA_DIR`.
fn with_variables(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_long() {
            Some(long) => {
                let variable = format!("HUB_{}", long.to_uppercase().replace('-', "_"));
                arg.env(variable).hide_env_values(true)
            }
            None => arg,
        })
    })
}

#[cfg(test)]
mod tests {
    use hub_core::limits::Limits;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        with_variables(Cli::command()).debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        let command = with_variables(Cli::command());
        for command in command.get_subcommands() {
            for arg in command.get_arguments() {
                let variable = arg.get_env().and_then(|name| name.to_str()).unwrap();
                let long = arg.get_long().unwrap().to_uppercase().replace('-', "_");
                assert_eq!(variable, format!("HUB_{long}"));
            }
        }
    }

    #[test]
    fn limits_are_flags_with_their_defaults() {
        let matches = with_variables(Cli::command())
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
}
