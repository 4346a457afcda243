//! Why a call, an event or a stream failed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hub_proto::hub::core::v1::Problem;
use hub_proto::reasons::reasons;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// Result of a call to the hub.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal by the hub, or a failure on the way to it. Cheap to clone.
///
/// Every error of the hub has a [`reason`](Error::reason) and a page about it
/// ([`help`](Error::help)). Errors without a reason were made by this client or the network.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

struct Inner {
    code: Code,
    message: String,
    reason: Option<String>,
    domain: Option<String>,
    metadata: BTreeMap<String, String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    help: Option<String>,
    call_id: Option<String>,
    status: Option<Status>,
}

/// A field of the request that is missing, malformed or out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, e.g. `api_key.scopes[0]`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Error {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.inner.code
    }

    /// What happened and what to do, for people.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The reason for programs, e.g. `SCOPE_MISSING`; unique within its [`domain`](Error::domain).
    pub fn reason(&self) -> Option<&str> {
        self.inner.reason.as_deref()
    }

    /// Where the reason is defined, e.g. `hub.api_keys`.
    pub fn domain(&self) -> Option<&str> {
        self.inner.domain.as_deref()
    }

    /// The variables of the message by name, e.g. `requiredScope`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.inner.metadata
    }

    /// All invalid fields of the request, with the reason `FIELD_INVALID`.
    pub fn violations(&self) -> &[Violation] {
        &self.inner.violations
    }

    /// How long the hub asks to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// URL of the page about this reason.
    pub fn help(&self) -> Option<&str> {
        self.inner.help.as_deref()
    }

    /// Id of the failed call in the hub's logs and in Explain answers.
    pub fn call_id(&self) -> Option<&str> {
        self.inner.call_id.as_deref()
    }

    /// Whether the same call may succeed later. It is safe to repeat for reads, for events (stored
    /// once by `source` and `id`) and for requests with a `request_id`. A deadline that passed or a
    /// connection that broke means that the outcome is unknown. Retry `INTERNAL` once only.
    pub fn is_retryable(&self) -> bool {
        match (self.code(), self.reason()) {
            (Code::ResourceExhausted, Some("MESSAGE_TOO_LARGE")) => false,
            (Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded, _) => true,
            (Code::Internal, _) => true,
            // Made on the way: a connection that broke, or a proxy that gave up.
            (Code::Unknown | Code::Cancelled, None) => self.inner.status.is_some(),
            _ => false,
        }
    }

    /// The status as it was received; absent if this client made the error, or if it came as the
    /// result of one event.
    pub fn status(&self) -> Option<&Status> {
        self.inner.status.as_ref()
    }

    /// An error of this client.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Inner {
            message: message.into(),
            ..Inner::new(code)
        }
        .into()
    }

    /// Something that this client can't send.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::local(Code::InvalidArgument, message)
    }

    /// A stream on which nothing came for too long.
    pub(crate) fn silent(silence: Duration) -> Self {
        let seconds = silence.as_secs_f32();
        let message = format!("The stream was silent for {seconds} s. Reconnecting.");
        let mut error = Inner::new(Code::Unavailable);
        error.message = message;
        error.into()
    }

    /// An event that the hub refuses in any case, refused before it is sent.
    pub(crate) fn event_too_large(size: usize, limit: usize) -> Self {
        let metadata = [("size", size), ("limit", limit)];
        Inner {
            message: format!(
                "The event has {size} bytes, the limit is {limit}. Send a `dataref` instead of \
                 the data. [EVENT_TOO_LARGE]"
            ),
            reason: Some("EVENT_TOO_LARGE".to_owned()),
            domain: Some("hub.event_bus".to_owned()),
            metadata: metadata
                .map(|(key, value)| (key.to_owned(), value.to_string()))
                .into(),
            ..Inner::new(Code::InvalidArgument)
        }
        .into()
    }

    /// What the hub said about one event or frame.
    pub(crate) fn from_problem(problem: Problem) -> Self {
        Inner {
            message: problem.message,
            call_id: problem.metadata.get("callId").cloned(),
            metadata: problem.metadata,
            ..Inner::new(code_of(&problem.domain, &problem.reason))
        }
        .named(problem.domain, problem.reason)
        .into()
    }

    /// A defect of the hub; worth one more attempt.
    pub(crate) fn is_defect(&self) -> bool {
        self.code() == Code::Internal && self.reason().is_some()
    }
}

/// The code that the contract states first in the comment of each reason.
pub(crate) fn code_of(domain: &str, reason: &str) -> Code {
    let known = reasons()
        .iter()
        .find(|known| known.domain == domain && known.name == reason);
    let stated = known.map_or("", |known| known.comment);
    let name = stated.split([';', '.', ',']).next().unwrap_or_default();
    let codes = [
        ("INVALID_ARGUMENT", Code::InvalidArgument),
        ("UNAUTHENTICATED", Code::Unauthenticated),
        ("PERMISSION_DENIED", Code::PermissionDenied),
        ("NOT_FOUND", Code::NotFound),
        ("ALREADY_EXISTS", Code::AlreadyExists),
        ("FAILED_PRECONDITION", Code::FailedPrecondition),
        ("ABORTED", Code::Aborted),
        ("OUT_OF_RANGE", Code::OutOfRange),
        ("RESOURCE_EXHAUSTED", Code::ResourceExhausted),
        ("UNAVAILABLE", Code::Unavailable),
        ("DATA_LOSS", Code::DataLoss),
        ("UNIMPLEMENTED", Code::Unimplemented),
        ("INTERNAL", Code::Internal),
    ];
    codes
        .iter()
        .find(|(code, _)| *code == name)
        .map_or(Code::Unknown, |(_, code)| *code)
}

