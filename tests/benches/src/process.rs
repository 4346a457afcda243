//! A process `hub`: started, asked for its figures, and what an operator does first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::proto::hub::platform::v1::{CreateTenantRequest, CreateTenantResponse};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scratch::Scratch;
use crate::server::Server;
use crate::{PATIENCE, Result};

/// Base64 of 32 bytes.
const SEALING_KEY: &str = "YmVuY2ggYmVuY2ggYmVuY2ggYmVuY2ggYmVuY2ggb2s=";
/// What the keys of products may do here.
const SCOPES: [&str; 2] = ["hub:events.publish", "hub:events.read"];

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    server: Server,
    ready: Value,
}

impl Process {
    /// Starts `hub dev` on SQLite in a directory that exists.
    ///
    /// # Errors
    /// It does not start.
    pub async fn dev(binary: &Path, dir: &Path) -> Result<Self> {
        let mut command = hub(binary, dir);
        command.args(["dev", "--no-traffic", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(dir.join("data"));
        Self::start(command, dir).await
    }

    /// Starts `hub serve` in a directory that exists, on a database that has its tables.
    ///
    /// # Errors
    /// It does not start.
    pub async fn serve(binary: &Path, dir: &Path, database: &str) -> Result<Self> {
        Self::serve_with(binary, dir, database, &[]).await
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// It does not start.
    pub async fn serve_with(
        binary: &Path,
        dir: &Path,
        database: &str,
        arguments: &[String],
    ) -> Result<Self> {
        let mut command = hub(binary, dir);
        command.args(["serve", "--listen", "127.0.0.1:0", "--database", database]);
        command.env("HUB_SEALING_KEY", SEALING_KEY);
        command.arg("--data-dir").arg(dir.join("data"));
        command
            .arg("--operator-key-file")
            .arg(dir.join("operator.key"))
            .args(arguments);
        Self::start(command, dir).await
    }

    async fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let file = dir.join("ready.json");
        // Of the one that was here before.
        let _ = fs::remove_file(&file);
        command.arg("--ready-file").arg(&file);
        let mut server = Server::start("hub", &mut command, &dir.join("log"))?;
        let ready = server
            .until(async || serde_json::from_slice(&fs::read(&file).ok()?).ok())
            .await?;
        Ok(Process { server, ready })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What it said when it was ready.
    pub(crate) fn ready(&self) -> &Value {
        &self.ready
    }

    /// Where it is reached.
    pub fn url(&self) -> &str {
        self.ready["http"].as_str().unwrap_or_default()
    }

    /// A connection with a key.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn client(&self, key: &str) -> Result<Hub> {
        Ok(Hub::builder(self.url()).api_key(key).connect_lazy()?)
    }

    /// A connection with the key of the operator, which the first process on a database tells.
    ///
    /// # Errors
    /// It is not the first one.
    pub fn operator(&self) -> Result<Hub> {
        let key = self.ready["operatorKey"].as_str();
        self.client(key.ok_or("the database is not new")?)
    }

    /// The same for one tenant.
    ///
    /// # Errors
    /// It is not the first one.
    pub fn operator_for(&self, tenant_id: &str) -> Result<Hub> {
        let key = self.ready["operatorKey"].as_str();
        let hub = Hub::builder(self.url()).tenant(tenant_id);
        let key = key.ok_or("the database is not new")?;
        Ok(hub.api_key(key).connect_lazy()?)
    }

    /// Its metrics without labels, and the sums of those with labels, by name.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let address = self.ready["grpc"].as_str().unwrap_or_default();
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
        Ok(sums(&text))
    }
}

fn sums(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for (name, value) in lines.filter_map(|line| line.rsplit_once(' ')) {
        let name = name.split('{').next().unwrap_or(name);
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    sums
}

/// Makes the tables of an empty PostgreSQL.
///
/// # Errors
/// `hub migrate` fails.
pub fn migrate(binary: &Path, dir: &Path, database: &str) -> Result<()> {
    let migrated = hub(binary, dir)
        .args(["migrate", "--database", database])
        .output()?;
    if !migrated.status.success() {
        let why = String::from_utf8_lossy(&migrated.stderr).into_owned();
        return Err(format!("hub migrate: {}", why.trim()).into());
    }
    Ok(())
}

/// The program, without the variables of this process that it would read.
fn hub(binary: &Path, dir: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HUB_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir);
    command
}

/// A new tenant of a name that no other has, with these products; none = with all.
///
/// # Errors
/// Hub refuses it.
pub async fn tenant(operator: &Hub, name: &str, products: &[&str]) -> Result<CreateTenantResponse> {
    let request = CreateTenantRequest {
        name: name.into(),
        products: products.iter().map(|product| (*product).into()).collect(),
        ..Default::default()
    };
    let created = operator.platform().create_tenant(request).await;
    Ok(created.map_err(hub_client::Error::from)?.into_inner())
}

/// A key with which a product may publish and read, made by the administrator of its tenant.
///
/// # Errors
/// Hub refuses it.
pub async fn product_key(admin: &Hub, product: &str) -> Result<String> {
    key(admin, product, false).await
}

/// A key with which a product's backend may publish and read for all tenants, made by the operator.
///
/// # Errors
/// Hub refuses it.
pub async fn backend_key(operator: &Hub, product: &str) -> Result<String> {
    key(operator, product, true).await
}

async fn key(maker: &Hub, product: &str, all_tenants: bool) -> Result<String> {
    let key = ApiKey {
        all_tenants,
        ..of_product(product, &SCOPES)
    };
    Ok(make_key(maker, key).await?.0)
}

/// A key of a product that is yet to be made.
pub fn of_product(product: &str, scopes: &[&str]) -> ApiKey {
    ApiKey {
        name: product.to_owned(),
        product: product.to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..ApiKey::default()
    }
}

/// Makes a key: its plaintext and its id.
///
/// # Errors
/// Hub refuses it.
pub async fn make_key(maker: &Hub, key: ApiKey) -> Result<(String, String)> {
    let request = CreateApiKeyRequest {
        api_key: Some(key),
        ..Default::default()
    };
    let made = maker.api_keys().create_api_key(request).await;
    let made = made.map_err(hub_client::Error::from)?.into_inner();
    Ok((made.plaintext, made.api_key.unwrap_or_default().key_id))
}

/// Where the files of one of several processes on a database are.
pub fn folder(scratch: &Scratch, number: usize) -> PathBuf {
    scratch.path().join(format!("hub-{number}"))
}

/// Several processes on an empty PostgreSQL, at least two.
///
/// # Errors
/// They do not start.
pub async fn fleet(
    binary: &Path,
    scratch: &Scratch,
    database: &str,
    processes: usize,
) -> Result<Vec<Process>> {
    migrate(binary, scratch.path(), database)?;
    let mut fleet = Vec::new();
    for number in 0..processes.max(2) {
        let dir = folder(scratch, number);
        fs::create_dir(&dir)?;
        fleet.push(Process::serve(binary, &dir, database).await?);
    }
    Ok(fleet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let sums = sums("# TYPE a gauge\na 2\nb{x=\"1 2\"} 3\nb{x=\"y\"} 0.5\n\nHTTP/1.1 200 OK\n");
        assert_eq!((sums["a"], sums["b"]), (2.0, 3.5));
    }
}
