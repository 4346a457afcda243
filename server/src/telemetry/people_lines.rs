//! Log lines for people: those of the library, and below them the call that was at work.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::at_work::AtWork;

/// See the module.
#[derive(Default)]
pub struct PeopleLines(Format);

impl<S, N> FormatEvent<S, N> for PeopleLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.0.format_event(context, line.by_ref(), event)?;
        let shown = AtWork::show(|at_work| {
            let AtWork {
                method,
                call,
                trace,
            } = at_work;
            // An unknown method is what a stranger wrote.
            let (method, trace) = (method.escape_debug(), trace.trace_id);
            writeln!(line, "    within {method} call={call} trace={trace}")
        });
        shown.unwrap_or(Ok(()))
    }
}