impl Inner {
    fn new(code: Code) -> Self {
        Inner {
            code,
            message: String::new(),
            reason: None,
            domain: None,
            metadata: BTreeMap::new(),
            violations: Vec::new(),
            retry_after: None,
            help: None,
            call_id: None,
            status: None,
        }
    }

    fn named(mut self, domain: String, reason: String) -> Self {
        self.domain = Some(domain);
        self.reason = Some(reason);
        self
    }
}

impl From<Inner> for Error {
    fn from(inner: Inner) -> Self {
        Error {
            inner: Arc::new(inner),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let mut inner = Inner::new(code_of_status(&status));
        inner.message = status.message().to_owned();
        if let Some(info) = details.error_info() {
            inner = inner.named(info.domain.clone(), info.reason.clone());
            inner.metadata = info.metadata.clone().into_iter().collect();
        }
        if let Some(bad_request) = details.bad_request() {
            let violations = bad_request
                .field_violations
                .iter()
                .map(|violation| Violation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                });
            inner.violations = violations.collect();
        }
        inner.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        inner.help = details
            .help()
            .and_then(|help| help.links.first())
            .map(|link| link.url.clone());
        let header = status
            .metadata()
            .get("x-request-id")
            .and_then(|id| id.to_str().ok());
        inner.call_id = inner
            .metadata
            .get("callId")
            .cloned()
            .or_else(|| header.map(ToOwned::to_owned));
        inner.status = Some(status);
        inner.into()
    }
}

/// tonic calls its own deadline CANCELLED.
fn code_of_status(status: &Status) -> Code {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        source = error.source();
    }
    status.code()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { code, message, .. } = &*self.inner;
        write!(f, "{code:?}: ")?;
        if message.is_empty() {
            f.write_str(code.description())
        } else {
            f.write_str(message)
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            code,
            message,
            reason,
            domain,
            metadata,
            ..
        } = &*self.inner;
        f.debug_struct("Error")
            .field("code", code)
            .field("message", message)
            .field("reason", reason)
            .field("domain", domain)
            .field("metadata", metadata)
            .field("violations", &self.inner.violations)
            .field("retry_after", &self.inner.retry_after)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self.inner.status.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn an_error_tells_all_that_the_hub_said() {
        let metadata = [("callId", "req_1"), ("requiredScope", "hub:events.publish")];
        let mut details = ErrorDetails::new();
        details
            .set_error_info(
                "SCOPE_MISSING",
                "hub.api_keys",
                metadata.map(|(key, value)| (key.to_owned(), value.to_owned())),
            )
            .add_bad_request_violation("name", "must be set")
            .set_retry_info(Some(Duration::from_secs(3)))
            .add_help_link("About it", "http://hub/errors/SCOPE_MISSING");
        let status = Status::with_error_details(Code::PermissionDenied, "No.", details);

        let error = Error::from(status);
        assert_eq!(error.code(), Code::PermissionDenied);
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.domain(), Some("hub.api_keys"));
        assert_eq!(error.metadata()["requiredScope"], "hub:events.publish");
        assert_eq!(error.violations()[0].field, "name");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(error.help(), Some("http://hub/errors/SCOPE_MISSING"));
        assert_eq!(error.call_id(), Some("req_1"));
        assert_eq!(error.to_string(), "PermissionDenied: No.");
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_problem_of_one_event_has_the_code_that_the_contract_states() {
        let code = |domain: &str, reason: &str| {
            let problem = Problem {
                domain: domain.to_owned(),
                reason: reason.to_owned(),
                ..Default::default()
            };
            Error::from_problem(problem).code()
        };
        assert_eq!(
            code("hub.event_bus", "EVENT_ID_REUSED"),
            Code::AlreadyExists
        );
        assert_eq!(
            code("hub.event_bus", "EVENT_INVALID"),
            Code::InvalidArgument
        );
        assert_eq!(code("hub.core", "STORE_BUSY"), Code::Unavailable);
        assert_eq!(code("hub.core", "NOT_OF_THIS_VERSION"), Code::Unknown);
    }

    #[test]
    fn every_reason_of_the_contract_has_a_code() {
        for reason in reasons() {
            assert_ne!(
                code_of(reason.domain, reason.name),
                Code::Unknown,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn what_the_network_did_may_be_tried_again_and_what_the_hub_refused_may_not() {
        assert!(Error::from(Status::unknown("connection reset")).is_retryable());
        assert!(Error::from(Status::unavailable("")).is_retryable());
        assert!(!Error::from(Status::invalid_argument("")).is_retryable());
        assert!(!Error::from(Status::unauthenticated("")).is_retryable());
        assert!(!Error::local(Code::Cancelled, "closed").is_retryable());
    }
}
