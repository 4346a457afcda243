//! Two servers on one PostgreSQL are one hub.

use hub_client::start_at::At;
use hub_core::clock::Clock;
use hub_proto::hub::event_bus::v1::SubscribeRequest;
use hub_server::Running;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Product, earliest, from, ids, numbered, ticket};
use crate::support::{Backend, Command, Tenant, TestProcess, config};

/// A second server on the database of the first.
pub(super) async fn second(first: &TestProcess) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(first.database_url());
    let shutdown = CancellationToken::new();
    let running = hub_server::start(config, listener, Clock::system(), shutdown).await;
    running.unwrap()
}

fn at(address: std::net::SocketAddr, key: &str) -> Product {
    let hub = hub_client::Hub::builder(format!("http://{address}")).api_key(key);
    Product {
        bus: hub.connect_lazy().unwrap().event_bus(),
        key: key.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_stored_is_read_and_resumed_at_another() {
    let first = TestProcess::start(Command::Serve, Backend::Postgres, &[]).await;
    let second = second(&first).await;
    let client = |key: &str| {
        let hub = hub_client::Hub::builder(format!("http://{}", first.addr()));
        hub.api_key(key).connect_lazy().unwrap()
    };
    let operator_key = first.ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&client(operator_key)).await;
    let admin = client(&tenant.admin_key);
    let psa = tenant.key(&admin, "psa", &["hub:events.publish"]).await;
    let portal = tenant.key(&admin, "portal", &["hub:events.read"]).await;
    let (psa, here) = (at(first.addr(), &psa), at(first.addr(), &portal));
    let there = at(second.addr, &portal);
    // The other server looks at the log while it is empty.
    let mut live = there.subscribe(SubscribeRequest::default()).await;
    assert_eq!(live.caught_up().await, 0);
    let published = psa.publish(vec![ticket("a")]).await;
    psa.publish_each(numbered("b", 3)).await;
    assert_eq!(
        there.dump_ids(At::Cursor(published.cursor)).await,
        numbered("b", 3)
    );
    assert_eq!(there.dump_ids(At::AfterSequence(3)).await, ["b-2"]);
    let request = SubscribeRequest {
        max_events: 2,
        ..from(earliest())
    };
    let closing = here.subscribe(request).await.rest().await.1;
    assert_eq!(
        there.dump_ids(At::Cursor(closing.cursor)).await,
        ["b-1", "b-2"]
    );
    let now = SubscribeRequest {
        stop_when_caught_up: true,
        ..SubscribeRequest::default()
    };
    let seen = there.subscribe(now).await.rest().await.0;
    assert_eq!(ids(&seen), [""; 0], "now is after what is stored");
    assert_eq!(ids(&live.events(4).await), ["a", "b-0", "b-1", "b-2"]);
    second.drain().await;
}
