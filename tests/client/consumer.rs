//! Working off a durable subscription, also while the server stops and starts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::{
    Answer, Attr, CloudEvent, CloudEventAttributeValue, Consumer, ConsumerCounts, ConsumerNotice,
    Hub, LeasedEvent,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Address, Keys, crash, publish_all, reaches, ticket};
use crate::support::{Backend, Command, Tenant, TestHub, TestProcess};

const COUNT: u32 = 3000;
/// Ordering keys of those.
const KEYS: u32 = 50;
/// Events that the hub may lease to the consumer of those.
const CREDIT: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
/// Attempts to be faster than a timer of half a second.
const TRIES: u32 = 20;

/// What was handled.
#[derive(Clone)]
struct Book {
    /// Numbers by ordering key, as they were begun.
    begun: Arc<Mutex<BTreeMap<u32, Vec<u32>>>>,
    /// Different ones that were handled.
    handled: Arc<watch::Sender<u32>>,
}

impl Book {
    fn new() -> Self {
        Book {
            begun: Arc::default(),
            handled: Arc::new(watch::Sender::new(0)),
        }
    }

    async fn handle(self, event: LeasedEvent) -> Result<(), String> {
        let number = number(&event);
        let first = {
            let mut begun = self.begun.lock().unwrap();
            let of_key = begun.entry(number % KEYS).or_default();
            let first = !of_key.contains(&number);
            of_key.push(number);
            first
        };
        tokio::task::yield_now().await;
        if first {
            self.handled.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    async fn until_all(&self) {
        reaches(&mut self.handled.subscribe(), COUNT).await;
    }

    /// Each at least once, and those of a key in their order. Returns how many were repeated.
    fn assert_complete(&self) -> usize {
        let begun = self.begun.lock().unwrap();
        let mut repeated = 0;
        for (key, numbers) in &*begun {
            let mut first = Vec::new();
            for number in numbers {
                match first.contains(number) {
                    true => repeated += 1,
                    false => first.push(*number),
                }
            }
            let all = (0..COUNT).filter(|number| number % KEYS == *key);
            assert!(first.into_iter().eq(all), "key {key}: {numbers:?}");
        }
        assert_eq!(begun.len(), KEYS as usize);
        repeated
    }
}

fn number(event: &LeasedEvent) -> u32 {
    event.event().unwrap().id.parse().unwrap()
}

/// A ticket whose subject is its ordering key.
fn keyed(number: u32) -> CloudEvent {
    let subject = Attr::CeString(format!("ticket/{}", number % KEYS));
    let subject = CloudEventAttributeValue {
        attr: Some(subject),
    };
    CloudEvent {
        attributes: BTreeMap::from([("subject".to_owned(), subject)]),
        ..ticket(number)
    }
}

fn keep_books(portal: &Hub, book: &Book) -> Consumer {
    let book = book.clone();
    let builder = portal.consume("portal").concurrency(64);
    let builder = builder.credit(CREDIT, 4 << 20);
    builder.run(move |event| book.clone().handle(event))
}

async fn publish_each(psa: &Hub, numbers: impl IntoIterator<Item = u32>) {
    let publisher = psa.publisher();
    for number in numbers {
        publisher.publish(ticket(number)).await.unwrap();
    }
}

/// Events at a handler, which answers what the test says.
struct Desk {
    handled: mpsc::UnboundedReceiver<(LeasedEvent, oneshot::Sender<Answer>)>,
}

impl Desk {
    fn new() -> (
        Self,
        impl Fn(LeasedEvent) -> futures_util::future::BoxFuture<'static, Answer> + Send + Sync,
    ) {
        let (sender, handled) = mpsc::unbounded_channel();
        let handler = move |event| -> futures_util::future::BoxFuture<'static, Answer> {
            let (reply, answer) = oneshot::channel();
            sender.send((event, reply)).unwrap();
            Box::pin(async move { answer.await.unwrap() })
        };
        (Desk { handled }, handler)
    }

    /// The next event: its number and attempt.
    async fn next(&mut self) -> (u32, u32, oneshot::Sender<Answer>) {
        let (event, reply) = self.handled.recv().await.unwrap();
        (number(&event), event.attempt, reply)
    }
}

async fn counted(consumer: &Consumer, reached: impl FnMut(&ConsumerCounts) -> bool) {
    consumer.counts().wait_for(reached).await.unwrap();
}

/// PSA and Portal of a new tenant.
async fn pair(process: &TestProcess, address: &Address) -> (Hub, Hub) {
    let operator_key = process.ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&address.client(operator_key)).await;
    let admin = address.client(&tenant.admin_key);
    let psa = tenant.key(&admin, "psa", &["hub:events.publish"]).await;
    let portal = tenant.key(&admin, "portal", &["hub:events.read"]).await;
    (address.client(&psa), address.client(&portal))
}

