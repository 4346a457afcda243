//! The log as it is at the end: as Subscribe reads it, as ListEvents lists it, and as GetEvent
//! tells.

use std::collections::BTreeMap;

use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_client::proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_client::proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventLogEntry, GetEventRequest, ListEventsRequest, StartAt,
    SubscribeRequest, start_at,
};

use super::explaining::explain;
use super::load::seen;
use super::records::{Delivery, Line, Micros, State};
use super::tracks::{Dump, Folder, Recorder};
use crate::journal::random::Random;

const PAGE_SIZE: i32 = 1000;
/// Events of which GetEvent is asked too.
const GOT: usize = 100;

/// Reads all of a tenant's log, with a key that may see everything.
pub async fn dump(hub: &Hub, folder: &Folder, tenant: usize, random: &mut Random) -> Dump {
    let mut recorder = folder.record(&format!("log-{tenant}"), tenant, ());
    let ids = events(hub, &mut recorder).await;
    list(hub, &mut recorder).await;
    let sequences: Vec<u64> = ids.keys().copied().collect();
    for _ in 0..GOT.min(sequences.len()) {
        let sequence = sequences[random.below(sequences.len())];
        let event = Some(Asked::Sequence(sequence));
        let answer = hub.event_bus().get_event(GetEventRequest { event }).await;
        let entry = answer.unwrap().into_inner().entry.unwrap_or_default();
        deliveries(entry).for_each(|row| recorder.note(Line::Got(row)));
    }
    explain(hub, &mut recorder, &ids, random).await;
    recorder.finish()
}

/// The hub's ids of all events, by sequence.
async fn events(hub: &Hub, recorder: &mut Recorder<(), Line>) -> BTreeMap<u64, String> {
    let request = SubscribeRequest {
        start: Some(StartAt {
            at: Some(start_at::At::Earliest(true)),
        }),
        stop_when_caught_up: true,
        all_products: true,
        ..SubscribeRequest::default()
    };
    let mut frames = hub
        .event_bus()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    let mut ids = BTreeMap::new();
    while let Some(frame) = frames.message().await.unwrap() {
        let Some(Frame::Events(batch)) = frame.frame else {
            continue;
        };
        for record in batch.events {
            let time = record.record_time.unwrap_or_default();
            let record_time = time.seconds * 1_000_000 + Micros::from(time.nanos) / 1000;
            ids.insert(record.sequence, record.event_id.clone());
            let seen = seen(record);
            recorder.note(Line::Event { seen, record_time });
        }
    }
    ids
}

async fn list(hub: &Hub, recorder: &mut Recorder<(), Line>) {
    let mut page_token = String::new();
    loop {
        let request = ListEventsRequest {
            omit_data: true,
            page_size: PAGE_SIZE,
            page_token,
            ..ListEventsRequest::default()
        };
        let page = hub
            .event_bus()
            .list_events(request)
            .await
            .unwrap()
            .into_inner();
        for entry in page.entries {
            deliveries(entry).for_each(|row| recorder.note(Line::Listed(row)));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return;
        }
    }
}

fn deliveries(entry: EventLogEntry) -> impl Iterator<Item = Delivery> {
    let sequence = entry.record.unwrap_or_default().sequence;
    entry
        .deliveries
        .into_iter()
        .map(move |row| delivery(sequence, row))
}

fn delivery(sequence: u64, row: EventDelivery) -> Delivery {
    Delivery {
        sequence,
        state: state(row.state()),
        subscription_id: row.subscription_id,
        product: row.product,
        attempts: row.attempts,
        last_error: row.last_error,
    }
}

fn state(state: EventDeliveryState) -> State {
    match state {
        EventDeliveryState::Queued => State::Queued,
        EventDeliveryState::InFlight => State::InFlight,
        EventDeliveryState::RetryWait => State::RetryWait,
        EventDeliveryState::KeyBlocked => State::KeyBlocked,
        EventDeliveryState::Delivered => State::Delivered,
        EventDeliveryState::Failed => State::Failed,
        EventDeliveryState::Skipped => State::Skipped,
        EventDeliveryState::NotRouted => State::NotRouted,
        EventDeliveryState::Expired => State::Expired,
        EventDeliveryState::Unspecified => State::Strange,
    }
}
