//! Unsettled events as bytes: what a checkpoint stores of them in one column.
//!
//! Layout, all numbers as varints (LEB128) unless said otherwise: the version; the distinct errors,
//! as their count, and length and text of each; the count of events; and each event: its distance
//! from the one before, a byte of flags, its key (8 bytes, little endian, if there is one), its
//! size, and if it was tried before: attempts, losses, due, and its error (1 = the first one, 0 =
//! none). So a plain event costs about 12 bytes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use hub_core::clock::Micros;

use super::{Key, Leasing, Position};

const VERSION: u64 = 1;
/// Errors are packed up to so many bytes together, each text once; further ones are left out, so
/// that a thousand events with long errors do not make every checkpoint large.
const ERRORS_BYTES_MAX: usize = 64 << 10;

const KEY: u8 = 1;
const IN_FLIGHT: u8 = 2;
const REDELIVERY: u8 = 4;
const DERIVED_DELIVERED: u8 = 8;
const TRIED: u8 = 16;
const FLAGS: u8 = 31;

/// An unsettled event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The event.
    pub seq: u64,
    /// Its key.
    pub key: Option<Key>,
    /// Its size.
    pub bytes: u32,
    /// Attempts that failed.
    pub attempts: u32,
    /// Losses of the connection while it was leased.
    pub losses: u8,
    /// When its retry is due; 0 = none.
    pub due: Micros,
    /// Whether it is leased; for readers, a new owner queues it again.
    pub in_flight: bool,
    /// Whether it was settled before.
    pub redelivery: bool,
    /// Whether an ack needs no exception.
    pub derived_delivered: bool,
    /// Error of its last attempt; may be empty.
    pub error: Arc<str>,
}

impl Saved {
    /// Whether nothing was done with it yet.
    fn is_plain(&self) -> bool {
        self.attempts == 0
            && self.losses == 0
            && self.due == 0
            && !self.in_flight
            && !self.redelivery
    }
}

impl Leasing {
    /// The same as [`Leasing::save`] without the newest events that were read ahead and never
    /// leased: a new owner reads them again. So what is stored grows with what is under way, not
    /// with what waits.
    ///
    /// The cursor does not go back behind an event that is settled, which would be forgotten. Nor
    /// are events left out that wait behind another one of their key, so that others can say so.
    pub fn save_short(&mut self) -> (Position, Vec<Saved>) {
        let (mut position, mut unsettled) = self.save();
        let mut keys: HashMap<u64, usize> = HashMap::new();
        for key in unsettled.iter().filter_map(|event| event.key) {
            *keys.entry(key.0).or_default() += 1;
        }
        while let Some(last) = unsettled.last() {
            let alone = last.key.is_none_or(|key| keys.get(&key.0) == Some(&1));
            let newest = last.seq > position.floor.max(self.settled_through);
            if !last.is_plain() || !alone || !newest {
                break;
            }
            position.cursor = last.seq - 1;
            unsettled.pop();
        }
        (position, unsettled)
    }
}

/// Bytes that are no packed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged(&'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stored unsettled events are damaged: {}", self.0)
    }
}

impl std::error::Error for Damaged {}

/// Packs events in rising sequence.
pub fn pack(events: &[Saved]) -> Vec<u8> {
    if events.is_empty() {
        // Who looks for subscriptions with something to do asks for the length.
        return Vec::new();
    }
    let (errors, places) = errors(events);
    let mut packed = Vec::with_capacity(16 + events.len() * 16);
    put(&mut packed, VERSION);
    put(&mut packed, errors.len() as u64);
    for error in errors {
        put(&mut packed, error.len() as u64);
        packed.extend_from_slice(error.as_bytes());
    }
    put(&mut packed, events.len() as u64);
    let mut before = 0;
    for event in events {
        let place = places.get(&*event.error).copied().unwrap_or(0);
        put_event(&mut packed, event, before, place);
        before = event.seq;
    }
    packed
}

/// The distinct errors as far as they fit, and the place of each, from 1.
fn errors(events: &[Saved]) -> (Vec<&str>, HashMap<&str, u64>) {
    let mut errors = Vec::new();
    let mut places = HashMap::new();
    let mut bytes = 0;
    for event in events {
        let error = &*event.error;
        let fits = bytes + error.len() <= ERRORS_BYTES_MAX;
        if !error.is_empty() && fits && !places.contains_key(error) {
            bytes += error.len();
            errors.push(error);
            places.insert(error, errors.len() as u64);
        }
    }
    (errors, places)
}

