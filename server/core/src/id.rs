//! Ids with a prefix that says what they name. New ones sort by time of creation.

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A new id such as `key_06exh9…`: the prefix and a UUIDv7 (RFC 9562) in Crockford base 32.
pub fn new(prefix: &str) -> String {
    of(prefix, uuid::Uuid::now_v7().as_u128())
}

/// The id with this number, e.g. a hash: for things that are found without asking a database.
pub fn of(prefix: &str, number: u128) -> String {
    let digits = base32::<26>(number);
    let mut id = String::with_capacity(prefix.len() + 1 + digits.len());
    id.push_str(prefix);
    id.push('_');
    id.extend(digits.map(char::from));
    id
}

/// Id of the event at `key` (tenant number and sequence in one number): no index is needed to
/// find the event again.
pub fn event(key: i64) -> String {
    let mut id = String::with_capacity(17);
    id.push_str("evt_");
    id.extend(event_digits(key).map(char::from));
    id
}

/// The key in an id made by [`event`]; `None` if it is none.
pub fn parse_event(id: &str) -> Option<i64> {
    let digits = id
        .strip_prefix("evt_")
        .filter(|digits| digits.len() == 13)?;
    let mut value: u128 = 0;
    for digit in digits.bytes() {
        let place = ALPHABET.iter().position(|letter| *letter == digit)?;
        value = value * 32 + place as u128;
    }
    i64::try_from(value).ok()
}

/// Writes the id of [`event`] without an allocation.
pub fn event_digits(key: i64) -> [u8; 13] {
    base32(u128::from(key.unsigned_abs()))
}

fn base32<const WIDTH: usize>(mut value: u128) -> [u8; WIDTH] {
    let mut digits = [b'0'; WIDTH];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(value % 32) as usize];
        value /= 32;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_leads_back_to_its_key() {
        for key in [1, (7 << 40) + 1, i64::MAX] {
            assert_eq!(parse_event(&event(key)), Some(key));
            assert_eq!(&event(key).as_bytes()[4..], &event_digits(key));
        }
        assert_eq!(of("job", 33), "job_00000000000000000000000011");
        assert_eq!(parse_event("evt_short"), None);
        assert_eq!(parse_event("sub_0000000000001"), None);
    }
}
