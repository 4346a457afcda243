//! What is explained: an event of the log, one that retention removed, or one that never came.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use hub_core::clock::{Micros, from_timestamp, timestamp};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Segment, StoredEvent};
use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr;
use hub_proto::hub::event_bus::v1::explain_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    CloudEvent, EventDeliveryState, EventFilter, EventLogEntry, EventLogFilter, EventSearch,
    NotRoutedReason,
};
use prost::Message;

use super::nearby::{Near, Nearby, nearest};
use super::{Question, Sources};
use crate::log_entry::{self, Named};
use crate::log_list::{self, Asking};
use crate::owners::{Known, Live, Wanted};
use crate::refusals::{self, Refusal, Why};
use crate::routing::{Configuration, Outcome};
use crate::standing::{Standing, Standings};
use crate::{event, log};

/// How far around the time that it should have happened an event is looked for: 1 h.
pub(super) const AROUND: Micros = 3600 * 1_000_000;
/// Events that match a search, of which the nearest is explained.
const MATCHES_MAX: usize = 100;
/// First events of repeated ones that one search looks at.
const REPEATED_MAX: usize = 100;
/// Pages of the log that one search examines.
const PAGES_MAX: usize = 5;

/// What is explained.
pub(super) enum Subject {
    /// It is in the log.
    Stored(Box<Stored>),
    /// It was, until retention removed it.
    Removed { event_id: String, seq: u64 },
    /// There is none like it.
    Never(Box<Never>),
}

/// An event of the log.
pub(super) struct Stored {
    pub(super) seq: u64,
    pub(super) event_id: String,
    /// CloudEvents type.
    pub(super) kind: String,
    /// Slug of the product that published it.
    pub(super) source: String,
    pub(super) event: CloudEvent,
    pub(super) bytes: Bytes,
    pub(super) recorded: Micros,
    /// By which it was routed.
    pub(super) then: Arc<Configuration>,
    /// The destinations that were named for it.
    pub(super) landed: Vec<Landed>,
    /// How many events match the search by which it was found.
    pub(super) matches: Option<usize>,
}

/// Where an event stands at a destination.
pub(super) struct Landed {
    pub(super) named: Named,
    pub(super) standing: Standing,
    /// Up to where the subscription has looked at events; none if it never did.
    pub(super) cursor: Option<u64>,
    /// How the subscription is doing, as its owner says; none if nobody is at work on it.
    pub(super) live: Option<Live>,
    /// Its owner, another process, did not say.
    pub(super) is_silent: bool,
}

impl Landed {
    /// The catalogue or a filter named the destination when the event was recorded.
    pub(super) fn was_named(&self) -> bool {
        self.named.outcome != Outcome::NotRouted(NotRoutedReason::Unspecified)
    }

    /// A consumer has, or had, the event.
    pub(super) fn was_taken(&self) -> bool {
        self.standing.attempts > 0 || self.standing.state == EventDeliveryState::Delivered
    }
}

/// An event that was expected.
pub(super) struct Never {
    pub(super) search: EventSearch,
    /// When it should have happened.
    pub(super) around: Micros,
    /// Not all that could match was looked at.
    pub(super) more: bool,
    pub(super) nearby: Nearby,
    /// It was sent, and not stored, as far as the processes remember.
    pub(super) sent: Option<Sent>,
    /// Processes that did not say what they refused.
    pub(super) silent: usize,
}

/// An event that Publish did not store.
pub(super) struct Sent {
    pub(super) refusal: Refusal,
    /// The first event of its source and id, if that is why.
    pub(super) first: Option<Near>,
}

impl Subject {
    /// What a request names. Errors: `EVENT_NOT_FOUND`, `FIELD_INVALID`, `FILTER_INVALID`.
    pub(super) async fn find(question: &Question<'_>, asked: Option<Asked>) -> Result<Subject> {
        match asked {
            Some(Asked::EventId(event_id)) => of_id(question, &event_id).await,
            Some(Asked::Search(search)) => of_search(question, search).await,
            None => Err(Error::field("event", "is required")),
        }
    }
}

