//! The settings of a group: as they were read last.

use std::sync::Arc;

use hub_core::error::Result;
use hub_core::module::Core;

use super::{Group, SETTLED_REMEMBERED_MAX};
use crate::leasing::Rules;
use crate::subscriptions::{self, Settings};

/// The rules of a subscription.
pub(crate) fn rules(settings: &Settings, core: &Core) -> Rules {
    settings.rules(core.limits.subscription_window_max, SETTLED_REMEMBERED_MAX)
}

impl Group {
    /// Reads the settings again, which may have changed.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `STORE_BUSY`.
    pub(crate) async fn read_settings(self: &Arc<Self>) -> Result<()> {
        let (core, configurations) = (&self.parts.core, &self.parts.configurations);
        let found = subscriptions::resolve(core, configurations, &self.tenant, None, &self.id);
        self.set(found.await?);
        Ok(())
    }

    /// Its settings were changed, perhaps by another process.
    fn set(self: &Arc<Self>, settings: Settings) {
        let mut state = self.lock();
        if state.settings.version < settings.version {
            state.leasing.set_rules(rules(&settings, &self.parts.core));
            state.settings = settings;
        }
        drop(state);
        self.wake.notify_one();
    }
}
