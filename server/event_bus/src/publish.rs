//! Publish: a batch is checked whole, then stored whole, or event by event.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::cursor::{Cursor, Stream};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Append, Appended, Log, NewEvent, Outcome, Pending, Row, TenantRef};
use hub_core::module::Core;
use hub_core::tenancy;
use hub_proto::hub::event_bus::v1::{PublishResponse, PublishResult, PublishWarning};
use hub_proto::wire::PublishRequest;

use crate::catalogue::EventType;
use crate::routes::{self, Decided, Routes};
use crate::routing::{Configuration, Configurations};
use crate::{error, event};

/// Most events in one batch.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Most bytes of encoded events in one batch.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Who publishes, and where to.
#[derive(Clone)]
pub struct Publisher {
    /// The product of the key.
    pub product: Arc<str>,
    /// The tenant's log.
    pub log: Arc<Log>,
    /// Where its events go.
    pub configurations: Configurations,
}

/// A batch that was checked: what is to be stored, and the answer to each event.
pub struct Checked {
    configuration: Arc<Configuration>,
    events: Vec<NewEvent>,
    results: Vec<Slot>,
    independent: bool,
}

/// The answer to one event, before its sequence is known.
enum Slot {
    /// Refused by itself, in an independent batch.
    Refused(Error),
    /// To be stored.
    Accepted {
        entry: Option<Arc<EventType>>,
        decided: Arc<Decided>,
        warnings: Vec<i32>,
    },
}

/// Checks a batch. Errors of single events are kept in an independent batch, else returned.
///
/// Errors: `SUBSCRIPTION_INACTIVE`, `BATCH_TOO_LARGE`, `EVENT_INVALID`, `EVENT_TOO_LARGE`,
/// `EVENT_SOURCE_NOT_ALLOWED`, `SCHEMA_VIOLATION`.
pub async fn check(
    publisher: &Publisher,
    configuration: Arc<Configuration>,
    events: Vec<Bytes>,
    independent: bool,
) -> Result<Checked> {
    // A key without tenant publishes for many; of its own tenant each call was asked before.
    if !configuration.is_active(&publisher.product) {
        let tenant = publisher.log.tenant().id();
        return Err(tenancy::inactive(&publisher.product).with("tenantId", tenant));
    }
    let size = events.iter().map(Bytes::len).sum();
    if events.len() > BATCH_EVENTS_MAX {
        return Err(error::batch_too_large(
            events.len(),
            size,
            BATCH_EVENTS_MAX,
            "events",
        ));
    }
    if size > BATCH_BYTES_MAX {
        return Err(error::batch_too_large(
            events.len(),
            size,
            BATCH_BYTES_MAX,
            "bytes",
        ));
    }
    let mut checked = Checked {
        events: Vec::with_capacity(events.len()),
        results: Vec::with_capacity(events.len()),
        independent,
        configuration: configuration.clone(),
    };
    let mut routes = Routes::new(&configuration, &publisher.product);
    for (index, bytes) in events.into_iter().enumerate() {
        match check_event(publisher, &configuration, &mut routes, index, bytes.clone()) {
            Ok((event, slot)) => {
                checked.events.push(event);
                checked.results.push(slot);
            }
            Err(problem) => {
                publisher.refused(&bytes, &problem);
                if !independent {
                    return Err(problem);
                }
                checked.results.push(Slot::Refused(problem));
            }
        }
    }
    drop(routes);
    checked.match_schemas(publisher).await
}

impl Publisher {
    /// Who looks for the event in the log will want to know why it is not there.
    fn refused(&self, event: &Bytes, why: &Error) {
        let refusals = self.configurations.refusals();
        refusals.refused(self.log.tenant(), &self.product, event, why);
    }

    fn repeated(&self, seq: u64, same: bool) {
        let refusals = self.configurations.refusals();
        refusals.repeated(self.log.tenant(), &self.product, seq, same);
    }
}

