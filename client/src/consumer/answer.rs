//! What a handler says about its event.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use hub_proto::hub::event_bus::v1::{Nack, NackAction};

/// Longest error of a nack, in bytes.
const ERROR_BYTES_MAX: usize = 1024;
/// Longest wait that a nack may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// What becomes of an event after its handler.
///
/// A handler may also return a `Result`: `Ok(())` is an [`Ack`](Answer::Ack), and an error is a
/// [`Retry`](Answer::Retry) with its text. Errors are shown in the event log; they are cut to
/// 1 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// Try again by the subscription's retry policy; the attempt counts.
    Retry {
        /// Wait at least this long instead of the policy's delay, at most 24 h.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
    /// Give it to another member at once; does not count as an attempt.
    Release,
    /// Make it FAILED now, a dead letter.
    Fail {
        /// Why.
        error: String,
    },
    /// Never deliver it again.
    Skip {
        /// Why.
        error: String,
    },
}

impl Answer {
    /// A retry by the policy.
    pub fn retry(error: impl fmt::Display) -> Self {
        Answer::Retry {
            after: None,
            error: text(error),
        }
    }

    /// A dead letter.
    pub fn fail(error: impl fmt::Display) -> Self {
        Answer::Fail { error: text(error) }
    }

    /// A skip.
    pub fn skip(error: impl fmt::Display) -> Self {
        Answer::Skip { error: text(error) }
    }

    /// The answer of a handler that panicked.
    pub(super) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let said = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(said), _) => said,
            (None, Some(said)) => said.as_str(),
            (None, None) => "no text",
        };
        Answer::retry(format_args!("the handler panicked: {said}"))
    }

    /// As the hub takes it; `None` is an ack.
    pub(super) fn into_nack(self, lease_id: &str) -> Option<Nack> {
        let (action, after, error) = match self {
            Answer::Ack => return None,
            Answer::Retry { after, error } => (NackAction::Retry, after, error),
            Answer::Release => (NackAction::Release, None, String::new()),
            Answer::Fail { error } => (NackAction::Fail, None, error),
            Answer::Skip { error } => (NackAction::Skip, None, error),
        };
        let after = after.map(|after| after.min(RETRY_AFTER_MAX));
        Some(Nack {
            lease_id: lease_id.to_owned(),
            action: action.into(),
            retry_after: after.and_then(|after| after.try_into().ok()),
            error: cut(error),
        })
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Answer {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(Answer::retry, |()| Answer::Ack)
    }
}

impl<E: fmt::Display> From<Result<Answer, E>> for Answer {
    fn from(result: Result<Answer, E>) -> Self {
        result.unwrap_or_else(Answer::retry)
    }
}

/// With its causes, if the error shows them so.
fn text(error: impl fmt::Display) -> String {
    format!("{error:#}")
}

/// What the hub takes: no NUL, and not too long.
fn cut(error: String) -> String {
    let mut error = match error.contains('\0') {
        true => error.replace('\0', " "),
        false => error,
    };
    error.truncate(error.floor_char_boundary(ERROR_BYTES_MAX));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nack(answer: Answer) -> Nack {
        answer.into_nack("lease").unwrap()
    }

    #[test]
    fn a_result_is_an_ack_or_a_retry_with_its_error() {
        assert_eq!(Answer::from(Ok::<_, String>(())), Answer::Ack);
        assert_eq!(Answer::from(Err::<(), _>("no")), Answer::retry("no"));
        let chosen = Ok::<_, String>(Answer::Release);
        assert_eq!(Answer::from(chosen), Answer::Release);
        assert_eq!(Answer::from(Err::<Answer, _>("no")), Answer::retry("no"));
    }

    #[test]
    fn an_error_is_cut_between_characters_and_has_no_nul() {
        let long = nack(Answer::fail("ä".repeat(1000).replacen('ä', "\0", 1)));
        assert_eq!(long.error.len(), 1023);
        assert!(long.error.starts_with(" ä") && long.error.ends_with('ä'));
    }

    #[test]
    fn a_wait_is_cut_to_what_the_hub_takes() {
        let answer = Answer::Retry {
            after: Some(Duration::MAX),
            error: String::new(),
        };
        assert_eq!(nack(answer).retry_after.unwrap().seconds, 86_400);
        assert_eq!(nack(Answer::retry("")).retry_after, None);
    }

    #[test]
    fn a_panic_is_a_retry_with_what_it_said() {
        let said = |panic: Box<dyn Any + Send>| nack(Answer::panicked(&*panic)).error;
        assert_eq!(said(Box::new("boom")), "the handler panicked: boom");
        assert_eq!(
            said(Box::new("boom".to_owned())),
            "the handler panicked: boom"
        );
        assert_eq!(said(Box::new(7)), "the handler panicked: no text");
    }
}
