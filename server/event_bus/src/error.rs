//! The reasons of the event bus: what happened, and what the caller can do.

use std::time::Duration;

use hub_core::error::Error;
use tonic::Code;

use crate::schema::Problem;

const DOMAIN: &str = "hub.event_bus";

/// An attribute of an event is missing or malformed (`EVENT_INVALID`).
pub(crate) fn event_invalid(index: usize, attribute: &str, problem: &str) -> Error {
    let message = format!("Event {index}: {attribute} {problem}. Fix the event.");
    Error::new(Code::InvalidArgument, DOMAIN, "EVENT_INVALID", message)
        .with("index", index)
        .with("attribute", attribute)
}

/// One event is larger than the bus takes (`EVENT_TOO_LARGE`).
pub(crate) fn event_too_large(index: usize, size: usize, limit: usize) -> Error {
    let message = format!(
        "Event {index} has {size} bytes; {limit} are allowed. Store the data elsewhere and send \
         its address in the attribute dataref."
    );
    Error::new(Code::InvalidArgument, DOMAIN, "EVENT_TOO_LARGE", message)
        .with("index", index)
        .with("size", size)
        .with("limit", limit)
}

/// Too many events, or too many bytes, in one batch (`BATCH_TOO_LARGE`).
/// `of` is what the limit counts: events or bytes.
pub(crate) fn batch_too_large(count: usize, size: usize, limit: usize, of: &str) -> Error {
    let message = format!(
        "The batch has {count} events and {size} bytes; {limit} {of} are allowed. Split it."
    );
    Error::new(Code::InvalidArgument, DOMAIN, "BATCH_TOO_LARGE", message)
        .with("count", count)
        .with("size", size)
        .with("limit", limit)
}

/// The catalogue does not let the product publish this type (`EVENT_SOURCE_NOT_ALLOWED`).
pub(crate) fn source_not_allowed(index: usize, kind: &str, product: &str, sources: &str) -> Error {
    let message = format!(
        "Event {index}: {product} may not publish {kind}; {sources} may. Use a key of such a \
         product, or another type."
    );
    Error::new(
        Code::PermissionDenied,
        DOMAIN,
        "EVENT_SOURCE_NOT_ALLOWED",
        message,
    )
    .with("index", index)
    .with("type", kind)
    .with("product", product)
    .with("sources", sources)
}

/// A schema of the catalogue cannot be used, or its example does not match it (`SCHEMA_INVALID`).
/// `of` is the field of the entry.
pub(crate) fn schema_invalid(of: &str, problem: &Problem) -> Error {
    let message = format!("{of} cannot be used: {problem}. Fix it.");
    let position = match problem.pointer.as_str() {
        "" => "/",
        pointer => pointer,
    };
    Error::new(Code::InvalidArgument, DOMAIN, "SCHEMA_INVALID", message)
        .with("position", position)
        .violation(format!("event_type.{of}"), problem.to_string())
}

/// Violations that the message itself tells; the details have all.
const TOLD_MAX: usize = 3;

/// The data does not match the schema of its type (`SCHEMA_VIOLATION`). There is one violation at
/// least.
pub(crate) fn schema_violation(index: usize, kind: &str, violations: &[Problem]) -> Error {
    let place = |violation: &Problem| match violation.pointer.as_str() {
        "" => "the data".to_owned(),
        pointer => cut(pointer),
    };
    let told: Vec<String> = violations
        .iter()
        .take(TOLD_MAX)
        .map(|violation| format!("{} {}", place(violation), violation.problem))
        .collect();
    let more = match violations.len().saturating_sub(TOLD_MAX) {
        0 => String::new(),
        more => format!("; {more} more"),
    };
    let message = format!("Event {index}: {}{more}. Fix the data.", told.join("; "));
    let path = violations.first().map_or("", |first| &first.pointer);
    let error = Error::new(Code::InvalidArgument, DOMAIN, "SCHEMA_VIOLATION", message)
        .with("index", index)
        .with("type", kind)
        .with("path", path);
    violations.iter().fold(error, |error, violation| {
        let field = format!("events[{index}].data{}", cut(&violation.pointer));
        error.violation(field, violation.problem.clone())
    })
}

/// Places can be as long as the data that they are in.
fn cut(pointer: &str) -> String {
    match pointer.len() > POINTER_BYTES_MAX {
        true => format!(
            "{}…",
            &pointer[..pointer.floor_char_boundary(POINTER_BYTES_MAX)]
        ),
        false => pointer.to_owned(),
    }
}

/// Longest place that a message tells.
const POINTER_BYTES_MAX: usize = 100;

/// The catalogue of the tenant is full (`QUOTA_EXCEEDED`).
pub(crate) fn catalogue_full(quota: &'static str, limit: u64) -> Error {
    let message = format!(
        "The catalogue of the tenant has no room: {limit} {quota} are allowed. Replace an entry \
         that is no longer used."
    );
    quota_exceeded(quota, limit, message)
}

/// The tenant has as many durable subscriptions, or filters of them, as it may
/// (`QUOTA_EXCEEDED`).
pub(crate) fn subscriptions_full(quota: &'static str, limit: u64) -> Error {
    let message = format!(
        "There is no room for more: {limit} {quota} are allowed. Delete a subscription that is no \
         longer used."
    );
    quota_exceeded(quota, limit, message)
}

