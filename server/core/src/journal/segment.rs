//! What one commit stores for one tenant: packed identities and packed events.
//!
//! In memory, for who reads at the end of the log, that is one segment. In the database it is a
//! row, or several of about a size if it is much, each of which begins with a batch and is a
//! segment of its own for who reads it: to read one event is to read its row.
//!
//! `ids` is 32 bytes an event: 16 of its identity, 16 of its content. `data` is, for each event,
//! `varint(length << 1 | starts a batch)`, then product (one byte of length), type (varint length)
//! and the event's own bytes as they came. Sequence and time are not in the bytes: they are known
//! only under the lock of the head row, and one commit has one time.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::{TenantRef, Work};
use crate::clock::{Micros, timestamp};
use crate::id;

/// Bytes of `ids` for one event.
pub const ID_BYTES: usize = 32;
/// Bits of a key that hold the sequence; the rest is the tenant's number.
pub const SEQ_BITS: u32 = 40;

/// An event about to be stored.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Slug of the publishing product, at most 64 bytes.
    pub product: Arc<str>,
    /// CloudEvents type, UTF-8.
    pub kind: Bytes,
    /// The encoded CloudEvent, stored byte for byte.
    pub event: Bytes,
    /// Hash of tenant, product, source and id.
    pub identity: u128,
    /// Hash of all fields.
    pub content: u128,
}

impl NewEvent {
    /// Bytes that the event takes in a segment, about.
    pub fn size(&self) -> usize {
        self.product.len() + self.kind.len() + self.event.len() + ID_BYTES + 8
    }
}

/// Rows of one commit, about: SQLite binds 32,766 values in a statement, 7 for each row.
const ROWS_MAX: usize = 2_000;

/// Packs events.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    pub(crate) ids: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) count: u32,
    /// Where rows begin, behind the first.
    pub(crate) cuts: Vec<Cut>,
    row_bytes_max: usize,
}

/// A row begins here.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cut {
    /// Events before it.
    events: usize,
    /// Bytes of `data` before it.
    bytes: usize,
}

/// A row of what a commit stores.
pub(crate) struct RowOf<'a> {
    /// Events of the commit before it.
    pub(crate) before: i64,
    pub(crate) count: i64,
    pub(crate) ids: &'a [u8],
    pub(crate) data: &'a [u8],
}

/// The rows of what was packed.
pub(crate) fn rows<'a>(
    ids: &'a [u8],
    data: &'a [u8],
    cuts: &'a [Cut],
) -> impl Iterator<Item = RowOf<'a>> {
    let end = Cut {
        events: ids.len() / ID_BYTES,
        bytes: data.len(),
    };
    (0..=cuts.len()).map(move |at| {
        let from = at.checked_sub(1).map_or_else(Cut::default, |at| cuts[at]);
        let to = cuts.get(at).copied().unwrap_or(end);
        RowOf {
            before: from.events as i64,
            count: (to.events - from.events) as i64,
            ids: &ids[from.events * ID_BYTES..to.events * ID_BYTES],
            data: &data[from.bytes..to.bytes],
        }
    })
}

impl Builder {
    /// For a work in a commit of so many; its rows will have about `row_bytes_max`.
    pub(crate) fn new(work: &Work<'_>, works: usize, row_bytes_max: usize) -> Self {
        let (events, bytes) = (work.events(), work.bytes());
        Builder {
            ids: Vec::with_capacity(events * ID_BYTES),
            data: Vec::with_capacity(bytes),
            row_bytes_max: row_bytes_max.max(bytes * works / ROWS_MAX),
            ..Builder::default()
        }
    }

    /// Packs an event; a batch stays in one row, however large it is.
    pub(crate) fn push(&mut self, event: &NewEvent, starts_batch: bool) {
        let from = self.cuts.last().copied().unwrap_or_default();
        let events = self.count as usize;
        let bytes = self.data.len() - from.bytes + (events - from.events) * ID_BYTES;
        if starts_batch && events > from.events && bytes + event.size() > self.row_bytes_max {
            self.cuts.push(Cut {
                events,
                bytes: self.data.len(),
            });
        }
        self.ids.extend_from_slice(&event.identity.to_be_bytes());
        self.ids.extend_from_slice(&event.content.to_be_bytes());
        let kind_len = event.kind.len() as u64;
        let body = 1
            + event.product.len()
            + encoded_len_varint(kind_len)
            + event.kind.len()
            + event.event.len();
        encode_varint((body as u64) << 1 | u64::from(starts_batch), &mut self.data);
        // Slugs are checked to be at most 64 bytes where products are made.
        self.data.push(event.product.len() as u8);
        self.data.extend_from_slice(event.product.as_bytes());
        encode_varint(kind_len, &mut self.data);
        self.data.extend_from_slice(&event.kind);
        self.data.extend_from_slice(&event.event);
        self.count += 1;
    }
}

/// A stored segment; its wire form is made once, for the first who reads it.
#[derive(Debug)]
pub struct Segment {
    tenant: TenantRef,
    first: u64,
    count: u32,
    record_time: Micros,
    routing_epoch: u64,
    ids: Bytes,
    data: Bytes,
    run: OnceLock<Result<Run, Damaged>>,
}

