//! The subscriptions of a tenant in pages, by product and name.

use hub_core::auth::Caller;
use hub_core::error::Result;
use hub_core::page::{self, List};
use hub_proto::hub::event_bus::v1::{
    ListSubscriptionsRequest, ListSubscriptionsResponse, Subscription,
};
use prost::Message;

use super::{Subscriptions, show};
use crate::default_subscriptions;
use crate::owners::Asking;
use crate::store::subscriptions as store;
use crate::subscription_status::Statuses;
use crate::visibility::Viewer;

/// Subscriptions that are looked at together.
const CHUNK_MAX: usize = 100;

impl Subscriptions {
    /// A page. A status is needed to know a state, so all subscriptions before the last one of the
    /// page are looked at.
    ///
    /// Errors: `PRODUCT_NOT_FOUND`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub(crate) async fn list(
        &self,
        caller: &Caller,
        request: ListSubscriptionsRequest,
    ) -> Result<ListSubscriptionsResponse> {
        let tenant = caller.tenant()?;
        let size = page::size(request.page_size)?;
        let token = request.page_token.clone();
        let wanted = ListSubscriptionsRequest {
            page_size: 0,
            page_token: String::new(),
            ..request
        };
        if !wanted.product.is_empty() {
            self.core
                .tenancy
                .products()
                .await?
                .require(&wanted.product)?;
        }
        let filter = wanted.encode_to_vec();
        let list = List {
            name: "ListSubscriptions",
            tenant,
            filter: &filter,
        };
        let now = self.core.clock.now();
        let after = self.core.cursors.read_page(list, now, &token)?;
        let mut found = match of_product(&Viewer::of(caller), &wanted.product) {
            Some(product) => {
                default_subscriptions::make_missing_of(&self.core, tenant).await?;
                let after = after.as_deref().and_then(|pair| pair.split_once('\n'));
                let after = after.unwrap_or_default();
                let states = &wanted.states;
                self.find_page(caller, after, product, states, size).await?
            }
            None => Vec::new(),
        };
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut found, size, bytes_max, Message::encoded_len);
        let last = found.last().filter(|_| more);
        let next_page_token = last.map_or_else(String::new, |last| {
            let after = format!("{}\n{}", last.product, last.name);
            self.core.cursors.write_page(list, now, &after)
        });
        Ok(ListSubscriptionsResponse {
            subscriptions: found,
            next_page_token,
        })
    }

    /// One more than fits on the page, if there are so many.
    async fn find_page(
        &self,
        caller: &Caller,
        after: (&str, &str),
        product: &str,
        states: &[i32],
        size: usize,
    ) -> Result<Vec<Subscription>> {
        let tenant = caller.tenant()?;
        let mut statuses = Statuses::new(self, tenant).await?;
        let asking = Asking::of(caller);
        let mut found: Vec<Subscription> = Vec::new();
        let mut after = (after.0.to_owned(), after.1.to_owned());
        loop {
            let count = match states.is_empty() {
                true => CHUNK_MAX.min(size + 1 - found.len()),
                false => CHUNK_MAX,
            };
            let place = (after.0.as_str(), after.1.as_str());
            let chunk = store::page(&self.core.db, tenant, place, product, count).await?;
            let Some(last) = chunk.last() else {
                return Ok(found);
            };
            after = (last.product.clone(), last.name.clone());
            let is_last = chunk.len() < count;
            let told = statuses.of_all(&asking, &chunk).await?;
            for (stored, status) in chunk.into_iter().zip(told) {
                if states.is_empty() || states.contains(&status.state) {
                    found.push(show(stored, Some(status)));
                }
                if found.len() > size {
                    return Ok(found);
                }
            }
            if is_last {
                return Ok(found);
            }
        }
    }
}

/// Of which product are listed, empty = of all; `None` if the viewer may see none of those that it
/// asks for.
fn of_product<'a>(viewer: &'a Viewer, asked: &'a str) -> Option<&'a str> {
    match (viewer.product(), asked) {
        (Some(own), "") if !viewer.sees_all() => Some(own),
        (None, "") if !viewer.sees_all() => None,
        (_, asked) if asked.is_empty() || viewer.sees_product(asked) => Some(asked),
        _ => None,
    }
}
