//! Redeliver: what is settled is delivered again, by today's routing.

use std::time::Duration;

use hub_client::proto::hub::platform::v1::{ControlJobRequest, GetJobRequest, JobAction};
use hub_client::start_at::At;
use hub_client::{Error, Hub};
use hub_core::limits::Limits;
use hub_proto::hub::core::v1::{Job, JobState};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    AckBatch, EventDeliveryState, EventLogFilter, LeasedEvent, NackAction, PullRequest,
    RedeliverRequest, RedeliverResponse,
};

use super::consume_shared::pull_of;
use super::consumer::{ids_of, nack};
use super::log::switch;
use super::owner::{Owner, named, seeking};
use super::retention::removed;
use super::{Product, numbered, of_types, ticket};
use crate::support::{Backend, TestHub};

const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);

fn admin(hub: &TestHub) -> Hub {
    hub.client(&hub.first_tenant().admin_key)
}

pub(super) async fn redeliver(
    hub: &TestHub,
    request: RedeliverRequest,
) -> Result<RedeliverResponse, Error> {
    let answer = admin(hub).event_bus().redeliver(request).await;
    answer.map(tonic::Response::into_inner).map_err(Error::from)
}

/// The job once it has ended.
pub(super) async fn ended(hub: &TestHub, job: Option<Job>) -> Job {
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
            // Where the clock stands still, a job with a speed waits for it.
            hub.clock.advance(Duration::from_secs(1));
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

async fn control(hub: &TestHub, job_id: &str, action: JobAction) {
    let request = ControlJobRequest {
        job_id: job_id.to_owned(),
        action: action.into(),
    };
    admin(hub).platform().control_job(request).await.unwrap();
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

    async fn a_filter_of_states_finds_all_though_the_job_changes_them(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        // More than one chunk does, and more than a page has.
        let count = 250;
        psa.publish_each(numbered("t", count)).await;
        let (mut failed, mut again) = (0, 0);
        while failed < count {
            let events = pull(&portal).await;
            failed += events.len();
            let fail = |event| nack(event, NackAction::Fail, "broken");
            let nack = events.iter().map(fail).collect();
            portal.acknowledge("portal", AckBatch { nack, ..AckBatch::default() }).await;
        }
        let filter = EventLogFilter {
            states: vec![EventDeliveryState::Failed.into()],
            ..EventLogFilter::default()
        };
        let request = RedeliverRequest {
            filter: Some(filter),
            max_per_second: 70,
            ..RedeliverRequest::default()
        };
        let job = ended(&hub, redeliver(&hub, request).await.unwrap().job).await;
        assert_eq!((job.done, job.counters["queued"]), (count as i64, count as i64));
        while again < count {
            let events = pull(&portal).await;
            again += events.len();
            portal.acknowledge("portal", acked(&events)).await;
        }
    }

    async fn what_a_filter_matches_comes_again_in_its_order(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        // More than a page and a chunk have, between others that do not match.
        let count = 450;
        psa.publish_each(numbered("before", 30)).await;
        psa.publish_each(numbered("t", count)).await;
        let mut done = 0;
        while done < count + 30 {
            let events = pull(&portal).await;
            done += events.len();
            portal.acknowledge("portal", acked(&events)).await;
        }
        let since = psa.get(Asked::Sequence(31)).await.unwrap().record.unwrap().record_time;
        let filter = EventLogFilter {
            since,
            states: vec![EventDeliveryState::Delivered.into()],
            ..EventLogFilter::default()
        };
        let request = RedeliverRequest {
            filter: Some(filter),
            max_per_second: 120,
            ..RedeliverRequest::default()
        };
        let job = redeliver(&hub, request).await.unwrap().job;
        // They are taken and settled while the job goes on: none of them comes a third time.
        let mut again = Vec::new();
        while again.len() < count {
            hub.clock.advance(Duration::from_secs(1));
            let events = portal.pull(pull_of(100, 0)).await.events;
            again.extend(ids_of(&events));
            portal.acknowledge("portal", acked(&events)).await;
        }
        let job = ended(&hub, job).await;
        assert_eq!((job.state(), job.done), (JobState::Succeeded, count as i64));
        assert_eq!(again, numbered("t", count));
        assert!(portal.pull(pull_of(100, 0)).await.events.is_empty());
    }

    async fn a_job_waits_while_a_subscription_has_no_room(backend: Backend) {
        let window = |limits: &mut Limits| limits.subscription_window_max = 3;
        let hub = TestHub::options(backend).limits(window).manual_clock().start().await;
        let (psa, portal) = pair(&hub).await;
        let mut event_ids = Vec::new();
        for id in numbered("t", 5) {
            event_ids.push(psa.publish(vec![ticket(&id)]).await.results[0].event_id.clone());
            portal.acknowledge("portal", acked(&pull(&portal).await)).await;
        }
        // One twice: it is queued once.
        event_ids.insert(0, event_ids[0].clone());
        let request = RedeliverRequest { event_ids, ..RedeliverRequest::default() };
        let job = redeliver(&hub, request).await.unwrap().job;
        let mut again = Vec::new();
        while again.len() < 5 {
            // It looks again after a while.
            hub.clock.advance(Duration::from_secs(1));
            let events = portal.pull(pull_of(100, 0)).await.events;
            assert!(events.len() <= 3, "the window has {}", events.len());
            again.extend(ids_of(&events));
            portal.acknowledge("portal", acked(&events)).await;
        }
        again.sort();
        assert_eq!(again, ["t-0", "t-1", "t-2", "t-3", "t-4"]);
        let job = ended(&hub, job).await;
        let counted = (job.counters["queued"], job.counters["unchanged"]);
        assert_eq!((job.state(), counted), (JobState::Succeeded, (5, 1)));
    }

    async fn a_job_that_waited_with_an_event_that_is_gone_leaves_out_nothing_of_the_next(
        backend: Backend,
    ) {
        let window = |limits: &mut Limits| limits.subscription_window_max = 1;
        let hub = TestHub::options(backend).limits(window).manual_clock().start().await;
        let (psa, portal) = pair(&hub).await;
        let owner = Owner::new(&hub, "portal").await;
        let own = owner.create(named("own", of_types(&["ticket.created"]))).await.subscription_id;
        let next = async |name: &str| loop {
            let request = PullRequest { subscription: name.to_owned(), ..pull_of(100, 0) };
            let events = portal.pull(request).await.events;
            if !events.is_empty() {
                portal.acknowledge(name, acked(&events)).await;
                return ids_of(&events);
            }
            hub.clock.advance(Duration::from_secs(1));
        };
        let mut published = Vec::new();
        for id in ["gone", "next", "last"] {
            published.push(psa.publish(vec![ticket(id)]).await.results[0].clone());
            assert_eq!([next("portal").await, next("own").await], [[id], [id]]);
            if id == "gone" {
                hub.core.journal.write_listing().await.unwrap();
                hub.clock.advance(DAY * 29);
            }
        }
        let [gone, _, last] = &published[..] else { unreachable!() };
        let entry = psa.get(Asked::Sequence(gone.sequence)).await.unwrap();
        let mut mine = entry.deliveries.iter().filter(|one| one.product == "portal");
        let default = mine.find(|one| one.subscription_id != own).unwrap();
        // The job comes to the first one first, and finds no room at the second one.
        let (first, second) = match default.subscription_id < own {
            true => ("portal", "own"),
            false => ("own", "portal"),
        };
        let full = RedeliverRequest {
            event_ids: vec![last.event_id.clone()],
            subscription_id: own.clone().max(default.subscription_id.clone()),
            ..RedeliverRequest::default()
        };
        ended(&hub, redeliver(&hub, full).await.unwrap().job).await;
        let filter = EventLogFilter {
            event: Some(of_types(&["ticket.created"])),
            ..EventLogFilter::default()
        };
        let request = RedeliverRequest { filter: Some(filter), ..RedeliverRequest::default() };
        let job = redeliver(&hub, request).await.unwrap().job;
        assert_eq!(next(first).await, ["gone"]);
        hub.clock.advance(DAY * 2);
        removed(&hub, gone.sequence).await;
        assert_eq!(next(second).await, ["last"]);
        assert_eq!([next(first).await, next(second).await], [["next"], ["next"]]);
        assert_eq!([next(first).await, next(second).await], [["last"], ["last"]]);
        assert_eq!(ended(&hub, job).await.state(), JobState::Succeeded);
    }

    async fn an_event_that_was_not_routed_goes_by_todays_switches(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        switch(&hub, "psa", "portal", false).await;
        let lost = psa.publish(vec![ticket("lost")]).await.results[0].clone();
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::NotRouted);
        let request = RedeliverRequest {
            event_ids: vec![lost.event_id],
            ..RedeliverRequest::default()
        };
        let dry = RedeliverRequest { dry_run: true, ..request.clone() };
        let off = redeliver(&hub, dry).await.unwrap();
        assert_eq!(off.matched, 0);
        switch(&hub, "psa", "portal", true).await;
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::NotRouted);
        // Nobody has consumed yet, so that the subscription has not come to it.
        psa.publish(vec![ticket("next")]).await;
        let started = redeliver(&hub, request).await.unwrap();
        assert_eq!(started.matched, 1);
        let job = ended(&hub, started.job).await;
        assert_eq!((job.counters["queued"], job.failed), (1, 0));
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::Queued);
        let again = pull(&portal).await;
        assert_eq!(ids_of(&again), ["lost", "next"]);
        portal.acknowledge("portal", acked(&again)).await;
        assert_eq!(state(&psa, lost.sequence).await, EventDeliveryState::Delivered);
    }

    async fn a_seek_back_replays_what_was_routed_and_forgets_nothing_of_the_rest(hub: TestHub) {
        use EventDeliveryState::{Delivered, Failed, NotRouted, Queued, Skipped};
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("routed")]).await;
        switch(&hub, "psa", "portal", false).await;
        let mut lost = Vec::new();
        for id in ["acked", "failed", "waiting", "never"] {
            lost.push(psa.publish(vec![ticket(id)]).await.results[0].clone());
        }
        switch(&hub, "psa", "portal", true).await;
        let again = RedeliverRequest {
            event_ids: lost[..3].iter().map(|lost| lost.event_id.clone()).collect(),
            ..RedeliverRequest::default()
        };
        let job = ended(&hub, redeliver(&hub, again).await.unwrap().job).await;
        assert_eq!(job.counters["queued"], 3);
        let events = pull(&portal).await;
        assert_eq!(ids_of(&events), ["routed", "acked", "failed", "waiting"]);
        let mut acks = acked(&events[..2]);
        acks.nack = vec![nack(&events[2], NackAction::Fail, "broken")];
        portal.acknowledge("portal", acks).await;
        let entry = psa.get(Asked::Sequence(1)).await.unwrap();
        let mut deliveries = entry.deliveries.iter();
        let to_portal = deliveries.find(|one| one.product == "portal").unwrap();
        let back = seeking(&to_portal.subscription_id, At::AfterSequence(0));
        let sought = admin(&hub).event_bus().seek_subscription(back).await.unwrap();
        let sought = sought.into_inner();
        assert_eq!(sought.replayed, 1);
        assert_eq!(sought.subscription.unwrap().status.unwrap().failed, 1, "it stays failed");
        let told = async || {
            let mut told = Vec::new();
            for seq in [1].into_iter().chain(lost.iter().map(|lost| lost.sequence)) {
                told.push(state(&psa, seq).await);
            }
            told
        };
        assert_eq!(told().await, [Queued, Delivered, Failed, Skipped, NotRouted]);
        let events = pull(&portal).await;
        assert_eq!(ids_of(&events), ["routed"]);
        portal.acknowledge("portal", acked(&events)).await;
        assert_eq!(told().await, [Delivered, Delivered, Failed, Skipped, NotRouted]);
        // What stayed can be delivered again as ever.
        let again = RedeliverRequest {
            event_ids: lost.iter().map(|lost| lost.event_id.clone()).collect(),
            ..RedeliverRequest::default()
        };
        let job = ended(&hub, redeliver(&hub, again).await.unwrap().job).await;
        assert_eq!(job.counters["queued"], 4);
        let events = pull(&portal).await;
        assert_eq!(ids_of(&events), ["acked", "failed", "waiting", "never"]);
        portal.acknowledge("portal", acked(&events)).await;
        assert_eq!(told().await, [Delivered; 5]);
    }

    async fn an_event_behind_more_than_a_subscription_holds_is_told_and_the_job_goes_on(
        backend: Backend,
    ) {
        let window = |limits: &mut Limits| limits.subscription_window_max = 2;
        let hub = TestHub::options(backend).limits(window).start().await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("done")]).await;
        portal.acknowledge("portal", acked(&pull(&portal).await)).await;
        psa.publish_each(numbered("t", 2)).await;
        switch(&hub, "psa", "portal", false).await;
        let lost = psa.publish(vec![ticket("lost")]).await.results[0].clone();
        switch(&hub, "psa", "portal", true).await;
        let done = psa.get(Asked::Sequence(1)).await.unwrap().record.unwrap().event_id;
        let request = RedeliverRequest {
            event_ids: vec![lost.event_id.clone(), done],
            ..RedeliverRequest::default()
        };
        let job = ended(&hub, redeliver(&hub, request).await.unwrap().job).await;
        assert_eq!((job.state(), job.done, job.failed), (JobState::Succeeded, 2, 1));
        assert_eq!((&*job.errors[0].resource, &*job.errors[0].reason), (
            &*lost.event_id,
            "QUOTA_EXCEEDED"
        ));
        assert_eq!(job.counters["queued"], 1);
    }

    async fn what_retention_takes_meanwhile_does_not_end_a_job(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("old")]).await;
        hub.clock.advance(DAY * 29);
        psa.publish(vec![ticket("new")]).await;
        portal.acknowledge("portal", acked(&pull(&portal).await)).await;
        let mut event_ids = Vec::new();
        for seq in [2, 1] {
            event_ids.push(psa.get(Asked::Sequence(seq)).await.unwrap().record.unwrap().event_id);
        }
        let old = event_ids[1].clone();
        // One in a second of a clock that stands still.
        let request = RedeliverRequest { event_ids, max_per_second: 1, ..Default::default() };
        let job = redeliver(&hub, request).await.unwrap().job;
        let job_id = job.clone().unwrap().job_id;
        control(&hub, &job_id, JobAction::Pause).await;
        hub.clock.advance(DAY * 2);
        removed(&hub, 1).await;
        control(&hub, &job_id, JobAction::Resume).await;
        let job = ended(&hub, job).await;
        assert_eq!((job.state(), job.done, job.failed), (JobState::Succeeded, 2, 1));
        assert_eq!((&*job.errors[0].resource, &*job.errors[0].reason), (
            &*old,
            "EVENT_NOT_FOUND"
        ));
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