fn quota_exceeded(quota: &'static str, limit: u64, message: String) -> Error {
    let core = hub_core::error::CORE;
    Error::new(Code::ResourceExhausted, core, "QUOTA_EXCEEDED", message)
        .with("quota", quota)
        .with("limit", limit)
        .retry_after(Duration::from_secs(3600))
}

/// The identity was used for another event (`EVENT_ID_REUSED`): a stored one, or one before it in
/// its own batch, which was not stored.
pub(crate) fn event_id_reused(index: usize, event_id: Option<&str>) -> Error {
    let first = match event_id {
        Some(event_id) => format!("were published before with other content, as {event_id}"),
        None => "are those of an earlier event of the batch with other content".to_owned(),
    };
    let message =
        format!("Event {index}: its source and id {first}. Give the new event an id of its own.");
    let error = Error::new(Code::AlreadyExists, DOMAIN, "EVENT_ID_REUSED", message);
    let error = error.with("index", index);
    match event_id {
        Some(event_id) => error.with("eventId", event_id),
        None => error,
    }
}

/// A pattern or condition of a filter is malformed (`FILTER_INVALID`).
pub(crate) fn filter_invalid(pattern: &str, position: usize, problem: &str) -> Error {
    let message = format!("The filter's pattern \"{pattern}\" {problem}. Fix the pattern.");
    Error::new(Code::InvalidArgument, DOMAIN, "FILTER_INVALID", message)
        .with("pattern", pattern)
        .with("position", position)
}

/// The cursor comes from a stream with another filter (`CURSOR_FILTER_MISMATCH`).
pub(crate) fn cursor_filter_mismatch() -> Error {
    let message = "The cursor was made with another filter and could skip events. Use the same \
                   filter, or start by time.";
    Error::new(
        Code::FailedPrecondition,
        DOMAIN,
        "CURSOR_FILTER_MISMATCH",
        message,
    )
}

/// The position does not exist yet (`SEQUENCE_AHEAD`).
pub(crate) fn sequence_ahead(asked: u64, head: u64) -> Error {
    let message = format!(
        "The log ends at {head}; sequence {asked} does not exist yet. Start at {head} or before."
    );
    Error::new(Code::OutOfRange, DOMAIN, "SEQUENCE_AHEAD", message)
        .with("headSequence", head)
        .with("sequence", asked)
}

/// The log no longer reaches back to the start (`CURSOR_EXPIRED`).
pub(crate) fn cursor_expired(from: u64, to: u64, earliest_cursor: &str) -> Error {
    let message = format!(
        "The log no longer has the events {from} to {to}. Go on at earliestCursor, and do a full \
         sync for what is missing."
    );
    Error::new(
        Code::OutOfRange,
        hub_core::error::CORE,
        "CURSOR_EXPIRED",
        message,
    )
    .with("earliestCursor", earliest_cursor)
    .with("missedFrom", from)
    .with("missedTo", to)
}

/// The log is not the one that the cursor was made with (`LOG_REWOUND`).
pub(crate) fn log_rewound(restored_at: &str) -> Error {
    let message = "The log was restored from a backup older than the cursor. Do a full sync, then \
                   start without the cursor.";
    Error::new(
        Code::DataLoss,
        hub_core::error::CORE,
        "LOG_REWOUND",
        message,
    )
    .with("restoredAt", restored_at)
}

/// No such event for this caller, or it is gone (`EVENT_NOT_FOUND`).
pub(crate) fn event_not_found(event_id: &str, earliest: u64) -> Error {
    let message = format!(
        "There is no event {event_id}, or it passed retention. Read from {earliest} on, the \
         oldest sequence that is still there."
    );
    Error::new(Code::NotFound, DOMAIN, "EVENT_NOT_FOUND", message)
        .with("eventId", event_id)
        .with("earliestSequence", earliest)
}

/// No such subscription for this caller (`SUBSCRIPTION_NOT_FOUND`). `asked` is an id or a name.
pub(crate) fn subscription_not_found(asked: &str) -> Error {
    let message = format!(
        "There is no subscription {asked} of yours. List the subscriptions for their ids and names."
    );
    Error::new(Code::NotFound, DOMAIN, "SUBSCRIPTION_NOT_FOUND", message)
        .with("subscriptionId", asked)
}

/// The product has a subscription of this name (`SUBSCRIPTION_EXISTS`).
pub(crate) fn subscription_exists(product: &str, name: &str, subscription_id: &str) -> Error {
    let message = format!("{product} has a subscription named {name}. Use it, or another name.");
    Error::new(Code::AlreadyExists, DOMAIN, "SUBSCRIPTION_EXISTS", message)
        .with("subscriptionId", subscription_id)
}

/// A call that could touch everything names nothing (`FILTER_EMPTY`).
pub(crate) fn filter_empty() -> Error {
    let message = "Neither ids nor a filter say which events. Give one of them.";
    Error::new(
        Code::InvalidArgument,
        hub_core::error::CORE,
        "FILTER_EMPTY",
        message,
    )
}
