//! The rate headers of an answer.

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};
use hub_proto::hub::api_keys::v1::VerifyApiKeyResponse;

const REMAINING: &str = "X-RateLimit-Remaining";

/// `X-RateLimit-Limit`, `-Remaining` and `-Reset`, and `Retry-After` when denied.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Rate(Vec<(HeaderName, HeaderValue)>);

impl Rate {
    /// As the hub told, with what was counted ahead and is not used yet: it is left to the caller.
    pub(super) fn told(told: &VerifyApiKeyResponse, ahead: u32) -> Self {
        let named = told.headers.iter().filter_map(|(name, value)| {
            let left = told.rate_limit.as_ref().filter(|_| name == REMAINING);
            let value = match left {
                Some(left) => {
                    let remaining = left.remaining.saturating_add(ahead).min(left.limit);
                    HeaderValue::from(remaining)
                }
                None => HeaderValue::from_str(value).ok()?,
            };
            Some((name.parse().ok()?, value))
        });
        Rate(named.collect())
    }

    /// Only when to come again.
    pub(super) fn retry_after(seconds: u64) -> Self {
        Rate(vec![(RETRY_AFTER, HeaderValue::from(seconds))])
    }

    /// Over those that are there: the limit is that of the hub.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name.clone(), value.clone());
        }
    }
}
