//! How long a call may take, and how many a connection may have at work.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hub_core::clock;
use hub_core::error::Error;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::unexplained;

/// The calls that one connection may have at work; in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct Connection {
    /// One permit per call.
    pub calls: Arc<Semaphore>,
    /// How many permits there are.
    pub calls_max: usize,
}

/// Refuses a call at once when its connection has too many at work. A call counts until its
/// answer begins, so an open stream does not count; streams are bounded by HTTP/2. What is refused
/// is shown to `crowded`.
pub async fn concurrency<F>(
    request: Request,
    crowded: impl FnOnce(&Request),
    next: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let Some(connection) = request.extensions().get::<Connection>().cloned() else {
        return next(request).await;
    };
    match connection.calls.try_acquire() {
        Ok(_permit) => next(request).await,
        Err(_) => {
            crowded(&request);
            refuse(unexplained::quota(
                "requests on a connection",
                connection.calls_max,
            ))
        }
    }
}

/// Ends a call whose answer has not begun by its deadline: the caller's, or the hub's own. Only
/// the head is bounded, so streams run on.
pub async fn deadline<F>(
    longest: Duration,
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let asked = requested(request.headers());
    let allowed = asked.map_or(longest, |asked| asked.min(longest));
    match clock::timeout(allowed, pin!(next(request))).await {
        Ok(response) => response,
        Err(_) => refuse(unexplained::deadline(Code::DeadlineExceeded, "deadline")),
    }
}

/// Both for plain HTTP, where a refusal needs a status of its own: 503.
pub async fn plain(State(longest): State<Duration>, request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Connection>().cloned();
    let place = connection
        .as_ref()
        .map(|connection| connection.calls.try_acquire());
    if matches!(place, Some(Err(_))) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match tokio::time::timeout(longest, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// `grpc-timeout`: at most 8 digits and a unit.
fn requested(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn refuse(error: Error) -> Response {
    Status::from(error).into_http::<Body>()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::Service;

    use super::*;

    #[tokio::test]
    async fn what_is_plain_http_is_refused_with_a_status_of_its_own() {
        let longest = Duration::from_millis(1);
        let mut router = Router::new()
            .route("/now", get(async || "yes"))
            .route("/never", get(std::future::pending::<()>))
            .layer(from_fn_with_state(longest, plain));
        for (path, places, status) in [("/now", 1, 200), ("/now", 0, 503), ("/never", 1, 503)] {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            request.extensions_mut().insert(Connection {
                calls: Arc::new(Semaphore::new(places)),
                calls_max: places,
            });
            let answer = router.call(request).await.unwrap();
            assert_eq!(answer.status(), status, "{path} {places}");
        }
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5s", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(requested(&headers), expected, "{text}");
        }
    }
}