both_databases! {
    async fn a_server_that_restarts_has_everything_handled_in_order_of_its_keys(mut hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let address = Address::new(hub.addr);
        let book = Book::new();
        let consumer = keep_books(&address.client(&keys.portal), &book);
        let publisher = address.client(&keys.psa).publisher();
        let (_, publishing) = publish_all(publisher, (0..COUNT).map(keyed));
        let mut handled = book.handled.subscribe();
        for restart in [COUNT / 3, COUNT / 3 * 2] {
            reaches(&mut handled, restart).await;
            hub.restart().await;
            address.moved(hub.addr);
        }
        publishing.await.unwrap();
        book.until_all().await;
        consumer.shutdown().await.unwrap();
        // Only what was leased when it stopped.
        let repeated = book.assert_complete();
        assert!(repeated <= 2 * CREDIT, "{repeated} events were handled twice");
    }

    async fn a_server_that_is_killed_has_everything_handled_in_order_of_its_keys(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let address = Address::new(process.addr());
        let (psa, portal) = pair(&process, &address).await;
        let book = Book::new();
        let consumer = keep_books(&portal, &book);
        let (_, publishing) = publish_all(psa.publisher(), (0..COUNT).map(keyed));
        let mut handled = book.handled.subscribe();
        for kill in [COUNT / 3, COUNT / 3 * 2] {
            reaches(&mut handled, kill).await;
            crash(&mut process, &address).await;
        }
        publishing.await.unwrap();
        book.until_all().await;
        consumer.shutdown().await.unwrap();
        book.assert_complete();
    }

    async fn what_a_shutdown_confirmed_is_not_repeated_after_a_crash(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let address = Address::new(process.addr());
        let (psa, portal) = pair(&process, &address).await;
        publish_each(&psa, 0..20).await;
        let consumer = portal.consume("portal").confirm_acks().run(async |_| Answer::Ack);
        counted(&consumer, |counts| counts.acked == 20).await;
        consumer.shutdown().await.unwrap();
        crash(&mut process, &address).await;
        publish_each(&psa, [20]).await;
        let (mut desk, handler) = Desk::new();
        let consumer = portal.consume("portal").run(handler);
        let (number, _, reply) = desk.next().await;
        assert_eq!(number, 20);
        reply.send(Answer::Ack).unwrap();
        consumer.shutdown().await.unwrap();
    }

    async fn a_shutdown_leaves_what_was_not_begun_to_another_member(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        publish_each(&hub.client(&keys.psa), 0..5).await;
        let portal = hub.client(&keys.portal);
        let (mut desk, handler) = Desk::new();
        let one = portal.consume("portal").concurrency(1).run(handler);
        let (first, _, reply) = desk.next().await;
        counted(&one, |counts| counts.received == 5).await;
        let down = tokio::spawn(one.shutdown());
        let (mut other_desk, handler) = Desk::new();
        let other = portal.consume("portal").run(handler);
        let mut rest = Vec::new();
        for _ in 0..4 {
            let (number, attempt, reply) = other_desk.next().await;
            assert_eq!(attempt, 1, "a release costs no attempt");
            reply.send(Answer::Ack).unwrap();
            rest.push(number);
        }
        reply.send(Answer::Ack).unwrap();
        down.await.unwrap().unwrap();
        other.shutdown().await.unwrap();
        rest.sort_unstable();
        assert_eq!((first, rest), (0, vec![1, 2, 3, 4]));
        let (told, mut caught_up) = mpsc::unbounded_channel();
        let last = portal.consume("portal").on_notice(move |notice| {
            told.send(matches!(notice, ConsumerNotice::CaughtUp { .. })).unwrap();
        });
        let last = last.run(async |_| Answer::Ack);
        assert!(caught_up.recv().await.unwrap());
        assert_eq!(last.counts().borrow().received, 0, "everything is settled");
    }

    async fn a_handler_that_panics_has_its_event_again_with_what_it_said(backend: Backend) {
        let hub = TestHub::options(backend)
            .manual_clock()
            .limits(|limits| limits.retry_jitter_percent = 0)
            .start()
            .await;
        let keys = Keys::of(&hub).await;
        publish_each(&hub.client(&keys.psa), 0..2).await;
        let (sender, mut handled) = mpsc::unbounded_channel();
        // With room for one event, the second shows that the first was settled.
        let builder = hub.client(&keys.portal).consume("portal").credit(1, 1 << 20);
        let consumer = builder.run(move |event| {
            let told = (number(&event), event.attempt, event.previous_error.clone());
            sender.send(told).unwrap();
            async move {
                if (number(&event), event.attempt) == (0, 1) {
                    // Without the hook, which takes it for a panic of the hub.
                    std::panic::resume_unwind(Box::new("no such ticket"));
                }
                Answer::Ack
            }
        });
        let attempt = |number, attempt, error: &str| Some((number, attempt, error.to_owned()));
        assert_eq!(handled.recv().await, attempt(0, 1, ""));
        assert_eq!(handled.recv().await, attempt(1, 1, ""));
        hub.clock.advance(60 * SECOND);
        let said = "the handler panicked: no such ticket";
        assert_eq!(handled.recv().await, attempt(0, 2, said));
        assert_eq!(consumer.counts().borrow().panicked, 1);
        consumer.shutdown().await.unwrap();
    }

    async fn a_handler_that_takes_long_keeps_its_event(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let keys = Keys::of(&hub).await;
        let psa = hub.client(&keys.psa);
        let (mut desk, handler) = Desk::new();
        // With room for two events, a third shows what the hub was told before.
        let builder = hub.client(&keys.portal).consume("portal").credit(2, 1 << 20);
        let consumer = builder.run(handler);
        let mut next = 0;
        let long = loop {
            assert!(next < TRIES, "the machine is too slow");
            publish_each(&psa, [next]).await;
            let (number, _, reply) = desk.next().await;
            assert_eq!(number, next);
            let before = consumer.counts().borrow().extended;
            hub.clock.advance(9 * SECOND);
            next += 1;
            // The hub's clock has to move between the beginning of the lease and its extension.
            if before == 0 {
                break reply;
            }
            reply.send(Answer::Ack).unwrap();
        };
        // By this machine's clock, which is ahead, the lease has ended: it is extended soon.
        counted(&consumer, |counts| counts.extended > 0).await;
        for number in next..next + 2 {
            publish_each(&psa, [number]).await;
            let (handled, _, reply) = desk.next().await;
            assert_eq!(handled, number);
            reply.send(Answer::Ack).unwrap();
        }
        // Its lease was of 30 s.
        hub.clock.advance(22 * SECOND);
        long.send(Answer::Ack).unwrap();
        let acked = u64::from(next) + 2;
        counted(&consumer, |counts| counts.acked == acked).await;
        let counts = consumer.counts();
        consumer.shutdown().await.unwrap();
        let counts = counts.borrow();
        assert_eq!((counts.received, counts.expired), (acked, 0));
    }

    async fn one_consumer_works_off_the_subscriptions_of_all_tenants(hub: TestHub) {
        let api_key = ApiKey {
            name: "portal backend".to_owned(),
            product: "portal".to_owned(),
            scopes: vec!["hub:events.read".to_owned()],
            all_tenants: true,
            ..ApiKey::default()
        };
        let request = CreateApiKeyRequest {
            api_key: Some(api_key),
            ..CreateApiKeyRequest::default()
        };
        let operator = hub.client(&hub.operator_key);
        let created = operator.api_keys().create_api_key(request).await.unwrap();
        let backend = hub.client(&created.into_inner().plaintext);
        let (sender, mut handled) = mpsc::unbounded_channel();
        let consumer = backend.consume("portal").run(move |event| {
            let whose = (event.tenant_id().to_owned(), number(&event));
            sender.send(whose).unwrap();
            async { Answer::Ack }
        });
        let mut expected = Vec::new();
        for tenant in [hub.first_tenant().clone(), hub.tenant().await] {
            let admin = hub.client(&tenant.admin_key);
            let psa = tenant.key(&admin, "psa", &["hub:events.publish"]).await;
            publish_each(&hub.client(&psa), 0..3).await;
            expected.extend((0..3).map(|number| (tenant.id.clone(), number)));
        }
        let mut found = Vec::new();
        while found.len() < expected.len() {
            found.push(handled.recv().await.unwrap());
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        let counts = consumer.counts();
        consumer.shutdown().await.unwrap();
        assert_eq!(counts.borrow().expired, 0);
    }

    async fn a_subscription_that_is_not_there_ends_it(hub: TestHub) {
        let keys = Keys::of(&hub).await;
        let portal = hub.client(&keys.portal);
        let mut consumer = portal.consume("nothing").run(async |_| Answer::Ack);
        let error = consumer.wait().await.unwrap_err();
        assert_eq!(error.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
    }
}
