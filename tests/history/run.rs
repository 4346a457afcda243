//! A run: a hub, its clients, faults, calm, and the log at the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_client::proto::hub::event_bus::v1::{
    EventDeliveryState, EventLogFilter, ListEventsRequest, SubscribeRequest,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::dump::dump;
use super::hubs::{Hubs, some};
use super::load::{HEARTBEAT, Phase, Site};
use super::records::{About, Durable, Happening, Micros};
use super::tracks::{At, Consumer, Folder, History, Publisher, Recorder, Redeliverer, Subscriber};
use super::world::{Party, switch};
use crate::journal::random::Random;
use crate::support::Backend;

const TENANTS: usize = 2;
/// What is done once nothing is broken any more takes no longer.
const CALM_MAX: Duration = Duration::from_secs(120);
/// Between two looks at what is left.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// In longer runs the events of one tenant pass retention meanwhile, which is looked at once a
/// minute.
const RETENTION_FROM: Duration = Duration::from_secs(150);
const RETENTION: Micros = 40_000_000;
const LONG_RETENTION: Micros = 86_400_000_000;
/// Meanwhile each process has looked at it, and knows what others removed.
const RETENTION_LOOK: Duration = Duration::from_secs(65);
/// Deadline of calls that are not part of the load.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a run is to be.
pub struct Plan {
    pub backend: Backend,
    pub processes: usize,
    /// How long there are load and faults.
    pub load: Duration,
    pub seed: u64,
    /// Where the histories go.
    pub folder: PathBuf,
}

/// What happens around the clients is told by several tasks, and written by one.
struct Journal {
    recorder: Recorder<About, Happening>,
    told: mpsc::UnboundedReceiver<At<Happening>>,
}

impl Journal {
    fn note(&mut self, happening: Happening) {
        self.take();
        self.recorder.note(happening);
    }

    fn take(&mut self) {
        while let Ok(At { at, record }) = self.told.try_recv() {
            self.recorder.note_at(at, record);
        }
    }
}

/// Does it, and returns what everybody wrote.
pub async fn run(plan: &Plan) -> History {
    let folder = Folder::make(&plan.folder);
    let heartbeat = format!("{}s", HEARTBEAT.as_secs());
    let flags = ["--heartbeat-interval", heartbeat.as_str()];
    let mut hubs = Hubs::start(plan.backend, plan.processes, &flags).await;
    let about = About {
        seed: plan.seed,
        database: format!("{:?}", plan.backend),
        processes: plan.processes,
        tenants: TENANTS,
    };
    let (tell, told) = mpsc::unbounded_channel();
    let mut journal = Journal {
        recorder: folder.record("world", 0, about),
        told,
    };
    let parties = parties(&hubs).await;
    let durables = subscribe(&hubs, &parties, &mut journal).await;
    let proxies = hubs.proxies.iter().map(|proxy| proxy.address).collect();
    let site = Arc::new(Site::new(folder.clone(), plan.seed, proxies, TENANTS));
    let mut clients = Clients::default();
    for (party, durables) in parties.iter().zip(&durables) {
        party.start_publishers(&site, &mut clients.publishers);
        party.start_subscribers(&site, &mut clients.subscribers);
        party.start_consumers(&site, durables, &mut clients.consumers);
        party.start_redeliverers(&site, durables, &mut clients.redeliverers);
        let (key, tell) = (party.admin_key.clone(), tell.clone());
        clients
            .switches
            .spawn(switch(site.clone(), party.number, key, tell));
    }
    if plan.load >= RETENTION_FROM {
        let (length, party) = (RETENTION, &parties[TENANTS - 1]);
        hubs.keep(&party.tenant_id, length).await;
        let tenant = party.number;
        journal.note(Happening::Retention { tenant, length });
    }
    faults(plan, &mut hubs, &mut journal).await;
    if plan.load >= RETENTION_FROM {
        settle_retention(&hubs, &parties[TENANTS - 1]).await;
    }
    site.phase.send_replace(Phase::Calm);
    journal.note(Happening::Calm);
    let late = tokio::spawn(end_late(site.clone()));
    let ended = calm(&hubs, &site, &parties, &durables, clients);
    let written = Box::pin(ended).await;
    late.abort();
    journal.note(Happening::Over);
    let mut dumps = Vec::new();
    let mut random = Random::new(plan.seed, u64::MAX);
    for party in &parties {
        // Each log by another process than the one before.
        let hub = connect_to(&hubs, party.number, &party.auditor);
        dumps.push(dump(&hub, &folder, party.number, &mut random).await);
    }
    journal.take();
    for text in hubs.panics() {
        journal.note(Happening::Panicked(text));
    }
    let mut history = History {
        world: journal.recorder.finish(),
        publishers: written.publishers,
        subscribers: written.subscribers,
        consumers: written.consumers,
        redeliverers: written.redeliverers,
        dumps,
    };
    history.sort();
    history
}

/// What is there now stays while it is read, and no key is held by what is gone.
async fn settle_retention(hubs: &Hubs, party: &Party) {
    hubs.keep(&party.tenant_id, LONG_RETENTION).await;
    tokio::time::sleep(RETENTION_LOOK).await;
}

