//! Domain to protobuf: what answers show.

use std::collections::BTreeMap;
use std::time::Duration;

use hub_core::clock::{Micros, timestamp};
use hub_core::error::Error;
use hub_core::journal::TenantRef;
use hub_proto::hub::api_keys::v1::{
    ApiKey, ErrorReason, RateLimitState, Revocation, RotateApiKeyResponse, VerifyApiKeyResponse,
};

use crate::key::Key;
use crate::limits::Left;
use crate::rotate::Rotated;
use crate::verify::Verdict;

/// The answer to a rotation, without its secret.
pub(crate) fn rotated(rotated: &Rotated, now: Micros) -> RotateApiKeyResponse {
    RotateApiKeyResponse {
        api_key: Some(key(&rotated.key, now)),
        plaintext: String::new(),
        previous: Some(key(&rotated.previous, now)),
    }
}

pub(crate) fn verdict(verdict: Verdict) -> VerifyApiKeyResponse {
    let refused = verdict.refusal.as_ref();
    let reason = refused.map(|error| format!("ERROR_REASON_{}", error.reason()));
    let reason = reason.and_then(|name| ErrorReason::from_str_name(&name));
    let caller = verdict.record.as_ref().map(|record| &record.caller);
    let tenant = caller.and_then(|caller| caller.tenant.as_ref());
    let product = caller.and_then(|caller| caller.product.as_deref());
    VerifyApiKeyResponse {
        allowed: refused.is_none(),
        reason: reason.unwrap_or_default().into(),
        http_status: verdict.http_status,
        key_id: caller.map_or_else(String::new, |caller| caller.key_id.to_string()),
        tenant_id: tenant.map_or("", TenantRef::id).to_owned(),
        key_product: product.unwrap_or_default().to_owned(),
        scopes: caller.map_or_else(Vec::new, |caller| caller.scopes.list().to_vec()),
        headers: headers(verdict.left.as_ref(), verdict.retry_after),
        rate_limit: verdict.left.map(left),
        cache_for: prost_types::Duration::try_from(verdict.cache_for).ok(),
        epoch: verdict.epoch,
        hint: refused.map_or("", Error::message).to_owned(),
        degraded: verdict.degraded,
        call_id: verdict.call_id,
        metadata: refused.map_or_else(BTreeMap::new, metadata),
    }
}

/// The variables of a refusal.
fn metadata(refused: &Error) -> BTreeMap<String, String> {
    let named = refused.metadata().iter();
    let named = named.map(|(key, value)| ((*key).to_owned(), value.clone()));
    named.collect()
}

/// The headers with which the product answers.
fn headers(left: Option<&Left>, retry_after: Option<Duration>) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    if let Some(left) = left {
        let reset = left.reset_at.div_euclid(1_000_000) + 1;
        headers.insert("X-RateLimit-Limit".to_owned(), left.limit.to_string());
        headers.insert(
            "X-RateLimit-Remaining".to_owned(),
            left.remaining.to_string(),
        );
        headers.insert("X-RateLimit-Reset".to_owned(), reset.to_string());
    }
    if let Some(wait) = retry_after {
        let seconds = wait.as_millis().div_ceil(1000);
        headers.insert("Retry-After".to_owned(), seconds.to_string());
    }
    headers
}

pub(crate) fn left(left: Left) -> RateLimitState {
    RateLimitState {
        limit: left.limit,
        remaining: left.remaining,
        reset_time: Some(timestamp(left.reset_at)),
        key_id: left.key_id.as_deref().unwrap_or_default().to_owned(),
    }
}

pub(crate) fn key(key: &Key, now: Micros) -> ApiKey {
    ApiKey {
        key_id: key.key_id.clone(),
        name: key.name.clone(),
        scopes: key.scopes.clone(),
        product: key.product.clone().unwrap_or_default(),
        allowed_cidrs: key.cidrs.clone(),
        requests_per_minute: key.requests_per_minute,
        expire_time: key.expire_time.map(timestamp),
        state: key.state(now).into(),
        hint: key.hint.clone(),
        last_use_time: key.last_use_time.map(timestamp),
        successor_id: key.successor_id.clone().unwrap_or_default(),
        revocation: key.revocation.as_ref().map(|revocation| Revocation {
            time: Some(timestamp(revocation.time)),
            revoked_by: revocation.by.clone(),
            reason: revocation.reason.clone(),
        }),
        labels: key.labels.clone(),
        create_time: Some(timestamp(key.create_time)),
        etag: key.version.to_string(),
        created_by: key.created_by.clone(),
        tenant_id: key.tenant.as_ref().map_or("", TenantRef::id).to_owned(),
        all_tenants: key.tenant.is_none(),
    }
}
