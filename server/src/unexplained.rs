//! Statuses without a reason: those that the transport makes itself, and defects.
//!
//! | status of the transport | leaves as |
//! |---|---|
//! | UNIMPLEMENTED: a stub, or a compression that the server does not read | NOT_IMPLEMENTED |
//! | OUT_OF_RANGE "message length too large" | RESOURCE_EXHAUSTED, MESSAGE_TOO_LARGE |
//! | INTERNAL "protocol error", end in the middle, no message | INVALID_ARGUMENT, FIELD_INVALID |
//! | DEADLINE_EXCEEDED, CANCELLED | the code stays, STORE_BUSY with `cause` |
//! | INVALID_ARGUMENT | FIELD_INVALID |
//! | RESOURCE_EXHAUSTED | QUOTA_EXCEEDED |
//! | UNAVAILABLE | STORE_BUSY |
//! | NOT_FOUND of the health service | the code stays, NOT_IMPLEMENTED with `method` |
//! | anything else | the code stays, INTERNAL; the text goes to the log |
//!
//! The contract has no reason for a deadline. STORE_BUSY says what to do about it: the outcome is
//! unknown, and the same call may be sent again.

use std::time::Duration;

use hub_core::error::{CORE, Error};
use tonic::{Code, Status};

/// The error that a status without reason stands for.
pub fn explain(status: &Status, method: &str) -> Error {
    let text = status.message();
    match status.code() {
        Code::Unimplemented if text.is_empty() => crate::unknown::error(method),
        Code::Unimplemented => not_implemented(method, text),
        Code::OutOfRange | Code::ResourceExhausted if is_size(text) => too_large_text(text),
        Code::Internal if is_callers_framing(text) => framing(text),
        Code::DeadlineExceeded => deadline(status.code(), "deadline"),
        Code::Cancelled => deadline(status.code(), "cancelled"),
        Code::InvalidArgument => {
            let message = format!("Request is invalid: {text}. Fix it, do not retry.");
            Error::new(Code::InvalidArgument, CORE, "FIELD_INVALID", message).with("fields", "")
        }
        Code::ResourceExhausted => quota("requests", "none"),
        Code::Unavailable => Error::store_busy("The hub cannot answer now", "unavailable"),
        Code::NotFound if method.starts_with("grpc.health.") => {
            let message = "The hub serves no such service. Reflection lists those it serves.";
            Error::new(Code::NotFound, CORE, "NOT_IMPLEMENTED", message).with("method", method)
        }
        code => {
            tracing::error!(method, ?code, "an error left without a reason: {text}");
            let message = "The hub failed in a way that it should not. Retry once, then report \
                           the call id.";
            Error::new(code, CORE, "INTERNAL", message)
        }
    }
}

/// The RPC is part of the contract, or of nothing, and is not built.
pub fn not_implemented(method: &str, text: &str) -> Error {
    let message = if text.starts_with("Content is compressed") {
        format!("{text}. Send messages without compression.")
    } else {
        format!("{method} is not built in this version. See the status table of the README.")
    };
    Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message).with("method", method)
}

/// The connection carries no certificate of the caller, and RPCs need one.
pub fn no_certificate() -> Error {
    let message = "The connection carries no client certificate, and this hub needs one beside \
                   the key. Connect with one of its authority.";
    Error::new(
        Code::Unauthenticated,
        "hub.api_keys",
        "KEY_MISSING",
        message,
    )
    .with("expectedHeader", "none: a TLS client certificate")
}

/// A message of `size` bytes where `limit` are read; `size` is none if it was not told.
pub fn too_large(size: Option<u64>, limit: u64) -> Error {
    let what = match size {
        Some(size) => format!("The message has {size} bytes and the hub reads {limit}"),
        None => format!("The message has more than the {limit} bytes that the hub reads"),
    };
    let message = format!("{what}. Split it.");
    let error = Error::new(Code::ResourceExhausted, CORE, "MESSAGE_TOO_LARGE", message);
    let error = match size {
        Some(size) => error.with("size", size),
        None => error,
    };
    error.with("limit", limit)
}

