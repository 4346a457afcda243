//! What is in force: flags over variables over the file over defaults.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::file::{self, Place, Problem, Value};
use super::settings::{self, Setting};

/// The file that is read if it is there.
const FILE: &str = "hub.toml";

/// What variables and the file say.
pub struct Layers {
    /// All settings.
    pub settings: Vec<Setting>,
    /// What is wrong, in the order of its places.
    pub problems: Vec<Problem>,
    file: Vec<Value>,
    /// Variables whose values can be used.
    variables: Vec<String>,
}

impl Layers {
    /// What the environment says; `variable` reads it.
    pub fn variables(variable: impl Fn(&str) -> Option<OsString>) -> Layers {
        let mut layers = Layers {
            settings: settings::all(),
            problems: Vec::new(),
            file: Vec::new(),
            variables: Vec::new(),
        };
        for setting in &layers.settings {
            let Some(value) = variable(&setting.variable) else {
                layers.variables.push(setting.variable.clone());
                continue;
            };
            match setting.check(&value) {
                Ok(()) => layers.variables.push(setting.variable.clone()),
                Err(text) => layers.problems.push(Problem {
                    place: Place::Variable(setting.variable.clone()),
                    key: setting.key.clone(),
                    text,
                }),
            }
        }
        layers
    }

    /// Adds what the file says: the one that was named, or the usual one if it is there.
    pub fn read(&mut self, named: Option<&Path>) -> Result<Option<PathBuf>, String> {
        let path = match named {
            Some(path) => path.to_owned(),
            None if Path::new(FILE).is_file() => PathBuf::from(FILE),
            None => return Ok(None),
        };
        let contents = file::read(&path, &self.settings)?;
        self.file = contents.values;
        self.problems.extend(contents.problems);
        Ok(Some(path))
    }

    /// Gives each flag of a setting its variable, and what the file says as its default.
    pub fn command(&self, command: Command) -> Command {
        let command = command.mut_args(|arg| {
            let Some(flag) = arg.get_long() else {
                return arg;
            };
            let variable = settings::variable(flag);
            let key = flag.replace('-', "_");
            let arg = match self.variables.contains(&variable) {
                true => arg.env(variable).hide_env_values(true),
                false => arg,
            };
            match self.file.iter().find(|value| value.key == key) {
                Some(value) => arg.default_value(value.text.clone()),
                None => arg,
            }
        });
        command.mut_subcommands(|command| self.command(command))
    }

    /// Where the value of a setting comes from.
    pub fn place(&self, setting: &Setting, matches: &ArgMatches) -> Place {
        match matches.value_source(&setting.key) {
            Some(ValueSource::CommandLine) => Place::Flag(setting.flag.clone()),
            Some(ValueSource::EnvVariable) => Place::Variable(setting.variable.clone()),
            _ => {
                let value = self.file.iter().find(|value| value.key == setting.key);
                value.map_or(Place::Default, |value| value.place.clone())
            }
        }
    }

    /// Nothing if all is well, else all problems as one text.
    pub fn refuse(&self) -> Result<(), String> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        Err(format!(
            "the configuration has problems:\n{}",
            lines.join("\n")
        ))
    }
}

/// The command line as it was given to the innermost command.
pub fn innermost(mut matches: &ArgMatches) -> &ArgMatches {
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    matches
}
