//! Who calls and what is left of the limit, as far as it is known: kept beside the call, so that
//! every answer can say it, whoever makes it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use hub_core::auth::Caller;

use crate::api_limit::Left;

/// Nothing yet. Admission writes it, and whoever ends the call reads it: a deadline and a panic
/// take with them what was on the way.
#[derive(Default)]
pub struct Known {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    caller: Option<Caller>,
    left: Option<Left>,
}

impl Known {
    /// The call was admitted.
    pub fn admitted(&self, caller: Caller) {
        self.state().caller = Some(caller);
    }

    /// It is known whose limit it is; none changes nothing.
    pub fn left(&self, left: Option<Left>) {
        let mut state = self.state();
        state.left = left.or(state.left);
    }

    /// Who was admitted.
    pub fn take_caller(&self) -> Option<Caller> {
        self.state().caller.take()
    }

    /// Writes `x-ratelimit-…` into the head of an answer, if it is known whose they are.
    pub fn write(&self, headers: &mut HeaderMap) {
        let left = self.state().left;
        if let Some(left) = left {
            left.write(headers);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
