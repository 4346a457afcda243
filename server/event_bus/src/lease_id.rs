//! The text that names a lease: tenant, sequence, owner's epoch and number, as hexadecimal digits
//! joined by "-". It is no secret: whoever may acknowledge for a subscription may know its leases.

use hub_core::journal::TenantRef;

use crate::leasing::LeaseId;

/// Writes the text of a lease.
pub(crate) fn write(tenant: &TenantRef, id: LeaseId) -> String {
    format!(
        "{:x}-{:x}-{:x}-{:x}",
        tenant.number(),
        id.seq,
        id.epoch,
        id.number
    )
}

/// Number of the tenant and lease in a text; `None` if it is none of ours.
pub(crate) fn read(text: &str) -> Option<(i64, LeaseId)> {
    // Digits as they are written, so that one lease has one text.
    let number = |part: &str| {
        let digits = part.bytes();
        let plain = digits
            .clone()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let short = part.len() == 1 || !part.starts_with('0');
        let value = u64::from_str_radix(part, 16).ok();
        value.filter(|_| plain && short)
    };
    let mut parts = text.split('-');
    let mut next = || parts.next().and_then(number);
    let (tenant, seq, epoch, count) = (next()?, next()?, next()?, next()?);
    if parts.next().is_some() {
        return None;
    }
    let id = LeaseId {
        seq,
        epoch,
        number: count,
    };
    Some((i64::try_from(tenant).ok()?, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_has_one_text_and_nothing_else_is_read() {
        let id = LeaseId {
            seq: 4711,
            epoch: 3,
            number: 18,
        };
        let text = write(&TenantRef::new(7, "tnt_7"), id);
        assert_eq!(text, "7-1267-3-12");
        assert_eq!(read(&text), Some((7, id)));
        for other in [
            "",
            "7-1267-3",
            "7-1267-3-12-1",
            "7-1267-3-",
            "7-1267-3-+12",
            "07-1267-3-12",
            "7-1267-3-1G",
            "7-1267-3-AB",
            "7-1267-3-fffffffffffffffff",
            "ffffffffffffffff-1-1-1",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