fn check_event(
    publisher: &Publisher,
    configuration: &Configuration,
    routes: &mut Routes<'_>,
    index: usize,
    bytes: Bytes,
) -> Result<(NewEvent, Slot)> {
    let event = event::check(index, bytes, publisher.log.tenant(), &publisher.product)?;
    let kind = String::from_utf8_lossy(&event.kind);
    let entry = configuration.catalogue.find(&kind);
    if let Some(entry) = entry.filter(|entry| !entry.may_publish(&publisher.product)) {
        let sources = entry.sources.join(", ");
        return Err(error::source_not_allowed(
            index,
            &kind,
            &publisher.product,
            &sources,
        ));
    }
    let decided = routes.decide(&event.kind, &event.event);
    let mut warnings = Vec::new();
    if entry.is_none() {
        warnings.push(PublishWarning::TypeUnknown as i32);
    }
    if decided.destinations == 0 {
        warnings.push(PublishWarning::NoRoute as i32);
    }
    if entry.is_some_and(|entry| entry.deprecated) {
        warnings.push(PublishWarning::TypeDeprecated as i32);
    }
    Ok((
        event,
        Slot::Accepted {
            entry: entry.cloned(),
            decided,
            warnings,
        },
    ))
}

impl Checked {
    /// Checks the data of events whose types have a schema.
    async fn match_schemas(mut self, publisher: &Publisher) -> Result<Checked> {
        let schemas = publisher.configurations.schemas();
        let configuration = self.configuration.clone();
        if !configuration.catalogue.has_schemas() {
            return Ok(self);
        }
        let slots = self.results.iter().enumerate();
        let accepted = slots.filter(|(_, slot)| matches!(slot, Slot::Accepted { .. }));
        let indexes: Vec<usize> = accepted.map(|(index, _)| index).collect();
        let events = indexes.iter().copied().zip(&self.events);
        let mut violating = schemas.check(&configuration.catalogue, events).await?;
        for (index, problem) in &violating {
            if let Ok(at) = indexes.binary_search(index) {
                publisher.refused(&self.events[at].event, problem);
            }
        }
        if !self.independent
            && let Some(first) = violating.pop_first()
        {
            return Err(first.1);
        }
        let mut index = indexes.iter();
        self.events.retain(|_| {
            index
                .next()
                .is_none_or(|index| !violating.contains_key(index))
        });
        for (index, problem) in violating {
            self.results[index] = Slot::Refused(problem);
        }
        Ok(self)
    }

    /// Hands the batch to the journal; the answer comes when it is on disk.
    /// `row` is that of the stream that it comes by.
    pub async fn submit(
        self,
        core: &Core,
        publisher: &Publisher,
        row: Option<Row>,
    ) -> Result<Submitted> {
        let Checked {
            events,
            results,
            independent,
            configuration,
        } = self;
        let pending = match events.is_empty() {
            true => None,
            false => {
                let append = Append {
                    log: publisher.log.clone(),
                    events,
                    independent,
                    row,
                };
                Some(core.journal.submit(append).await?)
            }
        };
        Ok(Submitted {
            pending,
            results,
            publisher: publisher.clone(),
            configuration,
            independent,
        })
    }

    /// The answer if it had been stored: without sequences.
    fn preview(self) -> Vec<PublishResult> {
        self.results
            .into_iter()
            .map(|slot| slot.answer(0, false))
            .collect()
    }
}

/// A batch in the journal's queue.
pub struct Submitted {
    pending: Option<Pending>,
    results: Vec<Slot>,
    publisher: Publisher,
    configuration: Arc<Configuration>,
    independent: bool,
}

/// A batch that is on disk.
pub struct Stored {
    /// One for each event, in the order of the request; without ids, which most callers do not ask
    /// for: see [`write_ids`].
    pub results: Vec<PublishResult>,
    /// What the journal says; absent if nothing was to be stored.
    pub appended: Option<Appended>,
}

