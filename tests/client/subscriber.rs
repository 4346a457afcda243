//! Reading events over restarts.

use futures_util::StreamExt;
use hub_client::{Delivery, SubscribeOptions, Subscriber, SubscriberState};

use super::{Address, Keys, assert_complete, crash, publish, reaches, ticket};
use crate::support::{Backend, Command, Tenant, TestHub, TestProcess};

const COUNT: u32 = 3000;

/// Sequences and ids of the next so many events.
async fn read(subscriber: &mut Subscriber, count: u32) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    while found.len() < count as usize {
        if let Delivery::Events(batch) = subscriber.next().await.unwrap().unwrap() {
            let records = batch.events.into_iter();
            found.extend(records.map(|record| (record.sequence, record.event.unwrap().id)));
        }
    }
    found
}

both_databases! {
    async fn a_server_that_restarts_is_read_on_without_gap_or_repeat(mut hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let address = Address::new(hub.addr);
        let mut subscriber =
            address.client(&keys.portal).subscribe(SubscribeOptions::default().earliest());
        let reading = tokio::spawn(async move { read(&mut subscriber, COUNT).await });
        let (mut progress, publishing) = publish(address.client(&keys.psa).publisher(), COUNT);
        for restart in [COUNT / 3, COUNT / 3 * 2] {
            reaches(&mut progress, restart).await;
            hub.restart().await;
            address.moved(hub.addr);
        }
        publishing.await.unwrap();
        assert_complete(&reading.await.unwrap(), COUNT);
    }

    async fn a_server_that_is_killed_is_read_on_without_gap_or_repeat(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let address = Address::new(process.addr());
        let operator_key = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let tenant = Tenant::create(&address.client(&operator_key)).await;
        let admin = address.client(&tenant.admin_key);
        let psa = tenant.key(&admin, "psa", &["hub:events.publish"]).await;
        let portal = tenant.key(&admin, "portal", &["hub:events.read"]).await;
        let mut subscriber =
            address.client(&portal).subscribe(SubscribeOptions::default().earliest());
        let reading = tokio::spawn(async move { read(&mut subscriber, COUNT).await });
        let (mut progress, publishing) = publish(address.client(&psa).publisher(), COUNT);
        reaches(&mut progress, COUNT / 2).await;
        crash(&mut process, &address).await;
        publishing.await.unwrap();
        assert_complete(&reading.await.unwrap(), COUNT);
    }

    async fn a_program_that_starts_again_goes_on_after_the_cursor_it_stored(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let publisher = hub.client(&keys.psa).publisher();
        for number in 0..4 {
            publisher.publish(ticket(number)).await.unwrap();
        }
        let portal = hub.client(&keys.portal);
        let options = SubscribeOptions::default().types(["ticket.*"]);
        let mut first = portal.subscribe(options.clone().earliest().max_events(2));
        let mut cursor = String::new();
        while let Some(delivery) = first.next().await {
            cursor = delivery.unwrap().cursor().to_owned();
        }
        let mut second = portal.subscribe(options.after(cursor));
        let ids: Vec<_> = read(&mut second, 2).await.into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, ["2", "3"]);
    }

    async fn the_state_tells_when_it_is_live(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let mut subscriber =
            hub.client(&keys.portal).subscribe(SubscribeOptions::default().earliest());
        let mut state = subscriber.state();
        let reading = tokio::spawn(async move { read(&mut subscriber, 1).await });
        let live = |state: &SubscriberState| matches!(state, SubscriberState::Live);
        state.wait_for(live).await.unwrap();
        hub.client(&keys.psa).publisher().publish(ticket(7)).await.unwrap();
        assert_eq!(reading.await.unwrap()[0].1, "7");
    }

    async fn a_filter_that_the_hub_refuses_ends_it(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let options = SubscribeOptions::default().types(["ticket.**.created"]);
        let mut subscriber = hub.client(&keys.portal).subscribe(options);
        let error = subscriber.next().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some("FILTER_INVALID"));
        assert!(subscriber.next().await.is_none());
    }

    async fn a_cursor_of_another_filter_ends_it(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let portal = hub.client(&keys.portal);
        let options = SubscribeOptions::default().types(["ticket.*"]).earliest();
        let mut first = portal.subscribe(options.stop_when_caught_up());
        let cursor = first.next().await.unwrap().unwrap().cursor().to_owned();
        let mut other =
            portal.subscribe(SubscribeOptions::default().types(["company.*"]).after(cursor));
        let error = other.next().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some("CURSOR_FILTER_MISMATCH"));
        assert!(other.next().await.is_none());
    }
}
