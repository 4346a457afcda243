//! What Envoy may leave out, and what only looks like Envoy: denied, and no harm done.

use http::Method;
use hub_proto::envoy::service::auth::v3::{AttributeContext, CheckRequest, HeaderMap, HeaderValue};
use prost::Message;
use tonic::Code;

use super::ext_authz::{Asked, Denial, bearer, check, denied, passed_on, tickets};
use super::{create, new_key};
use crate::support::{TestHub, frame, post_grpc, request};

const CHECK: &str = "envoy.service.auth.v3.Authorization/Check";

both_databases! {
    async fn an_envoy_that_asks_wrongly_lets_nothing_through(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:*"]).await);
        for (product, action, reason) in [
            ("", "tickets.read", "FIELD_INVALID"),
            ("psa", "", "FIELD_INVALID"),
            ("psa", "*", "FIELD_INVALID"),
            ("psa", "tickets.*", "FIELD_INVALID"),
            ("p*", "tickets.read", "FIELD_INVALID"),
            ("pas", "tickets.read", "PRODUCT_NOT_FOUND"),
        ] {
            let denial = denied(&hub, &Asked { product, action, ..tickets(&key) }).await;
            assert_eq!((denial.status, denial.reason()), (500, reason), "{product} {action}");
            assert_eq!(denial.code, Code::Internal);
        }
        // A caller's headers are no configuration.
        let mut asked = tickets(&key);
        let action = ("action", "tickets.read".to_owned());
        asked.headers.extend([("product", "psa".to_owned()), action]);
        let mut request = asked.check();
        request.attributes.as_mut().unwrap().context_extensions.clear();
        assert_eq!(Denial::of(check(&hub, request).await).status, 500);
    }

    async fn what_is_missing_is_denied(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:*"]).await);
        let whole = tickets(&key).check();
        let without = |change: fn(&mut AttributeContext)| {
            let mut request = whole.clone();
            change(request.attributes.as_mut().unwrap());
            request
        };
        for (request, status) in [
            (CheckRequest::default(), 500),
            (CheckRequest { attributes: Some(AttributeContext::default()) }, 500),
            (without(|attributes| attributes.context_extensions.clear()), 500),
            (without(|attributes| attributes.request = None), 401),
            (without(|attributes| attributes.request.as_mut().unwrap().http = None), 401),
        ] {
            let denial = Denial::of(check(&hub, request.clone()).await);
            assert_eq!(denial.status, status, "{request:?}");
        }
        passed_on(check(&hub, without(|attributes| attributes.source = None)).await);

        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut everywhere = new_key("everywhere", &["psa:*"]);
        everywhere.allowed_cidrs = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        let everywhere = create(&admin, everywhere).await.unwrap().plaintext;
        let mut request = tickets(&bearer(&everywhere)).check();
        passed_on(check(&hub, request.clone()).await);
        request.attributes.as_mut().unwrap().source = None;
        let denial = Denial::of(check(&hub, request).await);
        assert_eq!((denial.status, denial.reason()), (403, "IP_NOT_ALLOWED"));

        let mut request = whole;
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap();
        http.http.as_mut().unwrap().host.clear();
        let denial = Denial::of(check(&hub, request).await);
        assert_eq!((denial.status, denial.reason()), (403, "BASE_URL_MISMATCH"));
    }

    async fn raw_headers_are_read_like_those_that_are_joined(hub: TestHub) {
        let key = hub.key("", &["psa:*"]).await;
        let raw = |headers: &[(&str, &[u8])]| {
            let header = |(key, value): &(&str, &[u8])| HeaderValue {
                key: (*key).to_owned(),
                raw_value: value.to_vec().into(),
                ..HeaderValue::default()
            };
            let mut request = tickets("").check();
            let attributes = request.attributes.as_mut().unwrap();
            let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
            http.headers.clear();
            http.header_map = Some(HeaderMap {
                headers: headers.iter().map(header).collect(),
            });
            request
        };
        let own = bearer(&key);
        let own = own.as_bytes();
        let path: (&str, &[u8]) = (":path", b"/");
        passed_on(check(&hub, raw(&[path, ("authorization", own)])).await);
        passed_on(check(&hub, raw(&[path, ("Authorization", own), ("x-n", b"\xff\0")])).await);
        for headers in [
            &[("authorization", own), ("authorization", own)][..],
            &[("authorization", own), ("AUTHORIZATION", b"")],
            &[("authorization", own), ("authorization", b"\xff\0\n")],
            &[("authorization", b"\xff\0\n")],
            &[("authorization", own), ("x-api-key", b"\0")],
        ] {
            let denial = Denial::of(check(&hub, raw(headers)).await);
            assert_eq!((denial.status, denial.reason()), (401, "KEY_MALFORMED"), "{headers:?}");
        }
    }

    async fn a_question_that_is_none_ends_in_an_error_and_harms_nothing(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:*"]).await);
        let whole = tickets(&key).check();
        for (body, code) in [
            (frame(b"\xff\xff"), Code::InvalidArgument),
            (frame(b"\x0a\x02\x0a"), Code::InvalidArgument),
            (frame(b"\x0a\x04\x22\x02\x12\xff"), Code::InvalidArgument),
            (frame(&[0; 300_000]), Code::ResourceExhausted),
        ] {
            let answer = post_grpc(hub.addr, CHECK, &[], body).await;
            assert_eq!(answer.grpc_status().code(), code, "{answer:?}");
        }
        // Fields that are not known are skipped.
        let mut unknown = whole.encode_to_vec();
        unknown.extend(b"\xa2\x1f\x03abc\x98\x27\x01");
        let answer = post_grpc(hub.addr, CHECK, &[], frame(&unknown)).await;
        assert_eq!(answer.grpc_status().code(), Code::Ok, "{answer:?}");

        let mut many = whole.clone();
        let http = many.attributes.as_mut().unwrap().request.as_mut().unwrap();
        let http = http.http.as_mut().unwrap();
        http.headers.extend((0..10_000).map(|number| (format!("x-{number}"), String::new())));
        passed_on(check(&hub, many.clone()).await);
        let http = many.attributes.as_mut().unwrap().request.as_mut().unwrap();
        let again = HeaderValue { key: "authorization".to_owned(), ..HeaderValue::default() };
        http.http.as_mut().unwrap().headers.clear();
        http.http.as_mut().unwrap().header_map = Some(HeaderMap { headers: vec![again; 15_000] });
        let denial = Denial::of(check(&hub, many).await);
        assert_eq!((denial.status, denial.reason()), (401, "KEY_MALFORMED"));
        passed_on(check(&hub, whole).await);
    }

    async fn each_question_is_counted_by_its_name(hub: TestHub) {
        Denial::of(check(&hub, CheckRequest::default()).await);
        let metrics = request(hub.addr, Method::GET, "/metrics", &[], "").await;
        let labels = r#"grpc_service="envoy.service.auth.v3.Authorization""#;
        let handled = metrics.text().lines().any(|line| {
            line.starts_with("grpc_server_handled_total{")
                && line.contains(labels)
                && line.contains(r#"grpc_method="Check""#)
                && line.contains(r#"grpc_code="OK""#)
        });
        assert!(handled, "{}", metrics.text());
    }
}
