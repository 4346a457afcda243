//! Subscriptions of a product's own while it works them off: what calls about them do to leases.

use std::time::Duration;

use futures_util::FutureExt;
use hub_client::start_at::At;
use hub_client::{CloudEvent, Error};
use hub_core::storage::Sql;
use hub_proto::hub::event_bus::v1::{
    AckBatch, AckOutcome, CreateSubscriptionRequest, EventFilter, ExhaustedAction, LeasedEvent,
    NackAction, PullRequest, PullResponse, RetryPolicy, SubscribeRequest, Subscription,
    SubscriptionState,
};

use super::consume_shared::pull_of;
use super::consumer::{ids_of, nack};
use super::owner::{Owner, named, paused, seeking, starting, state, status};
use super::retention::removed;
use super::{PATIENCE, Product, earliest, event, from, numbered, of_types, text, with_attributes};
use crate::support::{Backend, TestHub};

/// How long a call waits that cannot go on.
const QUIET: Duration = Duration::from_millis(300);

const DELETE: Sql = Sql::same("delete from subscriptions where subscription_id = $1");
const DELETE_POSITION: Sql =
    Sql::same("delete from subscription_positions where subscription_id = $1");
const POSITIONS: Sql =
    Sql::same("select tenant_no from subscription_positions where subscription_id = $1");

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Products that publish and consume, and who has the subscription.
struct Cast {
    psa: Product,
    crm: Product,
    owner: Owner,
    id: String,
}

impl Cast {
    async fn new(hub: &TestHub, request: CreateSubscriptionRequest) -> Cast {
        let owner = Owner::new(hub, "crm").await;
        let id = owner.create(request).await.subscription_id;
        Cast {
            psa: Product::new(hub, "psa").await,
            crm: Product::new(hub, "crm").await,
            owner,
            id,
        }
    }

    async fn publish(&self, ids: &[&str]) {
        for id in ids {
            self.psa.publish(vec![event("deal.won", id)]).await;
        }
    }

    async fn try_pull(&self, max_events: u32, seconds: i64) -> Result<PullResponse, Error> {
        let request = PullRequest {
            subscription: "deals".to_owned(),
            max_events,
            wait: Some(prost_types::Duration { seconds, nanos: 0 }),
            member: "worker".to_owned(),
            ..PullRequest::default()
        };
        let answer = self.crm.bus.clone().pull(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    /// So many events, whatever pulls it takes.
    async fn pull(&self, count: usize) -> Vec<LeasedEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            let left = u32::try_from(count - events.len()).unwrap();
            let answer = self.try_pull(left, 20).await.unwrap();
            assert!(
                !answer.events.is_empty(),
                "{:?} and no more",
                ids_of(&events)
            );
            events.extend(answer.events);
        }
        events
    }

    /// What a pull says that gets nothing.
    async fn nothing(&self) -> SubscriptionState {
        let answer = self.try_pull(10, 0).await.unwrap();
        assert_eq!(ids_of(&answer.events), [""; 0]);
        answer.state()
    }

    async fn ack(&self, events: &[LeasedEvent]) -> Vec<AckOutcome> {
        let ack = events.iter().map(|event| event.lease_id.clone()).collect();
        let acks = AckBatch {
            ack,
            ..AckBatch::default()
        };
        let results = self.crm.acknowledge("deals", acks).await;
        results.iter().map(|result| result.outcome()).collect()
    }

    async fn fail(&self, event: &LeasedEvent) -> AckOutcome {
        let acks = AckBatch {
            nack: vec![nack(event, NackAction::Fail, "refused")],
            ..AckBatch::default()
        };
        self.crm.acknowledge("deals", acks).await[0].outcome()
    }

    async fn shown(&self) -> Subscription {
        self.owner.get(&self.id).await.unwrap()
    }
}

fn deals() -> CreateSubscriptionRequest {
    named("deals", of_types(&["deal.**"]))
}

/// What happens after the last attempt.
fn ending(action: ExhaustedAction) -> CreateSubscriptionRequest {
    let mut request = deals();
    request.subscription.as_mut().unwrap().retry = Some(RetryPolicy {
        on_exhausted: action.into(),
        ..RetryPolicy::default()
    });
    request
}

fn about(id: &str, subject: &str) -> CloudEvent {
    with_attributes(event("deal.won", id), &[("subject", text(subject))])
}

