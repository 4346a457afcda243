//! The reasons of this domain, as `hub.platform.v1.ErrorReason` declares them.

use std::time::Duration;

use hub_core::error::{CORE, Error};
use hub_core::jobs::{Action, Job};
use hub_core::products::PRODUCTS_MAX;
use tonic::Code;

/// A product is never removed, so waiting alone does not help; somebody has to change a limit.
const RETRY_AFTER: Duration = Duration::from_secs(3600);

const DOMAIN: &str = "hub.platform";

/// `TENANT_EXISTS`.
pub(crate) fn tenant_exists(name: &str, tenant_id: &str) -> Error {
    let message = format!("Tenant {tenant_id} has the name {name:?}. Choose another name.");
    Error::new(Code::AlreadyExists, DOMAIN, "TENANT_EXISTS", message)
        .with("name", name)
        .with("tenantId", tenant_id)
}

/// `JOB_NOT_FOUND`.
pub(crate) fn job_not_found(job_id: &str) -> Error {
    let message = format!("There is no job {job_id}. Jobs are kept for 30 days after their end.");
    Error::new(Code::NotFound, DOMAIN, "JOB_NOT_FOUND", message).with("jobId", job_id)
}

/// `JOB_STATE_INVALID`.
pub(crate) fn job_state_invalid(job: &Job, action: Action) -> Error {
    let state = job.state.as_str_name();
    let state = state.strip_prefix("JOB_STATE_").unwrap_or(state);
    let action = match action {
        Action::Pause => "paused",
        Action::Resume => "resumed",
        Action::Confirm => "confirmed",
        Action::Cancel => "cancelled",
    };
    let message = format!(
        "The job is {state} and cannot be {action}. Read the job and choose an action that fits."
    );
    Error::new(
        Code::FailedPrecondition,
        DOMAIN,
        "JOB_STATE_INVALID",
        message,
    )
    .with("state", state)
}

/// `QUOTA_EXCEEDED`: there is no number for another product.
pub(crate) fn too_many_products() -> Error {
    let message = format!(
        "There are {PRODUCTS_MAX} products, the most that the hub can have. Change one of them."
    );
    Error::new(Code::ResourceExhausted, CORE, "QUOTA_EXCEEDED", message)
        .retry_after(RETRY_AFTER)
        .with("quota", "products")
        .with("limit", PRODUCTS_MAX)
}
