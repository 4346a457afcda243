//! Tables of call policies and error reasons.

use std::fmt::Write;

use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, EnumValueDescriptor, MethodDescriptor, prost_types,
};

const POLICY: &str = "hub.options.v1.policy";

/// `MethodPolicy` literals sorted by path.
pub fn policies(pool: &DescriptorPool) -> String {
    let extension = pool
        .get_extension_by_name(POLICY)
        .expect("the policy option is declared");
    let mut methods: Vec<(String, MethodDescriptor)> = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            (
                format!("{}/{}", method.parent_service().full_name(), method.name()),
                method,
            )
        })
        .collect();
    methods.sort_by(|a, b| a.0.cmp(&b.0));

    let mut out = String::from("&[\n");
    for (name, method) in methods {
        let options = method.options();
        assert!(options.has_extension(&extension), "{name} has no {POLICY}");
        let value = options.get_extension(&extension);
        let policy = value.as_message().expect("the policy is a message");
        writeln!(out, "    MethodPolicy {{").unwrap();
        writeln!(out, "        path: \"/{name}\",\n        method: {name:?},").unwrap();
        let scope = policy.get_field_by_name("scope").unwrap();
        writeln!(out, "        scope: {:?},", scope.as_str().unwrap()).unwrap();
        for flag in ["operator_only", "product_required", "all_tenants", "public"] {
            writeln!(out, "        {flag}: {},", is_set(policy, flag)).unwrap();
        }
        writeln!(
            out,
            "        client_streaming: {},",
            method.is_client_streaming()
        )
        .unwrap();
        writeln!(
            out,
            "        server_streaming: {},",
            method.is_server_streaming()
        )
        .unwrap();
        out.push_str("    },\n");
    }
    out.push_str("]\n");
    out
}

fn is_set(policy: &DynamicMessage, flag: &str) -> bool {
    policy
        .get_field_by_name(flag)
        .and_then(|value| value.as_bool())
        .expect("a flag of the policy")
}

/// `Reason` literals of every `ErrorReason` enum, by package and number.
pub fn reasons(pool: &DescriptorPool) -> String {
    let mut enums: Vec<_> = pool
        .all_enums()
        .filter(|descriptor| descriptor.name() == "ErrorReason")
        .collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));

    let mut out = String::from("&[\n");
    for descriptor in enums {
        let package = descriptor.package_name();
        let domain = package
            .strip_suffix(".v1")
            .expect("packages end with their version");
        for value in descriptor.values().filter(|value| value.number() != 0) {
            let name = value
                .name()
                .strip_prefix("ERROR_REASON_")
                .expect("values have the prefix");
            writeln!(
                out,
                "    Reason {{ domain: {domain:?}, name: {name:?}, number: {}, comment: {:?} }},",
                value.number(),
                comment(&value),
            )
            .unwrap();
        }
    }
    out.push_str("]\n");
    out
}

/// The comment above a value, as one line.
fn comment(value: &EnumValueDescriptor) -> String {
    let file = value.parent_enum().parent_file();
    let info: Option<&prost_types::SourceCodeInfo> =
        file.file_descriptor_proto().source_code_info.as_ref();
    let location = info
        .and_then(|info| {
            info.location
                .iter()
                .find(|location| location.path == value.path())
        })
        .unwrap_or_else(|| panic!("{} has no source location", value.full_name()));
    let text = location.leading_comments();
    assert!(
        !text.trim().is_empty(),
        "{} has no comment",
        value.full_name()
    );
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
