//! `hub config`: what is set, where it comes from, and what is wrong with it.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::file::{self, Problem};
use super::layers::{Layers, innermost};
use super::settings::Settings;
use super::{parse, reference};
use crate::tls::Tls;
use crate::{advertise, tls};

/// Commands about settings.
#[derive(Debug, clap::Subcommand)]
pub enum Config {
    /// Print what is in force, as a file; secrets are redacted.
    Print(Print),
    /// Tell everything that is wrong, with file, line and column.
    Check(Check),
    /// Print a file with every setting and its default.
    Default,
    /// Print the reference of all settings (docs/configuration.md).
    Reference,
}

/// Flags of `hub config print`.
#[derive(Debug, clap::Args)]
pub struct Print {
    /// Tell where each value comes from.
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Flags of `hub config check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The file; else the one that a server would read.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Config {
    /// Does it. `config` is the file that `--config` names.
    pub fn run(self, mut layers: Layers, config: Option<&Path>) -> Result<(), String> {
        match self {
            Config::Default => say(&reference::file(&layers.settings)),
            Config::Reference => say(&reference::page(&layers.settings)),
            Config::Print(_) => {
                layers.read(config)?;
                layers.refuse()?;
                print(&layers)
            }
            Config::Check(check) => {
                let file = check.file.as_deref().or(config);
                let read = layers.read(file)?;
                check_all(layers, read)
            }
        }
    }
}

fn print(layers: &Layers) -> Result<(), String> {
    let (cli, matches) = parse(layers)?;
    let origin = matches!(
        cli.command,
        super::Command::Config(Config::Print(Print { origin: true, .. }))
    );
    let matches = innermost(&matches);
    let mut lines = Vec::new();
    for setting in &layers.settings {
        let given = matches
            .get_raw(&setting.key)
            .and_then(|mut values| values.next());
        let line = match given {
            Some(value) => {
                let shown = setting.redacted(&value.to_string_lossy());
                format!("{} = {}", setting.key, setting.toml(&shown))
            }
            None => format!("# {} is not set", setting.key),
        };
        lines.push((line, layers.place(setting, matches).to_string()));
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut all = String::new();
    for (line, place) in lines {
        match origin {
            true => all.push_str(&format!("{line:width$}  # {place}\n")),
            false => all.push_str(&format!("{line}\n")),
        }
    }
    say(&all)
}

fn check_all(mut layers: Layers, read: Option<PathBuf>) -> Result<(), String> {
    // What cannot be used is left out, so that the rest is checked too.
    let (cli, matches) = parse(&layers)?;
    let super::Command::Config(Config::Check(check)) = cli.command else {
        return Err("the command line cannot be read twice".to_owned());
    };
    let told = |key: &str| layers.problems.iter().any(|problem| problem.key == key);
    let found: Vec<Problem> = contradictions(&check.settings)
        .into_iter()
        .filter(|(keys, _)| !keys.iter().any(|key| told(key)))
        .filter_map(|(keys, text)| {
            let setting = layers
                .settings
                .iter()
                .find(|one| keys.first() == Some(&one.key.as_str()));
            let setting = setting?;
            Some(Problem {
                place: layers.place(setting, innermost(&matches)),
                key: setting.key.clone(),
                text,
            })
        })
        .collect();
    layers.problems.extend(found);
    layers.problems.extend(misspelt_variables(&layers));
    if layers.problems.is_empty() {
        let what = match read {
            Some(path) => path.display().to_string(),
            None => "there is no file; flags, variables and defaults".to_owned(),
        };
        return say(&format!("{what}: ok\n"));
    }
    let lines: Vec<String> = layers.problems.iter().map(ToString::to_string).collect();
    let count = lines.len();
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    Err(format!(
        "{count} problem{}",
        if count == 1 { "" } else { "s" }
    ))
}

/// What each setting allows by itself and all of them together do not: the settings, the first
/// being the one to change, and why.
fn contradictions(settings: &Settings) -> Vec<(Vec<&'static str>, String)> {
    let mut found = Vec::new();
    let tls = settings.tls.files();
    let files = vec!["tls_cert_file", "tls_key_file", "tls_client_ca_file"];
    match &tls {
        Ok(Some(given)) => {
            if let Err(error) = Tls::load(given.clone()) {
                found.push((files.clone(), error));
            }
        }
        Ok(None) => {}
        Err((key, text)) => {
            let others = files.iter().filter(|other| *other != key).copied();
            found.push(([*key].into_iter().chain(others).collect(), text.clone()));
        }
    }
    if let Some(file) = &settings.tls.tls_peer_ca_file
        && let Err(error) = tls::authorities(file)
    {
        found.push((vec!["tls_peer_ca_file"], error));
    }
    let url = settings.database.url();
    match settings.listening.address(!matches!(tls, Ok(None))) {
        Ok(address) => {
            let given = settings.listening.advertise.as_deref();
            if let Err(error) = advertise::check_address(given, &url, address) {
                found.push((vec!["advertise", "listen"], error));
            }
        }
        Err(error) => {
            let keys = ["listen", "insecure"].into_iter().chain(files);
            found.push((keys.collect(), error));
        }
    }
    if !["sqlite:", "postgres:", "postgresql:"]
        .iter()
        .any(|start| url.starts_with(start))
    {
        let text = "the database URL must start with sqlite: or postgres:".to_owned();
        found.push((vec!["database"], text));
    }
    found
}

/// Variables that nothing reads, and that are one or two letters from one that is read.
fn misspelt_variables(layers: &Layers) -> Vec<Problem> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = names.filter(|name| {
        let known = layers
            .settings
            .iter()
            .any(|setting| setting.variable == *name);
        name.starts_with("HUB_") && name != "HUB_CONFIG" && !known
    });
    unknown
        .filter_map(|name| {
            let near = file::nearest(&name, &layers.settings)?;
            let near = layers.settings.iter().find(|setting| setting.key == near)?;
            (strsim::damerau_levenshtein(&name, &near.variable) <= 2).then(|| Problem {
                text: format!("nothing reads it; did you mean {}?", near.variable),
                key: name.clone(),
                place: file::Place::Variable(name),
            })
        })
        .collect()
}

/// Writes what a command answers.
fn say(text: &str) -> Result<(), String> {
    let mut output = std::io::stdout();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match written {
        // Whoever reads has seen enough, e.g. `head`.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot print: {error}"))
        }
        _ => Ok(()),
    }
}