fn put_event(packed: &mut Vec<u8>, event: &Saved, before: u64, error: u64) {
    let tried = event.attempts > 0 || event.losses > 0 || event.due != 0 || error > 0;
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    put(packed, event.seq.wrapping_sub(before));
    packed.push(
        flag(event.key.is_some(), KEY)
            | flag(event.in_flight, IN_FLIGHT)
            | flag(event.redelivery, REDELIVERY)
            | flag(event.derived_delivered, DERIVED_DELIVERED)
            | flag(tried, TRIED),
    );
    if let Some(Key(key)) = event.key {
        packed.extend_from_slice(&key.to_le_bytes());
    }
    put(packed, u64::from(event.bytes));
    if tried {
        put(packed, u64::from(event.attempts));
        packed.push(event.losses);
        put(packed, event.due as u64);
        put(packed, error);
    }
}

fn put(packed: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        packed.push(number as u8 | 0x80);
        number >>= 7;
    }
    packed.push(number as u8);
}

/// What [`pack`] packed. No bytes at all are no events.
pub fn unpack(packed: &[u8]) -> Result<Vec<Saved>, Damaged> {
    if packed.is_empty() {
        return Ok(Vec::new());
    }
    let mut rest = Rest(packed);
    if rest.number()? != VERSION {
        return Err(Damaged("unknown version"));
    }
    let mut errors: Vec<Arc<str>> = vec![Arc::from("")];
    for _ in 0..rest.count()? {
        let length = rest.count()?;
        let error = std::str::from_utf8(rest.bytes(length)?);
        errors.push(Arc::from(error.map_err(|_| Damaged("not UTF-8"))?));
    }
    let count = rest.count()?;
    let mut events = Vec::with_capacity(count);
    let mut before = 0;
    for _ in 0..count {
        let event = rest.event(before, &errors)?;
        before = event.seq;
        events.push(event);
    }
    if rest.0.is_empty() {
        Ok(events)
    } else {
        Err(Damaged("too long"))
    }
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn event(&mut self, before: u64, errors: &[Arc<str>]) -> Result<Saved, Damaged> {
        let seq = before.checked_add(self.number()?);
        let seq = seq.filter(|seq| *seq > before);
        let seq = seq.ok_or(Damaged("not in rising sequence"))?;
        let flags = self.byte()?;
        let is = |flag: u8| flags & flag != 0;
        if flags & !FLAGS != 0 {
            return Err(Damaged("unknown flag"));
        }
        let mut event = Saved {
            seq,
            key: if is(KEY) { Some(self.key()?) } else { None },
            bytes: self.small()?,
            attempts: 0,
            losses: 0,
            due: 0,
            in_flight: is(IN_FLIGHT),
            redelivery: is(REDELIVERY),
            derived_delivered: is(DERIVED_DELIVERED),
            error: errors[0].clone(),
        };
        if is(TRIED) {
            event.attempts = self.small()?;
            event.losses = self.byte()?;
            event.due = self.number()? as Micros;
            let error = errors.get(self.small()? as usize);
            event.error = error.ok_or(Damaged("no such error"))?.clone();
        }
        Ok(event)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Damaged("too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Damaged> {
        Ok(self.bytes(1)?[0])
    }

    fn key(&mut self) -> Result<Key, Damaged> {
        let mut key = [0; 8];
        key.copy_from_slice(self.bytes(8)?);
        match u64::from_le_bytes(key) {
            0 => Err(Damaged("a key of 0")),
            key => Ok(Key(key)),
        }
    }

    fn number(&mut self) -> Result<u64, Damaged> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged("a number is too large"))
    }

    fn small(&mut self) -> Result<u32, Damaged> {
        let number = u32::try_from(self.number()?);
        number.map_err(|_| Damaged("a number is too large"))
    }

    /// A count of things of at least one byte each, so that damage cannot ask for much memory.
    fn count(&mut self) -> Result<usize, Damaged> {
        let count = usize::try_from(self.number()?).ok();
        let count = count.filter(|count| *count <= self.0.len());
        count.ok_or(Damaged("too short"))
    }
}
