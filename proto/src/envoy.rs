//! Envoy's external authorization: the few messages of it that the hub reads and writes.
//!
//! They are not in [`DESCRIPTOR_SET`](crate::DESCRIPTOR_SET): whoever calls it has Envoy's protos,
//! which are whole. As a crate (`envoy-types`), those would be half a minute of compiling.

use crate::validate::{Path, Validate, Violations};

/// `envoy.service`.
pub mod service {
    /// `envoy.service.auth`.
    pub mod auth {
        /// `envoy.service.auth.v3`.
        #[allow(missing_docs, clippy::all, clippy::too_many_lines, rustdoc::all)]
        pub mod v3 {
            include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.rs"));
        }
    }
}

use service::auth::v3::CheckRequest;

/// Envoy's protos have no rules of ours. What is missing is a denial, which only the domain makes.
impl Validate for CheckRequest {
    fn validate(&self, _: &mut Path, _: &mut Violations) {}
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::value::Kind;
    use prost_types::{Struct, Value};

    use super::service::auth::v3::check_response::HttpResponse;
    use super::service::auth::v3::*;

    /// Each field that Envoy's own protos have, as those encode it.
    const REQUEST: &str = "\
        0ae1010a240a110a0f12093139322e302e322e3118c0b8021201731a060a01611201622201702a016312230a\
        100a0e120831302e302e302e3118c0b8021201731a060a01611201622201702a016322640a060880f2d6ca06\
        125a0a013112034745541a190a0d617574686f72697a6174696f6e1208426561726572206b22042f743f712a\
        01683205687474707348ffffffffffffffffff015206485454502f325a01626201016a0c0a0a0a05782d7261\
        771a01ff520e0a0770726f6475637412037073615a170a150a016612100a0e0a0161120911000000000000f0\
        3f62030a016e6a00";
    const PASSED_ON: &str = "\
        0a0312016d1a1f120c0a060a0161120162120018022a0172320c0a060a016312016412001802220e0a0c0a04\
        636f646512041a024f4b";
    const DENIED: &str = "0a05080812016d12160a0308ad03120c0a060a0161120162120018021a0178";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().collect();
        let byte = |two: &[char]| u8::from_str_radix(&two.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn set(key: &str, value: &str) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(HeaderValue {
                key: key.to_owned(),
                value: value.to_owned(),
                ..HeaderValue::default()
            }),
            append: Some(false),
            append_action: 2,
        }
    }

    #[test]
    fn what_envoy_sends_is_read_and_the_rest_skipped() {
        let request = CheckRequest::decode(&*bytes(REQUEST)).unwrap();
        let attributes = request.attributes.unwrap();
        let address = attributes.source.unwrap().address.unwrap();
        assert_eq!(address.socket_address.unwrap().address, "192.0.2.1");
        assert_eq!(attributes.context_extensions["product"], "psa");
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!((&*http.host, &*http.path), ("h", "/t?q"));
        assert_eq!(http.headers["authorization"], "Bearer k");
        let raw = &http.header_map.unwrap().headers[0];
        assert_eq!((&*raw.key, &*raw.raw_value), ("x-raw", &[0xff][..]));
    }

    #[test]
    fn what_envoy_is_answered_has_the_bytes_of_its_own_protos() {
        let code = Value {
            kind: Some(Kind::StringValue("OK".to_owned())),
        };
        let passed_on = CheckResponse {
            status: Some(Status {
                code: 0,
                message: "m".to_owned(),
            }),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![set("a", "b")],
                headers_to_remove: vec!["r".to_owned()],
                response_headers_to_add: vec![set("c", "d")],
            })),
            dynamic_metadata: Some(Struct {
                fields: [("code".to_owned(), code)].into(),
            }),
        };
        assert_eq!(passed_on.encode_to_vec(), bytes(PASSED_ON));
        let denied = CheckResponse {
            status: Some(Status {
                code: 8,
                message: "m".to_owned(),
            }),
            http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code: 429 }),
                headers: vec![set("a", "b")],
                body: "x".to_owned(),
            })),
            dynamic_metadata: None,
        };
        assert_eq!(denied.encode_to_vec(), bytes(DENIED));
    }

    #[test]
    fn a_key_in_a_header_is_not_shown() {
        let request = CheckRequest::decode(&*bytes(REQUEST)).unwrap();
        let shown = format!("{request:?} {:?}", set("authorization", "Bearer k"));
        assert!(shown.contains("192.0.2.1"), "{shown}");
        assert!(!shown.contains("Bearer"), "{shown}");
    }
}
