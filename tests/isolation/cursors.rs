//! Cursors of every stream that takes one: good for their tenant, log and filter.

use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, Value};
use tonic::Code;

use super::contract::{Contract, Rpc};
use super::mutations::damaged;
use super::seeds::READS;
use super::values::Known;
use super::wire::{Call, Form, Heard, Wire};
use super::world::{World, bearer};
use crate::journal::random::{Random, Seed};
use crate::support::Backend;

/// RPCs that take a cursor, with the fields that lead to it.
fn readers(contract: &Contract) -> Vec<(&Rpc, Vec<FieldDescriptor>)> {
    let built = contract.rpcs.iter().filter(|rpc| rpc.built && rpc.reads());
    let readers: Vec<_> = built
        .filter_map(|rpc| Some((rpc, path(&rpc.input, 0)?)))
        .collect();
    assert!(!readers.is_empty());
    readers
}

fn path(kind: &MessageDescriptor, depth: usize) -> Option<Vec<FieldDescriptor>> {
    if let Some(cursor) = kind.get_field_by_name("cursor") {
        return Some(vec![cursor]);
    }
    let inner = kind
        .fields()
        .filter(|field| depth < 2 && !field.is_list() && !field.is_map());
    inner.into_iter().find_map(|field| {
        let mut rest = path(field.kind().as_message()?, depth + 1)?;
        rest.insert(0, field);
        Some(rest)
    })
}

fn set(message: &mut DynamicMessage, path: &[FieldDescriptor], cursor: &str) {
    match path {
        [] => {}
        [field] => message.set_field(field, Value::String(cursor.to_owned())),
        [field, rest @ ..] => {
            if let Value::Message(inner) = message.get_field_mut(field) {
                set(inner, rest, cursor);
            }
        }
    }
}

/// A stream and who reads it.
struct Reader<'a> {
    rpc: &'a Rpc,
    path: &'a [FieldDescriptor],
    key: &'a str,
    wire: &'a mut Wire,
}

impl Reader<'_> {
    async fn read(&mut self, message: DynamicMessage) -> Heard {
        let call = Call {
            rpc: self.rpc.clone(),
            headers: vec![bearer(self.key)],
            messages: vec![message],
            form: Form::Grpc,
        };
        self.wire.call(&call).await
    }

    async fn from(&mut self, cursor: &str, filter: Option<&str>) -> Heard {
        let json = filter.map_or("{}".to_owned(), |types| format!(r#"{{"filter":{types}}}"#));
        let mut reader = serde_json::Deserializer::from_str(&json);
        let read = DynamicMessage::deserialize(self.rpc.input.clone(), &mut reader);
        let mut message = read.unwrap();
        for flag in ["all_products", "stop_when_caught_up"] {
            if self.rpc.input.get_field_by_name(flag).is_some() {
                message.set_field_by_name(flag, Value::Bool(true));
            }
        }
        set(&mut message, self.path, cursor);
        self.read(message).await
    }

    async fn is_refused(&mut self, cursor: &str, why: &str) {
        let heard = self.from(cursor, None).await;
        let found = (heard.code, heard.reason.as_str());
        let expected = (Code::InvalidArgument, "CURSOR_INVALID");
        assert_eq!(
            found, expected,
            "{}, {why}: {cursor:?}",
            self.rpc.policy.method
        );
    }

    /// Cursors that the stream gives out by itself.
    async fn given(&mut self, world: &World) -> Vec<String> {
        let method = self.rpc.policy.method;
        let (_, json) = READS
            .iter()
            .find(|(known, _)| *known == method)
            .unwrap_or_else(|| {
                panic!(
                    "{method} takes a cursor: add a request to READS in seeds.rs that reads some"
                )
            });
        let heard = self.read(world.one.filled(self.rpc, json, 1)).await;
        let mut known = Known::default();
        heard
            .messages
            .iter()
            .for_each(|message| known.take(message));
        let cursors = known.of("cursor").to_vec();
        // A stream that cannot be told where to start has one place to begin with: now.
        let least = self.path.len().min(2);
        assert!(cursors.len() >= least, "{method}: {cursors:?}");
        cursors
    }
}

both_databases! {
    async fn a_cursor_that_was_changed_is_refused(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        let mut random = Random::new(seed.0, 11);
        for (rpc, path) in readers(&world.contract) {
            let key = world.one.key(rpc);
            let mut reader = Reader { rpc, path: &path, key, wire: &mut wire };
            let cursors = reader.given(&world).await;
            for cursor in &cursors {
                assert_eq!(reader.from(cursor, None).await.reason, "", "{cursor}");
            }
            for other in damaged(&cursors[cursors.len() - 1], &mut random) {
                reader.is_refused(&other, "damaged").await;
            }
        }
    }

    async fn a_cursor_is_good_for_its_tenant_and_log_only(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        for (rpc, path) in readers(&world.contract) {
            let key = world.one.key(rpc);
            let mut reader = Reader { rpc, path: &path, key, wire: &mut wire };
            let cursors = reader.given(&world).await;
            for token in world.one.known.of("page_token").iter().take(5) {
                reader.is_refused(token, "a page token").await;
            }
            reader.key = world.other.key(rpc);
            for cursor in &cursors {
                reader.is_refused(cursor, "of another tenant").await;
            }
        }
    }

    async fn a_cursor_is_good_for_its_filter_only(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        for (rpc, path) in readers(&world.contract) {
            if rpc.input.get_field_by_name("filter").is_none() {
                continue;
            }
            let key = world.one.key(rpc);
            let mut reader = Reader { rpc, path: &path, key, wire: &mut wire };
            let cursors = reader.given(&world).await;
            let other_filters = [r#"{"types":["ticket.*"]}"#, r#"{"types":["**"]}"#];
            for filter in other_filters {
                let heard = reader.from(&cursors[cursors.len() - 1], Some(filter)).await;
                let found = (heard.code, heard.reason.as_str());
                let expected = (Code::FailedPrecondition, "CURSOR_FILTER_MISMATCH");
                assert_eq!(found, expected, "{filter}");
            }
        }
    }
}
