//! Tenants are made by operators, each with its first administrator key.

use std::collections::HashSet;
use std::sync::Arc;

use hub_core::auth::{Caller, IssuedKey, KeyIssuer};
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{Append, NewEvent, Outcome, TenantRef};
use hub_core::module::Core;
use hub_core::replay::{Begun, Call};
use hub_core::storage::Tx;
use hub_core::{products, tenancy};

use crate::error;

/// Where the events about tenants come from.
const SOURCE: &str = "/hub/tenants";

/// The tenants of a database.
pub(crate) struct Tenants {
    core: Core,
    issuer: Arc<dyn KeyIssuer>,
}

/// A tenant that was made, by this call or by the one of which it is a retry.
pub(crate) struct Created {
    pub tenant_id: String,
    pub create_time: Micros,
    /// None if a retry comes later than 10 minutes, or reaches another process.
    pub admin_key: Option<String>,
}

impl Tenants {
    pub fn new(core: &Core, issuer: Arc<dyn KeyIssuer>) -> Self {
        Tenants {
            core: core.clone(),
            issuer,
        }
    }

    /// Makes a tenant and its administrator key.
    ///
    /// Errors: `TENANT_EXISTS`, `PRODUCT_NOT_FOUND`, `FIELD_INVALID`, `REQUEST_ID_REUSED`.
    pub async fn create(
        &self,
        caller: &Caller,
        name: &str,
        products: &[String],
        call: Option<Call>,
    ) -> Result<Created> {
        check_products(products)?;
        // Before the transaction: to look the log up may take a connection of its own.
        let log = self.core.journal.log(&TenantRef::system()).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        if let Some(call) = &call
            && let Begun::Again(answer) = call.begin(&mut tx, now).await?
        {
            drop(tx);
            return self.created_before(&answer);
        }
        let tenant = match tenancy::create(&mut tx, name, now).await {
            Ok(tenant) => tenant,
            Err(failure) if failure.is_unique_violation() => {
                drop(tx);
                return Err(self.name_taken(name).await);
            }
            Err(failure) => return Err(failure.into()),
        };
        let issued = self
            .issuer
            .issue_administrator(&mut tx, &tenant, &caller.key_id)
            .await?;
        if let Some(call) = &call {
            self.remember(call, &mut tx, &tenant, &issued, now).await?;
        }
        let created = tenant_created(&tenant, name, &caller.key_id, now);
        let append = Append {
            log,
            events: vec![created, issued.event],
            independent: false,
        };
        let appended = self.core.journal.commit(tx, vec![append]).await?;
        let outcomes = appended.first().map_or(&[][..], |one| &one.outcomes);
        if !outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Stored { .. }))
        {
            return Err(Error::internal(format!(
                "a tenant's events were not new: {outcomes:?}"
            )));
        }
        let tenant_id = tenant.id().to_owned();
        Ok(Created {
            tenant_id,
            create_time: now,
            admin_key: Some(issued.plaintext),
        })
    }

    async fn name_taken(&self, name: &str) -> Error {
        match self.core.tenancy.by_name(name).await {
            Ok(Some(tenant)) => error::tenant_exists(name, tenant.id()),
            Ok(None) => Error::store_busy("Another tenant is being made", "tenant_race"),
            Err(error) => error,
        }
    }

    /// What a retry is answered from. The secret is kept before the commit, which runs on even if
    /// the caller is gone and calls again.
    async fn remember(
        &self,
        call: &Call,
        tx: &mut Tx,
        tenant: &TenantRef,
        issued: &IssuedKey,
        now: Micros,
    ) -> Result<()> {
        let answer = serde_json::json!([tenant.id(), now, issued.key_id]);
        call.finish(tx, &answer.to_string()).await?;
        self.issuer.keep_plaintext(issued);
        Ok(())
    }

    fn created_before(&self, answer: &str) -> Result<Created> {
        let answer = serde_json::from_str::<(String, Micros, String)>(answer);
        let (tenant_id, create_time, key_id) = answer.map_err(Error::internal)?;
        let admin_key = self.issuer.kept_plaintext(&key_id);
        Ok(Created {
            tenant_id,
            create_time,
            admin_key,
        })
    }
}

/// Every tenant has all products until product subscriptions can be changed: a shorter list could
/// only be forgotten, so it is refused.
fn check_products(asked: &[String]) -> Result<()> {
    asked.iter().try_for_each(|slug| products::require(slug))?;
    let asked: HashSet<&str> = asked.iter().map(String::as_str).collect();
    if asked.is_empty() || asked.len() == products::SLUGS.len() {
        return Ok(());
    }
    let problem = "cannot be chosen yet: every tenant has all products until product subscriptions \
                   are there; leave the field empty";
    Err(Error::field("products", problem))
}

fn tenant_created(tenant: &TenantRef, name: &str, actor: &str, time: Micros) -> NewEvent {
    HubEvent {
        log: &TenantRef::system(),
        source: SOURCE,
        kind: "tenant.created",
        id: format!("{}.1", tenant.id()),
        subject: tenant.id(),
        tenant_id: tenant.id(),
        actor,
        time,
        json: serde_json::json!({ "tenantId": tenant.id(), "name": name }).to_string(),
    }
    .encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(asked: &[&str]) -> Option<&'static str> {
        let asked: Vec<String> = asked.iter().map(|slug| (*slug).to_owned()).collect();
        check_products(&asked).err().map(|error| error.reason())
    }

    #[test]
    fn a_tenant_has_all_products_or_the_call_says_why_not() {
        assert_eq!(reason(&[]), None);
        assert_eq!(reason(&products::SLUGS), None);
        assert_eq!(reason(&["psa", "crm"]), Some("FIELD_INVALID"));
        assert_eq!(reason(&["psa"; 12]), Some("FIELD_INVALID"));
        assert_eq!(reason(&["psa", "crmm"]), Some("PRODUCT_NOT_FOUND"));
    }
}