impl Submitted {
    /// Waits for the disk. Errors: `EVENT_ID_REUSED` (whole batch), `STORE_BUSY`.
    pub async fn stored(self, core: &Core) -> Result<Stored> {
        let Submitted {
            pending,
            results,
            publisher,
            configuration,
            independent,
        } = self;
        let tenant = publisher.log.tenant();
        let appended = match pending {
            Some(pending) => Some(pending.wait().await?),
            None => None,
        };
        let mut outcomes = appended.iter().flat_map(|appended| &appended.outcomes);
        let mut answers = Vec::with_capacity(results.len());
        let mut published = Published::new(&publisher.product);
        for (index, slot) in results.into_iter().enumerate() {
            if let Slot::Refused(_) = slot {
                answers.push(slot.answer(0, false));
                continue;
            }
            let (seq, duplicate) = match outcomes.next() {
                Some(Outcome::Stored { seq }) => {
                    published.add(&slot);
                    (*seq, false)
                }
                Some(Outcome::Duplicate(position)) => {
                    publisher.repeated(position.seq, true);
                    (position.seq, true)
                }
                Some(Outcome::Reused { seq }) => {
                    publisher.repeated(*seq, false);
                    let first = (*seq > 0).then(|| id::event(tenant.key(*seq)));
                    let problem = error::event_id_reused(index, first.as_deref());
                    // Stored whole or not at all: the first reused identity is the batch's error.
                    if !independent {
                        return Err(problem);
                    }
                    answers.push(Slot::Refused(problem).answer(0, false));
                    continue;
                }
                Some(Outcome::NotStored) => continue,
                None => return Err(Error::internal("the journal answered too few events")),
            };
            answers.push(slot.answer(seq, duplicate));
        }
        let Publisher {
            log,
            configurations,
            ..
        } = &publisher;
        let journal = &core.journal;
        routes::settle(journal, log, configurations, &configuration, &mut answers).await?;
        Ok(Stored {
            results: answers,
            appended,
        })
    }
}

/// Counts stored events by source and type, and where they go; those of a batch mostly are of one
/// type.
struct Published<'a> {
    source: &'a str,
    kind: String,
    decided: Option<Arc<Decided>>,
    count: u64,
}

impl<'a> Published<'a> {
    /// Types that are not the hub's own are counted as one: a label must not have many values.
    const OTHER: &'static str = "other";

    fn new(source: &'a str) -> Self {
        Published {
            source,
            kind: String::new(),
            decided: None,
            count: 0,
        }
    }

    fn add(&mut self, slot: &Slot) {
        let Slot::Accepted { entry, decided, .. } = slot else {
            return;
        };
        let known = self.decided.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, decided)) {
            self.tell();
            let built_in = entry.as_ref().filter(|entry| entry.built_in);
            let kind = built_in.map_or(Self::OTHER, |entry| entry.name.as_str());
            kind.clone_into(&mut self.kind);
            self.decided = Some(decided.clone());
        }
        self.count += 1;
    }

    fn tell(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            let (source, kind) = (self.source.to_owned(), self.kind.clone());
            metrics::counter!("hub_events_published_total", "source" => source, "type" => kind)
                .increment(count);
            if let Some(decided) = &self.decided {
                decided.tell(count);
            }
        }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Slot {
    fn answer(self, sequence: u64, duplicate: bool) -> PublishResult {
        match self {
            Slot::Refused(problem) => PublishResult {
                error: Some(problem.to_problem()),
                ..Default::default()
            },
            Slot::Accepted {
                decided, warnings, ..
            } => PublishResult {
                sequence,
                duplicate,
                destinations: decided.destinations,
                warnings,
                ..Default::default()
            },
        }
    }
}

/// Writes the ids of stored events into results that are told.
pub fn write_ids(tenant: &TenantRef, results: &mut [PublishResult]) {
    for result in results.iter_mut().filter(|result| result.sequence > 0) {
        result.event_id = id::event(tenant.key(result.sequence));
    }
}

/// The unary call.
pub async fn publish(
    core: &Core,
    publisher: &Publisher,
    request: PublishRequest,
) -> Result<PublishResponse> {
    let tenant = publisher.log.tenant();
    let configuration = publisher.configurations.current(tenant).await?;
    let checked = check(
        publisher,
        configuration,
        request.events,
        request.independent,
    )
    .await?;
    if request.validate_only {
        let cursor = cursor(core, publisher, publisher.log.head());
        return Ok(PublishResponse {
            results: checked.preview(),
            cursor,
        });
    }
    let submitted = checked.submit(core, publisher, None).await?;
    let mut stored = submitted.stored(core).await?;
    write_ids(tenant, &mut stored.results);
    let position = stored
        .appended
        .map_or(publisher.log.head(), |appended| appended.position);
    Ok(PublishResponse {
        results: stored.results,
        cursor: cursor(core, publisher, position),
    })
}

/// A cursor that any filter may go on from.
pub fn cursor(core: &Core, publisher: &Publisher, position: hub_core::journal::Position) -> String {
    core.cursors.write(
        publisher.log.tenant(),
        Stream::Events,
        Cursor {
            position,
            filter: 0,
        },
    )
}