/// The bytes of a segment are not what the builder wrote.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a segment of the journal is damaged")]
pub struct Damaged;

impl Segment {
    pub(crate) fn new(
        tenant: TenantRef,
        first: u64,
        record_time: Micros,
        ids: impl Into<Bytes>,
        data: impl Into<Bytes>,
    ) -> Self {
        let ids = ids.into();
        let count = (ids.len() / ID_BYTES) as u32;
        let run = OnceLock::new();
        Segment {
            tenant,
            first,
            count,
            record_time,
            routing_epoch: 0,
            ids,
            data: data.into(),
            run,
        }
    }

    /// The same, committed under this routing epoch.
    #[must_use]
    pub(crate) fn under(mut self, routing_epoch: u64) -> Self {
        self.routing_epoch = routing_epoch;
        self
    }

    /// First sequence.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Last sequence.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    /// When it was committed.
    pub fn record_time(&self) -> Micros {
        self.record_time
    }

    /// Version of the tenant's configuration under which its events are routed.
    pub fn routing_epoch(&self) -> u64 {
        self.routing_epoch
    }

    /// Number of the tenant.
    pub(crate) fn tenant_no(&self) -> i64 {
        self.tenant.number()
    }

    /// Key of one of its rows.
    pub(crate) fn key_of(&self, row: &RowOf<'_>) -> i64 {
        self.tenant.key(self.first) + row.before
    }

    /// Number of events.
    pub(crate) fn count(&self) -> i64 {
        i64::from(self.count)
    }

    pub(crate) fn ids(&self) -> &Bytes {
        &self.ids
    }

    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }

    /// Bytes it holds in memory once it was read.
    pub(crate) fn memory(&self) -> usize {
        2 * self.data.len() + self.ids.len() + self.count as usize * size_of::<Entry>() + 256
    }

    /// Identity and content of the event at `seq`.
    pub(crate) fn ids_at(&self, seq: u64) -> Option<(u128, u128)> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()? * ID_BYTES;
        let ids = self.ids.get(at..at + ID_BYTES)?;
        let (identity, content) = ids.split_at(16);
        Some((
            u128::from_be_bytes(identity.try_into().ok()?),
            u128::from_be_bytes(content.try_into().ok()?),
        ))
    }

    /// Fingerprint of the event at `seq`.
    pub fn fingerprint(&self, seq: u64) -> Option<u64> {
        self.ids_at(seq)
            .map(|(identity, content)| fingerprint(seq, identity, content))
    }

    /// The events in their wire form.
    pub fn run(&self) -> Result<&Run, Damaged> {
        self.run
            .get_or_init(|| Run::encode(self))
            .as_ref()
            .map_err(|damaged| *damaged)
    }
}

/// Ties a cursor to the event at its position, so that a log that was rewound and written anew is
/// noticed.
pub(crate) fn fingerprint(seq: u64, identity: u128, content: u128) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (identity as u64) ^ (content as u64).rotate_left(23) ^ seq.wrapping_mul(ODD);
    (mixed ^ (mixed >> 29)).wrapping_mul(ODD)
}

/// Events encoded as `repeated hub.event_bus.v1.EventRecord events = 1`, once for all readers.
#[derive(Debug)]
pub struct Run {
    /// The records, tag and length included.
    pub records: Bytes,
    /// One for each event, in order.
    pub entries: Vec<Entry>,
    /// The distinct pairs of product and type.
    pub kinds: Vec<Kind>,
}

/// Where an event lies in [`Run::records`], and what is needed to route it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// End of its record; it begins where the one before ends.
    pub end: u32,
    /// Start of the encoded CloudEvent.
    pub event_start: u32,
    /// End of the encoded CloudEvent.
    pub event_end: u32,
    /// Index into [`Run::kinds`].
    pub kind: u16,
    /// False if it belongs to the same batch as the one before.
    pub starts_batch: bool,
}

/// Who published what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Slug of the publishing product.
    pub product: String,
    /// CloudEvents type.
    pub kind: String,
}

/// What all records of a segment share.
struct Frame {
    time: Vec<u8>,
    tenant: Vec<u8>,
}

impl Run {
    fn encode(segment: &Segment) -> Result<Run, Damaged> {
        let frame = Frame::of(segment);
        let overhead = frame.time.len() + frame.tenant.len() + 64;
        let size = segment.data.len() + segment.count as usize * overhead;
        let mut records = BytesMut::with_capacity(size);
        let mut entries = Vec::with_capacity(segment.count as usize);
        let mut kinds: Vec<Kind> = Vec::new();
        let mut data: &[u8] = &segment.data;
        for index in 0..u64::from(segment.count) {
            let header = decode_varint(&mut data).map_err(|_| Damaged)?;
            let body = data.split_off(..(header >> 1) as usize).ok_or(Damaged)?;
            let parts = Parts::split(body)?;
            let kind = kind_index(&mut kinds, &parts)?;
            let seq = segment.first + index;
            let key = segment.tenant.key(seq);
            let (event_start, event_end) = frame.put(&mut records, seq, key, &parts);
            entries.push(Entry {
                end: records.len() as u32,
                event_start,
                event_end,
                kind,
                starts_batch: header & 1 == 1,
            });
        }
        Ok(Run {
            records: records.freeze(),
            entries,
            kinds,
        })
    }
}

