//! Calls that end at a bad moment, while the database does not answer (PostgreSQL): what they had
//! taken returns.

use std::time::Duration;

use hub_client::start_at::At;
use hub_core::journal::lock_head;
use hub_core::tenancy::{Subscription, bump, put_subscription};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    AckBatch, AckOutcome, EventDelivery, EventDeliveryState, NackAction, RedeliverRequest,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::consume_shared::{acks_of, backend_of_all, pull_of};
use super::consumer::{ids_of, nack, open};
use super::log::switch;
use super::owner::{Owner, named, seeking, starting, status};
use super::redeliver::{ended, redeliver};
use super::subscriptions_seek::fail;
use super::{Product, batch, earliest, event, of_types, ticket};
use crate::support::{Backend, TestHub};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const BLOCKED: &str = "select count(*) from pg_stat_activity
where wait_event_type = 'Lock' and datname = current_database()";
/// Who waits to read a table loses its connection.
const CUT: &str = "select count(pg_terminate_backend(pid)) from pg_locks
where not granted and locktype = 'relation'
    and database = (select oid from pg_database where datname = current_database())";

/// A transaction beside the hub that holds what the hub wants.
struct Outsider {
    holding: PgConnection,
    looking: PgConnection,
}

impl Outsider {
    async fn holding(hub: &TestHub, statement: &'static str) -> Outsider {
        let url = hub.database_url();
        let mut holding = PgConnection::connect(url).await.unwrap();
        let statements = AssertSqlSafe(format!("begin; {statement}"));
        sqlx::raw_sql(statements)
            .execute(&mut holding)
            .await
            .unwrap();
        let looking = PgConnection::connect(url).await.unwrap();
        Outsider { holding, looking }
    }

    /// Asks, and goes away once so many statements of the hub wait for this one.
    async fn interrupts<T>(&mut self, call: impl Future<Output = T>, count: i64) {
        let waits = async {
            loop {
                let waiting = sqlx::query_scalar::<_, i64>(BLOCKED);
                if waiting.fetch_one(&mut self.looking).await.unwrap() >= count {
                    return;
                }
            }
        };
        tokio::select! {
            _ = call => panic!("it was answered"),
            () = waits => {}
            () = tokio::time::sleep(PATIENCE) => panic!("nothing waited"),
        }
    }

    /// Does this too, and lets go.
    async fn commits(mut self, statement: &'static str) {
        let statements = AssertSqlSafe(format!("{statement}; commit"));
        sqlx::raw_sql(statements)
            .execute(&mut self.holding)
            .await
            .unwrap();
    }

