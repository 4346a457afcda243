//! Both databases have the same tables and views: columns, their kinds, what may be null, what is
//! unique.

use std::collections::{BTreeMap, BTreeSet};

use super::migrated;

/// Tables that one database needs and the other does not, with the reason beside each.
const OF_ONE_DATABASE: &[&str] = &[];

const SQLITE_COLUMNS: &str = "
select t.name, c.name, c.type, c.\"notnull\" <> 0 from sqlite_schema t, pragma_table_info(t.name) c
where t.type in ('table', 'view') and t.name not like 'sqlite_%'
    and t.name not like '\\_migrations%' escape '\\'";

const POSTGRES_COLUMNS: &str = "
select table_name::text, column_name::text, data_type::text, is_nullable = 'NO'
from information_schema.columns
where table_schema = 'public' and table_name not like '\\_migrations%'";

const SQLITE_KEYS: &str = "
select t.name, i.name, c.name
from sqlite_schema t, pragma_index_list(t.name) i, pragma_index_info(i.name) c
where t.type = 'table' and i.\"unique\" = 1 and c.name is not null
    and t.name not like 'sqlite_%' and t.name not like '\\_migrations%' escape '\\'
union all
select t.name, '', c.name from sqlite_schema t, pragma_table_info(t.name) c
where t.type = 'table' and c.pk > 0
    and t.name not like 'sqlite_%' and t.name not like '\\_migrations%' escape '\\'";

const POSTGRES_KEYS: &str = "
select t.relname::text, i.relname::text, a.attname::text
from pg_index x
join pg_class t on t.oid = x.indrelid
join pg_class i on i.oid = x.indexrelid
join pg_namespace n on n.oid = t.relnamespace
join pg_attribute a on a.attrelid = t.oid and a.attnum = any (x.indkey)
where x.indisunique and n.nspname = 'public' and t.relname not like '\\_migrations%'";

/// What a column holds, and whether it refuses NULL, by table and column.
type Columns = BTreeMap<(String, String), (&'static str, bool)>;

/// Table and columns of each unique key.
type Keys = BTreeSet<(String, BTreeSet<String>)>;

/// What both databases can hold, by their names of types.
fn kind(name: &str) -> &'static str {
    match name.to_lowercase().as_str() {
        "integer" | "bigint" | "smallint" | "boolean" => "number",
        "real" | "double precision" => "fraction",
        "text" | "character varying" | "json" | "jsonb" => "text",
        "blob" | "bytea" => "bytes",
        other => panic!("say what {other} holds"),
    }
}

fn columns(rows: Vec<(String, String, String, bool)>) -> Columns {
    let rows = rows.into_iter();
    let rows = rows.filter(|(table, ..)| !OF_ONE_DATABASE.contains(&table.as_str()));
    rows.map(|(table, column, name, required)| ((table, column), (kind(&name), required)))
        .collect()
}

fn keys(rows: Vec<(String, String, String)>) -> Keys {
    let mut by_index: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (table, index, column) in rows {
        if !OF_ONE_DATABASE.contains(&table.as_str()) {
            by_index.entry((table, index)).or_default().insert(column);
        }
    }
    let keys = by_index.into_iter();
    keys.map(|((table, _), columns)| (table, columns)).collect()
}

#[tokio::test]
async fn both_databases_have_the_same_columns_and_keys() {
    let mut sqlite = migrated::on_sqlite().await;
    let mut postgres = migrated::on_postgres().await;
    let rows = sqlx::query_as(SQLITE_COLUMNS)
        .fetch_all(&mut sqlite.connection)
        .await;
    let of_sqlite = columns(rows.unwrap());
    let rows = sqlx::query_as(POSTGRES_COLUMNS)
        .fetch_all(&mut postgres.connection)
        .await;
    let of_postgres = columns(rows.unwrap());
    assert_eq!(of_sqlite, of_postgres);
    assert!(of_sqlite.len() > 20, "{of_sqlite:?}");

    let rows = sqlx::query_as(SQLITE_KEYS)
        .fetch_all(&mut sqlite.connection)
        .await;
    let of_sqlite = keys(rows.unwrap());
    let rows = sqlx::query_as(POSTGRES_KEYS)
        .fetch_all(&mut postgres.connection)
        .await;
    let of_postgres = keys(rows.unwrap());
    assert_eq!(of_sqlite, of_postgres);
    assert!(of_sqlite.len() > 5, "{of_sqlite:?}");
}

/// Names of the files of a folder, without `.sql`, in order.
fn files(folder: &str) -> Vec<String> {
    let folder = super::source::root().join(folder);
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .map(|name| name.strip_suffix(".sql").unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_file_of_migrations_is_in_the_list_of_its_domain() {
    let names = |list: &[hub_core::storage::Migration]| {
        let names = list.iter().map(|file| file.file.to_owned());
        names.collect::<Vec<_>>()
    };
    for of in hub_server::modules::migrations() {
        let folder = format!("migrations/{}", of.domain);
        assert_eq!(names(of.sqlite), files(&format!("{folder}/sqlite")));
        assert_eq!(names(of.postgres), files(&format!("{folder}/postgres")));
    }
}

#[tokio::test]
async fn a_table_that_differs_is_seen() {
    let mut sqlite = migrated::on_sqlite().await;
    let rows = sqlx::query_as(SQLITE_COLUMNS)
        .fetch_all(&mut sqlite.connection)
        .await;
    let before = columns(rows.unwrap());
    let rows = sqlx::query_as(SQLITE_KEYS)
        .fetch_all(&mut sqlite.connection)
        .await;
    let keys_before = keys(rows.unwrap());
    for change in [
        "alter table tenants add column added text",
        "create unique index added on tenants (create_time)",
    ] {
        sqlx::query(change)
            .execute(&mut sqlite.connection)
            .await
            .unwrap();
    }
    let rows = sqlx::query_as(SQLITE_COLUMNS)
        .fetch_all(&mut sqlite.connection)
        .await;
    assert_ne!(columns(rows.unwrap()), before);
    let rows = sqlx::query_as(SQLITE_KEYS)
        .fetch_all(&mut sqlite.connection)
        .await;
    assert_ne!(keys(rows.unwrap()), keys_before);
}
