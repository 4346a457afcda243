//! Limits of requests, from the option `hub.options.v1.rules` of their fields.
//!
//! [`Validate`] is generated for every message that a request can contain. All violations are
//! collected, so that a caller can correct them at once.

mod checks;
mod generated;

use std::fmt::{self, Write};

use tonic_types::FieldViolation;

/// Most violations that are collected for one request.
const MAX_VIOLATIONS: usize = 32;
/// Bytes that all violations may take in the error details, which go into an HTTP/2 header.
const MAX_DETAIL_BYTES: usize = 2048;
/// Characters of a map key that a path shows.
const MAX_KEY_CHARS: usize = 32;

/// A message with declared limits.
pub trait Validate {
    /// Adds what is wrong with the message at `path` to `out`.
    fn validate(&self, path: &mut Path, out: &mut Violations);
}

/// Checks a whole message.
pub fn violations<M: Validate>(message: &M) -> Violations {
    let mut out = Violations::default();
    message.validate(&mut Path::default(), &mut out);
    out
}

/// Where in a message the check is.
#[derive(Debug, Default)]
pub struct Path {
    segments: Vec<Segment>,
}

#[derive(Debug)]
enum Segment {
    Field(&'static str),
    Index(usize),
    Key(String),
}

impl Path {
    /// Enters a field.
    pub fn push_field(&mut self, name: &'static str) {
        self.segments.push(Segment::Field(name));
    }

    /// Enters an item of a list.
    pub fn push_index(&mut self, index: usize) {
        self.segments.push(Segment::Index(index));
    }

    /// Enters an entry of a map.
    pub fn push_key(&mut self, key: &str) {
        self.segments
            .push(Segment::Key(key.chars().take(MAX_KEY_CHARS).collect()));
    }

    /// Leaves what was entered last.
    pub fn pop(&mut self) {
        self.segments.pop();
    }
}

impl fmt::Display for Path {
    /// As in `google.rpc.BadRequest`: `api_key.scopes[0]`, `labels["team"]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Field(name) if i == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

/// One thing that is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, `api_key.scopes[0]`.
    pub field: String,
    /// What it must be, e.g. "must be set".
    pub description: String,
    /// Kind of violation, e.g. `REQUIRED`, `TOO_LONG`.
    pub reason: &'static str,
}

/// What is wrong with a request: the first violations, as many as fit into an error.
#[derive(Debug, Clone, Default)]
pub struct Violations {
    list: Vec<Violation>,
    bytes: usize,
}

impl Violations {
    /// Adds a violation at `path`, unless there are too many.
    pub fn add(&mut self, path: &Path, reason: &'static str, description: impl fmt::Display) {
        if self.list.len() >= MAX_VIOLATIONS || self.bytes >= MAX_DETAIL_BYTES {
            return;
        }
        let mut text = String::new();
        if write!(text, "{description}").is_err() {
            return;
        }
        let field = path.to_string();
        let bytes = self.bytes + 2 * field.len() + text.len() + reason.len();
        if bytes > MAX_DETAIL_BYTES && !self.list.is_empty() {
            self.bytes = MAX_DETAIL_BYTES;
            return;
        }
        self.bytes = bytes;
        self.list.push(Violation {
            field,
            description: text,
            reason,
        });
    }

    /// Adds that the field at `path` must be set.
    pub fn missing(&mut self, path: &Path) {
        self.add(path, "REQUIRED", "must be set");
    }

    /// True if nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The violations in the order of the fields.
    pub fn as_slice(&self) -> &[Violation] {
        &self.list
    }

    /// As in `google.rpc.BadRequest`.
    pub fn to_field_violations(&self) -> Vec<FieldViolation> {
        self.list
            .iter()
            .map(|violation| FieldViolation {
                reason: violation.reason.to_owned(),
                ..FieldViolation::new(&violation.field, &violation.description)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
