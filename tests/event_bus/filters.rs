//! Which events a reader gets: routing by the catalogue, and the reader's own filter.

use std::collections::BTreeMap;

use hub_client::Attr;
use hub_proto::hub::event_bus::v1::{EventFilter, SubscribeRequest};
use prost_types::Timestamp;

use super::{
    Product, attribute, earliest, event, from, ids, of_types, text, ticket, with_attributes,
};
use crate::support::TestHub;

async fn filtered(product: &Product, filter: EventFilter) -> Vec<String> {
    let request = SubscribeRequest {
        filter: Some(filter),
        stop_when_caught_up: true,
        ..from(earliest())
    };
    ids(&product.subscribe(request).await.rest().await.0)
}

fn of_attributes(conditions: &[(&str, &str)]) -> EventFilter {
    let conditions = conditions.iter();
    let attributes: BTreeMap<String, String> = conditions
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    EventFilter {
        attributes,
        ..EventFilter::default()
    }
}

both_databases! {
    async fn events_flow_as_the_catalogue_says(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Product::new(&hub, "crm").await;
        let rmm = Product::new(&hub, "rmm").await;
        let portal = Product::new(&hub, "portal").await;
        psa.publish(vec![ticket("ticket")]).await;
        rmm.publish(vec![event("alert.triggered", "alert")]).await;
        crm.publish(vec![event("company.updated", "company")]).await;
        psa.publish(vec![event("unheard.of", "unknown")]).await;
        assert_eq!(portal.dump_ids(earliest()).await, ["ticket", "company"]);
        assert_eq!(psa.dump_ids(earliest()).await, ["alert", "company"], "not its own");
        assert_eq!(crm.dump_ids(earliest()).await, [""; 0], "not tickets, not its own");
        assert_eq!(rmm.dump_ids(earliest()).await, ["company"]);
    }

    async fn a_type_outside_the_catalogue_goes_only_to_those_who_name_it(hub: TestHub) {
        let (psa, crm) = (Product::new(&hub, "psa").await, Product::new(&hub, "crm").await);
        psa.publish(vec![event("unheard.of", "a"), ticket("b")]).await;
        for (types, expected) in [
            (&[][..], &[][..]),
            (&["unheard.of"], &["a"]),
            (&["unheard.*"], &["a"]),
            (&["**"], &["a"]),
            // Naming a type of the catalogue does not route it.
            (&["ticket.created"], &[]),
            (&["ticket.created", "unheard.of"], &["a"]),
        ] {
            assert_eq!(filtered(&crm, of_types(types)).await, expected, "{types:?}");
        }
        assert_eq!(filtered(&psa, of_types(&["unheard.of"])).await, [""; 0], "its own");
    }

    async fn types_match_by_whole_segments(hub: TestHub) {
        let (psa, crm) = (Product::new(&hub, "psa").await, Product::new(&hub, "crm").await);
        let kinds = ["a", "a.b", "a.c", "a.b.c", "ab.c"];
        psa.publish(kinds.iter().map(|kind| event(kind, kind)).collect()).await;
        for (types, expected) in [
            (&["a"][..], &["a"][..]),
            (&["a.b"], &["a.b"]),
            (&["a.*"], &["a.b", "a.c"]),
            (&["*.c"], &["a.c", "ab.c"]),
            (&["a.**"], &["a", "a.b", "a.c", "a.b.c"]),
            (&["a.*.c"], &["a.b.c"]),
            (&["*.*.*", "a"], &["a", "a.b.c"]),
            (&["**"], &kinds),
            (&["x"], &[]),
        ] {
            assert_eq!(filtered(&crm, of_types(types)).await, expected, "{types:?}");
        }
    }

    async fn products_and_attributes_and_types_must_all_match(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Product::new(&hub, "crm").await;
        let portal = Product::new(&hub, "portal").await;
        let company = |id| event("company.updated", id);
        let subject = |id, value| with_attributes(company(id), &[("subject", text(value))]);
        psa.publish(vec![subject("p1", "company/1"), subject("p2", "company/12"), ticket("t")])
            .await;
        crm.publish(vec![subject("c1", "company/1"), company("c2")]).await;
        let of_products = |slugs: &[&str]| EventFilter {
            products: slugs.iter().map(|slug| (*slug).to_owned()).collect(),
            ..EventFilter::default()
        };
        assert_eq!(filtered(&portal, of_products(&["crm"])).await, ["c1", "c2"]);
        let both = filtered(&portal, of_products(&["crm", "psa"])).await;
        assert_eq!(both, ["p1", "p2", "t", "c1", "c2"]);
        assert_eq!(filtered(&portal, of_products(&["books"])).await, [""; 0]);
        let one = of_attributes(&[("subject", "company/1")]);
        assert_eq!(filtered(&portal, one.clone()).await, ["p1", "c1"]);
        let prefix = of_attributes(&[("subject", "company/1*")]);
        assert_eq!(filtered(&portal, prefix).await, ["p1", "p2", "c1"]);
        let all = EventFilter {
            types: of_types(&["company.*"]).types,
            products: vec!["psa".into()],
            ..one
        };
        assert_eq!(filtered(&portal, all).await, ["p1"]);
    }

    async fn attributes_are_compared_as_cloudevents_writes_them(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let time = Timestamp { seconds: 1_767_225_600, nanos: 0 };
        let attributes = [
            ("flag", attribute(Attr::CeBoolean(true))),
            ("count", attribute(Attr::CeInteger(-7))),
            ("blob", attribute(Attr::CeBytes(vec![0, 255].into()))),
            ("dataschema", attribute(Attr::CeUri("https://example.com/s".into()))),
            ("time", attribute(Attr::CeTimestamp(time))),
        ];
        psa.publish(vec![ticket("other"), with_attributes(ticket("a"), &attributes)]).await;
        for (name, value) in [
            ("flag", "true"),
            ("count", "-7"),
            ("blob", "AP8="),
            ("dataschema", "https://*"),
            ("time", "2026-01-01T00:00:00Z"),
            ("id", "a"),
        ] {
            let found = filtered(&portal, of_attributes(&[(name, value)])).await;
            assert_eq!(found, ["a"], "{name} {value}");
        }
        for conditions in [
            &[("flag", "false")][..],
            &[("flag", "true"), ("count", "7")],
            &[("absent", "*")],
        ] {
            let found = filtered(&portal, of_attributes(conditions)).await;
            assert_eq!(found, [""; 0], "{conditions:?}");
        }
        let own = [("source", "/test"), ("type", "ticket.*"), ("specversion", "1.0")];
        let all = of_attributes(&own);
        assert_eq!(filtered(&portal, all).await, ["other", "a"]);
    }

    async fn a_malformed_filter_is_refused_with_its_place(hub: TestHub) {
        let portal = Product::new(&hub, "portal").await;
        let of_product = |slug: &str| EventFilter {
            products: vec![slug.to_owned()],
            ..EventFilter::default()
        };
        for (filter, pattern, position) in [
            (of_types(&["a", ""]), "", "0"),
            (of_types(&["a..b"]), "a..b", "2"),
            (of_types(&["**.b"]), "**.b", "0"),
            (of_types(&["a.b*"]), "a.b*", "2"),
            (of_types(&["a b"]), "a b", "0"),
            (of_product("No Product"), "No Product", "0"),
            (of_attributes(&[("Upper", "x")]), "Upper", "0"),
            (of_attributes(&[("subject", "a*b")]), "a*b", "1"),
        ] {
            let request = SubscribeRequest { filter: Some(filter), ..Default::default() };
            let error = portal.try_subscribe(request).await.err().expect("it is malformed");
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{pattern}");
            assert_eq!(error.reason(), Some("FILTER_INVALID"), "{pattern}");
            let told = ["pattern", "position"].map(|name| &*error.metadata()[name]);
            assert_eq!(told, [pattern, position]);
        }
    }
}