/// Asks and goes away after so many turns of the runtime, if it is not answered before.
async fn given_up<T>(call: impl Future<Output = T>, turns: usize) {
    let mut call = std::pin::pin!(call);
    for _ in 0..turns {
        if FutureExt::now_or_never(call.as_mut()).is_some() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

both_databases! {
    async fn a_pull_that_waits_goes_on_when_its_subscription_moves(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Product::new(&hub, "crm").await;
        let owner = Owner::new(&hub, "crm").await;
        let id = owner.create(named("deals", of_types(&["deal.*"]))).await.subscription_id;
        let request = PullRequest { subscription: "deals".to_owned(), ..pull_of(1, 15) };
        let moves = async {
            while status(&owner.get(&id).await.unwrap()).members != ["puller"] {}
            owner.seek(seeking(&id, At::AfterSequence(0))).await.unwrap();
            psa.publish(vec![event("deal.won", "a")]).await;
        };
        let (pulled, ()) = tokio::join!(crm.pull(request), moves);
        assert_eq!(ids_of(&pulled.events), ["a"]);
    }

    async fn what_its_filter_takes_is_worked_off_and_seen_in_its_status(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        psa.publish_each(numbered("t", 2)).await;
        psa.publish(numbered("d", 3).iter().map(|id| event("deal.won", id)).collect()).await;
        let cast = Cast::new(&hub, starting("deals", of_types(&["deal.*"]), earliest())).await;
        let events = cast.pull(3).await;
        assert_eq!(ids_of(&events), numbered("d", 3));
        assert!(events.iter().all(|event| event.attempt == 1 && !event.redelivery));
        let found = cast.shown().await;
        let told = status(&found);
        assert_eq!((told.backlog, told.in_flight), (3, 3));
        assert_eq!(told.members, ["worker"]);
        assert_eq!(state(&found), SubscriptionState::Live, "all is under way");
        assert_eq!(cast.ack(&events[..2]).await, [AckOutcome::Ok; 2]);
        let told = status(&cast.shown().await);
        assert_eq!((told.settled_sequence, told.backlog, told.in_flight), (4, 1, 1));
        cast.ack(&events[2..]).await;
        let told = status(&cast.shown().await);
        assert!(told.settled_sequence >= 5 && told.backlog == 0, "{told:?}");
        assert_eq!(cast.nothing().await, SubscriptionState::Live);
    }

    async fn paused_it_leases_nothing_and_takes_the_acks_of_running_leases(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.publish(&["1", "2"]).await;
        let first = cast.pull(1).await;
        let shown = cast.owner.pause(paused(&cast.id, "a new release")).await.unwrap();
        assert_eq!(state(&shown), SubscriptionState::Paused);
        assert_eq!(cast.nothing().await, SubscriptionState::Paused);
        assert_eq!(cast.ack(&first).await, [AckOutcome::Ok]);
        cast.owner.resume(&cast.id).await.unwrap();
        assert_eq!(ids_of(&cast.pull(1).await), ["2"]);
    }

    async fn sought_back_it_delivers_again_and_says_so(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.publish(&["1", "2", "3"]).await;
        let events = cast.pull(3).await;
        cast.ack(&events[..2]).await;
        let start = events[0].record.as_ref().unwrap().sequence;
        let asked = seeking(&cast.id, At::AfterSequence(start));
        let sought = cast.owner.seek(asked).await.unwrap();
        assert_eq!((sought.replayed, sought.skipped), (1, 0), "the third waits anyway");
        assert_eq!(cast.ack(&events[2..]).await, [AckOutcome::LeaseExpired], "all leases ended");
        let again = cast.pull(2).await;
        assert_eq!(ids_of(&again), ["2", "3"]);
        let told: Vec<_> = again.iter().map(|event| (event.attempt, event.redelivery)).collect();
        assert_eq!(told, [(1, true), (1, true)]);
        cast.publish(&["4"]).await;
        assert!(!cast.pull(1).await[0].redelivery);
    }

    async fn sought_forward_it_goes_on_behind_what_was_skipped(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.publish(&["1", "2", "3"]).await;
        let events = cast.pull(2).await;
        let last = events[1].record.as_ref().unwrap().sequence;
        let sought = cast.owner.seek(seeking(&cast.id, At::AfterSequence(last))).await.unwrap();
        assert_eq!((sought.replayed, sought.skipped), (0, 2));
        // They do not come again, so it is not LEASE_EXPIRED.
        assert_eq!(cast.ack(&events).await, [AckOutcome::AlreadySettled; 2]);
        assert_eq!(ids_of(&cast.pull(1).await), ["3"]);
    }

    async fn a_changed_filter_is_that_of_what_comes(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.publish(&["1"]).await;
        let first = cast.pull(1).await;
        cast.ack(&first).await;
        let quotes = Subscription {
            subscription_id: cast.id.clone(),
            filter: Some(of_types(&["quote.*"])),
            ..Subscription::default()
        };
        cast.owner.update(quotes, &["filter"]).await.unwrap();
        cast.publish(&["2"]).await;
        cast.psa.publish(vec![event("quote.sent", "q")]).await;
        assert_eq!(ids_of(&cast.pull(1).await), ["q"]);
        cast.nothing().await;
    }

    async fn deleted_it_is_not_found_by_who_worked_it_off(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.publish(&["1"]).await;
        cast.pull(1).await;
        cast.owner.delete(&cast.id, "").await.unwrap();
        let error = cast.try_pull(1, 0).await.unwrap_err();
        assert_eq!(error.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
        // The name begins anew.
        let again = cast.owner.create(starting("deals", EventFilter::default(), earliest())).await;
        assert_ne!(again.subscription_id, cast.id);
        assert_eq!(cast.pull(1).await[0].attempt, 1);
    }

    async fn deleted_while_it_is_put_to_work_it_leaves_nothing(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        let mut deleting = hub.core.db.begin().await.unwrap();
        for delete in [DELETE, DELETE_POSITION] {
            deleting.query(delete).bind(cast.id.clone()).execute().await.unwrap();
        }
        // It was found, and waits to take the position.
        let mut pulling = std::pin::pin!(cast.try_pull(1, 0));
        assert!(tokio::time::timeout(QUIET, &mut pulling).await.is_err());
        deleting.commit().await.unwrap();
        let error = pulling.await.unwrap_err();
        assert_eq!(error.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
        let left = hub.core.db.query(POSITIONS).bind(cast.id.clone());
        assert_eq!(left.all::<(i64,)>().await.unwrap(), []);
    }

    async fn its_retry_policy_may_pause_it_and_the_log_tells(hub: TestHub) {
        let cast = Cast::new(&hub, ending(ExhaustedAction::Pause)).await;
        cast.publish(&["1", "2"]).await;
        let first = cast.pull(1).await;
        cast.fail(&first[0]).await;
        let found = cast.shown().await;
        assert_eq!(state(&found), SubscriptionState::Paused);
        let told = status(&found);
        assert!(told.reason.contains("Paused by hub"), "{}", told.reason);
        assert_eq!((told.failed, &*told.last_error), (1, "refused"));
        assert_eq!(cast.nothing().await, SubscriptionState::Paused);
        let request = SubscribeRequest {
            all_products: true,
            filter: Some(of_types(&["subscription.paused"])),
            ..from(earliest())
        };
        let told = Product::auditor(&hub).await.subscribe(request).await.events(1).await;
        let attributes = &told[0].event.as_ref().unwrap().attributes;
        assert_eq!(attributes["subject"], text(&cast.id));
        assert_eq!(attributes["actor"], text("hub"));
        cast.owner.resume(&cast.id).await.unwrap();
        assert_eq!(ids_of(&cast.pull(1).await), ["2"]);
    }

    async fn a_key_that_a_failed_event_holds_is_named_and_freed_by_a_seek(hub: TestHub) {
        let cast = Cast::new(&hub, ending(ExhaustedAction::BlockKey)).await;
        cast.psa.publish(vec![
            about("a1", "acme"),
            about("u1", "umbrella"),
            about("a2", "acme"),
        ]).await;
        let events = cast.pull(2).await;
        assert_eq!(ids_of(&events), ["a1", "u1"]);
        cast.fail(&events[0]).await;
        cast.ack(&events[1..]).await;
        cast.nothing().await;
        let told = status(&cast.shown().await);
        assert_eq!((told.failed, told.backlog), (1, 1));
        let key = &told.blocked_keys[0];
        assert_eq!((&*key.key, key.attempts, key.waiting), ("acme", 1, 1));
        assert_eq!(key.event_id, events[0].record.as_ref().unwrap().event_id);
        assert_eq!(key.next_attempt_time, None);
        let here = At::AfterSequence(told.head_sequence);
        assert_eq!(cast.owner.seek(seeking(&cast.id, here)).await.unwrap().skipped, 1);
        assert_eq!(status(&cast.shown().await).blocked_keys, []);
        cast.psa.publish(vec![about("a3", "acme")]).await;
        assert_eq!(ids_of(&cast.pull(1).await), ["a3"]);
    }

    async fn what_failed_while_it_was_sought_is_stored_as_it_was_answered(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        let mut failed = 0;
        for round in 0..30 {
            let ids = numbered(&format!("round-{round}"), 3);
            cast.psa.publish(ids.iter().map(|id| event("deal.won", id)).collect()).await;
            let events = cast.pull(3).await;
            let last = events[2].record.as_ref().unwrap().sequence;
            // An answer to a failure waits for a checkpoint, and a seek makes one of its own.
            let (one, two, three, sought) = tokio::join!(
                cast.fail(&events[0]),
                cast.fail(&events[1]),
                cast.fail(&events[2]),
                cast.owner.seek(seeking(&cast.id, At::AfterSequence(last))),
            );
            sought.unwrap();
            let outcomes = [one, two, three].into_iter();
            failed += outcomes.filter(|outcome| *outcome == AckOutcome::Ok).count() as u64;
        }
        assert!(failed > 0);
        assert_eq!(status(&cast.shown().await).failed, failed);
    }

    async fn a_seek_that_its_caller_gives_up_leaves_no_answer_waiting(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        for round in 0..100 {
            let ids = numbered(&format!("round-{round}"), 2);
            cast.psa.publish(ids.iter().map(|id| event("deal.won", id)).collect()).await;
            let events = cast.pull(2).await;
            let last = events[1].record.as_ref().unwrap().sequence;
            let seek = cast.owner.seek(seeking(&cast.id, At::AfterSequence(last)));
            // Whatever became of them, they are answered.
            tokio::join!(
                cast.fail(&events[0]),
                cast.fail(&events[1]),
                given_up(seek, round * 10),
            );
        }
    }

    async fn a_pause_that_its_caller_gives_up_holds_for_who_works_or_is_not_made(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        cast.nothing().await;
        for round in 0..80 {
            match round % 2 {
                0 => given_up(cast.owner.pause(paused(&cast.id, "stop")), round * 50).await,
                _ => given_up(cast.owner.resume(&cast.id), round * 50).await,
            }
            let same = async {
                while cast.nothing().await != state(&cast.shown().await) {}
            };
            let same = tokio::time::timeout(PATIENCE, same).await;
            same.expect("who works on it follows what is stored");
        }
    }

    async fn a_pause_holds_for_who_begins_to_work_meanwhile(hub: TestHub) {
        let cast = Cast::new(&hub, deals()).await;
        // Both wait for the writer of SQLite then, the pause first.
        let writer = hub.core.db.begin().await.unwrap();
        let pause = cast.owner.pause(paused(&cast.id, "stop"));
        let mut pause = std::pin::pin!(pause);
        let pull = cast.try_pull(1, 0);
        let mut pull = std::pin::pin!(pull);
        let (mut is_paused, mut is_pulled) = (false, false);
        for turn in 0..60_000 {
            is_paused |= !is_paused && FutureExt::now_or_never(pause.as_mut()).is_some();
            if turn > 30_000 {
                is_pulled |= !is_pulled && FutureExt::now_or_never(pull.as_mut()).is_some();
            }
            tokio::task::yield_now().await;
        }
        drop(writer);
        if !is_paused {
            pause.await.unwrap();
        }
        if !is_pulled {
            pull.await.unwrap();
        }
        cast.publish(&["a"]).await;
        assert_eq!(cast.nothing().await, SubscriptionState::Paused);
    }

    async fn a_key_is_free_once_retention_removed_what_held_it(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let cast = Cast::new(&hub, ending(ExhaustedAction::BlockKey)).await;
        cast.psa.publish(vec![about("a1", "acme"), about("a2", "acme")]).await;
        cast.fail(&cast.pull(1).await[0]).await;
        hub.clock.advance(DAY * 29);
        cast.psa.publish(vec![about("a3", "acme")]).await;
        cast.nothing().await;
        assert_eq!(status(&cast.shown().await).blocked_keys[0].waiting, 2);
        hub.clock.advance(DAY * 2);
        removed(&hub, 2).await;
        assert_eq!(ids_of(&cast.pull(1).await), ["a3"]);
        let told = status(&cast.shown().await);
        assert_eq!((told.blocked_keys, told.in_flight), (vec![], 1));
    }
}
