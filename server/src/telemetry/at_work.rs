//! The call that is at work, so that every line that is logged meanwhile can name it.
//!
//! Not a span of `tracing`: one is made, kept in a registry and written out for each call, and
//! hardly any call logs anything but the line at its end.

use std::borrow::Cow;
use std::sync::Arc;

use super::trace::Trace;

tokio::task_local! {
    static CURRENT: Arc<AtWork>;
}

/// What names a call.
#[derive(Debug)]
pub struct AtWork {
    /// Service and method.
    pub method: Cow<'static, str>,
    /// Its id, `req_…`.
    pub call: Arc<str>,
    /// The trace that it belongs to.
    pub trace: Trace,
}

impl AtWork {
    /// The future, while it is polled, is this call at work.
    pub fn during<F: Future>(self: Arc<Self>, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// The same of what is done at once.
    pub fn within<T>(self: Arc<Self>, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    /// Shows the call at work, if there is one.
    pub fn show<T>(look: impl FnOnce(&AtWork) -> T) -> Option<T> {
        CURRENT.try_with(|current| look(current)).ok()
    }
}
