//! Who may call which RPC, from the option `hub.options.v1.policy` of every RPC.

/// What the hub enforces before a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodPolicy {
    /// Path on the wire, `/hub.event_bus.v1.EventBus/Publish`.
    pub path: &'static str,
    /// Short name, `hub.event_bus.v1.EventBus/Publish`.
    pub method: &'static str,
    /// Scope that the key needs; empty = any valid key.
    pub scope: &'static str,
    /// Only an operator key may call it.
    pub operator_only: bool,
    /// The key must speak for a product.
    pub product_required: bool,
    /// A key without a tenant need not name one.
    pub all_tenants: bool,
    /// No key is needed.
    pub public: bool,
    /// Requests are a stream.
    pub client_streaming: bool,
    /// Responses are a stream.
    pub server_streaming: bool,
}

static POLICIES: &[MethodPolicy] = include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// The policies of all RPCs, sorted by path.
pub fn method_policies() -> &'static [MethodPolicy] {
    POLICIES
}

/// The policy of the RPC with this path.
pub fn method_policy(path: &str) -> Option<&'static MethodPolicy> {
    let index = POLICIES
        .binary_search_by(|policy| policy.path.cmp(path))
        .ok()?;
    POLICIES.get(index)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Short names of all RPCs in the descriptor set.
    fn declared_methods() -> Vec<String> {
        let set = prost_types::FileDescriptorSet::decode(crate::DESCRIPTOR_SET).unwrap();
        let mut names = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                names.extend(
                    service
                        .method
                        .iter()
                        .map(|m| format!("{name}/{}", m.name())),
                );
            }
        }
        names.sort();
        names
    }

    #[test]
    fn every_rpc_has_a_policy_and_is_found_by_its_path() {
        let methods: Vec<_> = method_policies()
            .iter()
            .map(|policy| policy.method)
            .collect();
        assert_eq!(methods, declared_methods());
        for policy in method_policies() {
            assert_eq!(method_policy(policy.path), Some(policy));
            assert_eq!(policy.path.strip_prefix('/'), Some(policy.method));
        }
        assert_eq!(method_policy("/hub.event_bus.v1.EventBus/Unknown"), None);
    }

    #[test]
    fn publishing_needs_a_product_and_its_scope() {
        let policy = method_policy("/hub.event_bus.v1.EventBus/PublishStream").unwrap();
        assert_eq!(policy.scope, "hub:events.publish");
        assert!(policy.product_required && policy.all_tenants && policy.client_streaming);
        assert!(!policy.operator_only && !policy.public);
    }

    #[test]
    fn scopes_are_of_the_hub() {
        for policy in method_policies() {
            assert!(
                policy.scope.is_empty() || policy.scope.starts_with("hub:"),
                "{policy:?}"
            );
        }
    }
}
