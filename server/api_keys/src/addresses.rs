//! Addresses that a key may be used from.

use std::net::IpAddr;

/// A block of addresses, `10.0.0.0/8` or `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    prefix: u32,
}

impl Cidr {
    /// Reads a block; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let malformed = || "must be a block of addresses such as 10.0.0.0/8 or 2001:db8::/32";
        let (base, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let base: IpAddr = base.parse().map_err(|_| malformed())?;
        let digits = (1..=3).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u32 = prefix
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(malformed)?;
        if prefix > bits(base) {
            return Err(format!("has a prefix longer than {} bits", bits(base)));
        }
        // An IPv4 client is always compared as IPv4.
        if base != base.to_canonical() {
            return Err("must be written as an IPv4 block".to_owned());
        }
        let cidr = Cidr { base, prefix };
        if cidr.network(base) != number(base) {
            return Err(format!(
                "has bits beyond its prefix of {prefix}; set them to 0"
            ));
        }
        Ok(cidr)
    }

    /// Whether the address is in the block; an IPv4-mapped one counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        bits(address) == bits(self.base) && self.network(address) == number(self.base)
    }

    /// Whether every address of another block is in this one.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    /// The address with everything beyond the prefix set to 0.
    fn network(&self, address: IpAddr) -> u128 {
        let host_bits = bits(address) - self.prefix;
        number(address)
            .checked_shr(host_bits)
            .and_then(|n| n.checked_shl(host_bits))
            .unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_addresses_and_no_others() {
        for (block, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.2", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1/128", "::1", true),
        ] {
            let cidr = Cidr::parse(block).unwrap();
            assert_eq!(
                cidr.contains(address.parse().unwrap()),
                inside,
                "{block} {address}"
            );
        }
    }

    #[test]
    fn what_is_no_block_is_refused_with_what_is_wrong() {
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::/129",
            "a/8",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/104",
            "10.0.0.0/0008",
            "1.2.3/24",
        ] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }
}
