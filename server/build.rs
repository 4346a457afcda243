//! Embeds the pages of `docs/errors`, so that the server can serve them at `/errors/<REASON>`.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let folder = root.join("../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<(String, PathBuf)> = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let reason = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            let is_reason = reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if is_reason && path.extension().is_some_and(|extension| extension == "md") {
                pages.push((reason.to_owned(), path.canonicalize()?));
            }
        }
    }
    pages.sort();
    let mut code = String::from("&[\n");
    for (reason, path) in pages {
        writeln!(code, "    ({reason:?}, include_str!({path:?})),")?;
    }
    code.push_str("]\n");
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("error_pages.rs"),
        code,
    )?;
    Ok(())
}
