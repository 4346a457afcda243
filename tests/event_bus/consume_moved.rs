//! Durable subscriptions that move from one process to another while a stream of all tenants is
//! served: what was acked there, and what is said meanwhile.

use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{AckOutcome, ConsumeOpen, LeasedEvent};

use super::consume_processes::{at, keep, outcomes, portal_of, settle, tenants};
use super::consume_shared::backend_of_all;
use super::consumer::{Consumer, ids_of, open};
use super::{Product, numbered, ticket};
use crate::support::{Backend, Command, Database, Tenant, TestHub, TestProcess};

/// A process that has the subscription of one tenant, and a stream of all tenants at another one.
struct Cast {
    hub: TestHub,
    owner: TestProcess,
    tenant: Tenant,
    psa: Product,
    /// Of another tenant, whose subscription is at work where the stream is.
    psa_here: Product,
    backend: Product,
    all: Consumer,
    _keeper: Consumer,
}

impl Cast {
    async fn new(open: ConsumeOpen) -> Cast {
        let hub = TestHub::start(Backend::Postgres).await;
        let same = Database::at(hub.database_url().to_owned());
        let owner = TestProcess::start_on(Command::Serve, same, &[]).await;
        let mut made = tenants(&hub, 2).await;
        let (_, psa_here) = made.pop().unwrap();
        let (tenant, psa) = made.pop().unwrap();
        let keeper = keep(&at(owner.addr(), &portal_of(&hub, &tenant).await)).await;
        let backend = backend_of_all(&hub).await;
        let all = backend.consume(open).await;
        Cast {
            hub,
            owner,
            tenant,
            psa,
            psa_here,
            backend,
            all,
            _keeper: keeper,
        }
    }

    /// Events of the subscription that the other process has.
    async fn leased(&mut self, count: usize) -> Vec<LeasedEvent> {
        self.psa.publish_each(numbered("t", count)).await;
        self.all.events(count).await
    }
}

/// The next answers to so many acks.
async fn answers(all: &mut Consumer, count: usize) -> Vec<AckOutcome> {
    let mut told = Vec::new();
    while told.len() < count {
        told.extend(outcomes(&all.results().await));
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_that_is_sent_again_after_its_subscription_has_moved_is_told_that_it_was_stored() {
    let mut cast = Cast::new(open("portal", 100)).await;
    let events = cast.leased(2).await;
    assert_eq!(settle(&cast.backend, &events).await, [AckOutcome::Ok; 2]);
    // Nobody has it any more, and nothing is left to deliver that anybody would take it for.
    cast.owner.signal("TERM");
    cast.owner.ended().await;
    cast.all.ack(&events).await;
    let mut told = answers(&mut cast.all, 2).await;
    while told.contains(&AckOutcome::Retry) {
        cast.all.ack(&events).await;
        told = answers(&mut cast.all, 2).await;
    }
    assert_eq!(told, [AckOutcome::AlreadySettled; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_that_a_process_took_with_it_are_answered() {
    let confirming = ConsumeOpen {
        confirm_acks: true,
        ..open("portal", 100)
    };
    let mut cast = Cast::new(confirming).await;
    let events = cast.leased(2).await;
    // It takes the acks, and says nothing.
    cast.owner.signal("STOP");
    cast.all.ack(&events).await;
    cast.owner.kill().await;
    assert_eq!(answers(&mut cast.all, 2).await, [AckOutcome::Retry; 2]);
    let again = cast.all.events(2).await;
    assert_eq!(ids_of(&again), numbered("t", 2));
    cast.all.ack(&again).await;
    assert_eq!(answers(&mut cast.all, 2).await, [AckOutcome::Ok; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_had_that_died_comes_to_the_stream_of_all_tenants() {
    let mut cast = Cast::new(open("portal", 100)).await;
    let before = cast.leased(2).await;
    cast.owner.kill().await;
    // The leases were the dead one's.
    let after = cast.all.events(2).await;
    assert_eq!(
        (ids_of(&before), ids_of(&after)),
        (numbered("t", 2), numbered("t", 2))
    );
    cast.all.ack(&after).await;
    cast.psa.publish(vec![ticket("new")]).await;
    assert_eq!(ids_of(&cast.all.events(1).await), ["new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_not_caught_up_before_somebody_has_what_a_dead_process_had() {
    caught_up_behind_all("KILL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_not_caught_up_before_somebody_has_what_a_process_let_go() {
    caught_up_behind_all("TERM").await;
}

/// The process that has a subscription ends, by this signal, with events that were not acked.
async fn caught_up_behind_all(signal: &str) {
    let mut cast = Cast::new(open("portal", 100)).await;
    let before = cast.leased(2).await;
    cast.owner.signal(signal);
    // Everything that is at work anywhere is settled now.
    cast.psa_here.publish(vec![ticket("here")]).await;
    let (mut seen, mut caught_up) = (Vec::new(), false);
    while seen.len() < 3 || !caught_up {
        match cast.all.next().await {
            Frame::Events(leased) => {
                cast.all.ack(&leased.events).await;
                seen.extend(ids_of(&leased.events));
            }
            Frame::CaughtUp(_) => {
                assert_eq!(seen.len(), 3, "{seen:?} and {:?} are left", ids_of(&before));
                caught_up = true;
            }
            _ => {}
        }
    }
    seen.sort();
    assert_eq!(seen, ["here", "t-0", "t-1"], "of {}", cast.tenant.id);
    cast.hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_all_tenants_that_begins_with_nothing_to_do_is_told_so() {
    let mut cast = Cast::new(open("portal", 100)).await;
    let told = |frame: &Frame| matches!(frame, Frame::CaughtUp(_)).then_some(());
    cast.all.frame(told).await;
}
