//! How a product makes a subscription of its own.

use std::sync::Arc;

use hub_core::audit::{self, Change, Changes};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{self, Log, TenantRef};
use hub_core::replay::{Begun, Call};
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::{
    CreateSubscriptionResponse, Ordering, StartAt, Subscription, SubscriptionStatus,
};
use prost::Message;

use super::settings::{self, Changed};
use super::{ID_PREFIX, Stored, Subscriptions, Told, show};
use crate::filter::Filter;
use crate::matching::Target;
use crate::owners::Altered;
use crate::store::progress::Failed;
use crate::store::{seeks, subscription_filters, subscriptions as store};
use crate::subscription_status::Statuses;
use crate::{default_subscriptions, error, start};

/// The RPC, as its policy names it.
pub(crate) const CREATE: &str = "hub.event_bus.v1.EventBus/CreateSubscription";
/// Most characters of a name.
pub(crate) const NAME_CHARS_MAX: usize = 200;

impl Subscriptions {
    /// Makes a subscription of the caller's product. Without a start it begins behind the event
    /// that tells of it.
    ///
    /// Errors: `PRODUCT_REQUIRED`, `FIELD_INVALID`, `FILTER_INVALID`, `SUBSCRIPTION_EXISTS`,
    /// `QUOTA_EXCEEDED`, `CURSOR_EXPIRED`, `CURSOR_INVALID`, `LOG_REWOUND`, `SEQUENCE_AHEAD`,
    /// `REQUEST_ID_REUSED`.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        wanted: Subscription,
        start: Option<StartAt>,
        retry: Option<Call>,
    ) -> Result<CreateSubscriptionResponse> {
        let (tenant, product) = (caller.tenant()?, caller.product()?);
        let now = self.core.clock.now();
        let new = new(product, wanted, now)?;
        let filter = Filter::new(&new.filter)?;
        let log = self.core.journal.log(tenant).await?;
        let place = match start.and_then(|start| start.at) {
            Some(at) => Some(start::kept(&self.core, &log, Some(at)).await?.seq),
            None => None,
        };
        let status = self.first_status(tenant, &log, &new, filter, place).await?;
        let mut tx = self.core.db.begin().await?;
        if let Some(call) = &retry
            && let Begun::Again(answer) = call.begin(&mut tx, &self.core.sealer, now).await?
        {
            return answer.decode();
        }
        let bumped = journal::bump(&mut tx, tenant).await?;
        // The event that tells of it is the next one.
        let told_at = bumped.head + 1;
        let place = place.unwrap_or(told_at);
        self.check_room(&mut tx, tenant, &new).await?;
        store::insert(&mut tx, tenant, &new, &caller.key_id).await?;
        let (id, filter) = (&new.id, &new.filter);
        subscription_filters::add(&mut tx, tenant, id, place + 1, filter).await?;
        seeks::make(&mut tx, tenant, &new.id, place, now).await?;
        let status = SubscriptionStatus {
            settled_sequence: place,
            head_sequence: told_at,
            ..status
        };
        let answer = CreateSubscriptionResponse {
            subscription: Some(show(new.clone(), Some(status))),
        };
        if let Some(call) = &retry {
            let message = answer.encode_to_vec();
            call.finish(&mut tx, &self.core.sealer, message, None)
                .await?;
        }
        let change = Change {
            caller,
            action: CREATE,
            resource: &new.id,
            changes: as_changes(&new).field("start", "", place),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let told = Told {
            log: &log,
            kind: "subscription.created",
            change: new.version.to_string(),
            stored: &new,
            actor: &caller.key_id,
            time: now,
            more: serde_json::json!({ "settledSequence": place }),
        };
        self.commit(tx, told, Altered::Settings).await?;
        Ok(answer)
    }

    /// How it will be doing. Before the transaction: this may read much of the log.
    async fn first_status(
        &self,
        tenant: &TenantRef,
        log: &Arc<Log>,
        new: &Stored,
        filter: Filter,
        place: Option<u64>,
    ) -> Result<SubscriptionStatus> {
        let target = Target::new(&new.product, filter);
        let place = place.unwrap_or(log.head().seq);
        let mut statuses = Statuses::new(self, tenant).await?;
        let none = Failed::default();
        statuses.of_place(new, target, place, none).await
    }

    /// Nobody else makes one meanwhile: the log is locked.
    async fn check_room(&self, tx: &mut Tx, tenant: &TenantRef, new: &Stored) -> Result<()> {
        // The row of the default one may not be there yet.
        if new.name == new.product {
            let id = default_subscriptions::id(tenant, &new.product);
            return Err(error::subscription_exists(&new.product, &new.name, &id));
        }
        let named = store::find_named_in(tx, tenant, &new.product, &new.name).await?;
        if let Some(found) = named {
            return Err(error::subscription_exists(
                &new.product,
                &new.name,
                &found.id,
            ));
        }
        let limit = self.core.limits.subscriptions_max as u64;
        if store::count_own(tx, tenant).await? >= limit {
            return Err(error::subscriptions_full("subscriptions", limit));
        }
        settings::check_filters(tx, tenant, &new.id, &new.filter).await
    }
}

fn new(product: &str, wanted: Subscription, now: Micros) -> Result<Stored> {
    check_name(&wanted.name)?;
    let ordering = match Ordering::try_from(wanted.ordering) {
        Ok(Ordering::Unspecified) => Ordering::ByKey,
        Ok(ordering) => ordering,
        Err(_) => {
            let problem = "is not an order of this version";
            return Err(Error::field("subscription.ordering", problem));
        }
    };
    let mut new = Stored {
        id: id::new("sub"),
        product: product.to_owned(),
        name: wanted.name.clone(),
        create_time: now,
        ordering,
        version: 1,
        ..Stored::default()
    };
    Changed::all(wanted).apply(&mut new)?;
    Ok(new)
}

fn check_name(name: &str) -> Result<()> {
    let problem = match name {
        name if !(1..=NAME_CHARS_MAX).contains(&name.chars().count()) => {
            "must have 1 to 200 characters"
        }
        name if name.starts_with(ID_PREFIX) => "must not begin with sub_, as ids do",
        _ => return Ok(()),
    };
    Err(Error::field("subscription.name", problem))
}

/// What a new subscription has, for the audit log.
fn as_changes(new: &Stored) -> Changes {
    let nothing = Stored::default();
    settings::differences(&nothing, new)
        .field("name", "", &new.name)
        .field("product", "", &new.product)
        .field("ordering", "", new.ordering.as_str_name())
}
