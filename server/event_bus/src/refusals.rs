//! What publishing refused of late, or had stored before: not in the log, so that who looks there
//! for an event would not learn why it never came. Each process remembers the last ones of its own;
//! nothing of the data of an event is kept.

mod asking;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hub_core::clock::{Clock, Micros};
use hub_core::error::Error;
use hub_core::journal::TenantRef;
use hub_proto::wire::{CloudEventView, attribute_value::Attr};
use prost::Message;

pub(crate) use asking::{all, router};

/// Refusals that a process remembers, of all tenants.
const REMEMBERED_MAX: usize = 1000;
/// Of one tenant, so that a broken publisher does not make those of others forgotten.
const OF_TENANT_MAX: usize = 100;
/// Longest text that is kept of each part, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// An event that was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    tenant_no: i64,
    /// Slug of the product that sent it.
    pub(crate) product: String,
    /// Its type, as far as it can be read.
    pub(crate) kind: String,
    /// Its subject; empty if it has none.
    pub(crate) subject: String,
    /// When it came.
    pub(crate) time: Micros,
    pub(crate) why: Why,
}

/// Why it was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It was refused.
    Refused {
        /// The reason that its publisher was told.
        reason: String,
        message: String,
    },
    /// Its source and id were used before.
    Repeated {
        /// The first event.
        seq: u64,
        /// The content is the same: its publisher was told that it is stored.
        same: bool,
    },
}

/// The last ones, the newest at the end.
pub(crate) struct Refusals {
    clock: Clock,
    last: Mutex<VecDeque<Refusal>>,
}

impl Refusals {
    pub(crate) fn new(clock: Clock) -> Refusals {
        Refusals {
            clock,
            last: Mutex::default(),
        }
    }

    /// An event was refused.
    pub(crate) fn refused(&self, tenant: &TenantRef, product: &str, event: &Bytes, why: &Error) {
        let (kind, subject) = described(event);
        self.add(Refusal {
            tenant_no: tenant.number(),
            product: product.to_owned(),
            kind,
            subject,
            time: self.clock.now(),
            why: Why::Refused {
                reason: why.reason().to_owned(),
                message: cut(why.message().to_owned()),
            },
        });
    }

    /// An event has the source and id of the one at `seq`.
    pub(crate) fn repeated(&self, tenant: &TenantRef, product: &str, seq: u64, same: bool) {
        self.add(Refusal {
            tenant_no: tenant.number(),
            product: product.to_owned(),
            kind: String::new(),
            subject: String::new(),
            time: self.clock.now(),
            why: Why::Repeated { seq, same },
        });
    }

    /// Those of a tenant within a time, the newest first.
    pub(crate) fn between(&self, tenant: &TenantRef, from: Micros, to: Micros) -> Vec<Refusal> {
        let last = self.lock();
        let mine = last.iter().rev();
        let mine = mine.filter(|one| one.tenant_no == tenant.number());
        let mine = mine.filter(|one| (from..=to).contains(&one.time));
        mine.cloned().collect()
    }

    fn add(&self, refusal: Refusal) {
        let mut last = self.lock();
        let of_tenant = |one: &Refusal| one.tenant_no == refusal.tenant_no;
        let oldest = match last.iter().filter(|one| of_tenant(one)).count() {
            count if count >= OF_TENANT_MAX => last.iter().position(of_tenant),
            _ if last.len() >= REMEMBERED_MAX => Some(0),
            _ => None,
        };
        if let Some(oldest) = oldest {
            last.remove(oldest);
        }
        last.push_back(refusal);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Type and subject, as far as they can be read.
fn described(event: &Bytes) -> (String, String) {
    let Ok(view) = CloudEventView::decode(event.clone()) else {
        return (String::new(), String::new());
    };
    let text = |bytes: &[u8]| cut(String::from_utf8_lossy(bytes).into_owned());
    let mut attributes = view.attributes.iter().rev();
    let subject = attributes.find(|entry| entry.key == b"subject"[..]);
    let subject = subject.and_then(|entry| entry.value.as_ref()?.attr.as_ref());
    let subject = match subject {
        Some(Attr::CeString(subject)) => text(subject),
        _ => String::new(),
    };
    (text(&view.r#type), subject)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(refusals: &Refusals, tenant: &TenantRef) -> Vec<u64> {
        let found = refusals.between(tenant, 0, Micros::MAX).into_iter();
        let seqs = found.map(|refusal| match refusal.why {
            Why::Repeated { seq, .. } => seq,
            Why::Refused { .. } => 0,
        });
        seqs.collect()
    }

    #[test]
    fn the_last_ones_of_each_tenant_are_remembered() {
        let refusals = Refusals::new(Clock::manual(1));
        let tenants = [TenantRef::new(1, "tnt_1"), TenantRef::new(2, "tnt_2")];
        refusals.repeated(&tenants[1], "psa", 7, true);
        for seq in 1..=OF_TENANT_MAX as u64 + 5 {
            refusals.repeated(&tenants[0], "psa", seq, true);
        }
        let mine = seqs(&refusals, &tenants[0]);
        assert_eq!(
            (mine.len(), mine[0]),
            (OF_TENANT_MAX, OF_TENANT_MAX as u64 + 5)
        );
        assert_eq!(seqs(&refusals, &tenants[1]), [7]);
        for number in 3..3 + REMEMBERED_MAX as i64 {
            refusals.repeated(&TenantRef::new(number, "tnt"), "psa", 1, false);
        }
        assert!(seqs(&refusals, &tenants[1]).is_empty());
        assert_eq!(refusals.lock().len(), REMEMBERED_MAX);
    }

    #[test]
    fn a_refused_event_is_described_without_its_data() {
        let mut event = hub_proto::hub::event_bus::v1::CloudEvent {
            r#type: "ticket.created".to_owned(),
            ..Default::default()
        };
        use hub_proto::hub::event_bus::v1::cloud_event::{
            CloudEventAttributeValue, Data, cloud_event_attribute_value::Attr,
        };
        let subject = CloudEventAttributeValue {
            attr: Some(Attr::CeString("ticket/42".to_owned())),
        };
        event.attributes.insert("subject".to_owned(), subject);
        event.data = Some(Data::TextData("a secret".to_owned()));
        let refusals = Refusals::new(Clock::manual(5));
        let tenant = TenantRef::new(1, "tnt_1");
        let why = Error::field("a", "is wrong");
        refusals.refused(&tenant, "psa", &event.encode_to_vec().into(), &why);
        refusals.refused(&tenant, "psa", &Bytes::from_static(b"\xff"), &why);
        let found = refusals.between(&tenant, 5, 5);
        assert_eq!(
            (&*found[1].kind, &*found[1].subject),
            ("ticket.created", "ticket/42")
        );
        assert_eq!((&*found[0].kind, &*found[0].subject), ("", ""));
        assert!(!format!("{found:?}").contains("secret"));
        assert!(refusals.between(&tenant, 6, 9).is_empty());
    }
}
