//! Protobuf to domain and back, nothing else.

use hub_core::audit;
use hub_core::auth;
use hub_core::clock::{Micros, from_timestamp, timestamp};
use hub_core::error::{Error, Result};
use hub_core::field_mask;
use hub_core::jobs::{self as core_jobs, Action, Job};
use hub_core::replay::{Call, Done, Retry};
use hub_core::tenancy::Subscription;
use hub_proto::hub::core::v1::JobState;
use hub_proto::hub::platform::v1 as proto;
use hub_proto::server::platform_server::Platform;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::audit_log::AuditLog;
use crate::integrations::{self, Filter, Integrations, NewSwitch};
use crate::jobs::Jobs;
use crate::products::{self, Catalog};
use crate::store::Tenant;
use crate::tenants::{self, CREATE, Created, RETENTION, Tenants};

/// The service.
pub(crate) struct Service {
    pub tenants: Tenants,
    pub catalog: Catalog,
    pub integrations: Integrations,
    pub jobs: Jobs,
    pub audit_log: AuditLog,
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Platform for Service {
    async fn create_tenant(
        &self,
        request: Request<proto::CreateTenantRequest>,
    ) -> Answer<proto::CreateTenantResponse> {
        let caller = auth::caller(&request)?;
        let mut request = request.into_inner();
        let request_id = std::mem::take(&mut request.request_id);
        let call = Call::new(&caller, CREATE, &request_id, &request);
        let message = |made: &Created| created(made).encode_to_vec();
        let message = &message;
        let retry = call.map(|call| Retry { call, message });
        let (name, products) = (&request.name, &request.products);
        let done = self.tenants.create(&caller, name, products, retry).await?;
        let (mut answer, secret) = match done {
            Done::First(made) => (created(&made), Some(made.admin_key)),
            Done::Again(before) => (before.decode()?, before.secret),
        };
        answer.admin_key = secret.unwrap_or_default();
        Ok(Response::new(answer))
    }

    async fn get_tenant(
        &self,
        request: Request<proto::GetTenantRequest>,
    ) -> Answer<proto::GetTenantResponse> {
        let caller = auth::caller(&request)?;
        let found = self.tenants.get(&caller, &request.get_ref().tenant_id);
        Ok(Response::new(proto::GetTenantResponse {
            tenant: Some(tenant(&found.await?)),
        }))
    }

    async fn update_tenant(
        &self,
        request: Request<proto::UpdateTenantRequest>,
    ) -> Answer<proto::UpdateTenantResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let new = request.tenant.unwrap_or_default();
        let tenant_id = new.tenant_id.clone();
        let values = tenant_values(new, request.update_mask.as_ref())?;
        let updated = self.tenants.update(&caller, &tenant_id, values).await?;
        Ok(Response::new(proto::UpdateTenantResponse {
            tenant: Some(tenant(&updated)),
        }))
    }

