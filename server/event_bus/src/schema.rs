//! JSON Schema 2020-12 of event types: compiled once, and checked against the data of each event.
//!
//! Everything is bounded: a schema that could ask for too much work is refused when it is put into
//! the catalogue (`cost.rs`), regular expressions run in linear time, nothing is fetched, and data
//! of a batch that would take longer is checked apart from the serving threads.

mod cost;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hub_core::error::{Error, Result};
use hub_core::journal::NewEvent;
use hub_proto::wire::{CloudEventView, attribute_value::Attr, cloud_event_view::Data};
use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, Validator};
use prost::Message;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::catalogue::Catalogue;
use crate::error;

/// Largest text of a schema.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Nesting of a schema, and of data that has one.
const DEPTH_MAX: usize = 64;
/// Values in the data of one event.
const VALUES_MAX: u64 = 200_000;
/// Looks at values that one batch may need; about half a second.
const BATCH_LOOKS_MAX: u64 = 50_000_000;
/// A batch that needs more looks is checked apart from the serving threads; about a millisecond.
const INLINE_LOOKS_MAX: u64 = 100_000;
/// Where more looks are needed, only whether the data matches is found out, not all places.
const PLACES_LOOKS_MAX: u64 = 50_000;
/// Violations that an error lists.
const VIOLATIONS_MAX: usize = 8;
/// Bytes of one violation's text.
const TEXT_BYTES_MAX: usize = 150;
/// Memory of one compiled regular expression, and of its cache.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Memory of compiled schemas, about.
const COMPILED_BYTES_MAX: usize = 64 << 20;
/// What a compiled schema takes for each byte of its text, about.
const COMPILED_FACTOR: usize = 32;
/// Batches and schemas at work apart from the serving threads.
const APART_MAX: usize = 2;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What is wrong with a schema, or with data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Where, as a JSON pointer; empty = at the top.
    pub pointer: String,
    /// What is wrong there, as the end of a sentence.
    pub problem: String,
}

impl Problem {
    fn new(pointer: impl Into<String>, problem: impl Into<String>) -> Self {
        let mut problem = problem.into();
        if problem.len() > TEXT_BYTES_MAX {
            problem.truncate(problem.floor_char_boundary(TEXT_BYTES_MAX));
            problem.push('…');
        }
        Problem {
            pointer: pointer.into(),
            problem,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => write!(f, "it {}", self.problem),
            pointer => write!(f, "{pointer} {}", self.problem),
        }
    }
}

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    cost: cost::Cost,
}

impl Schema {
    /// Compiles the text of a schema, or says what is wrong with it and where.
    pub fn compile(text: &str) -> Result<Schema, Problem> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(Problem::new("", "has more than 64 KiB"));
        }
        let schema: Value = serde_json::from_str(text).map_err(not_json)?;
        if let Some(draft) = schema.get("$schema")
            && draft.as_str().map(|draft| draft.trim_end_matches('#')) != Some(DRAFT)
        {
            return Err(Problem::new("/$schema", format!("must be {DRAFT}")));
        }
        let cost = cost::of(&schema)?;
        let patterns = PatternOptions::regex()
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .with_pattern_options(patterns)
            .build(&schema)
            .map_err(|error| violation(&error))?;
        Ok(Schema { validator, cost })
    }

    /// Checks JSON; violations are at most eight, never none.
    pub fn check(&self, json: &[u8]) -> Result<(), Vec<Problem>> {
        let values = measure(json).map_err(|problem| vec![problem])?;
        let data: Value = serde_json::from_slice(json).map_err(|error| vec![not_json(error)])?;
        if self.looks(values) <= PLACES_LOOKS_MAX {
            let violations: Vec<Problem> = self
                .validator
                .iter_errors(&data)
                .take(VIOLATIONS_MAX)
                .map(|error| violation(&error))
                .collect();
            return match violations.is_empty() {
                true => Ok(()),
                false => Err(violations),
            };
        }
        if self.cost.alternatives {
            let problem = "does not match the schema; it is too large to say where";
            return match self.validator.is_valid(&data) {
                true => Ok(()),
                false => Err(vec![Problem::new("", problem)]),
            };
        }
        let checked = self.validator.validate(&data);
        checked.map_err(|error| vec![violation(&error)])
    }

    /// Looks that so many values may need.
    fn looks(&self, values: u64) -> u64 {
        values.saturating_mul(self.cost.looks)
    }

    fn bytes(&self, text: &str) -> usize {
        text.len() * COMPILED_FACTOR + self.cost.patterns * 2 * PATTERN_BYTES_MAX
    }
}

