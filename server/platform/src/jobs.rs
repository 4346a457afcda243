//! Jobs of all domains: how far they are, and pausing, resuming, confirming or cancelling them.

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::jobs::{self as core_jobs, Action, Filter, Job};
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::page::{self, List};

use crate::error;

/// The RPC that changes them, as its policy names it.
const CONTROL: &str = "hub.platform.v1.Platform/ControlJob";

/// The jobs of a database.
pub(crate) struct Jobs {
    core: Core,
}

/// A page of jobs.
pub(crate) struct Page {
    pub jobs: Vec<Job>,
    pub next_page_token: String,
}

impl Jobs {
    pub fn new(core: &Core) -> Self {
        Jobs { core: core.clone() }
    }

    /// A job of the caller's tenant.
    ///
    /// Errors: `TENANT_REQUIRED`, `JOB_NOT_FOUND`.
    pub async fn get(&self, caller: &Caller, job_id: &str) -> Result<Job> {
        let found = self.core.jobs.find(&tenant_of(caller)?, job_id).await?;
        found.ok_or_else(|| error::job_not_found(job_id))
    }

    /// Jobs of the caller's tenant, newest first.
    ///
    /// Errors: `TENANT_REQUIRED`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: Filter,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Job) -> usize,
    ) -> Result<Page> {
        let (now, size) = (self.core.clock.now(), page::size(page_size)?);
        let tenant = tenant_of(caller)?;
        let bound = format!("{filter:?}");
        let list = List {
            name: "ListJobs",
            tenant: &tenant,
            filter: bound.as_bytes(),
        };
        let before = self.core.cursors.read_page(list, now, page_token)?;
        let before = before.as_deref().and_then(place);
        // One more than asked for, to know whether there is a next page.
        let jobs = self.core.jobs.list(&tenant, &filter, before, size + 1);
        let mut jobs = jobs.await?;
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut jobs, size, bytes_max, encoded_len);
        let next_page_token = match jobs.last().filter(|_| more) {
            Some(last) => {
                let after = format!("{} {}", last.create_time, last.job_id);
                self.core.cursors.write_page(list, now, &after)
            }
            None => String::new(),
        };
        Ok(Page {
            jobs,
            next_page_token,
        })
    }

    /// Does to a job what an action says, and returns it as it is then. A chunk at work comes to
    /// its end.
    ///
    /// Errors: `TENANT_REQUIRED`, `JOB_NOT_FOUND`, `JOB_STATE_INVALID`.
    pub async fn control(&self, caller: &Caller, job_id: &str, action: Action) -> Result<Job> {
        let (now, tenant) = (self.core.clock.now(), tenant_of(caller)?);
        let mut tx = self.core.db.begin().await?;
        let before = core_jobs::lock(&mut tx, &tenant, job_id).await?;
        let before = before.ok_or_else(|| error::job_not_found(job_id))?;
        let after = core_jobs::control(&mut tx, &tenant, &before, action, now).await?;
        let after = after.ok_or_else(|| error::job_state_invalid(&before, action))?;
        let (old, new) = (before.state.as_str_name(), after.state.as_str_name());
        let change = audit::Change {
            caller,
            action: CONTROL,
            resource: job_id,
            changes: Changes::new().field("state", old, new),
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        self.core.jobs.commit(tx).await?;
        Ok(after)
    }
}

/// Whose jobs a call is about. An operator that names no tenant sees those of the hub itself.
fn tenant_of(caller: &Caller) -> Result<TenantRef> {
    match &caller.tenant {
        None if caller.is_operator() => Ok(TenantRef::system()),
        _ => caller.tenant().cloned(),
    }
}

/// Where a page ends.
fn place(after: &str) -> Option<(Micros, &str)> {
    let (time, job_id) = after.split_once(' ')?;
    Some((time.parse().ok()?, job_id))
}
