//! grpc.health.v1.

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::TestHub;

async fn check(hub: &TestHub, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(hub.channel().await)
        .check(request)
        .await?;
    Ok(answer.into_inner().status())
}

both_databases! {
    async fn the_server_and_its_services_tell_their_health_without_a_key(hub: TestHub) {
        for service in ["", "hub.event_bus.v1.EventBus", "hub.api_keys.v1.ApiKeys"] {
            assert_eq!(check(&hub, service).await.unwrap(), ServingStatus::Serving, "{service}");
        }
    }

    async fn a_service_without_any_built_method_does_not_serve(hub: TestHub) {
        let status = check(&hub, "hub.webhooks.v1.Webhooks").await.unwrap();
        assert_eq!(status, ServingStatus::NotServing);
    }

    async fn a_service_that_does_not_exist_is_not_found(hub: TestHub) {
        let status = check(&hub, "hub.nothing.v1.Nothing").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.get_details_error_info().unwrap().reason, "NOT_IMPLEMENTED");
    }
}
