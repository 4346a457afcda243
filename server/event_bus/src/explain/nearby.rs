//! What was published instead of an event that never came: the nearest types, by their spelling and
//! in time, the same type about something else, and what its sources did publish.

use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_proto::hub::event_bus::v1::{
    CloudEvent, EventFilter, EventLogEntry, EventLogFilter, EventSearch,
};

use prost::Message;

use super::Question;
use super::subject::{AROUND, attribute, like, recorded};
use crate::log;

/// Events around the time that are compared, the newest first.
const COMPARED_MAX: usize = 1000;
/// Products that may publish a type of which the last event is told.
const SOURCES_MAX: usize = 5;
/// Most edits between two texts of which one was probably meant to be the other.
const EDITS_MAX: usize = 2;

/// An event that is near to the one that is looked for.
#[derive(Debug, Clone)]
pub(super) struct Near {
    pub(super) event_id: String,
    /// Slug of the product that published it.
    pub(super) product: String,
    pub(super) event: CloudEvent,
    pub(super) recorded: Micros,
}

/// What there is instead.
#[derive(Debug, Default)]
pub(super) struct Nearby {
    /// The catalogue has the type, or it was published before.
    pub(super) is_known: bool,
    /// Slugs of products that may publish it; empty = any.
    pub(super) sources: Vec<String>,
    /// The known type that is written most alike.
    pub(super) kind: Option<String>,
    /// The nearest event in time whose type is written alike.
    pub(super) misspelt: Option<Near>,
    /// The nearest event in time of this type about something else.
    pub(super) about: Option<Near>,
    /// The newest event of this type and subject at another time.
    pub(super) elsewhen: Option<Near>,
    /// The last events of its sources before the end of the time that is looked at.
    pub(super) last: Vec<Near>,
}

