//! The physical limit: the same bytes, appended to a preallocated file and synced.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::round::Run;
use crate::{PAYLOAD_BYTES, Result};

/// What an event takes in the journal beside its payload: id, source, type, identity, lengths.
const EVENT_OVERHEAD_BYTES: usize = 110;
/// Size of the file; the writes go around in it.
const FILE_BYTES: usize = 64 << 20;

/// A preallocated file.
#[derive(Debug)]
pub struct Disk {
    file: File,
}

impl Disk {
    /// Makes the file.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn new(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..FILE_BYTES / zeros.len() {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(Disk { file })
    }

    /// Writes and syncs (fdatasync) batches of `window` events for `duration`. Blocks.
    ///
    /// # Errors
    /// The disk fails.
    pub fn publish(&mut self, window: usize, duration: Duration) -> Result<Run> {
        let batch = vec![b'x'; window * (PAYLOAD_BYTES + EVENT_OVERHEAD_BYTES)];
        let started = Instant::now();
        let mut events = 0;
        let mut position = FILE_BYTES;
        while started.elapsed() < duration {
            if position + batch.len() > FILE_BYTES {
                self.file.seek(SeekFrom::Start(0))?;
                position = 0;
            }
            self.file.write_all(&batch)?;
            self.file.sync_data()?;
            position += batch.len();
            events += window as u64;
        }
        Ok(Run::new(events, started.elapsed()))
    }
}
