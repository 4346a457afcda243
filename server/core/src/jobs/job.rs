//! A job as callers see it.

use std::collections::BTreeMap;

use hub_proto::hub::core::v1 as proto;
use hub_proto::hub::core::v1::JobState;

use crate::clock::{Micros, timestamp};

/// Longest id and reason of a failed item, and longest message, in bytes; the rest is cut.
const ERROR_NAME_BYTES_MAX: usize = 128;
const ERROR_MESSAGE_BYTES_MAX: usize = 512;
/// A job as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Id, `job_…`.
    pub job_id: String,
    /// What it does, e.g. `event_bus.redeliver`.
    pub kind: String,
    /// Where it stands.
    pub state: JobState,
    /// What it works on.
    pub resource: String,
    /// Items to do; 0 while still counting.
    pub total: i64,
    /// Items finished, failures included.
    pub done: i64,
    /// Items failed.
    pub failed: i64,
    /// Outcomes by name.
    pub counters: BTreeMap<String, i64>,
    /// The first 20 failures.
    pub errors: Vec<ItemError>,
    /// What it waits for, or why it FAILED.
    pub message: String,
    /// It counts only.
    pub dry_run: bool,
    /// Who started it.
    pub created_by: String,
    /// When it was started.
    pub create_time: Micros,
    /// When it ended.
    pub complete_time: Option<Micros>,
}

/// A failed item of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ItemError {
    /// Id of the item.
    pub resource: String,
    /// Reason, as in ErrorInfo.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Job {
    /// As the API shows it.
    pub fn to_proto(&self) -> proto::Job {
        let errors = self.errors.iter().map(|error| proto::JobError {
            resource: error.resource.clone(),
            reason: error.reason.clone(),
            message: error.message.clone(),
        });
        proto::Job {
            job_id: self.job_id.clone(),
            kind: self.kind.clone(),
            state: self.state.into(),
            resource: self.resource.clone(),
            total: self.total,
            done: self.done,
            failed: self.failed,
            counters: self.counters.clone().into_iter().collect(),
            errors: errors.collect(),
            message: self.message.clone(),
            dry_run: self.dry_run,
            created_by: self.created_by.clone(),
            create_time: Some(timestamp(self.create_time)),
            complete_time: self.complete_time.map(timestamp),
        }
    }
}

impl ItemError {
    /// With texts of a bounded length.
    pub(super) fn cut(self) -> Self {
        ItemError {
            resource: cut(self.resource, ERROR_NAME_BYTES_MAX),
            reason: cut(self.reason, ERROR_NAME_BYTES_MAX),
            message: cut(self.message, ERROR_MESSAGE_BYTES_MAX),
        }
    }
}

/// The errors of a job as they are stored.
pub(super) fn errors_to_json(errors: &[ItemError]) -> String {
    let parts = errors
        .iter()
        .map(|error| [&*error.resource, &*error.reason, &*error.message]);
    serde_json::json!(parts.collect::<Vec<_>>()).to_string()
}

/// What [`errors_to_json`] wrote.
pub(super) fn errors_from_json(json: &str) -> Option<Vec<ItemError>> {
    let parts: Vec<[String; 3]> = serde_json::from_str(json).ok()?;
    let error = |[resource, reason, message]: [String; 3]| ItemError {
        resource,
        reason,
        message,
    };
    Some(parts.into_iter().map(error).collect())
}

/// Shortens on a character boundary, and shows that it did.
pub(super) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_stored_as_they_are() {
        let error = ItemError {
            resource: "evt_\"1\"".to_owned(),
            reason: "EVENT_NOT_FOUND".to_owned(),
            message: "ä, \\ and a line\n".to_owned(),
        };
        let errors = vec![error.clone(), error];
        assert_eq!(errors_from_json(&errors_to_json(&errors)), Some(errors));
        assert_eq!(errors_from_json("[]"), Some(Vec::new()));
        assert_eq!(errors_from_json("{}"), None);
    }
}