    async fn lets_go(mut self) {
        sqlx::raw_sql("rollback")
            .execute(&mut self.holding)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pull_leased_and_never_handed_over_returns_at_once() {
    let options = TestHub::options(Backend::Postgres);
    let hub = options
        .limits(|limits| limits.tail_bytes_max = 1)
        .start()
        .await;
    let psa = Product::new(&hub, "psa").await;
    let portal = Product::new(&hub, "portal").await;
    psa.publish(vec![ticket("a")]).await;
    let first = portal.pull(pull_of(1, 10)).await.events;
    // It is in no memory any more when it is leased again.
    let acks = AckBatch {
        nack: vec![nack(&first[0], NackAction::Release, "")],
        ..AckBatch::default()
    };
    portal.acknowledge("portal", acks).await;
    let lock = "lock table journal_segments in access exclusive mode";
    let mut outsider = Outsider::holding(&hub, lock).await;
    outsider.interrupts(portal.pull(pull_of(1, 10)), 1).await;
    // Another one leases it before the database answers again.
    let mut again = std::pin::pin!(portal.pull(pull_of(1, 10)));
    outsider.interrupts(again.as_mut(), 2).await;
    outsider.lets_go().await;
    let again = again.await.events;
    assert_eq!(ids_of(&again), ["a"]);
    assert_eq!(again[0].attempt, 1, "what nobody saw was no attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_a_call_stopped_and_did_not_move_is_free_for_all() {
    let hub = TestHub::start(Backend::Postgres).await;
    let psa = Product::new(&hub, "psa").await;
    let crm = Product::new(&hub, "crm").await;
    let owner = Owner::new(&hub, "crm").await;
    let request = named("deals", of_types(&["deal.*"]));
    let id = owner.create(request).await.subscription_id;
    psa.publish(vec![event("deal.won", "a")]).await;
    let mut pull = pull_of(1, 10);
    pull.subscription = "deals".to_owned();
    let events = crm.pull(pull).await.events;
    assert_eq!(ids_of(&events), ["a"]);
    // Nothing is left to store, which would wait as well.
    crm.acknowledge("deals", acks_of(&events)).await;
    let mut looking = PgConnection::connect(hub.database_url()).await.unwrap();
    let own = "select owner from subscription_positions where owner <> ''";
    let own = sqlx::query_scalar::<_, String>(own).fetch_all(&mut looking);
    assert_eq!(own.await.unwrap(), [hub.core.processes.id().to_string()]);
    let row = "select owner from subscription_positions for update";
    let mut outsider = Outsider::holding(&hub, row).await;
    let seek = owner.seek(seeking(&id, At::AfterSequence(0)));
    outsider.interrupts(seek, 1).await;
    outsider.lets_go().await;
    let free = async {
        loop {
            let own = "select count(*) from subscription_positions where owner <> ''";
            let own = sqlx::query_scalar::<_, i64>(own).fetch_one(&mut looking);
            if own.await.unwrap() == 0 {
                return;
            }
        }
    };
    let free = tokio::time::timeout(PATIENCE, free).await;
    free.expect("no process keeps it without working on it");
}

/// Switches Portal's subscription while `publish` waits for the head of the log, so that the event
/// is checked before it and stored behind it.
async fn switched_meanwhile<T>(hub: &TestHub, publish: impl Future<Output = T>, on: bool) -> T {
    let products = hub.core.tenancy.products().await.unwrap();
    let tenant = &hub.first_tenant().id;
    let tenant = hub.core.tenancy.find(tenant).await.unwrap();
    let changed = Subscription {
        product: products.require("portal").unwrap().number,
        active: on,
        update_time: hub.clock.now(),
        updated_by: String::new(),
    };
    let mut tx = hub.core.db.begin().await.unwrap();
    let epoch = bump(&mut tx, &tenant).await.unwrap().epoch;
    let switches = async {
        until_some(hub, BLOCKED).await;
        put_subscription(&mut tx, &tenant, epoch, &changed)
            .await
            .unwrap();
        // Not through the journal: so it is when another process has done it.
        tx.commit().await.unwrap();
    };
    let both = async { tokio::join!(publish, switches).0 };
    let both = tokio::time::timeout(PATIENCE, both).await;
    both.expect("it is answered")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redelivery_that_comes_while_a_seek_goes_on_is_not_forgotten() {
    let hub = TestHub::start(Backend::Postgres).await;
    let psa = Product::new(&hub, "psa").await;
    let owner = Owner::new(&hub, "crm").await;
    psa.publish(vec![event("deal.won", "a"), event("quote.sent", "b")])
        .await;
    let request = starting("deals", of_types(&["deal.*"]), earliest());
    let id = owner.create(request).await.subscription_id;
    owner
        .seek(seeking(&id, At::AfterSequence(2)))
        .await
        .unwrap();
    let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
    let mut tx = hub.core.db.begin().await.unwrap();
    lock_head(&mut tx, &tenant).await.unwrap();
    let seek = owner.seek(seeking(&id, At::AfterSequence(0)));
    let redelivery = async {
        until_some(&hub, BLOCKED).await;
        // As if another process had given it the quote by Redeliver, and it had failed.
        fail(&hub, &id, 2, 0).await;
        tx.commit().await.unwrap();
    };
    let both = async { tokio::join!(seek, redelivery).0 };
    let sought = tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap();
    assert_eq!(status(&sought.subscription.unwrap()).failed, 1);
    let told = psa.get(Asked::Sequence(2)).await.unwrap();
    let told = told.deliveries.iter().find(|one| one.subscription_id == id);
    let told = told.map(EventDelivery::state);
    assert_eq!(told, Some(EventDeliveryState::Failed));
}

/// Asks until something is counted.
async fn until_some(hub: &TestHub, count: &'static str) {
    let mut looking = PgConnection::connect(hub.database_url()).await.unwrap();
    loop {
        let some = sqlx::query_scalar::<_, i64>(count);
        if some.fetch_one(&mut looking).await.unwrap() > 0 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_is_told_where_its_event_goes_and_not_where_it_would_have_gone() {
    let options = TestHub::options(Backend::Postgres).manual_clock();
    let hub = options.start().await;
    let psa = Product::new(&hub, "psa").await;
    let publish = |id| psa.send(batch(vec![ticket(id)]));
    assert_eq!(publish("before").await.unwrap().results[0].destinations, 2);
    let answer = switched_meanwhile(&hub, publish("a"), false).await;
    assert_eq!(answer.unwrap().results[0].destinations, 1);
    // It is stored, and the database is gone when it is asked where it goes.
    let lock = "lock table integrations in access exclusive mode";
    let outsider = Outsider::holding(&hub, lock).await;
    let publish_b = async { tokio::join!(publish("b"), until_some(&hub, CUT)).0 };
    let answer = switched_meanwhile(&hub, Box::pin(publish_b), true).await;
    assert_eq!(answer.unwrap_err().reason(), Some("STORE_BUSY"));
    outsider.lets_go().await;
    let result = publish("b").await.unwrap().results.remove(0);
    assert_eq!((result.duplicate, result.destinations), (true, 2));
}

/// Else the log would say for ever that nobody was sent what somebody had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_given_a_redelivered_event_before_it_is_stored_that_it_is_redelivered() {
    let hub = TestHub::start(Backend::Postgres).await;
    let psa = Product::new(&hub, "psa").await;
    let portal = Product::new(&hub, "portal").await;
    psa.publish(vec![ticket("a")]).await;
    let first = portal.pull(pull_of(1, 10)).await.events;
    portal.acknowledge("portal", acks_of(&first)).await;
    switch(&hub, "psa", "portal", false).await;
    let lost = psa.publish(vec![ticket("lost")]).await.results.remove(0);
    switch(&hub, "psa", "portal", true).await;
    // It has passed the lost one, so that nothing but the redelivery is to be stored then.
    psa.publish(vec![ticket("b")]).await;
    let second = portal.pull(pull_of(1, 10)).await.events;
    portal.acknowledge("portal", acks_of(&second)).await;
    let row = "select owner from subscription_positions for update";
    let outsider = Outsider::holding(&hub, row).await;
    let request = RedeliverRequest {
        event_ids: vec![lost.event_id.clone()],
        ..RedeliverRequest::default()
    };
    let job = redeliver(&hub, request).await.unwrap().job;
    let blocked = tokio::time::timeout(PATIENCE, until_some(&hub, BLOCKED)).await;
    blocked.expect("it is being stored");
    assert_eq!(ids_of(&portal.pull(pull_of(1, 0)).await.events), [""; 0]);
    // Another process takes the subscription over before, and now the job finds no destination.
    switch(&hub, "psa", "portal", false).await;
    let taken = "update subscription_positions set owner = 'prc_other', epoch = epoch + 1";
    outsider.commits(taken).await;
    let job = ended(&hub, job).await;
    assert_eq!((job.done, job.failed), (0, 0));
    assert_eq!(ids_of(&portal.pull(pull_of(1, 0)).await.events), [""; 0]);
    let entry = psa.get(Asked::EventId(lost.event_id)).await.unwrap();
    let mut deliveries = entry.deliveries.iter();
    let to_portal = deliveries.find(|one| one.product == "portal").unwrap();
    assert_eq!(to_portal.state(), EventDeliveryState::NotRouted);
}

/// Holds what a process says that it lives by, until the others believe that it does not.
async fn silenced(hub: &TestHub) -> Outsider {
    let outsider = Outsider::holding(hub, "lock table processes in exclusive mode").await;
    lives(hub, false).await;
    outsider
}

/// Waits until it believes so.
async fn lives(hub: &TestHub, expected: bool) {
    let becomes = async {
        while hub.core.processes.is_live() != expected {
            tokio::task::yield_now().await;
        }
    };
    let became = tokio::time::timeout(PATIENCE, becomes).await;
    became.expect("it does so");
}

/// No look at who owns what tells it: the clock stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_may_have_taken_is_not_leased_though_this_process_lives_again() {
    let options = TestHub::options(Backend::Postgres).manual_clock();
    let hub = options.start().await;
    let psa = Product::new(&hub, "psa").await;
    let portal = Product::new(&hub, "portal").await;
    psa.publish(vec![ticket("a"), ticket("b")]).await;
    let first = portal.pull(pull_of(1, 10)).await.events;
    assert_eq!(ids_of(&first), ["a"]);
    let outsider = silenced(&hub).await;
    // Another one had it meanwhile, and is gone.
    let taken = "update subscription_positions set owner = 'prc_other', epoch = epoch + 1";
    outsider.commits(taken).await;
    lives(&hub, true).await;
    let settled = portal.acknowledge("portal", acks_of(&first)).await;
    assert_eq!(settled[0].outcome(), AckOutcome::LeaseExpired);
    let again = portal.pull(pull_of(1, 10)).await.events;
    assert_eq!(ids_of(&again), ["a"]);
    let epoch = |lease: &str| lease.split('-').nth(2).unwrap().to_owned();
    assert_eq!(epoch(&first[0].lease_id), "1");
    assert_eq!(epoch(&again[0].lease_id), "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_all_tenants_goes_on_after_its_process_was_silent() {
    let hub = TestHub::start(Backend::Postgres).await;
    let psa = Product::new(&hub, "psa").await;
    let backend = backend_of_all(&hub).await;
    psa.publish(vec![ticket("a")]).await;
    let mut consumer = backend.consume(open("portal", 100)).await;
    assert_eq!(ids_of(&consumer.events(1).await), ["a"]);
    silenced(&hub).await.lets_go().await;
    // Though nothing is published any more.
    assert_eq!(ids_of(&consumer.events(1).await), ["a"]);
}
