//! Walking over a segment as it is stored, for who needs a few of its events: nothing is encoded
//! or copied.

use bytes::Bytes;
use prost::encoding::decode_varint;

use super::segment::{Damaged, Segment};

/// An event as a segment stores it.
#[derive(Debug, Clone)]
pub struct StoredEvent<'a> {
    /// Its sequence.
    pub seq: u64,
    /// Slug of the publishing product.
    pub product: &'a str,
    /// CloudEvents type.
    pub kind: &'a str,
    /// The encoded CloudEvent.
    event: &'a [u8],
    data: &'a Bytes,
}

/// The events of a segment in order.
#[derive(Debug, Clone)]
pub struct StoredEvents<'a> {
    data: &'a Bytes,
    rest: &'a [u8],
    seq: u64,
    last: u64,
}

impl Segment {
    /// Its events in order.
    pub fn events(&self) -> StoredEvents<'_> {
        StoredEvents {
            data: self.data(),
            rest: self.data(),
            seq: self.first(),
            last: self.last(),
        }
    }

    /// The event at `seq`, if it is one of this segment.
    pub fn event_at(&self, seq: u64) -> Result<Option<StoredEvent<'_>>, Damaged> {
        let Some(place) = seq.checked_sub(self.first()) else {
            return Ok(None);
        };
        let mut events = self.events();
        for _ in 0..place {
            if !events.pass() {
                break;
            }
        }
        events.next().transpose()
    }

    /// Bytes of its events, about what reading it costs.
    pub fn size(&self) -> usize {
        self.data().len()
    }
}

impl StoredEvent<'_> {
    /// The encoded CloudEvent, sharing the memory of its segment.
    pub fn event(&self) -> Bytes {
        self.data.slice_ref(self.event)
    }
}

impl StoredEvents<'_> {
    /// Passes over an event without looking into it; false at the end, and before damage.
    fn pass(&mut self) -> bool {
        let mut rest = self.rest;
        if self.seq > self.last || take_entry(&mut rest).is_none() {
            return false;
        }
        self.rest = rest;
        self.seq += 1;
        true
    }
}

impl<'a> Iterator for StoredEvents<'a> {
    type Item = Result<StoredEvent<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.seq > self.last {
            return None;
        }
        let found = split(&mut self.rest).map(|(product, kind, event)| StoredEvent {
            seq: self.seq,
            product,
            kind,
            event,
            data: self.data,
        });
        self.seq = match &found {
            Some(_) => self.seq + 1,
            None => self.last + 1,
        };
        Some(found.ok_or(Damaged))
    }
}

fn take_entry<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let header = decode_varint(data).ok()?;
    data.split_off(..usize::try_from(header >> 1).ok()?)
}

fn split<'a>(data: &mut &'a [u8]) -> Option<(&'a str, &'a str, &'a [u8])> {
    let mut body = take_entry(data)?;
    let product_len = *body.split_off_first()?;
    let product = body.split_off(..usize::from(product_len))?;
    let kind_len = decode_varint(&mut body).ok()?;
    let kind = body.split_off(..usize::try_from(kind_len).ok()?)?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((text(product)?, text(kind)?, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segment::Builder;
    use crate::journal::{NewEvent, TenantRef};

    #[test]
    fn the_events_are_found_as_they_were_packed() {
        let mut builder = Builder::default();
        for n in 0..3u8 {
            let new = NewEvent {
                product: "psa".into(),
                kind: format!("kind.{n}").into(),
                event: vec![n; 5].into(),
                identity: 1,
                content: 2,
            };
            builder.push(&new, true);
        }
        let tenant = TenantRef::new(1, "tnt_1");
        let segment = Segment::new(tenant.clone(), 7, 0, builder.ids, builder.data.clone());
        let found = segment.event_at(8).unwrap().unwrap();
        assert_eq!((found.seq, found.product, found.kind), (8, "psa", "kind.1"));
        assert_eq!(found.event(), vec![1; 5]);
        assert_eq!(segment.events().count(), 3);
        assert!(segment.event_at(6).unwrap().is_none());
        assert!(segment.event_at(10).unwrap().is_none());
        let cut = builder.data[..builder.data.len() - 1].to_vec();
        let damaged = Segment::new(tenant, 7, 0, vec![0; 96], cut);
        assert!(damaged.event_at(9).is_err());
        assert_eq!(damaged.events().filter(Result::is_err).count(), 1);
    }
}
