//! Embeds the pages of `docs/errors` and `docs/checks`, so that the server can serve them at
//! `/errors/<REASON>` and `/checks/<CODE>`.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let docs = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../docs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    embed(&docs.join("errors"), &out.join("error_pages.rs"))?;
    embed(&docs.join("checks"), &out.join("check_pages.rs"))
}

/// Writes the pages of a folder as a list of name and text, by name.
fn embed(folder: &Path, list: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<(String, PathBuf)> = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if is_name && path.extension().is_some_and(|extension| extension == "md") {
                pages.push((name.to_owned(), path.canonicalize()?));
            }
        }
    }
    pages.sort();
    let mut code = String::from("&[\n");
    for (name, path) in pages {
        writeln!(code, "    ({name:?}, include_str!({path:?})),")?;
    }
    code.push_str("]\n");
    fs::write(list, code)?;
    Ok(())
}
