//! `hub dev`: the server with a demo, without any configuration.

use std::io::Write;

use serde_json::{Value, json};

use super::run::{self, Started};
use super::server::ServerArgs;
use super::store::StoreArgs;
use crate::dev::demo::{Demo, Setup};
use crate::dev::{commands, traffic};

/// Flags of `hub dev`.
#[derive(Debug, clap::Args)]
pub struct Dev {
    #[command(flatten)]
    demo: DemoArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// What is simulated.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Demo")]
pub struct DemoArgs {
    /// `hub dev` does not simulate a suite that publishes events.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = clap::builder::BoolishValueParser::new())]
    no_traffic: bool,
}

impl Dev {
    /// Serves until a signal.
    pub fn run(self) -> Result<(), String> {
        let server = &self.server;
        let key_file = self.store.data_dir.join("operator.key");
        let config = server.config(self.store.config(self.store.sqlite(), key_file));
        let address = server.listening.address(false)?;
        run::run(server, config, address, async |started: &Started| {
            self.demo(started).await
        })
    }

    async fn demo(&self, started: &Started) -> Result<Value, String> {
        let address = started.address().to_string();
        let url = format!("http://{address}");
        let setup = Setup {
            url: &url,
            file: self.store.data_dir.join("dev.json"),
            operator_key: started.running.operator_key.as_deref(),
            operator_key_file: &started.operator_key_file,
        };
        let demo = setup.run().await?;
        self.print(&address, &demo);
        if !self.demo.no_traffic {
            let keys = demo.product_keys.clone();
            tokio::spawn(traffic::run(url, keys, started.shutdown.clone()));
        }
        let mut ready = started.ready();
        ready["operatorKey"] = json!(demo.operator_key);
        ready["tenantId"] = json!(demo.tenant_id);
        ready["adminKey"] = json!(demo.admin_key);
        ready["productKeys"] = json!(demo.product_keys);
        Ok(ready)
    }

    fn print(&self, address: &str, demo: &Demo) {
        let key = |product| demo.product_keys.get(product).map_or("", String::as_str);
        let shown = commands::printed(commands::Target {
            address,
            admin_key: &demo.admin_key,
            psa_key: key("psa"),
            portal_key: key("portal"),
        });
        let _ = writeln!(
            std::io::stdout(),
            "Hub listens on http://{address} (gRPC, gRPC-Web and JSON). All keys of the demo are \
             in {}.\n\n{shown}",
            self.store.data_dir.join("dev.json").display()
        );
    }
}