#[derive(Default)]
struct Clients {
    publishers: JoinSet<Publisher>,
    switches: JoinSet<()>,
    subscribers: JoinSet<Subscriber>,
    consumers: JoinSet<Consumer>,
    redeliverers: JoinSet<Redeliverer>,
}

/// What the clients wrote.
struct Written {
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    consumers: Vec<Consumer>,
    redeliverers: Vec<Redeliverer>,
}

fn connect(hubs: &Hubs, key: &str) -> Hub {
    connect_to(hubs, 0, key)
}

fn connect_to(hubs: &Hubs, process: usize, key: &str) -> Hub {
    let process = &hubs.processes[process % hubs.processes.len()];
    let url = format!("http://{}", process.addr());
    let hub = Hub::builder(url).api_key(key).timeout(CALL_TIMEOUT);
    hub.connect_lazy().unwrap()
}

async fn parties(hubs: &Hubs) -> Vec<Party> {
    let operator = hubs.processes[0].ready["operatorKey"].as_str().unwrap();
    let operator = connect(hubs, operator);
    let mut parties = Vec::new();
    for number in 0..TENANTS {
        parties.push(Party::create(number, &operator, |key| connect(hubs, key)).await);
    }
    parties
}

/// Rounds of faults of all kinds, one after the other with pauses between them.
async fn faults(plan: &Plan, hubs: &mut Hubs, journal: &mut Journal) {
    let mut random = Random::new(plan.seed, 0);
    let began = Instant::now();
    loop {
        for fault in hubs.faults(&mut random) {
            tokio::time::sleep(some(&mut random, 300, 1500)).await;
            journal.note(Happening::Began(fault.clone()));
            hubs.inject(&fault, &mut random).await;
            journal.note(Happening::Ended(fault));
        }
        if began.elapsed() >= plan.load {
            return;
        }
    }
}

/// The durable subscriptions of each tenant.
async fn subscribe(hubs: &Hubs, parties: &[Party], journal: &mut Journal) -> Vec<Vec<Durable>> {
    let mut all = Vec::new();
    for party in parties {
        let durables = party.subscribe(|key| connect(hubs, key)).await;
        for durable in durables.clone() {
            let tenant = party.number;
            journal.note(Happening::Subscribed { tenant, durable });
        }
        all.push(durables);
    }
    all
}

/// The clients end by then; what they did not get done is told by the checks.
async fn end_late(site: Arc<Site>) {
    tokio::time::sleep(CALM_MAX).await;
    site.phase.send_replace(Phase::Over);
}

/// What was under way ends, and what there is to read and to work off is read and worked off.
async fn calm(
    hubs: &Hubs,
    site: &Site,
    parties: &[Party],
    durables: &[Vec<Durable>],
    clients: Clients,
) -> Written {
    let publishers = clients.publishers.join_all().await;
    // Each switch is an event of the log, too.
    clients.switches.join_all().await;
    for party in parties {
        let head = head(&connect(hubs, &party.auditor)).await;
        site.ends[party.number].send_replace(Some(head));
    }
    let subscribers = clients.subscribers.join_all().await;
    // What they asked for is there to be worked off.
    let redeliverers = clients.redeliverers.join_all().await;
    for (party, durables) in parties.iter().zip(durables) {
        let hub = connect(hubs, &party.auditor);
        for durable in durables.iter().filter(|durable| durable.consumed) {
            drained(&hub, site, durable).await;
        }
    }
    site.phase.send_replace(Phase::Over);
    Written {
        publishers,
        subscribers,
        consumers: clients.consumers.join_all().await,
        redeliverers,
    }
}

/// The newest sequence of a tenant.
async fn head(hub: &Hub) -> u64 {
    let frames = hub.event_bus().subscribe(SubscribeRequest::default()).await;
    let first = frames.unwrap().into_inner().message().await.unwrap();
    match first.and_then(|first| first.frame) {
        Some(Frame::Opened(opened)) => opened.head_sequence,
        other => panic!("opened comes first, not {other:?}"),
    }
}

/// Waits until nothing is left of a subscription but what a blocked key holds back.
async fn drained(hub: &Hub, site: &Site, durable: &Durable) {
    let mut states = vec![
        EventDeliveryState::Queued.into(),
        EventDeliveryState::InFlight.into(),
        EventDeliveryState::RetryWait.into(),
    ];
    if !durable.block_key {
        states.push(EventDeliveryState::KeyBlocked.into());
    }
    let mut page_token = String::new();
    while site.phase() < Phase::Over {
        let filter = EventLogFilter {
            subscription_id: durable.subscription_id.clone(),
            states: states.clone(),
            ..EventLogFilter::default()
        };
        let request = ListEventsRequest {
            filter: Some(filter),
            omit_data: true,
            page_size: 1,
            page_token,
        };
        let page = hub
            .event_bus()
            .list_events(request)
            .await
            .unwrap()
            .into_inner();
        page_token = page.next_page_token;
        if !page.entries.is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
            page_token = String::new();
        } else if page_token.is_empty() {
            return;
        }
    }
}
