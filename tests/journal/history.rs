//! What callers of a journal were told, checked against what its tables have in the end.

use std::collections::{HashMap, HashSet};

use hub_core::journal::{Appended, Outcome, TenantRef};
use hub_core::storage::{Db, Sql};

use super::checked_log::CheckedLog;
use super::store::identity_of;

const MARKS: Sql = Sql::same("select name from marks");

/// An event as it was submitted.
#[derive(Debug, Clone)]
pub struct Submitted {
    pub name: String,
    pub content: u128,
}

/// An append that was answered.
#[derive(Debug)]
pub struct Answered {
    pub tenant: usize,
    pub independent: bool,
    pub events: Vec<Submitted>,
    pub appended: Appended,
}

/// A change of a domain that ends in appends, whatever became of it.
#[derive(Debug)]
pub struct Change {
    /// Row that it writes in its own table.
    pub mark: String,
    /// Tenant and name of its events.
    pub events: Vec<(usize, String)>,
    /// None if its caller was cancelled.
    pub committed: Option<bool>,
}

/// Everything that callers did and heard.
#[derive(Debug, Default)]
pub struct History {
    pub answered: Vec<Answered>,
    pub changes: Vec<Change>,
    /// Batches whose caller was cancelled: each is stored whole or not at all.
    pub unknown: Vec<(usize, Vec<String>)>,
    /// Events that must not be stored.
    pub refused: Vec<(usize, String)>,
}

impl History {
    pub fn merge(&mut self, mut other: History) {
        self.answered.append(&mut other.answered);
        self.changes.append(&mut other.changes);
        self.unknown.append(&mut other.unknown);
        self.refused.append(&mut other.refused);
    }

    /// Checks all of it; returns the logs.
    pub async fn check(&self, db: &Db, tenants: &[TenantRef]) -> Vec<CheckedLog> {
        let mut logs = Vec::new();
        for tenant in tenants {
            logs.push(CheckedLog::read(db, tenant).await);
        }
        let stored: Vec<HashMap<&str, u64>> = logs.iter().map(by_name).collect();
        for answered in &self.answered {
            check_answer(answered, &logs[answered.tenant]);
        }
        for (tenant, name) in &self.refused {
            let found = stored[*tenant].get(name.as_str());
            assert_eq!(found, None, "{name} was refused, and is stored");
        }
        for (tenant, names) in &self.unknown {
            let found = names
                .iter()
                .filter(|name| stored[*tenant].contains_key(name.as_str()));
            let found = found.count();
            assert!(
                found == 0 || found == names.len(),
                "half of {names:?} is stored"
            );
        }
        self.check_changes(db, &stored).await;
        logs
    }

    /// Checks that every kind of outcome occurred: what never happens is not tested.
    pub fn expect_variety(&self) {
        let outcomes = || self.answered.iter().flat_map(|one| &one.appended.outcomes);
        let count = |wanted: fn(&Outcome) -> bool| outcomes().filter(|one| wanted(one)).count();
        let counts = [
            count(|outcome| matches!(outcome, Outcome::Stored { .. })),
            count(|outcome| matches!(outcome, Outcome::Duplicate(_))),
            count(|outcome| matches!(outcome, Outcome::Reused { .. })),
            count(|outcome| matches!(outcome, Outcome::NotStored)),
            self.refused.len(),
            self.changes.len(),
            self.unknown.len(),
        ];
        assert!(!counts.contains(&0), "{counts:?}");
    }

    async fn check_changes(&self, db: &Db, stored: &[HashMap<&str, u64>]) {
        let marks: Vec<(String,)> = db.query(MARKS).all().await.unwrap();
        let marks: HashSet<String> = marks.into_iter().map(|(mark,)| mark).collect();
        for change in &self.changes {
            let marked = marks.contains(&change.mark);
            for (tenant, name) in &change.events {
                let found = stored[*tenant].contains_key(name.as_str());
                assert_eq!(
                    found, marked,
                    "{} and its event {name} are apart",
                    change.mark
                );
            }
            if let Some(committed) = change.committed {
                assert_eq!(marked, committed, "{}", change.mark);
            }
        }
    }
}

fn by_name(log: &CheckedLog) -> HashMap<&str, u64> {
    let names = log.events.iter().map(|event| event.name.as_str());
    names.zip(1..).collect()
}

fn check_answer(answered: &Answered, log: &CheckedLog) {
    let outcomes = &answered.appended.outcomes;
    assert_eq!(outcomes.len(), answered.events.len());
    let mut last_stored = None;
    for (event, outcome) in answered.events.iter().zip(outcomes) {
        let Submitted { name, content } = event;
        match *outcome {
            Outcome::Stored { seq } => {
                let stored = log.at(seq);
                assert_eq!(&stored.name, name, "at {seq}");
                assert_eq!(stored.identity, identity_of(name), "at {seq}");
                assert_eq!(stored.content, *content, "content of {name}");
                let starts = last_stored.is_none() || answered.independent;
                assert_eq!(stored.starts_batch, starts, "{name} at {seq}");
                if let Some(last) = last_stored {
                    assert_eq!(seq, last + 1, "the batch of {name} is not contiguous");
                }
                last_stored = Some(seq);
            }
            Outcome::Duplicate(position) => {
                let first = log.at(position.seq);
                assert_eq!(
                    (&first.name, first.content),
                    (name, *content),
                    "a duplicate"
                );
            }
            Outcome::Reused { seq: 0 } => {
                let same = answered.events.iter().filter(|other| other.name == *name);
                assert!(same.count() > 1, "{name} is only once in its batch");
            }
            Outcome::Reused { seq } => {
                let first = log.at(seq);
                assert_eq!(&first.name, name, "the one that has the identity");
                assert_ne!(first.content, *content, "{name} is no other content");
            }
            Outcome::NotStored => assert!(!answered.independent, "{name} alone was not stored"),
        }
    }
    let has = |wanted: fn(&Outcome) -> bool| outcomes.iter().any(wanted);
    let reused = has(|outcome| matches!(outcome, Outcome::Reused { .. }));
    let stored = has(|outcome| matches!(outcome, Outcome::Stored { .. }));
    let skipped = has(|outcome| matches!(outcome, Outcome::NotStored));
    if !answered.independent {
        assert!(
            !(reused && stored),
            "a batch with a reused identity was stored"
        );
        assert!(reused || !skipped, "a batch was not stored without reason");
    }
}
