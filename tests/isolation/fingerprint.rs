//! What there is of a tenant: what its own administrator sees, and what the tables hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost_reflect::{DynamicMessage, Value};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection};

use super::values::Known;
use super::wire::{Wire, shown};
use super::world::Owner;
use crate::support::{Backend, TestHub};

/// Tables that hold nothing of one tenant, or whose rows name one in another way, with the rows
/// that are of tenant `$1` (its id) and `$2` (its number).
const OTHER_TABLES: &[(&str, &str)] = &[
    // Keys of the hub itself.
    ("secrets", "1 = 0"),
    // The suite's products, which all tenants share.
    ("products", "1 = 0"),
    // The hub's own processes.
    ("processes", "1 = 0"),
    ("live_processes", "1 = 0"),
    ("key_followers", "1 = 0"),
    ("key_usage_batches", "1 = 0"),
    ("key_count_marks", "1 = 0"),
    // Hours and days are made of these whenever it suits.
    ("key_counts", "tenant_no = $2 and span = 60000000"),
    (
        "key_uses",
        "key_id in (select key_id from api_keys where tenant_no = $2)",
    ),
    // What the processes agree on for a minute, whenever a limit is looked at. On SQLite it is in
    // memory; on both, tests of `api_keys` ask what is left after what others did.
    ("rate_standings", "1 = 0"),
    // A replay is of the key that called.
    (
        "replays",
        "key_id in (select key_id from api_keys where tenant_no = $2)",
    ),
];

/// Columns that change although nobody touched the tenant, with the table.
const RESTLESS: &[(&str, &str)] = &[];

/// Fields of answers that differ between two equal calls.
const FLEETING: &[&str] = &[
    "next_page_token",
    "session_id",
    "server_time",
    "rate_limit",
    "last_use_time",
    "evaluate_time",
    "call_id",
];

/// Fields of frames that differ between two equal streams.
const FLEETING_OF_STREAMS: &[&str] = &["session_id", "cursor"];

/// Rows by table.
pub type Rows = BTreeMap<String, Vec<String>>;

/// Two reads of the tables that agree show that nothing is being written behind the answers.
const SETTLED_PAUSE: Duration = Duration::from_millis(50);
const SETTLED_READS_MAX: usize = 200;

enum Connected {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Reads the tables directly.
pub struct Tables {
    connected: Connected,
}

impl Tables {
    /// Opens the database of a hub beside the hub.
    pub async fn open(hub: &TestHub, backend: Backend) -> Tables {
        let url = hub.database_url();
        let connected = match backend {
            Backend::Sqlite => {
                let path = url.strip_prefix("sqlite:").unwrap();
                let options = SqliteConnectOptions::new().filename(path).read_only(true);
                Connected::Sqlite(options.connect().await.unwrap())
            }
            Backend::Postgres => Connected::Postgres(PgConnection::connect(url).await.unwrap()),
        };
        Tables { connected }
    }

    /// All rows of a tenant, once they stand still.
    pub async fn rows(&mut self, owner: &Owner) -> Rows {
        let (mut last, mut equal) = (self.read(owner).await, 0);
        for _ in 0..SETTLED_READS_MAX {
            tokio::time::sleep(SETTLED_PAUSE).await;
            let next = self.read(owner).await;
            equal = if next == last { equal + 1 } else { 0 };
            last = next;
            if equal == 2 {
                return last;
            }
        }
        panic!("the tables do not come to rest");
    }

    async fn read(&mut self, owner: &Owner) -> Rows {
        let id = owner.tenant.id.replace('\'', "''");
        let number = format!("select cast(tenant_no as text) from tenants where tenant_id='{id}'");
        let number = self.texts(&number).await.remove(0);
        let mut rows = Rows::new();
        for (table, columns) in self.tables().await {
            let condition = condition(&table, &columns);
            let condition = condition
                .replace("$1", &format!("'{id}'"))
                .replace("$2", &number);
            let restless = |column: &&String| RESTLESS.contains(&(table.as_str(), column.as_str()));
            let columns = columns.iter().filter(|column| !restless(column));
            let row = match self.connected {
                Connected::Sqlite(_) => {
                    let quoted: Vec<_> = columns.map(|c| format!("quote(\"{c}\")")).collect();
                    quoted.join(" || ',' || ")
                }
                Connected::Postgres(_) => {
                    let names: Vec<_> = columns.map(|c| format!("\"{c}\"")).collect();
                    format!("row({})::text", names.join(", "))
                }
            };
            let sql = format!("select {row} from {table} where {condition} order by 1");
            rows.insert(table, self.texts(&sql).await);
        }
        rows
    }

