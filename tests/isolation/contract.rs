//! Every RPC that there is, by the descriptors: a new one is called without being named here.

use hub_proto::policy::{MethodPolicy, method_policies};
use hub_server::modules;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, MessageDescriptor, Value,
};

/// An RPC.
#[derive(Clone)]
pub struct Rpc {
    pub policy: &'static MethodPolicy,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    /// It does something; all others answer `NOT_IMPLEMENTED`.
    pub built: bool,
}

/// What the protos say.
pub struct Contract {
    pub rpcs: Vec<Rpc>,
    rules: ExtensionDescriptor,
}

impl Contract {
    /// Reads the descriptors.
    pub fn read() -> Contract {
        let pool = DescriptorPool::decode(hub_proto::DESCRIPTOR_SET).unwrap();
        let rpcs = method_policies().iter().map(|policy| {
            let (service, method) = policy.method.split_once('/').unwrap();
            let service = pool.get_service_by_name(service).unwrap();
            let method = service
                .methods()
                .find(|found| found.name() == method)
                .unwrap();
            Rpc {
                policy,
                input: method.input(),
                output: method.output(),
                built: modules::is_built(policy.method),
            }
        });
        Contract {
            rpcs: rpcs.collect(),
            rules: pool.get_extension_by_name("hub.options.v1.rules").unwrap(),
        }
    }

    /// The RPC of this name.
    pub fn rpc(&self, method: &str) -> &Rpc {
        let found = self.rpcs.iter().find(|rpc| rpc.policy.method == method);
        found.unwrap_or_else(|| panic!("there is no {method}"))
    }

    /// A number that the rules of a field set, e.g. `max`; a flag is 1.
    pub fn rule(&self, field: &FieldDescriptor, name: &str) -> Option<i64> {
        match self.rules_of(field)?.get_field_by_name(name)?.as_ref() {
            Value::Bool(set) => set.then_some(1),
            Value::I64(number) => Some(*number),
            Value::U64(number) => i64::try_from(*number).ok().filter(|number| *number > 0),
            _ => None,
        }
    }

    /// The prefix of the ids that a field takes, e.g. `key_`.
    pub fn prefix(&self, field: &FieldDescriptor) -> Option<String> {
        let rules = self.rules_of(field)?;
        let pattern = rules.get_field_by_name("pattern")?.as_str()?.to_owned();
        let prefix: String = pattern
            .chars()
            .skip(1)
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect();
        prefix.ends_with('_').then_some(prefix)
    }

    fn rules_of(&self, field: &FieldDescriptor) -> Option<DynamicMessage> {
        let options = field.options();
        let rules = options
            .has_extension(&self.rules)
            .then(|| options.get_extension(&self.rules))?;
        rules.as_message().cloned()
    }
}

impl Rpc {
    /// `ListApiKeys` of `hub.api_keys.v1.ApiKeys/ListApiKeys`.
    pub fn name(&self) -> &'static str {
        self.policy.method.rsplit('/').next().unwrap()
    }

    /// It shows what is there and changes nothing.
    pub fn reads(&self) -> bool {
        let begins = |word: &&str| self.name().starts_with(word);
        ["Get", "List", "WhoAmI", "Subscribe", "Watch", "Explain"]
            .iter()
            .any(begins)
    }

    /// It answers in pages.
    pub fn pages(&self) -> bool {
        self.input.get_field_by_name("page_token").is_some()
    }
}
