//! Publishing over one stream.

use hub_client::{CloudEvent, PublisherOptions, PublisherState};
use tonic::Code;

use super::{Address, Keys, assert_complete, crash, publish, reaches, stored, ticket};
use crate::support::{Backend, Command, Tenant, TestHub, TestProcess};

const COUNT: u32 = 3000;

both_databases! {
    async fn a_server_that_restarts_loses_and_doubles_nothing(mut hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let address = Address::new(hub.addr);
        let publisher = address.client(&keys.psa).publisher();
        let (mut progress, publishing) = publish(publisher.clone(), COUNT);
        for restart in [COUNT / 3, COUNT / 3 * 2] {
            reaches(&mut progress, restart).await;
            hub.restart().await;
            address.moved(hub.addr);
        }
        publishing.await.unwrap();
        publisher.close().await.unwrap();
        assert_complete(&stored(&address.client(&keys.portal)).await, COUNT);
    }

    async fn a_server_that_is_killed_loses_and_doubles_nothing(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let address = Address::new(process.addr());
        let operator_key = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let tenant = Tenant::create(&address.client(&operator_key)).await;
        let admin = address.client(&tenant.admin_key);
        let psa = tenant.key(&admin, "psa", &["hub:events.publish"]).await;
        let portal = tenant.key(&admin, "portal", &["hub:events.read"]).await;
        let (mut progress, publishing) = publish(address.client(&psa).publisher(), COUNT);
        for kill in [COUNT / 3, COUNT / 3 * 2] {
            reaches(&mut progress, kill).await;
            crash(&mut process, &address).await;
        }
        publishing.await.unwrap();
        assert_complete(&stored(&address.client(&portal)).await, COUNT);
    }

    async fn refused_events_among_many_are_told_one_by_one(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let psa = hub.client(&keys.psa);
        // Small frames: many of them are acknowledged at once.
        let publisher = psa.publisher_with(PublisherOptions::default().coalesce(10, 1 << 20));
        let mut pending = Vec::new();
        for number in 0..1000 {
            let event = match number % 7 {
                3 => CloudEvent { spec_version: "0.3".into(), ..ticket(number) },
                // The type is not in the catalogue, which is a warning.
                5 => CloudEvent { r#type: "ticket.imagined".into(), ..ticket(number) },
                _ => ticket(number),
            };
            pending.push(publisher.send(event).await.unwrap());
        }
        let mut expected = Vec::new();
        for (number, receipt) in (0u32..).zip(pending) {
            match receipt.await {
                Ok(_) => assert_ne!(number % 7, 3, "{number} is stored"),
                Err(error) => {
                    assert_eq!(number % 7, 3, "{number}: {error}");
                    assert_eq!(error.reason(), Some("EVENT_INVALID"));
                    assert_eq!(error.code(), Code::InvalidArgument);
                }
            }
            if !matches!(number % 7, 3 | 5) {
                expected.push(number.to_string());
            }
        }
        publisher.close().await.unwrap();
        let found = stored(&hub.client(&keys.portal)).await;
        let ids: Vec<_> = found.into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, expected);
    }

    async fn full_results_tell_where_each_event_is(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let psa = hub.client(&keys.psa);
        let publisher = psa.publisher_with(PublisherOptions::default().full_results());
        let mut pending = Vec::new();
        for number in [0, 1, 2, 1] {
            pending.push(publisher.send(ticket(number)).await.unwrap());
        }
        let mut told = Vec::new();
        for receipt in pending {
            let receipt = receipt.await.unwrap();
            assert!(receipt.event_id.unwrap().starts_with("evt_"));
            told.push((receipt.sequence.unwrap(), receipt.duplicate));
        }
        let found = stored(&hub.client(&keys.portal)).await;
        let at = |index: usize, duplicate| (found[index].0, duplicate);
        assert_eq!(told, [at(0, false), at(1, false), at(2, false), at(1, true)]);
    }

    async fn an_event_that_is_too_large_fails_alone(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let publisher = hub.client(&keys.psa).publisher();
        let large = CloudEvent {
            data: Some(hub_client::Data::TextData("x".repeat(2 << 20))),
            ..ticket(1)
        };
        let events = [ticket(0), large, ticket(2)];
        let mut pending = Vec::new();
        for event in events {
            pending.push(publisher.send(event).await.unwrap());
        }
        let mut reasons = Vec::new();
        for receipt in pending {
            let error = receipt.await.err();
            reasons.push(error.map(|error| error.reason().unwrap().to_owned()));
        }
        assert_eq!(reasons, [None, Some("EVENT_TOO_LARGE".to_owned()), None]);
    }

    async fn a_key_that_may_not_publish_is_told_at_once(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let publisher = hub.client(&keys.portal).publisher();
        let error = publisher.publish(ticket(0)).await.unwrap_err();
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert!(error.call_id().is_some() && error.help().is_some(), "{error:?}");
        let state = publisher.state();
        let PublisherState::Waiting { error: Some(error), .. } = state.borrow().clone() else {
            panic!("the state does not say why")
        };
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
    }
}
