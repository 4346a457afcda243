//! The caller's trace context (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).

use std::fmt;

use axum::http::HeaderMap;
use hub_core::auth::Span;

/// Header with the caller's trace and span.
pub const TRACEPARENT: &str = "traceparent";

/// `00-` trace `-` span `-` flags.
const LENGTH: usize = 55;

/// Which trace a call belongs to, and its own span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Of the caller, or a new one.
    pub trace_id: TraceId,
    /// Of this call.
    pub span_id: SpanId,
    /// Of the caller.
    pub parent: Option<SpanId>,
}

/// 16 bytes, not all zero; shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

/// 8 bytes, not all zero; shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(u64);

impl Trace {
    /// A span in the caller's trace; a header that is missing, malformed or there twice begins a
    /// new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (value, more) = (values.next(), values.next());
        let value = value.filter(|_| more.is_none());
        let caller = value.and_then(|value| parse(value.to_str().ok()?));
        // A random UUID is never zero: its version is in it.
        let fresh = uuid::Uuid::new_v4().as_u128();
        let (trace_id, parent) = match caller {
            Some((trace_id, parent)) => (trace_id, Some(parent)),
            None => (TraceId(uuid::Uuid::new_v4().as_u128()), None),
        };
        Trace {
            trace_id,
            span_id: SpanId((fresh >> 64) as u64),
            parent,
        }
    }
}

impl From<Trace> for Span {
    fn from(trace: Trace) -> Span {
        Span {
            trace_id: trace.trace_id.0,
            span_id: trace.span_id.0,
        }
    }
}

/// Trace and span of the caller. Of a later version only what version 00 knows is read.
fn parse(text: &str) -> Option<(TraceId, SpanId)> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let mut parts = known.split('-');
    let mut part = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits)?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        part.bytes().all(hex).then_some(part)
    };
    let (version, trace, span, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let follows = match version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let span = u64::from_str_radix(span, 16).ok()?;
    (follows && trace != 0 && span != 0).then_some((TraceId(trace), SpanId(span)))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn of(values: &[&str]) -> Trace {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        Trace::of(&headers)
    }

    #[test]
    fn a_call_is_a_span_of_the_callers_trace() {
        for good in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-00"),
            format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"),
        ] {
            let trace = of(&[&good]);
            assert_eq!(trace.trace_id.to_string(), TRACE, "{good}");
            assert_eq!(trace.parent.unwrap().to_string(), SPAN, "{good}");
            assert_ne!(trace.span_id, trace.parent.unwrap());
        }
    }

    #[test]
    fn without_a_good_header_a_new_trace_begins() {
        let good = format!("00-{TRACE}-{SPAN}-01");
        let zero_trace = format!("00-{}-{SPAN}-01", "0".repeat(32));
        let zero_span = format!("00-{TRACE}-{}-01", "0".repeat(16));
        for bad in [
            vec![],
            vec![""],
            vec!["00"],
            vec![&good[..54]],
            vec![&good, &good],
            vec![&zero_trace],
            vec![&zero_span],
            vec![&format!("ff-{TRACE}-{SPAN}-01")],
            vec![&format!("{good}-more")],
            vec![&good.to_uppercase()],
            vec![&format!("00-{TRACE}-{SPAN}_01")],
            vec![&format!("cc-{TRACE}-{SPAN}-01more")],
            vec![&format!("00-{}-{SPAN}-01", "+".repeat(32))],
        ] {
            let trace = of(&bad);
            assert_eq!(trace.parent, None, "{bad:?}");
            assert_ne!(trace.trace_id.to_string(), TRACE);
            assert_ne!(trace.trace_id, of(&[]).trace_id);
        }
    }
}
