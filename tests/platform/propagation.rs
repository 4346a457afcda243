//! A change made by one server holds on all others within a second.

use std::time::Duration;

use hub_client::Hub;
use hub_client::proto::hub::platform::v1::{Product, SetIntegrationRequest};
use hub_server::Running;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::products::{list, named, send, update};
use super::{Client, reason};
use crate::support::{Backend, TestHub, config};

/// A second server on the database of the first, with the same clock.
async fn second(first: &TestHub) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(first.database_url());
    let clock = first.clock.clone();
    let running = hub_server::start(config, listener, clock, CancellationToken::new()).await;
    running.unwrap()
}

fn at(server: &Running, key: &str) -> Client {
    let hub = Hub::builder(format!("http://{}", server.addr)).api_key(key);
    Client {
        hub: hub.connect_lazy().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_changed_holds_on_another_within_a_second() {
    let hub = TestHub::options(Backend::Postgres)
        .manual_clock()
        .start()
        .await;
    let second = second(&hub).await;
    let psa = hub.key("psa", &["hub:events.publish"]).await;
    let portal = hub.key("portal", &["hub:events.publish"]).await;
    let (psa, portal) = (at(&second, &psa), at(&second, &portal));
    let destinations = async |id: &str| {
        let published = psa.publish("ticket.created", id).await.unwrap();
        published.results[0].destinations
    };
    assert_eq!(destinations("1").await, 2);
    portal.publish("portal.opened", "1").await.unwrap();
    let admin = Client::admin(&hub);
    admin.switch("psa", "portal", false).await.unwrap();
    // The commit itself reads the epoch, so that routing is exact at once.
    assert_eq!(destinations("2").await, 1);
    admin.subscribe("portal", false).await.unwrap();
    hub.clock.advance(Duration::from_secs(1));
    assert_eq!(
        reason(portal.publish("portal.opened", "2").await),
        "SUBSCRIPTION_INACTIVE"
    );
    admin.subscribe("portal", true).await.unwrap();
    hub.clock.advance(Duration::from_secs(1));
    portal.publish("portal.opened", "2").await.unwrap();
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_product_is_reached_another_server_knows_within_a_second() {
    let hub = TestHub::options(Backend::Postgres)
        .manual_clock()
        .start()
        .await;
    let second = second(&hub).await;
    let there = at(&second, &hub.operator_key);
    let urls = async || {
        let products = list(&there, "").await.into_iter();
        let mut psa = products.filter(|product| product.product == "psa");
        psa.next().unwrap().base_urls
    };
    assert_eq!(urls().await, ["https://api.theonepsa.com"]);
    let moved = Product {
        base_urls: vec!["https://psa.example.com".to_owned()],
        ..named("psa", "")
    };
    let request = update(moved, &["base_urls"], false);
    send(&Client::operator(&hub), request).await.unwrap();
    hub.clock.advance(Duration::from_secs(1));
    assert_eq!(urls().await, ["https://psa.example.com"]);
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_switch_at_once_count_every_change() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = second(&hub).await;
    let admins = [
        Client::admin(&hub),
        at(&second, &hub.first_tenant().admin_key),
    ];
    let pairs = [
        ("psa", "crm"),
        ("psa", "books"),
        ("crm", "psa"),
        ("rmm", "psa"),
    ];
    let mut changes = Vec::new();
    for admin in admins {
        changes.push(tokio::spawn(async move {
            for (source, destination) in pairs {
                for enabled in [false, true] {
                    let request = SetIntegrationRequest {
                        source: source.to_owned(),
                        destination: destination.to_owned(),
                        enabled,
                        ..SetIntegrationRequest::default()
                    };
                    admin.platform().set_integration(request).await.unwrap();
                }
            }
        }));
    }
    for change in changes {
        change.await.unwrap();
    }
    let entries = Client::admin(&hub).audit(Default::default()).await;
    let switches: Vec<_> = entries
        .iter()
        .filter(|entry| entry.action.ends_with("/SetIntegration"))
        .collect();
    let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
    let epoch = hub.core.journal.routing_epoch(&tenant).await.unwrap();
    assert_eq!(epoch, switches.len() as u64, "one epoch for each change");
    let sequences: Vec<u64> = entries.iter().rev().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=entries.len() as u64).collect::<Vec<_>>());
    // Each change of a pair is the opposite of the one before.
    for (source, destination) in pairs {
        let resource = format!("{source}/{destination}");
        let of_pair = switches
            .iter()
            .rev()
            .filter(|entry| entry.resource == resource);
        for (at, entry) in of_pair.enumerate() {
            let expected = ["true -> false", "false -> true"][at % 2];
            assert_eq!(entry.changes["enabled"], expected, "{resource} {at}");
        }
    }
    second.drain().await;
}
