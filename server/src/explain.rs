//! Completes a status that leaves: one `ErrorInfo` with the call id, a Help link, and a message
//! that ends with the reason and the address of its page.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::call::Call;
use crate::unexplained;

/// All details of an error together, so that clients with 8 KiB for all metadata read them.
pub const DETAILS_BYTES_MAX: usize = 4 << 10;
/// A message is for people; the rest is in the details.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";
const HELP: &str = "type.googleapis.com/google.rpc.Help";

/// An error as it leaves.
#[derive(Debug)]
pub struct Explained {
    /// With all its details encoded.
    pub status: Status,
    /// The details, for JSON.
    pub details: Vec<Any>,
    /// Its reason, for log and metrics.
    pub reason: String,
    /// What it names.
    pub metadata: HashMap<String, String>,
}

/// Adds what only the place knows where answers leave the server.
#[derive(Debug, Clone)]
pub struct Explainer {
    public_url: Arc<str>,
}

impl Explainer {
    /// `public_url` is where callers reach this server, without a slash at its end.
    pub fn new(public_url: &Arc<str>) -> Self {
        Explainer {
            public_url: public_url.clone(),
        }
    }

    /// Completes `status`, the answer of `call` to a request for `method` (without slash).
    pub fn explain(&self, status: &Status, call: &Call, method: &str) -> Explained {
        let mut code = status.code();
        let mut message = status.message().to_owned();
        let mut details = pb::Status::decode(status.details())
            .unwrap_or_default()
            .details;
        let mut info = take_info(&mut details).unwrap_or_else(|| {
            let found = unexplained::explain(status, method);
            code = found.code();
            message = found.message().to_owned();
            let status = Status::from(found);
            details = pb::Status::decode(status.details())
                .unwrap_or_default()
                .details;
            take_info(&mut details).unwrap_or_default()
        });
        info.metadata
            .insert("callId".to_owned(), call.id.to_string());
        let page = format!("{}/errors/{}", self.public_url, info.reason);
        let message = finish_message(&message, &info.reason, &page);
        let reason = info.reason.clone();
        details.insert(0, any(ERROR_INFO, &info));
        if !details.iter().any(|detail| detail.type_url == HELP) {
            let link = pb::help::Link {
                description: format!("What {reason} means"),
                url: page,
            };
            details.push(any(HELP, &pb::Help { links: vec![link] }));
        }
        let encoded = encode_bounded(code, &message, &mut details);
        Explained {
            status: Status::with_details(code, message, encoded.into()),
            details,
            reason,
            metadata: info.metadata,
        }
    }
}

/// Exactly one `ErrorInfo` leaves (AIP-193), so the first is taken and further ones are dropped.
fn take_info(details: &mut Vec<Any>) -> Option<pb::ErrorInfo> {
    let found = details
        .iter()
        .find(|detail| detail.type_url == ERROR_INFO)?;
    let info = pb::ErrorInfo::decode(found.value.as_slice()).ok();
    details.retain(|detail| detail.type_url != ERROR_INFO);
    info.filter(|info| !info.reason.is_empty())
}

fn finish_message(message: &str, reason: &str, page: &str) -> String {
    let tag = format!("[{reason}]");
    let text = message.trim_end();
    let text = text.strip_suffix(page).unwrap_or(text).trim_end();
    let mut text = text
        .strip_suffix(&tag)
        .unwrap_or(text)
        .trim_end()
        .to_owned();
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
        text.push('…');
    }
    format!("{text} {tag} {page}")
}

/// Encodes, and drops the last field violations until all fits.
fn encode_bounded(code: Code, message: &str, details: &mut Vec<Any>) -> Vec<u8> {
    loop {
        let status = pb::Status {
            code: code as i32,
            message: message.to_owned(),
            details: details.clone(),
        };
        let encoded = status.encode_to_vec();
        if encoded.len() < DETAILS_BYTES_MAX || !shrink(details) {
            return encoded;
        }
    }
}

/// Takes the least useful detail away; false if there is nothing left to take.
fn shrink(details: &mut Vec<Any>) -> bool {
    if let Some(at) = details
        .iter()
        .position(|detail| detail.type_url == BAD_REQUEST)
    {
        let mut bad = pb::BadRequest::decode(details[at].value.as_slice()).unwrap_or_default();
        let keep = bad.field_violations.len() / 2;
        if keep == 0 {
            details.remove(at);
        } else {
            bad.field_violations.truncate(keep);
            details[at] = any(BAD_REQUEST, &bad);
        }
        return true;
    }
    let Some(mut info) = take_info(details) else {
        return false;
    };
    let longest = info
        .metadata
        .iter_mut()
        .max_by_key(|(_, value)| value.len());
    let shorter = longest
        .filter(|(_, value)| value.len() > 100)
        .map(|(_, value)| {
            value.truncate(value.floor_char_boundary(value.len() / 2));
            value.push('…');
        });
    details.insert(0, any(ERROR_INFO, &info));
    shorter.is_some()
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use hub_core::error::Error;
    use tonic_types::StatusExt;

    use super::*;

    fn explained(status: &Status) -> Explained {
        Explainer::new(&"http://hub.example".into()).explain(
            status,
            &Call::begin(&axum::http::HeaderMap::new()),
            "hub.x.v1.X/Do",
        )
    }

    #[test]
    fn an_error_leaves_with_its_call_id_its_help_and_its_page() {
        let status = Status::from(
            Error::new(
                Code::NotFound,
                "hub.x",
                "THING_NOT_FOUND",
                "No thing 7. Use another id.",
            )
            .with("thingId", 7)
            .retry_after(std::time::Duration::from_secs(3)),
        );
        let left = explained(&status).status;
        assert_eq!(left.code(), Code::NotFound);
        let page = "http://hub.example/errors/THING_NOT_FOUND";
        let message = format!("No thing 7. Use another id. [THING_NOT_FOUND] {page}");
        assert_eq!(left.message(), message);
        let details = left.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("THING_NOT_FOUND", "hub.x")
        );
        assert_eq!(info.metadata["thingId"], "7");
        assert!(info.metadata["callId"].starts_with("req_"));
        assert_eq!(details.help().unwrap().links[0].url, page);
        let wait = details.retry_info().unwrap().retry_delay;
        assert_eq!(wait, Some(std::time::Duration::from_secs(3)));
    }

    #[test]
    fn explaining_twice_changes_nothing_but_the_call_id() {
        let once = explained(&Status::from(Error::field("name", "is missing"))).status;
        let twice = explained(&once).status;
        assert_eq!(once.message(), twice.message());
        assert_eq!(
            once.get_error_details_vec().len(),
            twice.get_error_details_vec().len()
        );
    }

    #[test]
    fn details_stay_below_their_bound_whatever_a_domain_puts_in() {
        let mut error = Error::new(Code::InvalidArgument, "hub.x", "X", "m".repeat(5000));
        for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            error = error.with(key, "v".repeat(600));
        }
        let left = explained(&Status::from(error)).status;
        assert!(
            left.details().len() < DETAILS_BYTES_MAX,
            "{}",
            left.details().len()
        );
        let details = left.get_error_details();
        assert!(
            details
                .error_info()
                .unwrap()
                .metadata
                .contains_key("callId")
        );
        assert!(details.help().is_some());
    }
}
