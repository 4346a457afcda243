//! CreateApiKey with a request_id.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{CreateApiKeyRequest, CreateApiKeyResponse};

use super::{Outcome, new_key};
use crate::support::TestHub;

async fn create(client: &Hub, name: &str, id: &str) -> Outcome<CreateApiKeyResponse> {
    let api_key = Some(new_key(name, &["psa:*"]));
    let request = CreateApiKeyRequest {
        api_key,
        request_id: id.to_owned(),
    };
    Ok(client
        .api_keys()
        .create_api_key(request)
        .await?
        .into_inner())
}

both_databases! {
    async fn a_retry_gets_the_first_answer_and_nothing_is_done_twice(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let id = uuid::Uuid::new_v4().to_string();
        let first = create(&admin, "one", &id).await.unwrap();
        assert_eq!(create(&admin, "one", &id).await.unwrap(), first);
        let error = create(&admin, "two", &id).await.unwrap_err();
        assert_eq!(error.reason(), Some("REQUEST_ID_REUSED"));
        assert_eq!(error.code(), tonic::Code::AlreadyExists);
        assert!(error.metadata().contains_key("firstUsedAt"));
        let other = uuid::Uuid::new_v4().to_string();
        let second = create(&admin, "one", &other).await.unwrap();
        assert_ne!(second.plaintext, first.plaintext);
    }

    async fn after_a_restart_a_retry_gets_the_same_answer_with_its_secret(hub: TestHub) {
        let mut hub = hub;
        let admin_key = hub.first_tenant().admin_key.clone();
        let id = uuid::Uuid::new_v4().to_string();
        let first = create(&hub.client(&admin_key), "one", &id).await.unwrap();
        hub.restart().await;
        let again = create(&hub.client(&admin_key), "one", &id).await.unwrap();
        assert_eq!(again, first);
        assert!(again.plaintext.starts_with("tos_"));
    }

    async fn an_id_that_is_no_uuid_is_refused(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let error = create(&admin, "one", "again").await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"));
        assert_eq!(error.violations()[0].field, "request_id");
    }
}
