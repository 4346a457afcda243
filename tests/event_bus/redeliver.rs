//! Redeliver: what is settled is delivered again, by today's routing.

use std::time::Duration;

use hub_client::proto::hub::platform::v1::{GetJobRequest, SetIntegrationRequest};
use hub_client::{Error, Hub};
use hub_proto::hub::core::v1::{Job, JobState};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    AckBatch, EventDeliveryState, EventLogFilter, LeasedEvent, NackAction, PullRequest,
    RedeliverRequest, RedeliverResponse,
};

use super::consumer::{ids_of, nack};
use super::{Product, numbered, ticket};
use crate::support::TestHub;

const PATIENCE: Duration = Duration::from_secs(20);

fn admin(hub: &TestHub) -> Hub {
    hub.client(&hub.first_tenant().admin_key)
}

async fn redeliver(hub: &TestHub, request: RedeliverRequest) -> Result<RedeliverResponse, Error> {
    let answer = admin(hub).event_bus().redeliver(request).await;
    answer.map(tonic::Response::into_inner).map_err(Error::from)
}

/// The job once it has ended.
async fn ended(hub: &TestHub, job: Option<Job>) -> Job {
    let job_id = job.expect("a job").job_id;
    let platform = admin(hub).platform();
    let waiting = async {
        loop {
            let request = GetJobRequest {
                job_id: job_id.clone(),
            };
            let found = platform.clone().get_job(request).await.unwrap();
            let job = found.into_inner().job.unwrap();
            if job.complete_time.is_some() {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, waiting).await;
    ended.expect("the job ends")
}

async fn pull(portal: &Product) -> Vec<LeasedEvent> {
    let request = PullRequest {
        subscription: "portal".to_owned(),
        max_events: 100,
        wait: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..PullRequest::default()
    };
    portal.pull(request).await.events
}

fn acked(events: &[LeasedEvent]) -> AckBatch {
    AckBatch {
        ack: events.iter().map(|event| event.lease_id.clone()).collect(),
        ..AckBatch::default()
    }
}

/// Where an event stands for Portal.
async fn state(psa: &Product, seq: u64) -> EventDeliveryState {
    let entry = psa.get(Asked::Sequence(seq)).await.unwrap();
    let mut deliveries = entry.deliveries.iter();
    deliveries
        .find(|one| one.product == "portal")
        .unwrap()
        .state()
}

async fn pair(hub: &TestHub) -> (Product, Product) {
    let scopes = [
        "hub:events.publish",
        "hub:events.read",
        "hub:events.read_all",
    ];
    (
        Product::with(hub, "psa", &scopes).await,
        Product::new(hub, "portal").await,
    )
}

both_databases! {
    async fn a_failed_event_is_delivered_again_by_its_id(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish_each(numbered("t", 2)).await;
        let events = pull(&portal).await;
        let mut acks = acked(&events[1..]);
        acks.nack = vec![nack(&events[0], NackAction::Fail, "broken")];
        portal.acknowledge("portal", acks).await;
        assert_eq!(state(&psa, 1).await, EventDeliveryState::Failed);
        let event_id = events[0].record.as_ref().unwrap().event_id.clone();
        let request = RedeliverRequest { event_ids: vec![event_id], ..RedeliverRequest::default() };
        let dry = RedeliverRequest { dry_run: true, ..request.clone() };
        let counted = redeliver(&hub, dry).await.unwrap();
        assert_eq!((counted.matched, counted.job), (1, None));
        let started = redeliver(&hub, request).await.unwrap();
        assert_eq!(started.matched, 1);
        let job = ended(&hub, started.job).await;
        assert_eq!((job.state(), job.done), (JobState::Succeeded, 1));
        assert_eq!(job.kind, "event_bus.redeliver");
        let again = pull(&portal).await;
        assert_eq!(ids_of(&again), ["t-0"]);
        assert_eq!((again[0].attempt, again[0].redelivery), (1, true));
        portal.acknowledge("portal", acked(&again)).await;
        assert_eq!(state(&psa, 1).await, EventDeliveryState::Delivered);
    }

    async fn what_failed_at_a_subscription_is_found_by_a_filter(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish_each(numbered("t", 5)).await;
        let events = pull(&portal).await;
        let mut acks = acked(&events[2..]);
        let fail = |event| nack(event, NackAction::Fail, "broken");
        acks.nack = events[..2].iter().map(fail).collect();
        portal.acknowledge("portal", acks).await;
        let filter = EventLogFilter {
            states: vec![EventDeliveryState::Failed.into()],
            ..EventLogFilter::default()
        };
        let request = RedeliverRequest { filter: Some(filter), ..RedeliverRequest::default() };
        let started = redeliver(&hub, request).await.unwrap();
        assert_eq!(started.matched, 2);
        let job = ended(&hub, started.job).await;
        assert_eq!((job.state(), job.counters["queued"]), (JobState::Succeeded, 2));
        let mut again = pull(&portal).await;
        while again.len() < 2 {
            again.append(&mut pull(&portal).await);
        }
        let mut found = ids_of(&again);
        found.sort();
        assert_eq!(found, ["t-0", "t-1"]);
    }

    async fn an_event_that_was_not_routed_goes_by_todays_switches(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let switch = |enabled| SetIntegrationRequest {
            source: "psa".to_owned(),
            destination: "portal".to_owned(),
            enabled,
            ..SetIntegrationRequest::default()
        };
        let platform = admin(&hub).platform();
        platform.clone().set_integration(switch(false)).await.unwrap();
        let lost = psa.publish(vec![ticket("lost")]).await.results[0].clone();
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::NotRouted);
        let request = RedeliverRequest {
            event_ids: vec![lost.event_id],
            ..RedeliverRequest::default()
        };
        let dry = RedeliverRequest { dry_run: true, ..request.clone() };
        let off = redeliver(&hub, dry).await.unwrap();
        assert_eq!(off.matched, 0);
        platform.clone().set_integration(switch(true)).await.unwrap();
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::NotRouted);
        // The subscription has to have passed it: what it has not reached is delivered anyway.
        psa.publish(vec![ticket("next")]).await;
        portal.acknowledge("portal", acked(&pull(&portal).await)).await;
        let started = redeliver(&hub, request).await.unwrap();
        assert_eq!(started.matched, 1);
        ended(&hub, started.job).await;
        let again = pull(&portal).await;
        assert_eq!(ids_of(&again), ["lost"]);
        portal.acknowledge("portal", acked(&again)).await;
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::Delivered);
    }

    async fn a_call_that_names_nothing_is_refused(hub: TestHub) {
        let refused = redeliver(&hub, RedeliverRequest::default()).await.unwrap_err();
        assert_eq!(refused.reason(), Some("FILTER_EMPTY"));
    }

    async fn a_repeated_call_makes_one_job(hub: TestHub) {
        let (psa, _) = pair(&hub).await;
        let published = psa.publish(vec![ticket("t")]).await;
        let request = RedeliverRequest {
            event_ids: vec![published.results[0].event_id.clone()],
            request_id: uuid::Uuid::new_v4().to_string(),
            ..RedeliverRequest::default()
        };
        let first = redeliver(&hub, request.clone()).await.unwrap();
        let second = redeliver(&hub, request).await.unwrap();
        assert_eq!(first.job.unwrap().job_id, second.job.unwrap().job_id);
    }
}
