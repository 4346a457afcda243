//! What is said nowhere.

use super::rules::{Findings, keep};
use super::source::files;

const ENDINGS: &[&str] = &[
    "rs", "md", "toml", "sql", "sh", "py", "proto", "yaml", "yml", "js", "ts", "html", "css",
    "txt", "",
];

/// Paths of the machine that a change was made on. In pieces, since this file is looked at too.
const PATHS: [&str; 4] = [
    concat!("/wo", "rk/"),
    concat!("/tm", "p/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
];

/// Where Homebrew is on every machine that has it.
const HOMEBREW: &str = concat!("/ho", "me/linuxbrew/");

/// A path is told when it begins, not when it goes on.
fn machine_paths(path: &str, text: &str) -> Findings {
    let mut found = Findings::new();
    for (at, line) in text.lines().enumerate() {
        for machine in PATHS {
            let begins = |place: usize| {
                let before = line[..place].chars().next_back();
                let goes_on = before.is_some_and(|c| c.is_alphanumeric() || "._-}$".contains(c));
                !goes_on && !line[place..].starts_with(HOMEBREW)
            };
            if line.match_indices(machine).any(|(place, _)| begins(place)) {
                found.push(format!(
                    "{path}:{}: a path of some machine, {machine}…",
                    at + 1
                ));
            }
        }
    }
    found
}

#[test]
fn no_file_names_a_path_of_some_machine() {
    let found = files(ENDINGS)
        .into_iter()
        .flat_map(|file| machine_paths(&file.path, &file.text));
    keep("paths", found.collect());
}

#[test]
fn paths_of_a_machine_are_found() {
    let bad = concat!("see /wo", "rk/main\n", "`/tm", "p/a`");
    assert_eq!(machine_paths("a.md", bad).len(), 2);
    let good = concat!("$wo", "rk/postgres ${a}/tm", "p/b https://a.b/ho", "me/c");
    assert!(
        machine_paths("a.md", good).is_empty(),
        "{:?}",
        machine_paths("a.md", good)
    );
    let good = concat!("/ho", "me/linuxbrew/bin");
    assert!(
        machine_paths("a.md", good).is_empty(),
        "{:?}",
        machine_paths("a.md", good)
    );
}