/// An id that this log never gave is not found.
async fn of_id(question: &Question<'_>, event_id: &str) -> Result<Subject> {
    let (core, log) = (question.sources.core, &question.log);
    let Some(seq) = log::of_id(log, event_id).filter(|seq| *seq > 0) else {
        return Err(log::not_found(core, log, event_id).await?);
    };
    if let Some(segment) = log::find(core, log, seq).await? {
        return Ok(Subject::Stored(Box::new(
            stored(question, &segment, seq, None).await?,
        )));
    }
    if seq > log.head().seq {
        return Err(log::not_found(core, log, event_id).await?);
    }
    Ok(Subject::Removed {
        event_id: event_id.to_owned(),
        seq,
    })
}

async fn stored(
    question: &Question<'_>,
    segment: &Segment,
    seq: u64,
    matches: Option<usize>,
) -> Result<Stored> {
    let tenant = question.log.tenant();
    let found = segment.event_at(seq).map_err(Error::internal)?;
    let found: StoredEvent<'_> =
        found.ok_or_else(|| Error::internal("a segment lacks its event"))?;
    let configurations = question.sources.configurations;
    let then = configurations.at(tenant, segment.routing_epoch()).await?;
    let named = log_entry::destinations(tenant, &then, &found);
    Ok(Stored {
        seq,
        event_id: id::event(tenant.key(seq)),
        kind: found.kind.to_owned(),
        source: found.product.to_owned(),
        event: CloudEvent::decode(found.event()).map_err(Error::internal)?,
        bytes: found.event(),
        recorded: segment.record_time(),
        landed: landed(question, seq, segment.record_time(), named).await?,
        then,
        matches,
    })
}

async fn landed(
    question: &Question<'_>,
    seq: u64,
    recorded: Micros,
    named: Vec<Named>,
) -> Result<Vec<Landed>> {
    let (core, at_work) = (question.sources.core, question.sources.at_work);
    let tenant = question.log.tenant();
    let mut standings = Standings::load(core, tenant, at_work, None, &[seq]).await?;
    let given = standings.given(seq, &named);
    let named = [named, given].concat();
    let ids: Vec<&str> = named
        .iter()
        .map(|named| named.subscription_id.as_str())
        .collect();
    let wanted = Wanted {
        live: true,
        seqs: &[seq],
    };
    let known = at_work.live(&question.asking, &ids, wanted).await?;
    // Only now: what was settled before somebody was asked is stored, or told.
    standings = Standings::load(core, tenant, at_work, None, &[seq]).await?;
    standings.hear(known.clone());
    let landed = named.iter().map(|named| {
        let (live, is_silent) = match known.get(&named.subscription_id) {
            Some(Known::Told { live, .. }) => (Some((**live).clone()), false),
            Some(Known::Silent) => (None, true),
            None => (None, false),
        };
        Landed {
            standing: standings.of(named, seq, recorded),
            cursor: standings.cursor(&named.subscription_id),
            live,
            is_silent,
            named: named.clone(),
        }
    });
    Ok(landed.collect())
}

