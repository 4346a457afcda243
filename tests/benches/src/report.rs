//! Where the results go: the terminal, and a file between two markers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::{Result, postgres};

/// The directory of this repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().unwrap_or(here)
}

/// A Markdown table, a row at a time.
#[derive(Debug, Default)]
pub struct Table {
    text: String,
}

impl Table {
    /// A table with these headings.
    pub fn new<T: AsRef<str>>(headings: &[T]) -> Self {
        let mut table = Table::default();
        table.row(headings);
        table.row(&vec!["---"; headings.len()]);
        table
    }

    /// Adds a row.
    pub fn row<T: AsRef<str>>(&mut self, cells: &[T]) {
        let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
        self.text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }

    /// The Markdown.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What was measured on: processor, kernel, versions of the peers in the path.
pub fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or(env::consts::ARCH, |rest| {
        rest.trim_start_matches([' ', '\t', ':'])
    });
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = vec![
        format!("{cores} x {model}"),
        format!("{} {}", env::consts::OS, kernel.trim()),
    ];
    for (program, before) in [("redis-server", "v="), ("nats-server", "v")] {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let text = text.unwrap_or_default();
        let version = text.split_once(&format!(" {before}")).map(|(_, rest)| rest);
        if let Some(version) = version.and_then(|rest| rest.split_whitespace().next()) {
            parts.push(format!("{program} {version}"));
        }
    }
    if let Some(version) = postgres::version(&repository()) {
        parts.push(format!("PostgreSQL {version}"));
    }
    parts.join(", ")
}

/// Prints a result, and replaces the one between `<!-- name -->` and `<!-- /name -->` in a file.
///
/// # Errors
/// The file has no such markers, or can't be written.
pub fn publish(name: &str, text: &str, file: Option<&Path>) -> Result<()> {
    println!("{text}");
    let Some(file) = file else { return Ok(()) };
    let old = fs::read_to_string(file)?;
    let new = replaced(&old, name, text)
        .ok_or_else(|| format!("{} has no <!-- {name} -->", file.display()))?;
    Ok(fs::write(file, new)?)
}

fn replaced(old: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let start = old.find(&begin)? + begin.len();
    let stop = start + old[start..].find(&end)?;
    Some(format!(
        "{}\n\n{}\n\n{}",
        &old[..start],
        text.trim(),
        &old[stop..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let old = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n";
        let new = replaced(old, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n");
        assert_eq!(replaced(old, "y", "new"), None);
        assert_eq!(replaced(&new, "x", "new"), Some(new));
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.row(&["1", "2"]);
        assert_eq!(table.text(), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
