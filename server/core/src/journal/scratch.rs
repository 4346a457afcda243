//! A folder for derived files of one process (PostgreSQL): gone with it, or removed by the next.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::id;

const PREFIX: &str = "hub-index-";
const LOCK: &str = "lock";
/// The same before it is locked: nobody else looks at it.
const UNLOCKED: &str = "unlocked";

/// The folder; removed when this is dropped.
pub(super) struct Scratch {
    folder: PathBuf,
    /// Held as long as the process lives, also when it is killed.
    _lock: File,
}

impl Scratch {
    /// Makes a folder of an unforeseeable name, and removes those of processes that were killed.
    pub(super) fn new(parent: &Path) -> io::Result<Scratch> {
        remove_orphans(parent)?;
        let name = id::new("hub-index").replace('_', "-");
        let folder = parent.join(name);
        // Fails if it exists: nobody else can have prepared it.
        fs::create_dir(&folder)?;
        let unlocked = folder.join(UNLOCKED);
        let lock = File::create_new(&unlocked)?;
        lock.try_lock()?;
        // Not before: one that is seen unlocked is that of a process that was killed.
        fs::rename(unlocked, folder.join(LOCK))?;
        Ok(Scratch {
            folder,
            _lock: lock,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next process.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn remove_orphans(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && is_orphan(&entry.path()) {
            // Another process may be removing it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// A folder without a lock file is one that is just being made.
fn is_orphan(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_living_process_stays_and_that_of_a_killed_one_goes() {
        let parent = std::env::temp_dir().join(id::new("hubtest"));
        fs::create_dir(&parent).unwrap();
        let killed = parent.join("hub-index-killed");
        fs::create_dir(&killed).unwrap();
        File::create(killed.join(LOCK)).unwrap();
        let living = Scratch::new(&parent).unwrap();
        assert!(!killed.exists());
        let other = Scratch::new(&parent).unwrap();
        assert!(living.path(LOCK).exists() && other.path(LOCK).exists());
        drop(living);
        drop(other);
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn processes_that_begin_at_once_leave_each_other_their_folders() {
        let parent = std::env::temp_dir().join(id::new("hubtest"));
        fs::create_dir(&parent).unwrap();
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for _ in 0..100 {
                        let own = Scratch::new(&parent).unwrap();
                        std::thread::yield_now();
                        assert!(own.path(LOCK).exists());
                    }
                });
            }
        });
        fs::remove_dir(&parent).unwrap();
    }
}
