//! The demo tenant and its keys, made at the first start and kept in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_client::{Error, Hub};
use hub_core::products;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// Tenants tried before giving up: an earlier start may have been killed half-way.
const TENANTS_MAX: u32 = 100;

/// What a product's key may do.
const PRODUCT_SCOPES: [&str; 6] = [
    "hub:diagnostics.read",
    "hub:event_types.read",
    "hub:events.publish",
    "hub:events.read",
    "hub:keys.verify",
    "hub:subscriptions.*",
];

/// The demo's keys, as `dev.json` and the ready file hold them.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demo {
    /// Key of no tenant that may do everything.
    pub operator_key: String,
    /// The tenant.
    #[serde(default)]
    pub tenant_id: String,
    /// Key of the tenant's administrator.
    #[serde(default)]
    pub admin_key: String,
    /// A key per product, by slug.
    #[serde(default)]
    pub product_keys: BTreeMap<String, String>,
}

/// Where the demo is kept and with whom it speaks.
pub struct Setup<'a> {
    /// The server.
    pub url: &'a str,
    /// `dev.json`.
    pub file: PathBuf,
    /// The operator key, if the database is new.
    pub operator_key: Option<&'a str>,
    /// Holds the operator key of a database that is not.
    pub operator_key_file: &'a Path,
}

impl Setup<'_> {
    /// The demo: what the file says, and what is missing of it made now. The file is written after
    /// each step, so that a start that is killed is continued by the next one.
    pub async fn run(&self) -> Result<Demo, String> {
        let mut demo = match self.operator_key {
            Some(key) => Demo {
                operator_key: key.to_owned(),
                ..Demo::default()
            },
            None => self.read()?,
        };
        self.write(&demo)?;
        if demo.admin_key.is_empty() {
            (demo.tenant_id, demo.admin_key) = self.create_tenant(&demo.operator_key).await?;
            self.write(&demo)?;
        }
        let missing = products::SLUGS
            .iter()
            .filter(|slug| !demo.product_keys.contains_key(**slug));
        let missing: Vec<&str> = missing.copied().collect();
        for slug in missing {
            let key = self.create_key(&demo.admin_key, slug).await?;
            demo.product_keys.insert(slug.to_owned(), key);
            self.write(&demo)?;
        }
        Ok(demo)
    }

    fn read(&self) -> Result<Demo, String> {
        let shown = self.file.display();
        match std::fs::read(&self.file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| format!("{shown} is damaged ({error}): restore it")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = std::fs::read_to_string(self.operator_key_file).map_err(|_| {
                    format!(
                        "the database is not new, but neither {shown} nor {} has its operator \
                         key: restore one of them, or use another --data-dir",
                        self.operator_key_file.display()
                    )
                })?;
                Ok(Demo {
                    operator_key: key.trim().to_owned(),
                    ..Demo::default()
                })
            }
            Err(error) => Err(format!("cannot read {shown}: {error}")),
        }
    }

    fn write(&self, demo: &Demo) -> Result<(), String> {
        let text = serde_json::to_string_pretty(demo).map_err(|error| error.to_string())?;
        private_file::write(&self.file, format!("{text}\n").as_bytes())
    }

    async fn create_tenant(&self, operator_key: &str) -> Result<(String, String), String> {
        let hub = self.connect(operator_key)?;
        for number in 1..=TENANTS_MAX {
            let name = if number == 1 {
                "Demo".to_owned()
            } else {
                format!("Demo {number}")
            };
            let request = CreateTenantRequest {
                name,
                ..CreateTenantRequest::default()
            };
            let created = hub
                .platform()
                .create_tenant(request)
                .await
                .map_err(Error::from);
            match created {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let tenant = answer.tenant.unwrap_or_default();
                    return Ok((tenant.tenant_id, answer.admin_key));
                }
                Err(error) if error.reason() == Some("TENANT_EXISTS") => {}
                Err(error) => return Err(format!("cannot make the demo tenant: {error}")),
            }
        }
        Err("the database has too many demo tenants: use another --data-dir".to_owned())
    }

    async fn create_key(&self, admin_key: &str, product: &str) -> Result<String, String> {
        let mut scopes: Vec<String> = PRODUCT_SCOPES.iter().map(|scope| (*scope).into()).collect();
        scopes.push(format!("{product}:*"));
        let api_key = ApiKey {
            name: format!("{product} backend"),
            product: product.to_owned(),
            scopes,
            ..ApiKey::default()
        };
        let request = CreateApiKeyRequest {
            api_key: Some(api_key),
            ..CreateApiKeyRequest::default()
        };
        let created = self
            .connect(admin_key)?
            .api_keys()
            .create_api_key(request)
            .await;
        match created.map_err(Error::from) {
            Ok(answer) => Ok(answer.into_inner().plaintext),
            Err(error) => Err(format!("cannot make the key of {product}: {error}")),
        }
    }

    fn connect(&self, key: &str) -> Result<Hub, String> {
        let hub = Hub::builder(self.url).api_key(key).connect_lazy();
        hub.map_err(|error| format!("cannot connect to {}: {error}", self.url))
    }
}
