//! Who depends on whom.

use super::rules::{Findings, keep};
use super::source::{files, root};

/// The crates of the server that every domain may use.
const SHARED: [&str; 2] = ["hub-core", "hub-proto"];

/// Names of the domains: the crates in `server/` besides core.
pub fn domains() -> Vec<String> {
    let manifests = files(&["toml"]);
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|file| {
            file.path
                .strip_prefix("server/")?
                .strip_suffix("/Cargo.toml")
        })
        .filter(|name| *name != "core")
        .map(str::to_owned)
        .collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    names
}

/// What is wrong with the dependencies of `server/<own>`: the server itself is `src`.
pub fn dependencies(own: &str, manifest: &str, domains: &[String]) -> Findings {
    if own == "src" {
        return Findings::new();
    }
    let forbidden = |name: &str| {
        let domain = name.strip_prefix("hub-").map(|name| name.replace('-', "_"));
        let other = domain.is_some_and(|domain| domain != own && domains.contains(&domain));
        other || name == "hub-server"
    };
    let mut found = Findings::new();
    for (at, line) in manifest.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let named = words.find(|word| !SHARED.contains(word) && forbidden(word));
        let is_own = line.trim_start().starts_with("name ");
        if let Some(name) = named.filter(|_| !is_own) {
            found.push(format!(
                "server/{own}/Cargo.toml:{}: {own} depends on {name}",
                at + 1
            ));
        }
    }
    found
}

#[test]
fn no_domain_depends_on_another_and_core_on_none() {
    let domains = domains();
    let crates = domains.iter().map(String::as_str).chain(["core"]);
    let found = crates.flat_map(|name| {
        let path = root().join("server").join(name).join("Cargo.toml");
        dependencies(name, &std::fs::read_to_string(path).unwrap(), &domains)
    });
    keep("dependencies", found.collect());
}

#[test]
fn each_domain_has_its_four_files_and_a_folder_of_tests() {
    let mut missing = Findings::new();
    for domain in domains() {
        for file in ["lib.rs", "grpc", "error.rs"] {
            let path = root().join("server").join(&domain).join("src").join(file);
            if !path.exists() && !path.with_extension("rs").exists() {
                missing.push(format!("server/{domain}/src: no {file}"));
            }
        }
        for folder in [format!("tests/{domain}"), format!("proto/hub/{domain}/v1")] {
            if !root().join(&folder).is_dir() {
                missing.push(format!("{folder}: is not there"));
            }
        }
    }
    keep("the files of a domain", missing);
}
