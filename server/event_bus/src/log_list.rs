//! The event log in pages, newest first.

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::clock::from_timestamp;
use hub_core::error::{Error, Result};
use hub_core::journal::{Log, TenantRef};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_proto::hub::event_bus::v1::{
    EventLogEntry, EventLogFilter, ListEventsRequest, ListEventsResponse,
};
use prost::Message;

use crate::filter::Filter;
use crate::log_entry::Entries;
use crate::log_walk::Walk;
use crate::routing::Configurations;
use crate::standing::AtWork;
use crate::visibility::Viewer;
use crate::{default_subscriptions, error, owners};

/// What of the log is asked for.
pub(crate) struct Asking<'a> {
    pub(crate) wanted: &'a EventLogFilter,
    /// Only events from this sequence on.
    pub(crate) from: u64,
    /// Only events before this sequence.
    pub(crate) before: Option<u64>,
    /// At most so many.
    pub(crate) size: usize,
    /// Without payload.
    pub(crate) omit_data: bool,
    /// At most so many events are examined, nor more than any page may.
    pub(crate) examined_max: usize,
}

/// What one page has.
pub(crate) struct Found {
    /// The newest first.
    pub(crate) entries: Vec<EventLogEntry>,
    /// Everything from here on was examined.
    pub(crate) before: u64,
    /// There may be more before that.
    pub(crate) more: bool,
}

/// A page of the log. Errors: `FILTER_INVALID`, `FIELD_INVALID`, `PAGE_TOKEN_INVALID`,
/// `SUBSCRIPTION_NOT_FOUND`.
pub(crate) async fn list(
    core: &Core,
    configurations: &Configurations,
    at_work: &dyn AtWork,
    caller: &Caller,
    request: ListEventsRequest,
) -> Result<ListEventsResponse> {
    let tenant = caller.tenant()?;
    let size = page::size(request.page_size)?;
    let wanted = request.filter.unwrap_or_default();
    let filter_bytes = wanted.encode_to_vec();
    let list = List {
        name: "ListEvents",
        tenant,
        filter: &filter_bytes,
    };
    let now = core.clock.now();
    let after = core.cursors.read_page(list, now, &request.page_token)?;
    // A token is authenticated: it has what was written into it.
    let before = after.map(|after| after.parse().map_err(Error::internal));
    let asking = Asking {
        wanted: &wanted,
        from: 0,
        before: before.transpose()?,
        size,
        omit_data: request.omit_data,
        examined_max: usize::MAX,
    };
    let owners = owners::Asking::of(caller);
    let found = find(core, configurations, at_work, &owners, asking).await?;
    Ok(ListEventsResponse {
        entries: found.entries,
        next_page_token: match found.more {
            true => core
                .cursors
                .write_page(list, now, &found.before.to_string()),
            false => String::new(),
        },
    })
}

/// Events that the caller sees. Errors: `FILTER_INVALID`, `SUBSCRIPTION_NOT_FOUND`.
pub(crate) async fn find(
    core: &Core,
    configurations: &Configurations,
    at_work: &dyn AtWork,
    owners: &owners::Asking<'_>,
    asking: Asking<'_>,
) -> Result<Found> {
    let caller = owners.caller;
    let (tenant, wanted) = (caller.tenant()?, asking.wanted);
    let filter = Filter::new(&wanted.event.clone().unwrap_or_default())?;
    let viewer = Viewer::of(caller);
    check_subscription(configurations, tenant, &viewer, &wanted.subscription_id).await?;
    let log = core.journal.log(tenant).await?;
    let range = Range::of(core, &log, wanted, asking.before).await?;
    let mut walk = Walk {
        core,
        log: &log,
        filter: &filter,
        wanted,
        at_work,
        owners,
        entries: Entries::new(configurations, tenant, &viewer, asking.omit_data),
        candidates: Vec::new(),
        found: Vec::new(),
        size: asking.size,
        bytes: 0,
        examined_left: core.limits.listing_events_max.min(asking.examined_max),
        read_left: core.limits.listing_bytes_max,
        before: range.before,
        lowest: range.lowest.max(asking.from),
    };
    let more = walk.run().await?;
    Ok(Found {
        before: walk.before,
        entries: walk.found,
        more,
    })
}

/// `SUBSCRIPTION_NOT_FOUND` unless none is asked for or the viewer may see this one.
async fn check_subscription(
    configurations: &Configurations,
    tenant: &TenantRef,
    viewer: &Viewer,
    id: &str,
) -> Result<()> {
    if id.is_empty() {
        return Ok(());
    }
    let present = configurations.current(tenant).await?;
    let mut own = present.subscriptions.iter();
    let product = match own.find(|known| known.subscription_id == id) {
        Some(own) => Some(own.product.as_str()),
        None => default_subscriptions::product_of(&present, tenant, id),
    };
    match product.is_some_and(|product| viewer.sees_product(product)) {
        true => Ok(()),
        false => Err(error::subscription_not_found(id)),
    }
}

/// The sequences that are asked for.
pub(crate) struct Range {
    pub(crate) lowest: u64,
    pub(crate) before: u64,
}

impl Range {
    /// Those of a filter's times; `before` in place of its end, where it is known already.
    pub(crate) async fn of(
        core: &Core,
        log: &Arc<Log>,
        wanted: &EventLogFilter,
        before: Option<u64>,
    ) -> Result<Range> {
        let head = core.journal.refresh(log).await?.seq;
        let lowest = match &wanted.since {
            Some(since) => core.journal.first_since(log, from_timestamp(since)).await?,
            None => core
                .journal
                .earliest(log)
                .await?
                .map_or(head + 1, |(seq, _)| seq),
        };
        let before = match (before, &wanted.until) {
            (Some(before), _) => before,
            (None, Some(until)) => core.journal.first_since(log, from_timestamp(until)).await?,
            (None, None) => head + 1,
        };
        Ok(Range { lowest, before })
    }
}
