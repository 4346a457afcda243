//! A private PostgreSQL, made by `tests/postgres`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

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
        let output = Command::new(&script).arg("create").arg(&dir).output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("PostgreSQL: {}", why.trim()).into());
        }
        let url = String::from_utf8(output.stdout)?.trim().to_owned();
        Ok(Postgres { script, dir, url })
    }

    /// `postgres://...`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// e.g. `PostgreSQL 15.18`.
    pub fn version(&self) -> String {
        let bin = Command::new(&self.script).arg("find").output();
        let bin = bin.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let version = bin.and_then(|bin| Command::new(format!("{bin}/postgres")).arg("-V").output());
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = version.unwrap_or_default();
        let number = version.split(' ').nth(2).unwrap_or("?").trim();
        format!("PostgreSQL {number}")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing more can be done if it does not stop.
        let _ = Command::new(&self.script).arg("stop").arg(&self.dir).output();
    }
}
