//! What a job takes next: ids in the order in which the call names them, or of a filter a stretch
//! of the log, the oldest event first.
//!
//! The log is listed from the newest event back, so a stretch is listed whole and turned round. How
//! long it may be is not known before: one that has more than a page is made shorter, one that has
//! little is followed by a longer one.

use hub_core::error::Result;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{EventLogEntry, EventLogFilter, RedeliverRequest};

use super::Redelivery;
use super::parameters::Progress;
use crate::log;
use crate::log_list::{self, Asking, Found};
use crate::owners;

/// Events of one page of the log.
pub(super) const EVENTS: usize = 200;
/// Events of the log that the first stretch has.
const WIDTH: u64 = 1000;
/// The most that one has.
const WIDTH_MAX: u64 = 1 << 20;
/// Stretches that a chunk looks at for an event that matches: each reads as much as a page of
/// ListEvents may.
const STRETCHES_MAX: usize = 4;

/// A page of the log, and where the next one begins.
pub(super) struct Page {
    /// As it was before the first entry.
    pub(super) begun: Progress,
    pub(super) entries: Vec<Chosen>,
    /// [`Progress::done`] once all entries are.
    pub(super) done: u64,
    pub(super) is_last: bool,
}

/// An entry of the log that is asked for, or why there is none.
pub(super) struct Chosen {
    pub(super) event_id: String,
    pub(super) entry: Result<EventLogEntry>,
    /// [`Progress::done`] once this one is.
    pub(super) place: u64,
}

impl Redelivery {
    /// What comes next, or nothing yet where much of the log has nothing that matches.
    pub(super) async fn page(
        &self,
        owners: &owners::Asking<'_>,
        request: &RedeliverRequest,
        progress: Progress,
    ) -> Result<Page> {
        match &request.filter {
            Some(filter) if request.event_ids.is_empty() => {
                self.stretch(owners, filter, progress).await
            }
            _ => Ok(self.next_ids(owners, &request.event_ids, progress).await),
        }
    }

    async fn next_ids(&self, owners: &owners::Asking<'_>, ids: &[String], begun: Progress) -> Page {
        let from = usize::try_from(begun.done).unwrap_or(usize::MAX);
        let from = from.min(ids.len());
        let to = ids.len().min(from + EVENTS);
        Page {
            entries: self.of_ids(owners, &ids[from..to], begun.done).await,
            begun,
            done: to as u64,
            is_last: to == ids.len(),
        }
    }

    /// The events of ids, of which so many are done.
    pub(super) async fn of_ids(
        &self,
        owners: &owners::Asking<'_>,
        ids: &[String],
        done: u64,
    ) -> Vec<Chosen> {
        let parts = self.groups.parts();
        let (core, configurations) = (&parts.core, &parts.configurations);
        let mut chosen = Vec::new();
        for (id, place) in ids.iter().zip(done + 1..) {
            let asked = Some(Asked::EventId(id.clone()));
            chosen.push(Chosen {
                event_id: id.clone(),
                entry: log::get(core, configurations, &*self.groups, owners, asked).await,
                place,
            });
        }
        chosen
    }

    async fn stretch(
        &self,
        owners: &owners::Asking<'_>,
        filter: &EventLogFilter,
        mut begun: Progress,
    ) -> Result<Page> {
        let core = &self.groups.parts().core;
        let log = core.journal.log(owners.caller.tenant()?).await?;
        // As far as the log reaches now if the job begins here: what is published later is not of
        // the job, which would have no end where everything fails.
        let before = Some(begun.end).filter(|end| *end > 0);
        let range = log_list::Range::of(core, &log, filter, before).await?;
        begun.end = range.before;
        begun.done = begun.done.max(range.lowest.saturating_sub(1));
        if begun.width == 0 {
            begun.width = WIDTH;
        }
        let mut is_cut = false;
        for _ in 0..STRETCHES_MAX {
            let from = begun.done + 1;
            if from >= begun.end {
                break;
            }
            let before = begun.end.min(from.saturating_add(begun.width));
            let found = self.find(owners, filter, from, Some(before)).await?;
            if found.more && found.before > from {
                // So much of it is a page.
                is_cut = true;
                begun.width = (before - found.before).min((before - from) / 2).max(1);
                continue;
            }
            if found.entries.len() < EVENTS / 4 && !is_cut {
                begun.width = (begun.width * 2).min(WIDTH_MAX);
            }
            let done = before - 1;
            if !found.entries.is_empty() {
                let entries = found.entries.into_iter().rev().map(chosen).collect();
                let is_last = before >= begun.end;
                return Ok(Page {
                    begun,
                    entries,
                    done,
                    is_last,
                });
            }
            begun.done = done;
        }
        let (done, is_last) = (begun.done, begun.done + 1 >= begun.end);
        Ok(Page {
            begun,
            entries: Vec::new(),
            done,
            is_last,
        })
    }

    /// A page of a stretch of the log, the newest first.
    pub(super) async fn find(
        &self,
        owners: &owners::Asking<'_>,
        wanted: &EventLogFilter,
        from: u64,
        before: Option<u64>,
    ) -> Result<Found> {
        let parts = self.groups.parts();
        let asking = Asking {
            wanted,
            from,
            before,
            size: EVENTS,
            omit_data: false,
            examined_max: usize::MAX,
        };
        log_list::find(
            &parts.core,
            &parts.configurations,
            &*self.groups,
            owners,
            asking,
        )
        .await
    }
}

fn chosen(entry: EventLogEntry) -> Chosen {
    let record = entry.record.as_ref();
    let record = record.map(|record| (record.event_id.clone(), record.sequence));
    let (event_id, place) = record.unwrap_or_default();
    Chosen {
        event_id,
        entry: Ok(entry),
        place,
    }
}
