//! A server that is being stopped.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use hub_proto::hub::api_keys::v1::WhoAmIRequest;
use hub_proto::hub::event_bus::v1::SubscribeRequest;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::platform::v1::CreateTenantRequest;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::durability::load;
use crate::support::{Backend, Command, TestHub, TestProcess, request};

/// A stop takes less than this if nothing holds it; the drain timeout is 10 s.
const PROMPT: Duration = Duration::from_secs(5);

both_databases! {
    async fn a_stream_is_told_that_it_ends_and_where_to_resume(hub: TestHub) {
        let key = hub.key("portal", &["hub:events.read"]).await;
        let request = SubscribeRequest::default();
        let mut client = hub.client(&key).event_bus();
        let mut frames = client.subscribe(request).await.unwrap().into_inner();
        let opened = frames.message().await.unwrap().unwrap();
        assert!(matches!(opened.frame, Some(Frame::Opened(_))), "{opened:?}");
        let reading = async {
            let mut last = opened;
            while let Some(frame) = frames.message().await.unwrap() {
                last = frame;
            }
            last
        };
        let (last, stopped) = tokio::join!(reading, tokio::time::timeout(PROMPT, hub.stop()));
        let Some(Frame::Closing(closing)) = last.frame else { panic!("{last:?}") };
        assert!(!closing.cursor.is_empty());
        assert!(closing.reconnect_after.is_some());
        assert!(stopped.is_ok(), "the open stream held the server");
    }

    async fn a_call_that_is_at_work_is_finished(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let outsider = Outsider::lock(process.database_url()).await;
        let key = process.ready["operatorKey"].as_str().unwrap();
        let mut platform = load::client(process.addr(), key).platform();
        let working = tokio::spawn(async move {
            let request = CreateTenantRequest { name: "Late".into(), ..Default::default() };
            platform.create_tenant(request).await
        });
        while !began(&process).await {}
        process.signal("TERM");
        while TcpStream::connect(process.addr()).await.is_ok() {}
        outsider.unlock().await;
        let answered = working.await.unwrap();
        assert!(answered.is_ok(), "{answered:?}");
        assert!(process.ended().await.success());
    }

    async fn nobody_can_connect_any_more(hub: TestHub) {
        hub.stop().await;
        assert!(TcpStream::connect(hub.addr).await.is_err());
    }

    async fn a_watcher_of_health_is_told_and_does_not_hold_the_server(hub: TestHub) {
        let request = HealthCheckRequest { service: String::new() };
        let mut client = HealthClient::new(hub.channel().await);
        let mut states = client.watch(request).await.unwrap().into_inner();
        let state = states.message().await.unwrap().unwrap();
        assert_eq!(state.status(), ServingStatus::Serving);
        let watching = async {
            let state = states.message().await.unwrap().unwrap();
            assert_eq!(state.status(), ServingStatus::NotServing);
            states.message().await.unwrap_err()
        };
        let (end, stopped) = tokio::join!(watching, tokio::time::timeout(PROMPT, hub.stop()));
        assert_eq!(end.code(), Code::Unavailable);
        assert!(stopped.is_ok(), "the watcher held the server");
    }

    async fn a_caller_that_does_not_finish_is_cut_off_at_the_drain_timeout(backend: Backend) {
        let hub = TestHub::options(backend);
        let hub = hub.limits(|limits| limits.drain_timeout = Duration::from_millis(100));
        let hub = hub.start().await;
        let mut stuck = crate::server::program::begin_post(hub.addr).await;
        assert!(tokio::time::timeout(PROMPT, hub.stop()).await.is_ok());
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stuck, &mut rest).await;
        assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    }

    async fn what_was_stored_is_there_after_a_restart(backend: Backend) {
        let mut hub = TestHub::start(backend).await;
        let key = hub.key("portal", &["hub:events.read"]).await;
        hub.restart().await;
        let who = hub.client(&key).api_keys().who_am_i(WhoAmIRequest {}).await.unwrap();
        assert_eq!(who.into_inner().tenant_id, hub.first_tenant().id);
    }
}

/// Holds what CreateTenant needs.
enum Outsider {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Outsider {
    async fn lock(url: &str) -> Outsider {
        if !url.starts_with("postgres") {
            let mut connection = SqliteConnection::connect(url).await.unwrap();
            sqlx::raw_sql("begin immediate")
                .execute(&mut connection)
                .await
                .unwrap();
            return Outsider::Sqlite(connection);
        }
        let mut connection = PgConnection::connect(url).await.unwrap();
        let lock = "begin; select head from journal_heads where tenant_no = 0 for update";
        sqlx::raw_sql(lock).execute(&mut connection).await.unwrap();
        Outsider::Postgres(connection)
    }

    async fn unlock(self) {
        match self {
            Outsider::Sqlite(mut connection) => {
                sqlx::raw_sql("rollback")
                    .execute(&mut connection)
                    .await
                    .unwrap();
            }
            Outsider::Postgres(mut connection) => {
                sqlx::raw_sql("rollback")
                    .execute(&mut connection)
                    .await
                    .unwrap();
            }
        }
    }
}

/// Whether a call of CreateTenant has begun.
async fn began(process: &TestProcess) -> bool {
    let metrics = request(process.addr(), Method::GET, "/metrics", &[], Bytes::new());
    let counter = r#"grpc_server_started_total{grpc_service="hub.platform.v1.Platform""#;
    metrics.await.text().contains(counter)
}
