//! A whole log, read from the tables and checked against the journal's invariants.

use hub_core::clock::Micros;
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql};
use hub_proto::hub::event_bus::v1::CloudEvent;
use prost::Message;
use prost::encoding::decode_varint;

const SEGMENTS: Sql = Sql::same(
    "select key, n, record_time, ids, data from journal_segments where tenant_no = $1 order by key",
);
const HEAD: Sql = Sql::same("select head, record_time from journal_heads where tenant_no = $1");
/// Bytes of an event in `ids`.
const ID_BYTES: usize = 32;

/// Key, number of events, time, identities, events.
type Row = (i64, i64, Micros, Vec<u8>, Vec<u8>);

/// An event as the tables have it.
#[derive(Debug, Clone)]
pub struct Stored {
    pub identity: u128,
    pub content: u128,
    pub starts_batch: bool,
    /// The CloudEvent's `id`.
    pub name: String,
}

/// All events of a tenant; the first one has sequence 1.
pub struct CheckedLog {
    pub events: Vec<Stored>,
}

impl CheckedLog {
    /// Reads it, and checks that it is dense, that times never decrease and that the head agrees.
    pub async fn read(db: &Db, tenant: &TenantRef) -> CheckedLog {
        let rows: Vec<Row> = db
            .query(SEGMENTS)
            .bind(tenant.number())
            .all()
            .await
            .unwrap();
        let mut log = CheckedLog { events: Vec::new() };
        let mut last_time = 0;
        for (key, count, time, ids, data) in rows {
            let next = log.events.len() as u64 + 1;
            assert_eq!(tenant.seq(key), next, "a segment does not continue the log");
            assert!(time >= last_time, "record times decrease at {next}");
            last_time = time;
            let events = decode(&ids, &data);
            assert_eq!(events.len() as i64, count, "n of the segment at {next}");
            assert!(events[0].starts_batch, "a batch is split at {next}");
            log.events.extend(events);
        }
        let (head, time): (i64, Micros) = db.query(HEAD).bind(tenant.number()).one().await.unwrap();
        assert_eq!(head, log.events.len() as i64, "the head agrees");
        if !log.events.is_empty() {
            assert_eq!(time, last_time, "the time of the head agrees");
        }
        log.expect_unique();
        log
    }

    /// The event at a sequence.
    pub fn at(&self, seq: u64) -> &Stored {
        let index = usize::try_from(seq).unwrap().checked_sub(1);
        index
            .and_then(|index| self.events.get(index))
            .unwrap_or_else(|| panic!("there is no event at {seq}"))
    }

    fn expect_unique(&self) {
        let mut identities: Vec<u128> = self.events.iter().map(|event| event.identity).collect();
        identities.sort_unstable();
        let before = identities.len();
        identities.dedup();
        assert_eq!(identities.len(), before, "an identity is stored twice");
    }
}

/// By the format that the segment's documentation states, not by its code.
fn decode(ids: &[u8], mut data: &[u8]) -> Vec<Stored> {
    assert_eq!(ids.len() % ID_BYTES, 0);
    let number = |bytes: &[u8]| u128::from_be_bytes(bytes.try_into().unwrap());
    let mut events = Vec::new();
    for ids in ids.chunks(ID_BYTES) {
        let header = decode_varint(&mut data).unwrap();
        let mut body;
        (body, data) = data.split_at((header >> 1) as usize);
        let product_len = usize::from(body[0]);
        body = &body[1 + product_len..];
        let kind_len = decode_varint(&mut body).unwrap() as usize;
        let event = CloudEvent::decode(&body[kind_len..]).unwrap();
        events.push(Stored {
            identity: number(&ids[..16]),
            content: number(&ids[16..]),
            starts_batch: header & 1 == 1,
            name: event.id,
        });
    }
    assert!(data.is_empty(), "bytes behind the last event");
    events
}
