//! The reasons of this domain, as `hub.api_keys.v1.ErrorReason` declares them.

use std::net::IpAddr;
use std::time::Duration;

use hub_core::auth::ADMINISTRATOR;
use hub_core::clock::{Micros, timestamp};
use hub_core::error::{CORE, Error};
use hub_proto::credential::Fault;
use tonic::Code;

use crate::limits::Left;

const DOMAIN: &str = "hub.api_keys";

/// What a caller has to send.
const EXPECTED: &str = "authorization: Bearer tos_…";

/// `KEY_MISSING` or `KEY_MALFORMED`; nothing of the header's content is told.
pub(crate) fn no_key(fault: Fault) -> Error {
    let error = |reason, message| Error::new(Code::Unauthenticated, DOMAIN, reason, message);
    match fault {
        Fault::Missing => {
            let message = format!("The call carries no key. Send `{EXPECTED}`.");
            error("KEY_MISSING", message).with("expectedHeader", EXPECTED)
        }
        Fault::Malformed(problem) => {
            let message = format!("{problem}. Send one `{EXPECTED}`, copied whole.");
            error("KEY_MALFORMED", message).with("problem", problem)
        }
    }
}

/// `KEY_NOT_RECOGNIZED`: nothing more is told.
pub(crate) fn not_recognized() -> Error {
    let message = "There is no such key. Check which hub and which tenant it was made for.";
    Error::new(Code::Unauthenticated, DOMAIN, "KEY_NOT_RECOGNIZED", message)
}

/// `KEY_REVOKED`.
pub(crate) fn revoked(key_id: &str, at: Micros, successor_id: Option<&str>) -> Error {
    let at = timestamp(at);
    let message = format!(
        "Key {key_id} was revoked at {at}. {}",
        instead(successor_id)
    );
    Error::new(Code::PermissionDenied, DOMAIN, "KEY_REVOKED", message)
        .with("keyId", key_id)
        .with("revokedAt", at)
        .with("successorId", successor_id.unwrap_or_default())
}

/// `KEY_EXPIRED`.
pub(crate) fn expired(key_id: &str, at: Micros, successor_id: Option<&str>) -> Error {
    let at = timestamp(at);
    let message = format!("Key {key_id} expired at {at}. {}", instead(successor_id));
    Error::new(Code::PermissionDenied, DOMAIN, "KEY_EXPIRED", message)
        .with("keyId", key_id)
        .with("expiredAt", at)
        .with("successorId", successor_id.unwrap_or_default())
}

fn instead(successor_id: Option<&str>) -> String {
    match successor_id {
        Some(successor) => format!("Use its successor {successor}."),
        None => "Create a new key.".to_owned(),
    }
}

/// `IP_NOT_ALLOWED`.
pub(crate) fn ip_not_allowed(key_id: &str, client: Option<IpAddr>) -> Error {
    let client = client.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    let message = format!(
        "Key {key_id} may not be used from {client}. Call from an address in its allowed_cidrs, \
         or use another key."
    );
    Error::new(Code::PermissionDenied, DOMAIN, "IP_NOT_ALLOWED", message)
        .with("keyId", key_id)
        .with("clientIp", client)
}

/// `PRODUCT_MISMATCH`. `key_products` are those that the key has scopes of.
pub(crate) fn product_mismatch(key_id: &str, key_products: &[&str], product: &str) -> Error {
    let held = match key_products {
        [] => "no product".to_owned(),
        products => products.join(", "),
    };
    let message = format!(
        "Key {key_id} is for {held}; this is {product}. Use a key with a scope of {product}."
    );
    Error::new(Code::PermissionDenied, DOMAIN, "PRODUCT_MISMATCH", message)
        .with("keyId", key_id)
        .with("keyProducts", key_products.join(" "))
        .with("product", product)
}

/// `BASE_URL_MISMATCH`. `other` is the product that the host belongs to, if it is known.
pub(crate) fn base_url_mismatch(
    product: &str,
    host: &str,
    base_urls: &[String],
    other: Option<&str>,
) -> Error {
    let expected = base_urls.first().map_or("", String::as_str);
    let whose = match other {
        Some(other) => format!("{host} belongs to {other}, not to {product}"),
        None => format!("{host} is no host of {product}"),
    };
    let message = format!("{whose}. Send the request to {expected}.");
    Error::new(Code::PermissionDenied, DOMAIN, "BASE_URL_MISMATCH", message)
        .with("product", product)
        .with("host", host)
        .with("expectedBaseUrl", expected)
}

