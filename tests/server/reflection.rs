//! Server reflection, in both versions.

use prost::Message;
use prost_types::FileDescriptorProto;
use tokio_stream::StreamExt;

use crate::support::TestHub;

/// Asks one question of one version.
macro_rules! ask {
    ($version:ident, $hub:expr, $question:ident($argument:expr)) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        let question = MessageRequest::$question($argument.to_owned());
        let request = ServerReflectionRequest {
            message_request: Some(question),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new($hub.channel().await);
        let answers = client
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        answer.message_response.unwrap()
    }};
}

/// Names of the services that one version lists.
macro_rules! services {
    ($version:ident, $hub:expr) => {{
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        match ask!($version, $hub, ListServices("")) {
            MessageResponse::ListServicesResponse(list) => list
                .service
                .into_iter()
                .map(|service| service.name)
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    }};
}

/// Files that describe `symbol`, by name.
async fn files(hub: &TestHub, symbol: &str) -> Vec<FileDescriptorProto> {
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    match ask!(v1, hub, FileContainingSymbol(symbol)) {
        MessageResponse::FileDescriptorResponse(found) => found
            .file_descriptor_proto
            .iter()
            .map(|file| FileDescriptorProto::decode(file.as_slice()).unwrap())
            .collect(),
        other => panic!("{symbol}: {other:?}"),
    }
}

both_databases! {
    async fn both_versions_list_every_service_without_a_key(hub: TestHub) {
        let (v1, v1alpha) = (services!(v1, hub), services!(v1alpha, hub));
        for service in [
            "grpc.health.v1.Health",
            "hub.api_keys.v1.ApiKeys",
            "hub.entity_sync.v1.EntitySync",
            "hub.event_bus.v1.EventBus",
            "hub.platform.v1.Platform",
            "hub.webhooks.v1.Webhooks",
        ] {
            assert!(v1.iter().any(|name| name == service), "{service} in {v1:?}");
            assert!(v1alpha.iter().any(|name| name == service), "{service} in {v1alpha:?}");
        }
    }

    async fn the_details_of_errors_are_described(hub: TestHub) {
        for name in ["ErrorInfo", "BadRequest", "RetryInfo", "Help", "QuotaFailure"] {
            let files = files(&hub, &format!("google.rpc.{name}")).await;
            let mut kinds = files.iter().flat_map(|file| &file.message_type);
            assert!(kinds.any(|kind| kind.name() == name), "{name}");
        }
    }

    async fn methods_are_described_with_their_requests(hub: TestHub) {
        let files = files(&hub, "hub.event_bus.v1.EventBus").await;
        let mut services = files.iter().flat_map(|file| &file.service);
        let bus = services.find(|service| service.name() == "EventBus").unwrap();
        let publish = bus.method.iter().find(|method| method.name() == "Publish").unwrap();
        assert_eq!(publish.input_type(), ".hub.event_bus.v1.PublishRequest");
    }
}