/// Values are left out: they are the caller's, and may be secret.
fn violation(error: &jsonschema::ValidationError<'_>) -> Problem {
    let pointer = error.instance_path().as_str();
    if let ValidationErrorKind::Required { property } = error.kind() {
        return Problem::new(pointer, format!("needs the property {property}"));
    }
    let shown = error.masked_with("the value").to_string();
    match shown.strip_prefix("the value ") {
        Some(rest) => Problem::new(pointer, rest),
        None => Problem::new(pointer, format!("is wrong: {shown}")),
    }
}

fn not_json(error: serde_json::Error) -> Problem {
    Problem::new("", format!("is not JSON: {error}"))
}

/// Counts the values of JSON before it takes memory, and refuses what is nested too deeply.
fn measure(json: &[u8]) -> Result<u64, Problem> {
    let (mut values, mut depth, mut in_string, mut escaped) = (1u64, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                values += 1;
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Problem::new("", "is nested more than 64 levels deep"));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
    }
    if values > VALUES_MAX {
        let problem = format!("has more than {VALUES_MAX} values");
        return Err(Problem::new("", problem));
    }
    Ok(values)
}

/// A schema, or why there is none.
pub type Usable = Result<Arc<Schema>, Problem>;

/// An event whose type has a schema.
struct Typed {
    /// Place in the request.
    index: usize,
    /// Encoded; it was checked as an event.
    event: Bytes,
    /// The schema of its type; one that an older hub took may not do any more.
    schema: Usable,
}

impl Typed {
    /// Errors: `SCHEMA_VIOLATION`.
    fn check(&self, looks_left: &mut u64) -> Result<()> {
        let view = CloudEventView::decode(self.event.clone()).unwrap_or_default();
        let refused = |violations: &[Problem]| {
            let kind = String::from_utf8_lossy(&view.r#type);
            Err(error::schema_violation(self.index, &kind, violations))
        };
        let schema = match &self.schema {
            Ok(schema) => schema,
            Err(problem) => {
                let problem = format!("cannot be checked, as in the schema of its type {problem}");
                return refused(&[Problem::new("", problem)]);
            }
        };
        let json = match json(&view) {
            Ok(json) => json,
            Err(problem) => return refused(&[Problem::new("", problem)]),
        };
        let looks = schema.looks(measure(json).unwrap_or(1));
        let Some(left) = looks_left.checked_sub(looks) else {
            let problem = "is too large to be checked with the rest of the batch; send less";
            return refused(&[Problem::new("", problem)]);
        };
        *looks_left = left;
        match schema.check(json) {
            Ok(()) => Ok(()),
            Err(violations) => refused(&violations),
        }
    }
}

/// The data of an event if it is JSON.
fn json(view: &CloudEventView) -> Result<&[u8], &'static str> {
    match &view.data {
        Some(Data::TextData(data)) => Ok(data),
        Some(Data::BinaryData(data)) if says_json(view) => Ok(data),
        Some(Data::BinaryData(_)) => {
            Err("is binary; its type takes JSON, which datacontenttype must say")
        }
        Some(Data::ProtoData(_)) => Err("is protobuf; its type takes JSON"),
        None => Err("is missing; its type has a schema"),
    }
}

/// `application/json`, or a type whose suffix says so (RFC 6839).
fn says_json(view: &CloudEventView) -> bool {
    // Of entries with the same name the last one counts.
    let mut entries = view.attributes.iter().rev();
    let entry = entries.find(|entry| entry.key == "datacontenttype");
    let value = entry.and_then(|entry| entry.value.as_ref()?.attr.as_ref());
    let Some(Attr::CeString(value)) = value else {
        return false;
    };
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    let media = text.split(';').next().unwrap_or_default().trim();
    media == "application/json" || media == "text/json" || media.ends_with("+json")
}