    /// Tables and their columns.
    async fn tables(&mut self) -> BTreeMap<String, Vec<String>> {
        let sql = match self.connected {
            Connected::Sqlite(_) => {
                "select t.name || ' ' || c.name from sqlite_schema t, pragma_table_info(t.name) c
                 where t.type = 'table' and t.name not like 'sqlite_%' order by t.name, c.cid"
            }
            Connected::Postgres(_) => {
                "select (table_name || ' ' || column_name)::text from information_schema.columns
                 where table_schema = 'public' order by table_name, ordinal_position"
            }
        };
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.texts(sql).await {
            let (table, column) = line.split_once(' ').unwrap();
            if !table.starts_with("_migrations") {
                tables
                    .entry(table.to_owned())
                    .or_default()
                    .push(column.to_owned());
            }
        }
        tables
    }

    async fn texts(&mut self, sql: &str) -> Vec<String> {
        let rows: Vec<(String,)> = match &mut self.connected {
            Connected::Sqlite(connection) => sqlx::query_as(AssertSqlSafe(sql.to_owned()))
                .fetch_all(connection)
                .await
                .unwrap(),
            Connected::Postgres(connection) => sqlx::query_as(AssertSqlSafe(sql.to_owned()))
                .fetch_all(connection)
                .await
                .unwrap(),
        };
        rows.into_iter().map(|(text,)| text).collect()
    }
}

/// Which rows of a table are of a tenant.
fn condition(table: &str, columns: &[String]) -> String {
    if let Some((_, condition)) = OTHER_TABLES.iter().find(|(name, _)| *name == table) {
        return (*condition).to_owned();
    }
    let has = |name: &str| columns.iter().any(|column| column == name);
    match (has("tenant_no"), has("tenant_id")) {
        (true, _) => "tenant_no = $2".to_owned(),
        (false, true) => "tenant_id = $1".to_owned(),
        // The key of a table of the log begins with the number of the tenant.
        _ if has("key") => "(key >> 40) = $2".to_owned(),
        _ => panic!("{table} names no tenant: say in OTHER_TABLES whose its rows are"),
    }
}

/// What the tenant itself sees, by all calls that show something.
pub async fn seen(owner: &Owner, wire: &mut Wire) -> Vec<String> {
    let mut answers = Vec::new();
    for look in &owner.looks {
        let heard = wire.call(look).await;
        let mut text = format!(
            "{} {:?} {}",
            look.rpc.policy.method, heard.code, heard.reason
        );
        if look.rpc.policy.server_streaming {
            // Frames are cut where the time cuts them.
            let mut known = Known::default();
            heard
                .messages
                .iter()
                .for_each(|message| known.take(message));
            FLEETING_OF_STREAMS
                .iter()
                .for_each(|name| known.forget(name));
            text.push_str(&format!("\n{:?}", known.all().collect::<BTreeSet<_>>()));
        } else {
            for mut message in heard.messages {
                still(&mut message);
                text.push_str(&format!("\n{}", shown(&message)));
            }
        }
        answers.push(text);
    }
    answers
}

/// Takes out what differs between two equal calls.
fn still(message: &mut DynamicMessage) {
    for name in FLEETING {
        message.clear_field_by_name(name);
    }
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        match message.get_field_mut(&field) {
            Value::Message(inner) => still(inner),
            Value::List(values) => values.iter_mut().for_each(|value| {
                if let Value::Message(inner) = value {
                    still(inner);
                }
            }),
            _ => {}
        }
    }
}

/// The tables in which two states differ.
pub fn changed(before: &Rows, after: &Rows) -> Vec<String> {
    let differ = before
        .iter()
        .filter(|(table, rows)| after.get(*table) != Some(rows));
    differ
        .map(|(table, rows)| {
            let new = after.get(table).cloned().unwrap_or_default();
            let gone: Vec<_> = rows.iter().filter(|row| !new.contains(row)).collect();
            let added: Vec<_> = new.iter().filter(|row| !rows.contains(row)).collect();
            format!("{table}: {gone:?} became {added:?}")
        })
        .collect()
}
