//! The limit of the hub's own API: how many calls a tenant may make in a minute at this process.
//!
//! It is there so that one tenant does not take the hub from the others, and far above what a
//! tenant needs. It has nothing to do with the limits of requests to products, which VerifyApiKey
//! enforces. A stream is one call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use hub_core::auth::Caller;
use hub_core::clock::{Clock, Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::window::Window;
use tonic::Code;

/// Tenants, and keys of no tenant, that are counted at once; past this, empty windows are dropped,
/// and if there are none, a new one is not counted.
const WINDOWS_MAX: usize = 100_000;

/// Length of a window, in microseconds.
const MINUTE: Micros = 60_000_000;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Counts calls; cheap to clone.
#[derive(Clone)]
pub struct ApiLimit {
    /// 0 = none.
    per_minute: u32,
    clock: Clock,
    windows: Arc<Mutex<HashMap<String, Window>>>,
}

/// What is left of the limit, for the headers of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    limit: u32,
    remaining: u64,
    reset_at: Micros,
    asked_at: Micros,
    retry_after: Option<Duration>,
}

impl ApiLimit {
    /// So many calls in any minute; 0 = any number.
    pub fn new(per_minute: u32, clock: Clock) -> Self {
        ApiLimit {
            per_minute,
            clock,
            windows: Arc::default(),
        }
    }

    /// Counts a call, or refuses it with `RATE_LIMITED`. A call that another process has passed on
    /// was counted there.
    pub fn take(&self, caller: &Caller) -> (Option<Left>, Result<()>) {
        let cost = u32::from(!caller.origin.forwarded);
        let Some(left) = self.look(caller, cost) else {
            return (None, Ok(()));
        };
        let outcome = match left.retry_after {
            Some(wait) => Err(limited(&left, wait)),
            None => Ok(()),
        };
        (Some(left), outcome)
    }

    /// What is left, for a call that was refused for another reason and is not counted.
    pub fn left(&self, caller: &Caller) -> Option<Left> {
        self.look(caller, 0)
    }

    fn look(&self, caller: &Caller, cost: u32) -> Option<Left> {
        if self.per_minute == 0 {
            return None;
        }
        let subject = match &caller.tenant {
            Some(tenant) => tenant.id(),
            None => &*caller.key_id,
        };
        let now = self.clock.now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(subject) {
            if windows.len() >= WINDOWS_MAX {
                windows.retain(|_, window| {
                    window.advance(now);
                    window.used() > 0
                });
            }
            if windows.len() >= WINDOWS_MAX {
                return None;
            }
            windows.insert(subject.to_owned(), Window::default());
        }
        let window = windows.get_mut(subject)?;
        window.advance(now);
        let limit = u64::from(self.per_minute);
        let fits = window.used() + u64::from(cost) <= limit;
        if fits {
            window.add(cost, now);
        }
        let wait = window.fits_at(cost, self.per_minute, now) - now;
        Some(Left {
            limit: self.per_minute,
            remaining: limit.saturating_sub(window.used()),
            reset_at: window.reset_at(now),
            asked_at: now,
            retry_after: (!fits).then(|| Duration::from_micros(wait.max(1).unsigned_abs())),
        })
    }
}

impl Left {
    /// The same limit with nothing left, whatever others may have used of it.
    pub fn nothing(&self) -> Left {
        Left {
            limit: self.limit,
            remaining: 0,
            reset_at: self.asked_at + MINUTE,
            asked_at: self.asked_at,
            retry_after: None,
        }
    }

    /// Writes `x-ratelimit-…`, and `retry-after` if the call was too many.
    pub fn write(&self, headers: &mut HeaderMap) {
        let reset = self.reset_at.div_euclid(1_000_000) + 1;
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(reset));
        if let Some(wait) = self.retry_after {
            let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

fn limited(left: &Left, wait: Duration) -> Error {
    let (limit, seconds) = (left.limit, wait.as_millis().div_ceil(1000));
    let message = format!(
        "The limit of {limit} calls of the hub's API a minute is used up. Send it again in \
         {seconds} s."
    );
    Error::new(
        Code::ResourceExhausted,
        "hub.api_keys",
        "RATE_LIMITED",
        message,
    )
    .with("limit", limit)
    .with("remaining", left.remaining)
    .with("resetAt", timestamp(left.reset_at))
    .quota("hub api", format!("{limit} calls in any minute"))
    .retry_after(wait)
}