impl Nearby {
    pub(super) async fn look(
        question: &Question<'_>,
        search: &EventSearch,
        around: Micros,
    ) -> Result<Nearby> {
        let tenant = question.log.tenant();
        let entry = question.present.catalogue.find(&search.r#type).cloned();
        let compared = around_then(question, around).await?;
        let kinds = question
            .sources
            .core
            .journal
            .listed_kinds(tenant, None)
            .await?;
        let of_catalogue = question.present.catalogue.after("");
        let mut known: Vec<&str> = of_catalogue.map(|entry| entry.name.as_str()).collect();
        known.extend(kinds.iter().map(|listed| listed.kind.kind.as_str()));
        known.extend(compared.iter().map(|near| near.event.r#type.as_str()));
        let mut nearby = Nearby {
            is_known: known.contains(&search.r#type.as_str()),
            kind: nearest(&search.r#type, known.iter().copied()).map(str::to_owned),
            ..Nearby::default()
        };
        if let Some(entry) = entry.filter(|entry| !entry.comes_from_all()) {
            nearby.sources.clone_from(&entry.sources);
        }
        let in_time = |wanted: &dyn Fn(&Near) -> bool| {
            let wanted = compared.iter().filter(|near| wanted(near));
            let nearest = wanted.min_by_key(|near| near.recorded.abs_diff(around));
            nearest.cloned()
        };
        let alike = |near: &Near| {
            let kind = near.event.r#type.as_str();
            nearest(&search.r#type, [kind].into_iter()).is_some()
        };
        nearby.misspelt = match in_time(&alike) {
            Some(near) => near.whole(question).await?,
            None => None,
        };
        nearby.about = in_time(&|near: &Near| near.event.r#type == search.r#type);
        nearby.elsewhen = newest(question, like(search), None).await?;
        let slugs = nearby.sources.iter().take(SOURCES_MAX);
        for slug in slugs {
            let of_source = EventFilter {
                products: vec![slug.clone()],
                ..EventFilter::default()
            };
            let until = Some(around.saturating_add(AROUND));
            nearby
                .last
                .extend(newest(question, of_source, until).await?);
        }
        Ok(nearby)
    }
}

/// The events around a time.
async fn around_then(question: &Question<'_>, around: Micros) -> Result<Vec<Near>> {
    let wanted = EventLogFilter {
        since: Some(timestamp(around.saturating_sub(AROUND))),
        until: Some(timestamp(around.saturating_add(AROUND))),
        ..EventLogFilter::default()
    };
    let found = question.look(&wanted, COMPARED_MAX).await?;
    Ok(found.entries.into_iter().filter_map(near).collect())
}

/// The newest event of a filter before a time.
async fn newest(
    question: &Question<'_>,
    event: EventFilter,
    until: Option<Micros>,
) -> Result<Option<Near>> {
    let wanted = EventLogFilter {
        event: Some(event),
        until: until.map(timestamp),
        ..EventLogFilter::default()
    };
    let found = question.look(&wanted, 1).await?;
    Ok(found.entries.into_iter().find_map(near))
}

fn near(entry: EventLogEntry) -> Option<Near> {
    let recorded = recorded(&entry);
    let record = entry.record?;
    Some(Near {
        event_id: record.event_id,
        product: record.product,
        event: record.event?,
        recorded,
    })
}

impl Near {
    /// The event at a sequence, with its data.
    pub(super) async fn at(question: &Question<'_>, seq: u64) -> Result<Option<Near>> {
        let log = &question.log;
        let Some(segment) = log::find(question.sources.core, log, seq).await? else {
            return Ok(None);
        };
        let Some(stored) = segment.event_at(seq).map_err(Error::internal)? else {
            return Ok(None);
        };
        Ok(Some(Near {
            event_id: id::event(log.tenant().key(seq)),
            product: stored.product.to_owned(),
            event: CloudEvent::decode(stored.event()).map_err(Error::internal)?,
            recorded: segment.record_time(),
        }))
    }

    /// The same event with its data.
    async fn whole(self, question: &Question<'_>) -> Result<Option<Near>> {
        let seq = log::of_id(&question.log, &self.event_id);
        Near::at(question, seq.unwrap_or_default()).await
    }

    /// Its subject; empty if it has none.
    pub(super) fn subject(&self) -> &str {
        attribute(&self.event, "subject")
    }

    /// How long before or after a time it was recorded: `3 s earlier`.
    pub(super) fn when(&self, around: Micros) -> String {
        let (apart, side) = match self.recorded <= around {
            true => (around - self.recorded, "earlier"),
            false => (self.recorded - around, "later"),
        };
        format!("{} {side}", span(apart))
    }
}

/// A length of time for people.
pub(super) fn span(length: Micros) -> String {
    match length / 1_000_000 {
        0 => format!("{} ms", length / 1000),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// The text that is written most like another one without being it.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A short text is near to everything: two thirds of it have to be right.
    let most = EDITS_MAX.min(text.chars().count() / 3);
    let written = text.to_lowercase();
    let others = known.filter(|known| *known != text);
    let edits = |known: &str| strsim::damerau_levenshtein(&written, &known.to_lowercase());
    let near = others.map(|known| (edits(known), known));
    let near = near.filter(|(edits, _)| *edits <= most);
    near.min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_is_nearly_written_so_is_found() {
        let known = ["ticket.created", "ticket.updated", "deal.won", "a.b"];
        for (text, expected) in [
            ("ticket.create", Some("ticket.created")),
            ("tikcet.created", Some("ticket.created")),
            ("ticket.created", None),
            ("DEAL.WON", Some("deal.won")),
            ("deal.lost", None),
            ("a.c", Some("a.b")),
            ("invoice.paid", None),
        ] {
            assert_eq!(nearest(text, known.into_iter()), expected, "{text}");
        }
    }

    #[test]
    fn a_length_of_time_is_told_as_people_say_it() {
        let spans = [
            3_000,
            3_000_000,
            180_000_000,
            7_200_000_000,
            400_000_000_000,
        ];
        assert_eq!(spans.map(span), ["3 ms", "3 s", "3 min", "2 h", "4 days"]);
    }
}
