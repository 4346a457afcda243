//! Notices panics in the tasks of a hub, which nobody awaits.

use std::sync::{Mutex, Once, PoisonError};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How many panics of tasks there were before.
pub struct Watch {
    before: usize,
}

impl Watch {
    /// Watches from now on.
    pub fn begin() -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        Watch {
            before: seen().len(),
        }
    }

    /// Fails if a task panicked since.
    pub fn check(&self) {
        let seen = seen();
        let new = seen.get(self.before..).unwrap_or_default().join("\n");
        drop(seen);
        assert!(new.is_empty(), "a task of the hub panicked:\n{new}");
    }
}

fn seen() -> std::sync::MutexGuard<'static, Vec<String>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tests run on threads named after them; tasks run on threads of the runtime.
fn install() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if thread.name().is_some_and(|name| name.starts_with("tokio-")) {
            let at = std::backtrace::Backtrace::force_capture();
            seen().push(format!("{panic}\n{at}"));
        }
        before(panic);
    }));
}
