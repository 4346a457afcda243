//! Log lines as JSON objects, written as they are made: each call has one, and to build it of
//! values first would cost as much as what many calls do.

use std::fmt::{self, Debug, Write};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::at_work::AtWork;
use super::trace::Trace;

/// `{"timestamp":…,"level":…,` the fields of the event, `"target":…,"span":{…}}`. The span is the
/// call at work; spans that libraries make are not shown.
pub struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // It has no times before that.
        let now = SystemTime::now().max(SystemTime::UNIX_EPOCH);
        let now = humantime::format_rfc3339_micros(now);
        write!(line, "{{\"timestamp\":\"{now}")?;
        line.write_str("\",\"level\":\"")?;
        line.write_str(metadata.level().as_str())?;
        line.write_str("\"")?;
        write_members(line.by_ref(), event)?;
        line.write_str(",\"target\":")?;
        quote(&mut line, metadata.target())?;
        let shown = AtWork::show(|at_work| write_call(&mut line, at_work));
        shown.unwrap_or(Ok(()))?;
        line.write_str("}\n")
    }
}

/// The call that was at work.
fn write_call(line: &mut Writer<'_>, at_work: &AtWork) -> fmt::Result {
    line.write_str(",\"span\":{\"method\":")?;
    quote(line, &at_work.method)?;
    line.write_str(",\"call\":")?;
    quote(line, &at_work.call)?;
    let Trace {
        trace_id,
        span_id,
        parent,
    } = at_work.trace;
    write!(line, ",\"trace\":\"{trace_id}\",\"span\":\"{span_id}\"")?;
    if let Some(parent) = parent {
        write!(line, ",\"parent\":\"{parent}\"")?;
    }
    line.write_str(",\"name\":\"rpc\"}")
}

fn write_members(into: Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let mut members = Members {
        into,
        text: String::new(),
        written: Ok(()),
    };
    event.record(&mut members);
    members.written
}

/// Writes fields as they are visited.
struct Members<'a> {
    into: Writer<'a>,
    /// What is not text yet.
    text: String,
    written: fmt::Result,
}

impl Members<'_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Self) -> fmt::Result) {
        if self.written.is_ok() {
            self.written = self.name(field).and_then(|()| value(self));
        }
    }

    fn name(&mut self, field: &Field) -> fmt::Result {
        self.into.write_char(',')?;
        let name = field.name();
        // `r#type` in code is `type`.
        quote(&mut self.into, name.strip_prefix("r#").unwrap_or(name))?;
        self.into.write_char(':')
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |members| quote(&mut members.into, value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |members| write!(members.into, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |members| write!(members.into, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |members| write!(members.into, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for the others.
        self.member(field, |members| match value.is_finite() {
            true => write!(members.into, "{value:?}"),
            false => members.into.write_str("null"),
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Before its name, so that one that cannot be shown leaves no half of a member.
        self.text.clear();
        match write!(self.text, "{value:?}") {
            Ok(()) => self.member(field, |members| quote(&mut members.into, &members.text)),
            Err(error) => self.written = self.written.and(Err(error)),
        }
    }
}

/// Writes a JSON string (RFC 8259, section 7).
fn quote(into: &mut Writer<'_>, text: &str) -> fmt::Result {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    // All of them are looked at, many at once: an end at the first one would forbid that.
    let are_plain = text
        .bytes()
        .fold(true, |plain, byte| plain & is_plain(byte));
    if are_plain {
        into.write_char('"')?;
        into.write_str(text)?;
        return into.write_char('"');
    }
    let quoted = serde_json::to_string(text).map_err(|_| fmt::Error)?;
    into.write_str(&quoted)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::HeaderMap;
    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The one line that is logged, without its time.
    fn line(log: impl FnOnce()) -> Value {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .with_writer(move || lines.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        let time = time.as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        line
    }

    #[test]
    fn a_line_has_the_fields_of_the_event_each_in_its_type() {
        let shown = line(|| {
            let (count, nothing) = (-3i64, f64::NAN);
            tracing::warn!(
                target: "rpc", text = "a", count, size = 7u64, ms = 0.25, whole = 2.0, nothing,
                good = true, shown = %"b", r#type = ?Some(1), "took {count}"
            );
        });
        let expected = json!({
            "level": "WARN", "target": "rpc", "message": "took -3", "text": "a", "count": -3,
            "size": 7, "ms": 0.25, "whole": 2.0, "nothing": null, "good": true, "shown": "b",
            "type": "Some(1)",
        });
        assert_eq!(shown, expected);
    }

    #[tokio::test]
    async fn what_is_logged_while_a_call_is_at_work_names_it() {
        let mut headers = HeaderMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", parent.parse().unwrap());
        let at_work = |headers: &HeaderMap| {
            Arc::new(AtWork {
                method: "hub.x.v1.X/\"Do".into(),
                call: "req_1".into(),
                trace: Trace::of(headers),
            })
        };
        let (with, without) = (at_work(&headers), at_work(&HeaderMap::new()));
        let span = with.trace.span_id.to_string();
        let shown = line(|| with.within(|| tracing::info!("within")));
        assert_eq!(
            shown["span"],
            json!({
                "name": "rpc", "call": "req_1", "method": "hub.x.v1.X/\"Do", "span": span,
                "trace": "0af7651916cd43dd8448eb211c80319c", "parent": "b7ad6b7169203331",
            })
        );
        let during = without.during(async { line(|| tracing::info!("within")) });
        let shown = during.await;
        assert_eq!(shown["span"].get("parent"), None);
        assert_eq!(shown["span"]["call"], "req_1");
        assert_eq!(line(|| tracing::info!("outside")).get("span"), None);
    }

    #[test]
    fn text_cannot_leave_its_quotes_or_its_line() {
        let text = "\"},\n{\\\u{1b}[31m\u{7f}é\u{2028}";
        let shown = line(|| tracing::info!(text, "{text}"));
        assert_eq!(
            (&shown["text"], &shown["message"]),
            (&json!(text), &json!(text))
        );
    }
}
