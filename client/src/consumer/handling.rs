//! Handlers at work: a task for each event, whose panic is an answer too.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::leases::Token;
use super::{Answer, LeasedEvent};

/// A handler answered.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) token: Token,
    pub(super) answer: Answer,
    pub(super) panicked: bool,
}

/// See the module.
pub(super) struct Handling {
    begin: Box<dyn Fn(Token, LeasedEvent) -> AbortHandle + Send>,
}

impl Handling {
    /// The receiver gets as many answers as there are events begun.
    pub(super) fn new<H, F>(
        handler: H,
        runtime: Handle,
    ) -> (Self, mpsc::UnboundedReceiver<Finished>)
    where
        H: Fn(LeasedEvent) -> F + Send + Sync + 'static,
        F: Future<Output: Into<Answer>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let (answers, finished) = mpsc::unbounded_channel();
        let begin = move |token, event| {
            let handler = handler.clone();
            let answers = answers.clone();
            let task = async move {
                let handling = async { handler(event).await.into() };
                let answer: Result<Answer, _> = AssertUnwindSafe(handling).catch_unwind().await;
                let panicked = answer.is_err();
                let answer = answer.unwrap_or_else(|panic| Answer::panicked(&*panic));
                // Fails only when the consumer no longer waits for it.
                let _ = answers.send(Finished {
                    token,
                    answer,
                    panicked,
                });
            };
            runtime.spawn(task).abort_handle()
        };
        let begin = Box::new(begin);
        (Handling { begin }, finished)
    }

    /// Hands an event to the handler.
    pub(super) fn begin(&self, token: Token, event: LeasedEvent) -> AbortHandle {
        (self.begin)(token, event)
    }
}
