//! PostgreSQL: a pool, and the settings without which a commit would not mean on disk.

use std::str::FromStr;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::Options;

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) async fn open(options: &Options) -> Result<PgPool, String> {
    if !options.url.starts_with("postgres:") && !options.url.starts_with("postgresql:") {
        return Err("the database URL must start with sqlite: or postgres:".into());
    }
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|_| "the database URL is not a PostgreSQL URL".to_owned())?
        .application_name("hub")
        // A lost client must not hold the lock of a head row for ever.
        .options([
            ("synchronous_commit", "on"),
            ("lock_timeout", "5s"),
            ("statement_timeout", "30s"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("client_min_messages", "warning"),
        ]);
    let pool = PgPoolOptions::new()
        .max_connections(options.connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .connect_with(connect)
        .await
        .map_err(|error| format!("cannot connect to PostgreSQL: {error}"))?;
    assert_durable(&pool).await?;
    Ok(pool)
}

async fn assert_durable(pool: &PgPool) -> Result<(), String> {
    for name in ["fsync", "full_page_writes", "synchronous_commit"] {
        let (value,): (String,) = sqlx::query_as("select current_setting($1)")
            .bind(name)
            .fetch_one(pool)
            .await
            .map_err(|error| format!("cannot read the settings of PostgreSQL: {error}"))?;
        if value != "on" {
            return Err(format!(
                "PostgreSQL runs with {name}={value}, so that a commit would not survive a power \
                 loss: set {name}=on"
            ));
        }
    }
    tracing::info!("PostgreSQL syncs before it acknowledges");
    Ok(())
}