/// `RATE_LIMITED`. `limit` is the one with the least left.
pub(crate) fn rate_limited(limit: &Left, retry_after: Duration) -> Error {
    let (whose, count) = (whose(limit), limit.limit);
    let seconds = retry_after.as_millis().div_ceil(1000);
    let message = format!(
        "The limit {whose} of {count} requests a minute is used up. Send it again in {seconds} s."
    );
    limited(limit, message).retry_after(retry_after)
}

/// `RATE_LIMITED` for a request that counts as more than `limit`: to wait does not help.
pub(crate) fn over_limit(limit: &Left, cost: u32) -> Error {
    let (whose, count) = (whose(limit), limit.limit);
    let message = format!(
        "The request counts as {cost}, and the limit {whose} is {count} requests a minute: it \
         never fits. Lower its cost, or raise the limit by SetRateLimit."
    );
    limited(limit, message)
}

fn whose(limit: &Left) -> String {
    match &limit.key_id {
        Some(key_id) => format!("of key {key_id}"),
        None => "of the tenant".to_owned(),
    }
}

fn limited(limit: &Left, message: String) -> Error {
    let subject = match &limit.key_id {
        Some(key_id) => format!("key:{key_id}"),
        None => "tenant".to_owned(),
    };
    let count = limit.limit;
    Error::new(Code::ResourceExhausted, DOMAIN, "RATE_LIMITED", message)
        .with("limit", count)
        .with("remaining", limit.remaining)
        .with("resetAt", timestamp(limit.reset_at))
        .quota(subject, format!("{count} requests in any minute"))
}

/// `KEY_NOT_FOUND`.
pub(crate) fn not_found(key_id: &str) -> Error {
    let message = format!("There is no key {key_id} here. See ListApiKeys for the ids.");
    Error::new(Code::NotFound, DOMAIN, "KEY_NOT_FOUND", message).with("keyId", key_id)
}

/// `CALL_NOT_FOUND`.
pub(crate) fn call_not_found(call_id: &str) -> Error {
    let message = format!(
        "No refusal of {call_id} is known: the call was not refused, or more than 7 days ago, or \
         many like it were, or another process refused it less than 10 s ago. Ask again then, or \
         by key_id, product and action."
    );
    Error::new(Code::NotFound, DOMAIN, "CALL_NOT_FOUND", message).with("deniedCallId", call_id)
}

/// `CURSOR_EXPIRED`: changes between these epochs are not known any more.
pub(crate) fn cursor_expired(from: u64, to: u64, now_cursor: &str) -> Error {
    let message = format!(
        "The changes {from} to {to} cannot be told. Drop all cached decisions and watch from now."
    );
    Error::new(Code::OutOfRange, CORE, "CURSOR_EXPIRED", message)
        .with("earliestCursor", now_cursor)
        .with("missedFrom", from)
        .with("missedTo", to)
}

/// `KEY_STATE_INVALID`.
pub(crate) fn state_invalid(key_id: &str, state: &str) -> Error {
    let message =
        format!("Key {key_id} is {state}, and only an ACTIVE key is changed. Create a new key.");
    Error::new(
        Code::FailedPrecondition,
        DOMAIN,
        "KEY_STATE_INVALID",
        message,
    )
    .with("keyId", key_id)
    .with("state", state)
}

/// `SCOPE_INVALID`.
pub(crate) fn scope_invalid(scope: &str) -> Error {
    let message = format!(
        "{scope:?} is not a scope. Write <product>:<action> with whole segments or *, such as \
         psa:tickets.read or psa:*."
    );
    Error::new(Code::InvalidArgument, DOMAIN, "SCOPE_INVALID", message).with("scope", scope)
}

/// `SCOPE_ESCALATION` for all of these scopes; there is at least one.
pub(crate) fn scopes_escalation(missing: &[&str]) -> Error {
    let first = missing.first().copied().unwrap_or_default();
    escalation(first).with("missingScopes", missing.join(" "))
}

/// `SCOPE_ESCALATION` for speaking for a product, which no scope gives.
pub(crate) fn product_escalation(product: &str) -> Error {
    escalation(&format!("{product}:*")).with("product", product)
}

/// `SCOPE_ESCALATION`. `scope` is the right that the caller lacks itself.
pub(crate) fn escalation(scope: &str) -> Error {
    let message = format!(
        "The calling key does not have {scope} itself, so it cannot give or end it. Use a key \
         that has it, or one with {ADMINISTRATOR}."
    );
    Error::new(Code::PermissionDenied, DOMAIN, "SCOPE_ESCALATION", message).with("scope", scope)
}
