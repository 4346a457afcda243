//! A private PostgreSQL, made by `tests/postgres`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// As on a small server of its own; the defaults are those of a guest on someone's laptop.
/// Everything that makes a commit durable stays as it is: on.
const SETTINGS: &str = "shared_buffers = '512MB'\nmax_wal_size = '8GB'\n";

/// Stopped when this is dropped.
#[derive(Debug)]
pub struct Postgres {
    script: PathBuf,
    dir: PathBuf,
    url: String,
}

impl Postgres {
    /// Makes and starts a server in a new directory `dir`.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub fn start(repository: &Path, dir: PathBuf) -> Result<Self> {
        let script = repository.join("tests/postgres");
        let mut postgres = Postgres {
            script,
            dir,
            url: String::new(),
        };
        postgres.url = postgres.run("create")?;
        postgres.run("stop")?;
        let file = postgres.dir.join("data/postgresql.auto.conf");
        let mut file = OpenOptions::new().append(true).open(file)?;
        file.write_all(SETTINGS.as_bytes())?;
        postgres.run("start")?;
        Ok(postgres)
    }

    /// Stops it and starts it again: its memory is empty then.
    ///
    /// # Errors
    /// PostgreSQL does not start.
    pub fn restart(&self) -> Result<()> {
        self.run("stop")?;
        self.run("start").map(|_| ())
    }

    /// `postgres://...`
    pub fn url(&self) -> &str {
        &self.url
    }

    fn run(&self, action: &str) -> Result<String> {
        let mut command = Command::new(&self.script);
        let output = command.arg(action).arg(&self.dir).output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("PostgreSQL, {action}: {}", why.trim()).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// The version that is started, e.g. `15.18`.
pub(crate) fn version(repository: &Path) -> Option<String> {
    let script = repository.join("tests/postgres");
    let found = Command::new(script).arg("find").output().ok()?;
    let programs = PathBuf::from(String::from_utf8(found.stdout).ok()?.trim());
    let told = Command::new(programs.join("postgres"))
        .arg("-V")
        .output()
        .ok()?;
    // "postgres (PostgreSQL) 15.18 (Debian ...)"
    let told = String::from_utf8(told.stdout).ok()?;
    told.split_whitespace().nth(2).map(str::to_owned)
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing more can be done if it does not stop.
        let _ = Command::new(&self.script)
            .arg("stop")
            .arg(&self.dir)
            .output();
    }
}
