//! The one error type that leaves a domain: what happened, what to do, and a public reason.
//!
//! Follows AIP-193 (<https://google.aip.dev/193>): exactly one `ErrorInfo`, every variable of the
//! message also in its metadata. The call id and the Help link are added where the answer leaves
//! the server, because only that place knows them.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use hub_proto::hub::core::v1::Problem;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Result of everything that a caller may see fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Domain of the reasons that any RPC may return.
pub const CORE: &str = "hub.core";

/// A failure as the caller sees it.
#[derive(Debug, Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    domain: &'static str,
    reason: &'static str,
    message: String,
    metadata: Vec<(&'static str, String)>,
    violations: Vec<(String, String)>,
    retry_after: Option<Duration>,
    quota: Option<(String, String)>,
}

impl Error {
    /// `message` says what happened and what to do, in two short sentences.
    pub fn new(
        code: Code,
        domain: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let inner = Inner {
            code,
            domain,
            reason,
            message: message.into(),
            metadata: Vec::new(),
            violations: Vec::new(),
            retry_after: None,
            quota: None,
        };
        Error {
            inner: Box::new(inner),
        }
    }

    /// Adds a variable of the message to the metadata of `ErrorInfo`; values are cut at 512 bytes,
    /// so that all details together stay below 4 KiB.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.inner.metadata.push((key, cut(value.to_string(), 512)));
        self
    }

    /// Adds a place that is wrong and what is wrong there (`BadRequest`); cut at 200 and 300 bytes.
    #[must_use]
    pub fn violation(mut self, field: impl Into<String>, problem: impl Into<String>) -> Self {
        self.inner.violations.push((field.into(), problem.into()));
        self
    }

    /// Which quota is used up: whose, and what it allows.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, allows: impl Into<String>) -> Self {
        self.inner.quota = Some((subject.into(), allows.into()));
        self
    }

    /// Tells the caller to wait (`RetryInfo`).
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.inner.retry_after = Some(wait);
        self
    }

    /// A field that is missing, malformed or out of range (`FIELD_INVALID` with `BadRequest`).
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.into(), problem.into());
        let message = format!("{field} {problem}. Fix the field.");
        let mut error = Error::new(Code::InvalidArgument, CORE, "FIELD_INVALID", message)
            .with("fields", &field);
        error.inner.violations.push((field, problem));
        error
    }

    /// The resource is not the one that the caller read (`ETAG_MISMATCH`).
    pub fn etag_mismatch(current: impl fmt::Display) -> Self {
        let message = "The resource changed since you read it. Read it again, apply your change to \
                       it, then retry.";
        Error::new(Code::Aborted, CORE, "ETAG_MISMATCH", message).with("currentEtag", current)
    }

    /// The database cannot take the write now (`STORE_BUSY`). `cause` is one word for programs.
    pub fn store_busy(what: &str, cause: &'static str) -> Self {
        let message = format!("{what}. Send the call again; events are stored once.");
        Error::new(Code::Unavailable, CORE, "STORE_BUSY", message)
            .with("cause", cause)
            .retry_after(Duration::from_millis(500))
    }

    /// The server is being stopped (`SERVER_DRAINING`).
    pub fn draining() -> Self {
        let message = "The server is being stopped. Connect again in a moment.";
        Error::new(Code::Unavailable, CORE, "SERVER_DRAINING", message)
            .retry_after(Duration::from_secs(1))
    }

    /// A defect of the hub (`INTERNAL`). `logged` goes to the log only, never to the caller.
    #[track_caller]
    pub fn internal(logged: impl fmt::Display) -> Self {
        let at = std::panic::Location::caller();
        tracing::error!(%at, "internal error: {logged}");
        let message = "The hub failed in a way that it should not. Retry once, then report the \
                       call id.";
        Error::new(Code::Internal, CORE, "INTERNAL", message)
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.inner.code
    }

    /// The public reason, without prefix.
    pub fn reason(&self) -> &'static str {
        self.inner.reason
    }

    /// What happened and what to do.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The variables of the message.
    pub fn metadata(&self) -> &[(&'static str, String)] {
        &self.inner.metadata
    }

    /// The same as one item of a batch or stream says it.
    pub fn to_problem(&self) -> Problem {
        Problem {
            domain: self.inner.domain.into(),
            reason: self.inner.reason.into(),
            message: self.inner.message.clone(),
            metadata: self.metadata_map().into_iter().collect(),
        }
    }

    fn metadata_map(&self) -> HashMap<String, String> {
        self.inner
            .metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.inner.message, self.inner.reason)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let inner = &error.inner;
        let mut details = ErrorDetails::new();
        details.set_error_info(inner.reason, inner.domain, error.metadata_map());
        for (field, problem) in &inner.violations {
            details.add_bad_request_violation(cut(field.clone(), 200), cut(problem.clone(), 300));
        }
        if let Some((subject, allows)) = &inner.quota {
            details
                .add_quota_failure_violation(cut(subject.clone(), 200), cut(allows.clone(), 300));
        }
        if inner.retry_after.is_some() {
            details.set_retry_info(inner.retry_after);
        }
        let message = format!("{} [{}]", inner.message, inner.reason);
        Status::with_error_details(inner.code, message, details)
    }
}

/// Shortens on a character boundary, and shows that it did.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