/// The compiled schemas of a process, and where they are used.
pub struct Schemas {
    compiled: Mutex<Compiled>,
    apart: Arc<Semaphore>,
}

#[derive(Default)]
struct Compiled {
    by_text: HashMap<Arc<str>, Entry>,
    bytes: usize,
    uses: u64,
}

struct Entry {
    schema: Arc<Schema>,
    bytes: usize,
    used: u64,
}

impl Default for Schemas {
    fn default() -> Self {
        Schemas {
            compiled: Mutex::default(),
            apart: Arc::new(Semaphore::new(APART_MAX)),
        }
    }
}

impl Schemas {
    /// The schema of a text, compiled at its first use.
    pub async fn get(&self, text: &Arc<str>) -> Result<Usable> {
        if let Some(found) = self.lock().find(text) {
            return Ok(Ok(found));
        }
        let source = text.clone();
        let compiled = self.apart(move || Schema::compile(&source)).await?;
        let schema = match compiled {
            Ok(schema) => Arc::new(schema),
            Err(problem) => return Ok(Err(problem)),
        };
        self.lock().put(text.clone(), schema.clone());
        Ok(Ok(schema))
    }

    /// Checks the data of the events of one batch, which come with their places in the request:
    /// `SCHEMA_VIOLATION` for each that does not match, by its place.
    pub async fn check(
        &self,
        catalogue: &Catalogue,
        events: impl Iterator<Item = (usize, &NewEvent)>,
    ) -> Result<BTreeMap<usize, Error>> {
        let mut used: Vec<(Arc<str>, Usable)> = Vec::new();
        let (mut typed, mut looks) = (Vec::new(), 0u64);
        for (index, event) in events {
            let kind = std::str::from_utf8(&event.kind).unwrap_or_default();
            let entry = catalogue.find(kind).map(|entry| &entry.json_schema);
            let Some(text) = entry.filter(|text| !text.is_empty()) else {
                continue;
            };
            let at = match used.iter().position(|(known, _)| Arc::ptr_eq(known, text)) {
                Some(at) => at,
                None => {
                    used.push((text.clone(), self.get(text).await?));
                    used.len() - 1
                }
            };
            let schema = used[at].1.clone();
            if let Ok(schema) = &schema {
                looks = looks.saturating_add(schema.looks(event.event.len() as u64));
            }
            typed.push(Typed {
                index,
                event: event.event.clone(),
                schema,
            });
        }
        let check = move || {
            let mut left = BATCH_LOOKS_MAX;
            let refused = typed
                .iter()
                .filter_map(|typed| Some((typed.index, typed.check(&mut left).err()?)));
            refused.collect()
        };
        if looks <= INLINE_LOOKS_MAX {
            return Ok(check());
        }
        self.apart(check).await
    }

    /// Runs what takes longer apart from the serving threads, little at once.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let permit = self.apart.clone().acquire_owned().await;
        let permit = permit.map_err(Error::internal)?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        working.await.map_err(Error::internal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Compiled {
    fn find(&mut self, text: &Arc<str>) -> Option<Arc<Schema>> {
        self.uses += 1;
        let entry = self.by_text.get_mut(text)?;
        entry.used = self.uses;
        Some(entry.schema.clone())
    }

    /// Keeps it; what was not used for longest makes room.
    fn put(&mut self, text: Arc<str>, schema: Arc<Schema>) {
        let bytes = schema.bytes(&text);
        let used = self.uses;
        self.bytes += bytes;
        let entry = Entry {
            schema,
            bytes,
            used,
        };
        if let Some(before) = self.by_text.insert(text.clone(), entry) {
            self.bytes -= before.bytes;
        }
        while self.bytes > COMPILED_BYTES_MAX {
            let others = self.by_text.iter().filter(|(key, _)| **key != text);
            let oldest = others.min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            if let Some(gone) = self.by_text.remove(&oldest) {
                self.bytes -= gone.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests;
