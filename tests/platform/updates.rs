//! Reading and changing tenants.

use hub_client::Error;
use hub_client::proto::hub::platform::v1::{
    CreateTenantRequest, GetTenantRequest, Tenant, UpdateTenantRequest,
};
use tonic::Code;

use super::{Client, reason};
use crate::support::TestHub;

const HOUR: i64 = 3600;

async fn get(client: &Client, tenant_id: &str) -> Result<Tenant, Error> {
    let request = GetTenantRequest {
        tenant_id: tenant_id.to_owned(),
    };
    let answer = client.platform().get_tenant(request).await?;
    Ok(answer.into_inner().tenant.unwrap())
}

async fn update(client: &Client, tenant: Tenant, mask: &[&str]) -> Result<Tenant, Error> {
    let paths: Vec<_> = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = UpdateTenantRequest {
        tenant: Some(tenant),
        update_mask: (!paths.is_empty()).then_some(prost_types::FieldMask { paths }),
    };
    let answer = client.platform().update_tenant(request).await?;
    Ok(answer.into_inner().tenant.unwrap())
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

both_databases! {
    async fn a_tenant_is_read_as_it_was_made(hub: TestHub) {
        let operator = Client::operator(&hub);
        let request = CreateTenantRequest { name: "Acme".to_owned(), ..Default::default() };
        let made = operator.platform().create_tenant(request).await.unwrap().into_inner();
        let tenant = made.tenant.unwrap();
        assert_eq!((tenant.retention, tenant.retention_bytes), (seconds(30 * 24 * HOUR), 0));
        let admin = Client::new(&hub, &made.admin_key);
        assert_eq!(get(&admin, "").await.unwrap(), tenant);
        assert_eq!(get(&admin, &tenant.tenant_id).await.unwrap(), tenant);
        assert_eq!(get(&operator, &tenant.tenant_id).await.unwrap(), tenant);
        assert_eq!(reason(get(&operator, "").await), "TENANT_REQUIRED");
        assert_eq!(reason(get(&operator, "tnt_nobody").await), "TENANT_NOT_FOUND");
    }

    async fn the_mask_says_what_changes(hub: TestHub) {
        let admin = Client::admin(&hub);
        let new = Tenant {
            name: "Acme".to_owned(),
            retention: seconds(HOUR),
            retention_bytes: 1 << 40,
            ..Tenant::default()
        };
        let before = get(&admin, "").await.unwrap();
        let renamed = update(&admin, new.clone(), &["name"]).await.unwrap();
        assert_eq!((renamed.name.as_str(), renamed.retention), ("Acme", before.retention));
        assert_eq!(renamed.etag, "2");
        let all = update(&admin, new.clone(), &["*"]).await.unwrap();
        assert_eq!((all.retention, all.retention_bytes), (seconds(HOUR), 1 << 40));
        let set = Tenant { retention: seconds(2 * HOUR), ..Tenant::default() };
        let set = update(&admin, set, &[]).await.unwrap();
        assert_eq!((set.name.as_str(), set.retention), ("Acme", seconds(2 * HOUR)));
        let reset = update(&admin, Tenant::default(), &["retention", "retention_bytes"]).await;
        let reset = reset.unwrap();
        assert_eq!((reset.retention, reset.retention_bytes), (before.retention, 0));
        assert_eq!(get(&admin, "").await.unwrap(), reset);
        let same = Tenant { name: "Acme".to_owned(), ..Tenant::default() };
        let same = update(&admin, same, &[]).await;
        assert_eq!(same.unwrap().etag, reset.etag, "nothing changed");
    }

    async fn an_update_of_what_changed_meanwhile_is_refused(hub: TestHub) {
        let admin = Client::admin(&hub);
        let read = get(&admin, "").await.unwrap();
        let named = |name: &str| Tenant {
            name: name.to_owned(),
            etag: read.etag.clone(),
            ..Tenant::default()
        };
        update(&admin, named("first"), &["name"]).await.unwrap();
        let error = update(&admin, named("second"), &["name"]).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Aborted, Some("ETAG_MISMATCH")));
        assert_eq!(error.metadata()["currentEtag"], "2");
        assert_eq!(get(&admin, "").await.unwrap().name, "first");
    }

    async fn what_a_tenant_cannot_be_is_refused(hub: TestHub) {
        let admin = Client::admin(&hub);
        for (new, mask, field) in [
            (Tenant::default(), "name", "tenant.name"),
            (
                Tenant { retention: seconds(60), ..Tenant::default() },
                "retention",
                "tenant.retention",
            ),
            (Tenant::default(), "create_time", "update_mask"),
        ] {
            let error = update(&admin, new, &[mask]).await.unwrap_err();
            assert_eq!(error.reason(), Some("FIELD_INVALID"), "{field}");
            assert_eq!(error.violations()[0].field, field);
        }
        assert_eq!(get(&admin, "").await.unwrap().etag, "1");
    }

    async fn nobody_but_operators_reaches_another_tenant(hub: TestHub) {
        let other = hub.tenant().await;
        let admin = Client::admin(&hub);
        assert_eq!(reason(get(&admin, &other.id).await), "TENANT_NOT_FOUND");
        let taken = Tenant {
            tenant_id: other.id.clone(),
            name: "Mine".to_owned(),
            ..Tenant::default()
        };
        assert_eq!(reason(update(&admin, taken.clone(), &["name"]).await), "TENANT_NOT_FOUND");
        let renamed = update(&Client::operator(&hub), taken, &["name"]).await.unwrap();
        assert_eq!((renamed.tenant_id.as_str(), renamed.name.as_str()), (&*other.id, "Mine"));
        let also = Tenant { name: "Mine".to_owned(), ..Tenant::default() };
        let error = update(&admin, also, &["name"]).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::AlreadyExists, Some("TENANT_EXISTS")));
    }
}
