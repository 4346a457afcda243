//! The audit log: who changed what through the API.

use hub_core::audit::{self, Entry, Filter};
use hub_core::auth::Caller;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::page::{self, List};

use crate::addressed;

/// The audit logs of a database.
pub(crate) struct AuditLog {
    core: Core,
}

/// A page of entries.
pub(crate) struct Page {
    pub entries: Vec<Entry>,
    pub next_page_token: String,
}

impl AuditLog {
    pub fn new(core: &Core) -> Self {
        AuditLog { core: core.clone() }
    }

    /// Changes of a tenant, newest first. An operator that names none sees what no tenant owns:
    /// products, and keys that serve all tenants.
    ///
    /// Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        caller: &Caller,
        tenant_id: &str,
        filter: Filter,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Entry) -> usize,
    ) -> Result<Page> {
        let (now, size) = (self.core.clock.now(), page::size(page_size)?);
        let tenant = match addressed::tenant(&self.core, caller, tenant_id).await? {
            Some(tenant) => tenant,
            None if caller.is_operator() => TenantRef::system(),
            None => caller.tenant()?.clone(),
        };
        let bound = format!("{filter:?}");
        let list = List {
            name: "ListAuditEntries",
            tenant: &tenant,
            filter: bound.as_bytes(),
        };
        let before = self.core.cursors.read_page(list, now, page_token)?;
        let before = before.and_then(|sequence| sequence.parse().ok());
        let mut entries = audit::list(&self.core.db, &tenant, &filter, before, size + 1).await?;
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut entries, size, bytes_max, encoded_len);
        let next_page_token = match entries.last().filter(|_| more) {
            Some(last) => {
                let after = last.sequence.to_string();
                self.core.cursors.write_page(list, now, &after)
            }
            None => String::new(),
        };
        Ok(Page {
            entries,
            next_page_token,
        })
    }
}