impl Frame {
    fn of(segment: &Segment) -> Frame {
        use prost::Message;
        let time = timestamp(segment.record_time).encode_to_vec();
        let mut framed = vec![0x1a, time.len() as u8];
        framed.extend_from_slice(&time);
        let tenant = segment.tenant.id().as_bytes();
        let mut tenant_field = vec![0x32];
        encode_varint(tenant.len() as u64, &mut tenant_field);
        tenant_field.extend_from_slice(tenant);
        Frame {
            time: framed,
            tenant: tenant_field,
        }
    }

    /// Field numbers as in `event.proto`: sequence 1, event 2, record_time 3, event_id 4,
    /// product 5, tenant_id 6. A test decodes what this writes with the generated type.
    fn put(&self, out: &mut BytesMut, seq: u64, key: i64, parts: &Parts<'_>) -> (u32, u32) {
        let event_len = parts.event.len() as u64;
        let product_len = parts.product.len() as u64;
        let length = 1
            + encoded_len_varint(seq)
            + 1
            + encoded_len_varint(event_len)
            + parts.event.len()
            + self.time.len()
            + 2
            + 17
            + 1
            + encoded_len_varint(product_len)
            + parts.product.len()
            + self.tenant.len();
        out.put_u8(0x0a);
        encode_varint(length as u64, out);
        out.put_u8(0x08);
        encode_varint(seq, out);
        out.put_u8(0x12);
        encode_varint(event_len, out);
        let event_start = out.len() as u32;
        out.put_slice(parts.event);
        let event_end = out.len() as u32;
        out.put_slice(&self.time);
        out.put_slice(&[0x22, 17]);
        out.put_slice(b"evt_");
        out.put_slice(&id::event_digits(key));
        out.put_u8(0x2a);
        encode_varint(product_len, out);
        out.put_slice(parts.product.as_bytes());
        out.put_slice(&self.tenant);
        (event_start, event_end)
    }
}

struct Parts<'a> {
    product: &'a str,
    kind: &'a str,
    event: &'a [u8],
}

impl<'a> Parts<'a> {
    fn split(mut body: &'a [u8]) -> Result<Self, Damaged> {
        let product_len = *body.split_off_first().ok_or(Damaged)?;
        let product = body.split_off(..usize::from(product_len)).ok_or(Damaged)?;
        let kind_len = decode_varint(&mut body).map_err(|_| Damaged)?;
        let kind = body.split_off(..kind_len as usize).ok_or(Damaged)?;
        Ok(Parts {
            product: std::str::from_utf8(product).map_err(|_| Damaged)?,
            kind: std::str::from_utf8(kind).map_err(|_| Damaged)?,
            event: body,
        })
    }
}

fn kind_index(kinds: &mut Vec<Kind>, parts: &Parts<'_>) -> Result<u16, Damaged> {
    let known = kinds
        .iter()
        .rposition(|k| k.kind == parts.kind && k.product == parts.product);
    let index = known.unwrap_or_else(|| {
        kinds.push(Kind {
            product: parts.product.into(),
            kind: parts.kind.into(),
        });
        kinds.len() - 1
    });
    u16::try_from(index).map_err(|_| Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hub_proto::hub::event_bus::v1::{CloudEvent, EventBatch};
    use prost::Message;

    #[test]
    fn records_decode_as_the_contract_says() {
        let event = CloudEvent {
            id: "1".into(),
            r#type: "ticket.created".into(),
            ..Default::default()
        };
        let new = NewEvent {
            product: "psa".into(),
            kind: Bytes::from_static(b"ticket.created"),
            event: event.encode_to_vec().into(),
            identity: 7,
            content: 8,
        };
        let mut builder = Builder::default();
        builder.push(&new, true);
        builder.push(&new, false);
        let tenant = TenantRef::new(3, "tnt_a");
        let segment = Segment::new(tenant.clone(), 41, 1_500_000, builder.ids, builder.data);
        let run = segment.run().unwrap();
        let batch = EventBatch::decode(run.records.clone()).unwrap();
        let record = &batch.events[1];
        assert_eq!(
            (record.sequence, &*record.product, &*record.tenant_id),
            (42, "psa", "tnt_a")
        );
        assert_eq!(record.event, Some(event));
        assert_eq!(record.record_time.unwrap().nanos, 500_000_000);
        assert_eq!(id::parse_event(&record.event_id), Some(tenant.key(42)));
        assert_eq!(
            run.entries
                .iter()
                .map(|e| e.starts_batch)
                .collect::<Vec<_>>(),
            [true, false]
        );
        assert_eq!((segment.last(), run.kinds.len()), (42, 1));
    }

    #[test]
    fn damaged_bytes_are_told_not_served() {
        let segment = Segment::new(TenantRef::new(1, "t"), 1, 0, vec![0; 32], vec![200, 1, 3]);
        assert!(segment.run().is_err());
    }
}
