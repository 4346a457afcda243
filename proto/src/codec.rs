//! The codec of the servers: what it decodes is within the declared limits.

use std::collections::HashMap;
use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::ProstEncoder;
use tonic_types::{ErrorDetails, StatusExt};

use crate::validate::{self, Validate, Violations};

const DOMAIN: &str = "hub.core";
const REASON: &str = "FIELD_INVALID";

/// Encodes `T` as prost does; decodes `U` and refuses it if it violates its limits.
#[derive(Debug, Clone)]
pub struct CheckedCodec<T, U> {
    messages: PhantomData<(T, U)>,
}

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        Self {
            messages: PhantomData,
        }
    }
}

impl<T, U> Codec for CheckedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Validate + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CheckedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CheckedDecoder {
            message: PhantomData,
        }
    }
}

/// Decoder of [`CheckedCodec`].
#[derive(Debug, Clone)]
pub struct CheckedDecoder<U> {
    message: PhantomData<U>,
}

impl<U: Message + Default + Validate> Decoder for CheckedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = U::decode(buf).map_err(|error| undecodable(&error))?;
        let violations = validate::violations(&message);
        if violations.is_empty() {
            Ok(Some(message))
        } else {
            Err(field_invalid(&violations))
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// INVALID_ARGUMENT with all violations: what a decoder answers, and what a domain answers about
/// limits that only it knows.
pub fn field_invalid(violations: &Violations) -> Status {
    let list = violations.as_slice();
    let first = list.first().map_or_else(
        || "a field is not valid".to_owned(),
        |violation| format!("{}: {}", violation.field, violation.description),
    );
    let mut fields: Vec<&str> = list
        .iter()
        .map(|violation| violation.field.as_str())
        .collect();
    fields.dedup();
    let mut details = error_info([("fields", fields.join(","))]);
    details.set_bad_request(violations.to_field_violations());
    let message = format!("Request is invalid: {first}. Fix the listed fields. [{REASON}]");
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// A message that is not protobuf is a mistake of the caller, not of the server.
fn undecodable(error: &prost::DecodeError) -> Status {
    let message = format!(
        "Request is invalid: it is not the protobuf message of this method ({error}). \
         Generate your client from the hub's protos. [{REASON}]"
    );
    Status::with_error_details(Code::InvalidArgument, message, error_info([]))
}

fn error_info<const N: usize>(metadata: [(&str, String); N]) -> ErrorDetails {
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    ErrorDetails::with_error_info(REASON, DOMAIN, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};

    #[test]
    fn a_refused_request_names_every_field_in_its_details() {
        let request = CreateApiKeyRequest {
            api_key: Some(ApiKey {
                scopes: vec!["a\0".to_owned()],
                ..ApiKey::default()
            }),
            request_id: "not a uuid".to_owned(),
        };
        let status = field_invalid(&validate::violations(&request));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status
                .message()
                .ends_with("Fix the listed fields. [FIELD_INVALID]")
        );
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (REASON, DOMAIN)
        );
        assert_eq!(
            info.metadata["fields"],
            "api_key.scopes[0],api_key.name,request_id"
        );
        let bad = &details.bad_request().unwrap().field_violations;
        let reasons: Vec<_> = bad
            .iter()
            .map(|violation| violation.reason.as_str())
            .collect();
        assert_eq!(reasons, ["CONTAINS_NUL", "REQUIRED", "PATTERN_MISMATCH"]);
    }

    #[test]
    fn details_stay_below_four_kibibytes() {
        let key = ApiKey {
            scopes: vec!["x".repeat(2000); 64],
            labels: (0..20)
                .map(|n| (format!("{n}{}", "k".repeat(900)), "\0".into()))
                .collect(),
            ..ApiKey::default()
        };
        let request = CreateApiKeyRequest {
            api_key: Some(key),
            ..Default::default()
        };
        let status = field_invalid(&validate::violations(&request));
        assert!(status.details().len() < 4096, "{}", status.details().len());
    }

    #[test]
    fn bytes_that_are_not_protobuf_are_the_callers_mistake() {
        let error = CreateApiKeyRequest::decode(&b"\xff\xff"[..]).unwrap_err();
        let status = undecodable(&error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.get_error_details().error_info().unwrap().reason,
            REASON
        );
    }
}
