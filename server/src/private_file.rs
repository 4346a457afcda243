//! Files that hold keys.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file of mode 0600 by rename: a reader sees all of it or nothing, and a crash leaves
/// the old one.
pub fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = Path::new(&new);
    let written = create(new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(new, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(new);
        format!("cannot write {}: {error}", path.display())
    })
}

fn create(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)?;
    }
    // A file that is left over may have another mode.
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}
