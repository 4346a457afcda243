//! No call reads or changes what is of another tenant, whatever it sends.
//!
//! Generated from the descriptors: a new RPC is called as soon as it is built. What it can show is
//! planted by [`seeds`], the one place to add to.

mod contract;
mod cursors;
mod fingerprint;
mod fuzz;
mod mutations;
mod seeds;
mod tokens;
mod values;
mod wire;
mod world;

use std::time::Instant;

use http::Method;

use self::fingerprint::{Tables, changed, seen};
use self::fuzz::{Attack, is_made};
use self::seeds::{CHANGES_NOTHING, NOT_AUDITED, SHOWS_NOTHING};
use self::world::World;
use crate::journal::random::Seed;
use crate::support::{Backend, request};

/// Calls until an RPC that changes something has to have changed something.
const TRIES_MAX: usize = 600;
/// Attacks until each RPC has to have succeeded, and shown what it shows.
const ATTACKS_MAX: usize = 6;

both_databases! {
    async fn no_call_of_a_tenant_reads_or_changes_another(backend: Backend) {
        let (seed, began) = (Seed::choose(), Instant::now());
        let mut world = World::make(backend, seed.0).await;
        let mut wire = wire::Wire::connect(world.hub.addr).await;
        let mut tables = Tables::open(&world.hub, backend).await;
        let seen_before = seen(&world.other, &mut wire).await;
        let rows_before = tables.rows(&world.other).await;
        assert!(seen_before.len() > 5 && rows_before.values().any(|rows| rows.len() > 3));

        let mut attack = Attack::new(&world, &world.one, &world.other, seed.0);
        let report = attack.run(&mut wire, |_| true).await;
        report.is_clean();
        let rpcs = world.contract.rpcs.iter();
        let rpcs = rpcs.filter(|rpc| rpc.built && !rpc.policy.operator_only);
        let mut refused: Vec<&str> = rpcs.map(|rpc| rpc.policy.method).collect();
        refused.retain(|method| report.succeeded(method) == 0);
        // What is called by chance needs more than one chance.
        for _ in 1..ATTACKS_MAX {
            let again = attack.run(&mut wire, |rpc| refused.contains(&rpc.policy.method)).await;
            again.is_clean();
            refused.retain(|method| again.succeeded(method) == 0);
        }
        assert!(refused.is_empty(), "{refused:?} never succeed: {:?}", report.outcomes);
        let rows_after = tables.rows(&world.other).await;
        assert_eq!(changed(&rows_before, &rows_after), Vec::<String>::new());
        let seen_after = seen(&world.other, &mut wire).await;
        for (before, after) in seen_before.iter().zip(&seen_after) {
            assert_eq!(before, after);
        }
        nothing_is_on_the_pages(&mut world).await;
        eprintln!("seed {}: {} calls in {:?}", seed.0, report.calls, began.elapsed());
        for (method, outcomes) in report.outcomes.iter().filter(|(_, told)| told.len() > 1) {
            eprintln!("{method}: {outcomes:?}");
        }
    }

    async fn a_tenant_that_attacks_itself_is_found_by_every_rpc_that_reads(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = wire::Wire::connect(world.hub.addr).await;
        let mut attack = Attack::new(&world, &world.other, &world.other, seed.0);
        let silent = |method| SHOWS_NOTHING.iter().any(|(known, _)| *known == method);
        let rpcs = world.contract.rpcs.iter().filter(|rpc| rpc.built && rpc.reads());
        let rpcs = rpcs.filter(|rpc| !rpc.policy.operator_only && !silent(rpc.policy.method));
        let mut unseen: Vec<&str> = rpcs.map(|rpc| rpc.policy.method).collect();
        // What is called by chance needs more than one chance.
        for _ in 0..ATTACKS_MAX {
            let asked = |rpc: &contract::Rpc| unseen.contains(&rpc.policy.method);
            let report = attack.run(&mut wire, asked).await;
            unseen.retain(|method| !report.leaks.contains_key(*method));
            if unseen.is_empty() {
                break;
            }
        }
        assert!(unseen.is_empty(), "{unseen:?} show nothing that seeds.rs plants: plant something");
    }

    async fn a_tenant_that_changes_itself_is_found_for_every_rpc_that_changes(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = wire::Wire::connect(world.hub.addr).await;
        let mut tables = Tables::open(&world.hub, backend).await;
        let mut attack = Attack::new(&world, &world.other, &world.other, seed.0);
        let silent = |method| CHANGES_NOTHING.iter().any(|(known, _)| *known == method);
        let rpcs = world.contract.rpcs.iter().filter(|rpc| rpc.built && !rpc.reads());
        for rpc in rpcs.filter(|rpc| !rpc.policy.operator_only && !silent(rpc.policy.method)) {
            let before = tables.rows(&world.other).await;
            let mut differ = Vec::new();
            for _ in 0..TRIES_MAX / 10 {
                for _ in 0..10 {
                    wire.call(&attack.call(rpc)).await;
                }
                differ = changed(&before, &tables.rows(&world.other).await);
                if !differ.is_empty() {
                    break;
                }
            }
            let method = rpc.policy.method;
            assert!(!differ.is_empty(), "no call of {method} changed anything");
            let is_told = differ.iter().any(|table| table.starts_with("audit_entries: "));
            assert!(is_told != NOT_AUDITED.contains(&method), "{method}: {differ:?}");
        }
    }
}

/// The pages beside the API are for everyone, so nothing of anyone is on them.
async fn nothing_is_on_the_pages(world: &mut World) {
    for path in ["/metrics", "/readyz", "/livez"] {
        let page = request(world.hub.addr, Method::GET, path, &[], "").await;
        let made = world.other.known.all().filter(|text| is_made(text));
        for text in made.chain([&world.other.mark]) {
            assert!(!page.text().contains(text.as_str()), "{path} names {text}");
        }
    }
}
