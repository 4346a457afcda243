//! Histories as they are kept: one track for each client, in memory and as a file of JSON lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::records::{
    About, Consuming, Consumption, Happening, Line, Micros, Publication, Publishing, Reading,
    Redelivering, Redelivery, Subscribing, now,
};

/// A record with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct At<R> {
    pub at: Micros,
    pub record: R,
}

/// Who writes the records of a track, and about what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header<A> {
    pub name: String,
    pub tenant: usize,
    pub about: A,
}

/// The records of one client, in the order in which it wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track<A, R> {
    pub header: Header<A>,
    pub records: Vec<At<R>>,
}

pub type Publisher = Track<Publishing, Publication>;
pub type Subscriber = Track<Subscribing, Reading>;
pub type Consumer = Track<Consuming, Consumption>;
pub type Redeliverer = Track<Redelivering, Redelivery>;
pub type World = Track<About, Happening>;
/// What a tenant's log says at the end.
pub type Dump = Track<(), Line>;

/// All that a run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub world: World,
    pub publishers: Vec<Publisher>,
    pub subscribers: Vec<Subscriber>,
    pub consumers: Vec<Consumer>,
    pub redeliverers: Vec<Redeliverer>,
    /// One for each tenant, by number.
    pub dumps: Vec<Dump>,
}

/// Where the files of a run are; cheap to clone.
#[derive(Debug, Clone)]
pub struct Folder(Arc<PathBuf>);

impl Folder {
    /// Makes it; what is in it stays.
    pub fn make(path: &Path) -> Folder {
        fs::create_dir_all(path).unwrap();
        Folder(Arc::new(path.to_owned()))
    }

    /// Starts the track of a client, e.g. `publisher-0-1`.
    pub fn record<A: Serialize, R: Serialize>(
        &self,
        name: &str,
        tenant: usize,
        about: A,
    ) -> Recorder<A, R> {
        let file = File::create(self.0.join(format!("{name}.jsonl"))).unwrap();
        let header = Header {
            name: name.to_owned(),
            tenant,
            about,
        };
        let mut recorder = Recorder {
            file: BufWriter::new(file),
            track: Track {
                header,
                records: Vec::new(),
            },
        };
        write(&mut recorder.file, &recorder.track.header);
        recorder
    }
}

/// Writes one track.
pub struct Recorder<A, R> {
    file: BufWriter<File>,
    track: Track<A, R>,
}

impl<A, R: Serialize> Recorder<A, R> {
    /// Notes something that happens now.
    pub fn note(&mut self, record: R) {
        self.note_at(now(), record);
    }

    /// Notes something that happened before.
    pub fn note_at(&mut self, at: Micros, record: R) {
        let record = At { at, record };
        write(&mut self.file, &record);
        self.track.records.push(record);
    }

    /// What was noted so far.
    pub fn records(&self) -> &[At<R>] {
        &self.track.records
    }

    /// Ends the file.
    pub fn finish(mut self) -> Track<A, R> {
        self.file.flush().unwrap();
        self.track
    }
}

fn write(file: &mut BufWriter<File>, line: &impl Serialize) {
    serde_json::to_writer(&mut *file, line).unwrap();
    file.write_all(b"\n").unwrap();
}

impl History {
    /// How often ExplainEvent was asked.
    pub fn explanations(&self) -> usize {
        let lines = self.dumps.iter().flat_map(|dump| &dump.records);
        let explained = lines.filter(|line| matches!(line.record, Line::Explained(_)));
        explained.count()
    }

    /// Puts the clients in the order of their names.
    pub fn sort(&mut self) {
        self.publishers
            .sort_by(|one, two| one.header.name.cmp(&two.header.name));
        self.subscribers
            .sort_by(|one, two| one.header.name.cmp(&two.header.name));
        self.consumers
            .sort_by(|one, two| one.header.name.cmp(&two.header.name));
        self.redeliverers
            .sort_by(|one, two| one.header.name.cmp(&two.header.name));
        self.dumps.sort_by_key(|dump| dump.header.tenant);
    }

    /// Reads the files of a run that has ended.
    pub fn load(path: &Path) -> History {
        let mut history = History {
            world: tracks(path, "world").pop().expect("world.jsonl"),
            publishers: tracks(path, "publisher-"),
            subscribers: tracks(path, "subscriber-"),
            consumers: tracks(path, "consumer-"),
            redeliverers: tracks(path, "redeliverer-"),
            dumps: tracks(path, "log-"),
        };
        history.sort();
        history
    }
}

/// The tracks whose names start so.
fn tracks<A: DeserializeOwned, R: DeserializeOwned>(path: &Path, prefix: &str) -> Vec<Track<A, R>> {
    let entries = fs::read_dir(path).unwrap();
    let names = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(prefix) && name.ends_with(".jsonl"));
    names.map(|name| track(&path.join(name))).collect()
}

fn track<A: DeserializeOwned, R: DeserializeOwned>(path: &Path) -> Track<A, R> {
    let mut lines = BufReader::new(File::open(path).unwrap()).lines();
    let mut next = || lines.next().map(|line| line.unwrap());
    let bad = |error| panic!("{}: {error}", path.display());
    let header = next().expect("a header");
    let header = serde_json::from_str(&header).unwrap_or_else(bad);
    let mut records = Vec::new();
    while let Some(line) = next() {
        records.push(serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{}: record {}: {error}", path.display(), records.len() + 1)
        }));
    }
    Track { header, records }
}
