//! Every reason that an error of the hub can carry, from the `ErrorReason` enums.

/// A reason of `google.rpc.ErrorInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Domain, `hub.core`.
    pub domain: &'static str,
    /// Name, `FIELD_INVALID`.
    pub name: &'static str,
    /// Number of the enum value.
    pub number: i32,
    /// What it means and what to do: code, metadata and advice in one paragraph.
    pub comment: &'static str,
}

static REASONS: &[Reason] = include!(concat!(env!("OUT_DIR"), "/reasons.rs"));

/// All reasons by domain and number.
pub fn reasons() -> &'static [Reason] {
    REASONS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_their_code_and_domain() {
        let invalid = reasons()
            .iter()
            .find(|r| r.domain == "hub.core" && r.number == 1)
            .unwrap();
        assert_eq!(invalid.name, "FIELD_INVALID");
        assert!(
            invalid
                .comment
                .starts_with("INVALID_ARGUMENT; BadRequest lists the fields.")
        );
        assert!(reasons().iter().any(|r| r.domain == "hub.entity_sync"));
        assert!(reasons().iter().all(|r| !r.comment.is_empty()));
    }
}
