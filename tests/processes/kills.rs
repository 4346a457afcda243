//! Three processes are killed in turn under load: nothing acknowledged is lost, the log is dense,
//! and every subscriber sees every event exactly once, in order.

use std::env;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hub_client::{Delivery, SubscribeOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Fleet;
use crate::durability::load::{self, Notes};

const HUBS: usize = 3;
const TENANTS: usize = 2;
/// What a subscriber needs to see the rest of the log, once nothing is killed any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// `HUB_TEST_PROCESS_KILLS`: how often, 9 unless given.
fn kills() -> usize {
    let given = env::var("HUB_TEST_PROCESS_KILLS");
    given.ok().and_then(|text| text.parse().ok()).unwrap_or(9)
}

/// The moment of a kill is what the test is about, so it is left to chance.
async fn some_time() {
    let chance = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
    tokio::time::sleep(Duration::from_millis(100 + chance * 2)).await;
}

/// What a subscriber saw: sequences and ids, in the order of arrival.
type Seen = Vec<(u64, String)>;

/// Publishers and subscribers on all processes, for all tenants.
struct Load {
    keys: Vec<String>,
    /// Where the clients of each process are at present.
    addresses: Vec<watch::Sender<SocketAddr>>,
    stop: CancellationToken,
    /// The end of each tenant's log, once nothing is published any more.
    ends: Vec<watch::Sender<Option<u64>>>,
    publishers: JoinSet<(usize, Notes)>,
    subscribers: JoinSet<(usize, Seen)>,
}

impl Load {
    async fn start(fleet: &Fleet) -> Load {
        let mut load = Load {
            keys: Vec::new(),
            addresses: (0..HUBS)
                .map(|hub| watch::Sender::new(fleet.addr(hub)))
                .collect(),
            stop: CancellationToken::new(),
            ends: (0..TENANTS).map(|_| watch::Sender::new(None)).collect(),
            publishers: JoinSet::new(),
            subscribers: JoinSet::new(),
        };
        for tenant in 0..TENANTS {
            let key = fleet.key().await;
            for hub in 0..HUBS {
                let address = load.addresses[hub].subscribe();
                let name = format!("{tenant}-{hub}");
                let (stop, at) = (load.stop.clone(), address.clone());
                let publishing = load::publish(name, key.clone(), at, stop);
                load.publishers
                    .spawn(async move { (tenant, publishing.await) });
                let end = load.ends[tenant].subscribe();
                let subscribing = subscribe(key.clone(), address, end);
                load.subscribers
                    .spawn(async move { (tenant, subscribing.await) });
            }
            load.keys.push(key);
        }
        load
    }

    /// The clients of one process go to another one, and some are where they already were.
    fn move_clients(&self, of: usize, to: SocketAddr) {
        self.addresses[of].send_replace(to);
    }

    /// Stops the load. Returns how many events were acknowledged.
    async fn check(mut self, fleet: &Fleet) -> usize {
        self.stop.cancel();
        let mut notes = vec![Vec::new(); TENANTS];
        while let Some(done) = self.publishers.join_next().await {
            let (tenant, noted) = done.unwrap();
            notes[tenant].push(noted);
        }
        let mut acknowledged = 0;
        let mut logs = Vec::new();
        for (tenant, key) in self.keys.iter().enumerate() {
            // Each log by another process than the one before.
            let hub = load::client(fleet.addr(tenant % HUBS), key);
            acknowledged += load::check(&hub, &notes[tenant]).await;
            logs.push(load::read(&hub).await);
            let end = logs[tenant].last().map(|(sequence, _)| *sequence);
            self.ends[tenant].send_replace(end);
        }
        let finished = async {
            while let Some(done) = self.subscribers.join_next().await {
                let (tenant, seen) = done.unwrap();
                assert!(
                    seen == logs[tenant],
                    "a subscriber did not see the log as it is"
                );
            }
        };
        let finished = tokio::time::timeout(PATIENCE, finished).await;
        assert!(
            finished.is_ok(),
            "a subscriber never saw the end of its log"
        );
        acknowledged
    }
}

/// Reads from the beginning to the end, resuming by cursor wherever its process is.
async fn subscribe(
    key: String,
    mut address: watch::Receiver<SocketAddr>,
    mut end: watch::Receiver<Option<u64>>,
) -> Seen {
    let (mut seen, mut cursor) = (Seen::new(), None::<String>);
    loop {
        let at = *address.borrow_and_update();
        let options = SubscribeOptions::default().all_products();
        let options = match &cursor {
            Some(cursor) => options.after(cursor),
            None => options.earliest(),
        };
        let mut stream = load::client(at, &key).subscribe(options);
        loop {
            let last = seen.last().map(|(sequence, _)| *sequence);
            if last.is_some() && *end.borrow_and_update() == last {
                return seen;
            }
            let delivery = tokio::select! {
                delivery = stream.next() => delivery,
                _ = end.changed() => continue,
                _ = address.changed() => break,
            };
            let delivery = delivery.expect("it never ends by itself").unwrap();
            cursor = Some(delivery.cursor().to_owned());
            if let Delivery::Gap(gap) = &delivery {
                panic!("nothing was removed, but {gap:?}");
            }
            let Delivery::Events(batch) = delivery else {
                continue;
            };
            for record in batch.events {
                let next = seen.last().map_or(1, |(sequence, _)| sequence + 1);
                assert_eq!(
                    record.sequence, next,
                    "a subscriber at {at} missed or repeated"
                );
                seen.push((record.sequence, record.event.unwrap_or_default().id));
            }
        }
    }
}

async fn killed_in_turn(flags: &[&str]) {
    let began = Instant::now();
    let mut fleet = Fleet::start(HUBS, flags).await;
    let load = Load::start(&fleet).await;
    for round in 0..kills() {
        some_time().await;
        let (killed, other) = (round % HUBS, (round + 1) % HUBS);
        fleet.hubs[killed].kill().await;
        load.move_clients(killed, fleet.addr(other));
        fleet.hubs[killed].start_again().await;
        load.move_clients(killed, fleet.addr(killed));
    }
    some_time().await;
    let acknowledged = load.check(&fleet).await;
    println!(
        "{} kills of {HUBS} processes in {:.0} s: {acknowledged} acknowledged events, each there \
         once and seen once by each of {HUBS} subscribers",
        kills(),
        began.elapsed().as_secs_f64()
    );
    assert!(
        acknowledged > kills() * 10,
        "the load was no load: {acknowledged} events"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_killed_in_turn_lose_nothing() {
    killed_in_turn(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_killed_in_turn_lose_nothing_without_hints() {
    killed_in_turn(&["--notify-interval", "0s"]).await;
}