    async fn list_tenants(
        &self,
        request: Request<proto::ListTenantsRequest>,
    ) -> Answer<proto::ListTenantsResponse> {
        let request = request.into_inner();
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |one: &Tenant| tenant(one).encoded_len();
        let page = self.tenants.list(size, token, encoded_len).await?;
        Ok(Response::new(proto::ListTenantsResponse {
            tenants: page.tenants.iter().map(tenant).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn list_products(
        &self,
        request: Request<proto::ListProductsRequest>,
    ) -> Answer<proto::ListProductsResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |one: &products::Shown| product(one).encoded_len();
        let page = self
            .catalog
            .list(&caller, &request.tenant_id, size, token, encoded_len)
            .await?;
        Ok(Response::new(proto::ListProductsResponse {
            products: page.products.iter().map(product).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn update_product(
        &self,
        request: Request<proto::UpdateProductRequest>,
    ) -> Answer<proto::UpdateProductResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let new = request.product.unwrap_or_default();
        let slug = new.product.clone();
        let mut values = product_values(new, request.update_mask.as_ref())?;
        values.allow_missing = request.allow_missing;
        let updated = self.catalog.update(&caller, &slug, values).await?;
        Ok(Response::new(proto::UpdateProductResponse {
            product: Some(product(&products::Shown {
                product: updated,
                subscription: None,
            })),
        }))
    }

    async fn set_product_subscription(
        &self,
        request: Request<proto::SetProductSubscriptionRequest>,
    ) -> Answer<proto::SetProductSubscriptionResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let (tenant_id, slug) = (&request.tenant_id, &request.product);
        let set = self
            .catalog
            .set_subscription(&caller, tenant_id, slug, request.active);
        Ok(Response::new(proto::SetProductSubscriptionResponse {
            product: Some(product(&set.await?)),
        }))
    }

    async fn list_integrations(
        &self,
        request: Request<proto::ListIntegrationsRequest>,
    ) -> Answer<proto::ListIntegrationsResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let filter = Filter {
            source: request.source,
            destination: request.destination,
        };
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |one: &integrations::Shown| integration(one).encoded_len();
        let page = self
            .integrations
            .list(
                &caller,
                &request.tenant_id,
                filter,
                size,
                token,
                encoded_len,
            )
            .await?;
        Ok(Response::new(proto::ListIntegrationsResponse {
            integrations: page.integrations.iter().map(integration).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn set_integration(
        &self,
        request: Request<proto::SetIntegrationRequest>,
    ) -> Answer<proto::SetIntegrationResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let new = NewSwitch {
            source: &request.source,
            destination: &request.destination,
            enabled: request.enabled,
            reason: &request.reason,
        };
        let set = self
            .integrations
            .set(&caller, &request.tenant_id, new)
            .await?;
        Ok(Response::new(proto::SetIntegrationResponse {
            integration: Some(integration(&set)),
        }))
    }

    async fn list_audit_entries(
        &self,
        request: Request<proto::ListAuditEntriesRequest>,
    ) -> Answer<proto::ListAuditEntriesResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let filter = audit::Filter {
            actor: request.actor,
            resource: request.resource,
            since: request.since.as_ref().map(from_timestamp),
            until: request.until.as_ref().map(from_timestamp),
        };
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |one: &audit::Entry| entry(one).encoded_len();
        let page = self
            .audit_log
            .list(
                &caller,
                &request.tenant_id,
                filter,
                size,
                token,
                encoded_len,
            )
            .await?;
        Ok(Response::new(proto::ListAuditEntriesResponse {
            entries: page.entries.iter().map(entry).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn get_job(
        &self,
        request: Request<proto::GetJobRequest>,
    ) -> Answer<proto::GetJobResponse> {
        let caller = auth::caller(&request)?;
        let found = self.jobs.get(&caller, &request.get_ref().job_id).await?;
        Ok(Response::new(proto::GetJobResponse {
            job: Some(found.to_proto()),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Answer<proto::ListJobsResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let filter = core_jobs::Filter {
            kind: request.kind,
            states: job_states(&request.states)?,
        };
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |job: &Job| job.to_proto().encoded_len();
        let page = self
            .jobs
            .list(&caller, filter, size, token, encoded_len)
            .await?;
        Ok(Response::new(proto::ListJobsResponse {
            jobs: page.jobs.iter().map(Job::to_proto).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn control_job(
        &self,
        request: Request<proto::ControlJobRequest>,
    ) -> Answer<proto::ControlJobResponse> {
        let caller = auth::caller(&request)?;
        let request = request.get_ref();
        let action = job_action(request.action)?;
        let after = self.jobs.control(&caller, &request.job_id, action).await?;
        Ok(Response::new(proto::ControlJobResponse {
            job: Some(after.to_proto()),
        }))
    }
}

/// The answer to a call that made a tenant, without the key.
fn created(made: &Created) -> proto::CreateTenantResponse {
    proto::CreateTenantResponse {
        tenant: Some(tenant(&made.tenant)),
        admin_key: String::new(),
    }
}

fn tenant(tenant: &Tenant) -> proto::Tenant {
    proto::Tenant {
        tenant_id: tenant.tenant_id.clone(),
        name: tenant.name.clone(),
        create_time: Some(timestamp(tenant.create_time)),
        retention: Some(duration(tenant.retention)),
        retention_bytes: tenant.retention_bytes.unsigned_abs(),
        etag: tenant.version.to_string(),
    }
}

fn duration(length: Micros) -> prost_types::Duration {
    let at = timestamp(length);
    prost_types::Duration {
        seconds: at.seconds,
        nanos: at.nanos,
    }
}

fn tenant_values(
    new: proto::Tenant,
    mask: Option<&prost_types::FieldMask>,
) -> Result<tenants::NewValues> {
    let known = [
        ("name", !new.name.is_empty()),
        ("retention", new.retention.is_some()),
        ("retention_bytes", new.retention_bytes != 0),
    ];
    let fields = field_mask::fields(mask, &known)?;
    let named = |name| fields.contains(&name);
    // Without a value the field goes back to what it was at first.
    let retention = new.retention.as_ref().map_or(Ok(RETENTION), length)?;
    Ok(tenants::NewValues {
        name: named("name").then_some(new.name),
        retention: named("retention").then_some(retention),
        retention_bytes: named("retention_bytes").then_some(new.retention_bytes),
        etag: new.etag,
    })
}

fn length(duration: &prost_types::Duration) -> Result<Micros> {
    let seconds = duration.seconds.checked_mul(1_000_000);
    let length = seconds.and_then(|micros| micros.checked_add(i64::from(duration.nanos / 1000)));
    length.ok_or_else(|| Error::field("tenant.retention", "must be 1 h to 10 years"))
}

fn product(shown: &products::Shown) -> proto::Product {
    let product = &shown.product;
    proto::Product {
        product: product.slug.clone(),
        display_name: product.display_name.clone(),
        base_urls: product.base_urls.clone(),
        subscription: shown.subscription.as_ref().map(subscription),
        etag: product.version.to_string(),
        rate_limited_status: product.rate_limited_status,
    }
}

fn subscription(subscription: &Subscription) -> proto::ProductSubscription {
    proto::ProductSubscription {
        active: subscription.active,
        update_time: changed_at(subscription.update_time),
        updated_by: subscription.updated_by.clone(),
    }
}

/// Absent if it was never changed.
fn changed_at(time: Micros) -> Option<prost_types::Timestamp> {
    (time != 0).then(|| timestamp(time))
}

fn product_values(
    new: proto::Product,
    mask: Option<&prost_types::FieldMask>,
) -> Result<products::NewValues> {
    let known = [
        ("display_name", !new.display_name.is_empty()),
        ("base_urls", !new.base_urls.is_empty()),
        ("rate_limited_status", new.rate_limited_status != 0),
    ];
    let fields = field_mask::fields(mask, &known)?;
    let named = |name| fields.contains(&name);
    Ok(products::NewValues {
        display_name: named("display_name").then_some(new.display_name),
        base_urls: named("base_urls").then_some(new.base_urls),
        rate_limited_status: named("rate_limited_status").then_some(new.rate_limited_status),
        etag: new.etag,
        allow_missing: false,
    })
}

fn integration(shown: &integrations::Shown) -> proto::Integration {
    let integration = &shown.integration;
    proto::Integration {
        source: shown.source.clone(),
        destination: shown.destination.clone(),
        enabled: integration.enabled,
        effective: shown.effective,
        reason: integration.reason.clone(),
        update_time: changed_at(integration.update_time),
        updated_by: integration.updated_by.clone(),
    }
}

fn job_states(states: &[i32]) -> Result<Vec<JobState>> {
    let known = |(at, state): (usize, &i32)| match JobState::try_from(*state) {
        Ok(state) if state != JobState::Unspecified => Ok(state),
        _ => Err(Error::field(
            format!("states[{at}]"),
            "is not a state of a job",
        )),
    };
    states.iter().enumerate().map(known).collect()
}

fn job_action(action: i32) -> Result<Action> {
    match proto::JobAction::try_from(action) {
        Ok(proto::JobAction::Pause) => Ok(Action::Pause),
        Ok(proto::JobAction::Resume) => Ok(Action::Resume),
        Ok(proto::JobAction::Confirm) => Ok(Action::Confirm),
        Ok(proto::JobAction::Cancel) => Ok(Action::Cancel),
        Ok(proto::JobAction::Unspecified) | Err(_) => {
            Err(Error::field("action", "is not an action"))
        }
    }
}

fn entry(entry: &audit::Entry) -> proto::AuditEntry {
    proto::AuditEntry {
        sequence: entry.sequence,
        time: Some(timestamp(entry.time)),
        actor: entry.actor.clone(),
        action: entry.action.clone(),
        resource: entry.resource.clone(),
        changes: entry.changes.clone(),
        call_id: entry.call_id.clone(),
        client_ip: entry.client_ip.clone(),
    }
}