/// More requests at once than allowed.
pub fn quota(quota: &'static str, limit: impl std::fmt::Display) -> Error {
    let message = format!("The limit of {quota} at once ({limit}) is used up. Back off and retry.");
    Error::new(Code::ResourceExhausted, CORE, "QUOTA_EXCEEDED", message)
        .with("quota", quota)
        .with("limit", limit)
        .retry_after(Duration::from_secs(1))
}

/// The call ended before its answer was there.
pub fn deadline(code: Code, cause: &'static str) -> Error {
    let message = "The call ended before it was answered, so its outcome is unknown. Send the \
                   same call again; what has an id is done once.";
    Error::new(code, CORE, "STORE_BUSY", message)
        .with("cause", cause)
        .retry_after(Duration::from_millis(500))
}

/// What tonic says of bytes that are no gRPC frames; its code for them is INTERNAL, although only
/// the caller can mend it.
fn is_callers_framing(text: &str) -> bool {
    [
        "protocol error: received message",
        "Unexpected EOF decoding stream",
        "Missing request message",
    ]
    .iter()
    .any(|known| text.starts_with(known))
}

fn framing(text: &str) -> Error {
    let text = text.trim_end_matches('.');
    let message = format!("The body is not a gRPC message: {text}. Use a gRPC client.");
    Error::new(Code::InvalidArgument, CORE, "FIELD_INVALID", message).with("fields", "")
}

fn is_size(text: &str) -> bool {
    text.contains("message length too large") || text.contains("size limit, of")
}

fn too_large_text(text: &str) -> Error {
    let numbers: Vec<u64> = text
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    match numbers.as_slice() {
        [size, limit] => too_large(Some(*size), *limit),
        [limit] => too_large(None, *limit),
        _ => too_large(None, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(code: Code, text: &str) -> (Code, &'static str, Vec<(&'static str, String)>) {
        let error = explain(&Status::new(code, text), "hub.x.v1.X/Do");
        (error.code(), error.reason(), error.metadata().to_vec())
    }

    #[test]
    fn a_message_that_is_too_large_tells_size_and_limit() {
        let text = "Error, decoded message length too large: found 7 bytes, the limit is: 5 bytes";
        let (code, reason, metadata) = explained(Code::OutOfRange, text);
        assert_eq!(
            (code, reason),
            (Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
        );
        assert_eq!(
            metadata,
            [("size", "7".to_owned()), ("limit", "5".to_owned())]
        );
    }

    #[test]
    fn a_stub_names_its_method() {
        let (code, reason, metadata) = explained(Code::Unimplemented, "Not yet implemented");
        assert_eq!((code, reason), (Code::Unimplemented, "NOT_IMPLEMENTED"));
        assert_eq!(metadata, [("method", "hub.x.v1.X/Do".to_owned())]);
    }

    #[test]
    fn bytes_that_are_no_frames_are_the_callers_mistake() {
        for text in [
            "Unexpected EOF decoding stream.",
            "Missing request message.",
        ] {
            let (code, reason, _) = explained(Code::Internal, text);
            assert_eq!(
                (code, reason),
                (Code::InvalidArgument, "FIELD_INVALID"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_defect_keeps_its_text_to_itself() {
        let error = explain(&Status::new(Code::Unknown, "secret"), "hub.x.v1.X/Do");
        assert_eq!((error.code(), error.reason()), (Code::Unknown, "INTERNAL"));
        assert!(!error.message().contains("secret"));
    }

    #[test]
    fn a_deadline_keeps_its_code() {
        let (code, reason, metadata) = explained(Code::DeadlineExceeded, "Timeout expired");
        assert_eq!((code, reason), (Code::DeadlineExceeded, "STORE_BUSY"));
        assert_eq!(metadata, [("cause", "deadline".to_owned())]);
    }
}
