//! Every statement is in a list, and both migrated databases understand all that is listed.

use hub_core::journal::{
    self, EPOCH_STATEMENTS, ERASE_STATEMENTS, GROWTH_STATEMENTS, HEAD_STATEMENTS,
    IDENTITY_STATEMENTS, LISTING_STATEMENTS, LISTING_WRITER_STATEMENTS, READ_STATEMENTS,
    RETENTION_STATEMENTS,
};
use hub_core::storage::Sql;
use hub_core::{audit, bootstrap, jobs, processes, products, replay, secrets, tenancy};
use sqlx::{Executor, SqlStr};

use super::migrated;
use super::rules::{Findings, keep};
use super::source::{Source, sources};

/// All statements that the domains run through the facade.
fn statements() -> Vec<Sql> {
    let lists = [
        EPOCH_STATEMENTS,
        HEAD_STATEMENTS,
        IDENTITY_STATEMENTS,
        READ_STATEMENTS,
        ERASE_STATEMENTS,
        LISTING_STATEMENTS,
        GROWTH_STATEMENTS,
        LISTING_WRITER_STATEMENTS,
        RETENTION_STATEMENTS,
        audit::STATEMENTS,
        bootstrap::STATEMENTS,
        jobs::STATEMENTS,
        processes::STATEMENTS,
        products::STATEMENTS,
        replay::STATEMENTS,
        secrets::STATEMENTS,
        tenancy::STATEMENTS,
        tenancy::CONFIGURATION_STATEMENTS,
        hub_api_keys::STATEMENTS,
        hub_platform::STATEMENTS,
    ];
    let more = [hub_event_bus::STATEMENTS, hub_api_keys::MORE_STATEMENTS];
    lists
        .into_iter()
        .chain(more.concat())
        .flatten()
        .copied()
        .collect()
}

/// Names of the constants of a file that are a statement, with their lines.
fn declared(source: &Source) -> Vec<(&str, usize)> {
    let code: Vec<_> = source.tokens.iter().filter(|token| !token.test).collect();
    let found = code.windows(5).filter_map(|five| {
        let texts = [&five[0], &five[2], &five[3], &five[4]].map(|token| token.text.as_str());
        (texts == ["const", ":", "Sql", "="]).then_some((five[1].text.as_str(), five[1].line))
    });
    found.collect()
}

/// Names in the lists of a file, `STATEMENTS` or `…_STATEMENTS`.
fn listed(source: &Source) -> Vec<&str> {
    let mut names = Vec::new();
    let mut tokens = source.tokens.iter().filter(|token| !token.test);
    while let Some(token) = tokens.next() {
        if token.text == "const"
            && tokens
                .next()
                .is_some_and(|name| name.text.ends_with("STATEMENTS"))
        {
            let list = tokens.by_ref().take_while(|token| token.text != ";");
            names.extend(
                list.filter(|token| token.word)
                    .map(|token| token.text.as_str()),
            );
        }
    }
    names
}

/// Statements in no list of their file, and statements made where no list can name them.
fn unlisted(source: &Source) -> Findings {
    let path = &source.path;
    let listed = listed(source);
    let declared = declared(source);
    let forgotten = declared.iter().filter(|(name, _)| !listed.contains(name));
    let mut found: Findings = forgotten
        .map(|(name, line)| format!("{path}:{line}: {name} is in no list of statements"))
        .collect();
    let code: Vec<_> = source.tokens.iter().filter(|token| !token.test).collect();
    let is_new = |four: &&[&super::source::Token]| {
        four[0].text == "Sql" && ["same", "each"].contains(&four[3].text.as_str())
    };
    let made = code.windows(4).filter(is_new).count();
    if made > declared.len() {
        found.push(format!(
            "{path}:1: {} statements are no constants",
            made - declared.len()
        ));
    }
    found
}

/// The facade itself asks `select 1`.
fn has_stores(source: &Source) -> bool {
    source.path.starts_with("server/") && !source.path.starts_with("server/core/src/storage/")
}

#[test]
fn every_statement_is_a_constant_in_the_list_of_its_file() {
    let sources = sources();
    let stores = sources.iter().filter(|source| has_stores(source));
    keep("statements", stores.flat_map(unlisted).collect());
}

#[test]
fn every_list_is_in_the_list_of_lists() {
    let sources = sources();
    let stores = sources.iter().filter(|source| has_stores(source));
    let declared: usize = stores.map(|source| declared(source).len()).sum();
    assert_eq!(
        statements().len(),
        declared,
        "add the list of a new store to `statements`"
    );
}

#[test]
fn a_forgotten_statement_is_found() {
    let path = "server/webhooks/src/store.rs";
    let told = |text: &str| unlisted(&Source::parse(path, text));
    let good = "const A: Sql = Sql::same(\"a\");\npub const STATEMENTS: &[Sql] = &[A];";
    assert!(told(good).is_empty());
    let bad = format!("{good}\nconst B: Sql = Sql::each(\"b\", \"b\");");
    assert_eq!(
        told(&bad),
        [format!("{path}:3: B is in no list of statements")]
    );
    let inline = format!("{good}\nfn f() {{ db.query(Sql::same(\"c\")) }}");
    assert_eq!(told(&inline).len(), 1);
    let test = format!("{good}\n#[cfg(test)] mod t {{ const C: Sql = Sql::same(\"c\"); }}");
    assert!(told(&test).is_empty());
}

#[tokio::test]
async fn sqlite_understands_every_statement() {
    let mut sqlite = migrated::on_sqlite().await;
    for statement in statements() {
        let text = statement.text(false);
        let prepared = sqlite.connection.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{text}\n{prepared:?}");
    }
    let wrong = "select no_such_column from tenants";
    assert!(
        sqlite
            .connection
            .prepare(SqlStr::from_static(wrong))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn postgres_understands_every_statement() {
    let mut postgres = migrated::on_postgres().await;
    let shared = statements();
    let shared = shared.iter().map(|statement| statement.text(true));
    for text in shared.chain(journal::postgres_statements().iter().copied()) {
        let prepared = postgres.connection.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{text}\n{prepared:?}");
    }
    let wrong = "select no_such_column from tenants";
    assert!(
        postgres
            .connection
            .prepare(SqlStr::from_static(wrong))
            .await
            .is_err()
    );
}