/// The event that was recorded nearest to the time that is asked for, or the newest one.
async fn of_search(question: &Question<'_>, search: EventSearch) -> Result<Subject> {
    event::check_type(&search.r#type).map_err(|problem| Error::field("search.type", problem))?;
    let Matches { entries, more } = matches(question, &search).await?;
    let around = search.around.as_ref().map_or(question.now, from_timestamp);
    let nearest = entries
        .iter()
        .min_by_key(|entry| recorded(entry).abs_diff(around));
    let Some(record) = nearest.and_then(|entry| entry.record.as_ref()) else {
        let (sent, silent) = sent(question, &search, around).await?;
        return Ok(Subject::Never(Box::new(Never {
            nearby: Nearby::look(question, &search, around).await?,
            sent,
            silent,
            search,
            around,
            more,
        })));
    };
    let seq = record.sequence;
    match log::find(question.sources.core, &question.log, seq).await? {
        Some(segment) => Ok(Subject::Stored(Box::new(
            stored(question, &segment, seq, Some(entries.len())).await?,
        ))),
        // Retention was faster.
        None => Ok(Subject::Removed {
            event_id: record.event_id.clone(),
            seq,
        }),
    }
}

/// Events that match a search.
struct Matches {
    entries: Vec<EventLogEntry>,
    /// Not all that could match was looked at.
    more: bool,
}

/// Of a search with a time the last ones before it and the first ones after it, else the newest.
async fn matches(question: &Question<'_>, search: &EventSearch) -> Result<Matches> {
    let wanted = EventLogFilter {
        event: Some(like(search)),
        ..EventLogFilter::default()
    };
    let Some(around) = search.around.as_ref().map(from_timestamp) else {
        return question.look_through(&wanted, 1).await;
    };
    let before = EventLogFilter {
        since: Some(timestamp(around.saturating_sub(AROUND))),
        until: Some(timestamp(around)),
        ..wanted.clone()
    };
    let after = EventLogFilter {
        since: before.until,
        until: Some(timestamp(around.saturating_add(AROUND))),
        ..wanted
    };
    let mut found = question.look_through(&before, 1).await?;
    let after = question.look_through(&after, MATCHES_MAX).await?;
    found.entries.extend(after.entries);
    found.more |= after.more;
    Ok(found)
}

/// What was sent around a time and not stored, of what a search is about; and how many processes
/// did not say what they refused.
async fn sent(
    question: &Question<'_>,
    search: &EventSearch,
    around: Micros,
) -> Result<(Option<Sent>, usize)> {
    let Sources {
        core,
        configurations,
        ..
    } = question.sources;
    let times = (around.saturating_sub(AROUND), around.saturating_add(AROUND));
    let heard = refusals::all(core, configurations, question.caller, times).await?;
    let is_asked = |kind: &str, subject: &str| {
        kind == search.r#type && (search.subject.is_empty() || search.subject == subject)
    };
    // Who sends the same again and again is looked at once.
    let mut others = HashSet::new();
    for refusal in heard.refusals {
        let first = match refusal.why {
            Why::Refused { .. } if is_asked(&refusal.kind, &refusal.subject) => None,
            Why::Refused { .. } => continue,
            Why::Repeated { .. } if others.len() >= REPEATED_MAX => continue,
            Why::Repeated { seq, .. } if !others.insert(seq) => continue,
            Why::Repeated { seq, .. } => match Near::at(question, seq).await? {
                Some(first) if is_asked(&first.event.r#type, first.subject()) => Some(first),
                _ => continue,
            },
        };
        return Ok((Some(Sent { refusal, first }), heard.silent));
    }
    Ok((None, heard.silent))
}

/// Events of the type and subject of a search.
pub(super) fn like(search: &EventSearch) -> EventFilter {
    let mut filter = EventFilter {
        types: vec![search.r#type.clone()],
        ..EventFilter::default()
    };
    if !search.subject.is_empty() {
        let subject = ("subject".to_owned(), search.subject.clone());
        filter.attributes.extend([subject]);
    }
    filter
}

/// When the event of an entry was recorded.
pub(super) fn recorded(entry: &EventLogEntry) -> Micros {
    let record = entry.record.as_ref();
    let time = record.and_then(|record| record.record_time.as_ref());
    time.map_or(0, from_timestamp)
}

impl Question<'_> {
    /// The newest events of a filter, without their data, as far as one page of the log examines.
    pub(super) async fn look(
        &self,
        wanted: &EventLogFilter,
        size: usize,
    ) -> Result<log_list::Found> {
        self.look_before(wanted, None, size, usize::MAX).await
    }

    /// The same before a sequence, and after so many events at most.
    pub(super) async fn look_before(
        &self,
        wanted: &EventLogFilter,
        before: Option<u64>,
        size: usize,
        examined_max: usize,
    ) -> Result<log_list::Found> {
        let asking = Asking {
            wanted,
            from: 0,
            before,
            size,
            omit_data: true,
            examined_max,
        };
        let sources = &self.sources;
        let (core, configurations) = (sources.core, sources.configurations);
        log_list::find(core, configurations, sources.at_work, &self.asking, asking).await
    }

    /// The same over some pages, until there are so many or the end is reached.
    async fn look_through(&self, wanted: &EventLogFilter, size: usize) -> Result<Matches> {
        let (mut entries, mut before) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let found = self.look_before(wanted, before, size, usize::MAX).await?;
            entries.extend(found.entries);
            if !found.more || entries.len() >= size {
                return Ok(Matches {
                    entries,
                    more: false,
                });
            }
            before = Some(found.before);
        }
        Ok(Matches {
            entries,
            more: true,
        })
    }
}

impl Never {
    /// Whose it should have been, as far as that can be told.
    pub(super) fn source(&self) -> Option<&str> {
        let of_sent = self.sent.iter().map(|sent| &sent.refusal.product);
        let of_misspelt = self.nearby.misspelt.iter().map(|near| &near.product);
        let sources = self.nearby.sources.iter();
        let mut sources = of_sent.chain(sources).chain(of_misspelt);
        sources.next().map(String::as_str)
    }

    /// Type, subject and time.
    pub(super) fn describe(&self) -> String {
        let about = match self.search.subject.as_str() {
            "" => String::new(),
            subject => format!(" about {subject}"),
        };
        let when = match &self.search.around {
            Some(around) => format!(" within 1 h of {around}"),
            None => String::new(),
        };
        format!("{}{about}{when}", self.search.r#type)
    }

    /// What there is instead.
    pub(super) fn detail(&self) -> String {
        let (nearby, kind) = (&self.nearby, &self.search.r#type);
        let mut parts = Vec::new();
        if self.more {
            parts.push("Not all events were looked at: name a time or a subject".to_owned());
        }
        if let Some(near) = &nearby.elsewhen {
            parts.push(format!(
                "{} published {} at {}",
                near.product,
                near.event_id,
                timestamp(near.recorded)
            ));
        }
        if let Some(near) = &nearby.misspelt {
            let (product, written) = (&near.product, &near.event.r#type);
            let when = near.when(self.around);
            let meant = if nearby.is_known { kind } else { written };
            parts.push(format!(
                "nearest: {product} published {written} {when}, did you mean {meant}"
            ));
        }
        if let (None, Some(known)) = (&nearby.misspelt, &nearby.kind) {
            parts.push(format!("nearest type: {known}"));
        }
        if let Some(near) = &nearby.about {
            let (product, when) = (&near.product, near.when(self.around));
            parts.push(format!(
                "{product} published {kind} about {:?} {when}",
                near.subject()
            ));
        }
        for near in &nearby.last {
            let (product, written) = (&near.product, &near.event.r#type);
            parts.push(format!(
                "last event of {product}: {written} at {}",
                timestamp(near.recorded)
            ));
        }
        if parts.is_empty() {
            parts.push("Nothing like it was published".to_owned());
        }
        parts.extend(self.silence());
        format!("{}.", parts.join("; "))
    }

    /// That not all processes said whether they refused it.
    fn silence(&self) -> Option<String> {
        match self.silent {
            0 => None,
            1 => Some("1 server of the hub did not say what it refused".to_owned()),
            more => Some(format!(
                "{more} servers of the hub did not say what they refused"
            )),
        }
    }

    /// The events that it tells of.
    pub(super) fn near(&self) -> Vec<(&'static str, &Near)> {
        let nearby = &self.nearby;
        let found = [
            nearby.elsewhen.as_ref().map(|near| ("elsewhen", near)),
            nearby.misspelt.as_ref().map(|near| ("nearest", near)),
            nearby.about.as_ref().map(|near| ("same_type", near)),
        ];
        let last = nearby.last.iter().map(|near| ("last_of_source", near));
        found.into_iter().flatten().chain(last).collect()
    }

    /// Whether the subject of an event is nearly the one that is looked for.
    pub(super) fn is_alike(&self, near: &Near) -> bool {
        let subject = near.subject();
        nearest(&self.search.subject, [subject].into_iter()).is_some()
    }
}

impl Stored {
    /// An attribute that is a text; empty if there is none.
    pub(super) fn attribute(&self, name: &str) -> &str {
        attribute(&self.event, name)
    }
}

/// An attribute of an event that is a text; empty if there is none.
pub(super) fn attribute<'a>(event: &'a CloudEvent, name: &str) -> &'a str {
    let value = event.attributes.get(name);
    match value.and_then(|value| value.attr.as_ref()) {
        Some(Attr::CeString(text) | Attr::CeUri(text) | Attr::CeUriRef(text)) => text,
        _ => "",
    }
}
