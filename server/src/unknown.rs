//! Paths that nothing serves.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hub_core::error::{CORE, Error};
use hub_proto::policy::{method_policies, method_policy};
use tonic::{Code, Status};

use crate::unexplained::not_implemented;

/// How many letters may be wrong for a method to be suggested.
const DISTANCE_MAX: usize = 3;
/// Longer paths are no misspelling of ours.
const PATH_BYTES_MAX: usize = 120;

/// The answer of the router to what it does not route.
pub async fn answer(request: Request) -> Response {
    Status::from(error(request.uri().path())).into_http::<Body>()
}

/// `NOT_IMPLEMENTED`, with `didYouMean` if the path is nearly one of the contract's. Its first
/// slash may be absent.
pub fn error(path: &str) -> Error {
    let method: String = path
        .trim_start_matches('/')
        .chars()
        .take(PATH_BYTES_MAX)
        .collect();
    if method_policy(&format!("/{method}")).is_some() {
        return not_implemented(&method, "");
    }
    let near = nearest(&method);
    let advice = match near {
        Some(near) => format!("Did you mean {near}?"),
        None => "Reflection lists what there is.".to_owned(),
    };
    let message = format!("The hub has no method {method}. {advice}");
    let error =
        Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message).with("method", &method);
    match near {
        Some(near) => error.with("didYouMean", near),
        None => error,
    }
}

/// The method with the fewest wrong letters; one with the right last part counts as near, since
/// package and service are what people forget.
fn nearest(method: &str) -> Option<&'static str> {
    let last = method.rsplit(['/', '.']).next().unwrap_or_default();
    let scored = method_policies().iter().map(|policy| {
        let known = policy.method;
        let same = known
            .rsplit('/')
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(last));
        let wrong = distance(&known.to_ascii_lowercase(), &method.to_ascii_lowercase());
        (if same { wrong.min(DISTANCE_MAX) } else { wrong }, known)
    });
    scored
        .min()
        .filter(|(wrong, _)| *wrong <= DISTANCE_MAX)
        .map(|(_, known)| known)
}

/// Levenshtein distance of two short texts, by bytes.
fn distance(one: &str, two: &str) -> usize {
    let two = two.as_bytes();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in two.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_method_is_recognised() {
        for (asked, meant) in [
            (
                "hub.event_bus.v1.EventBus/Publsh",
                Some("hub.event_bus.v1.EventBus/Publish"),
            ),
            (
                "hub.event_bus.v1.eventbus/publish",
                Some("hub.event_bus.v1.EventBus/Publish"),
            ),
            (
                "hub.EventBus/WhoAmI",
                Some("hub.api_keys.v1.ApiKeys/WhoAmI"),
            ),
            ("favicon.ico", None),
            ("", None),
        ] {
            assert_eq!(nearest(asked), meant, "{asked}");
        }
    }

    #[test]
    fn the_error_names_the_method_that_was_meant() {
        let error = error("/hub.event_bus.v1.EventBus/Publsh");
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Unimplemented, "NOT_IMPLEMENTED")
        );
        let meant = ("didYouMean", "hub.event_bus.v1.EventBus/Publish".to_owned());
        assert!(error.metadata().contains(&meant));
    }
}
