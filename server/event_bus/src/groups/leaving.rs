//! How a subscription is let go, so that another process may have it.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use hub_core::error::Result;
use tokio::sync::watch;

use super::Groups;
use crate::group::Group;
use crate::store::positions;

/// Subscriptions that this process may own without working on them: those that are being opened or
/// left. The call that does so may go away, or the database not answer.
pub(super) type Owed = HashMap<Arc<str>, Owing>;

/// How it may own one.
#[derive(Debug, Clone)]
pub(super) struct Owing {
    epoch: u64,
    product: Arc<str>,
    name: Arc<str>,
}

impl Groups {
    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is to be let go, unless it is put to work. An earlier epoch is void by itself.
    pub(super) fn owe(&self, id: &str, epoch: u64, product: &str, name: &str) {
        let mut owed = self.owed();
        let owing = owed.entry(id.into()).or_insert_with(|| Owing {
            epoch,
            product: product.into(),
            name: name.into(),
        });
        owing.epoch = epoch.max(owing.epoch);
    }

    /// The same for one that was at work.
    pub(super) fn owe_group(&self, group: &Group) {
        self.owe(&group.id, group.epoch, &group.product, &group.name);
    }

    fn owed_epoch(&self, id: &str) -> Option<u64> {
        self.owed().get(id).map(|owing| owing.epoch)
    }

    /// It is at work, or let go.
    pub(super) fn owe_no_more(&self, id: &str) {
        self.owed().remove(id);
        self.settled.send_replace(());
    }

    /// Whether this process may own a subscription of this name that it does not work on.
    pub(crate) fn is_between(&self, product: &str, name: &str) -> bool {
        let core = &self.parts.core;
        let owed = self.owed();
        let mut owed = owed.values();
        core.draining.is_cancelled()
            || !core.processes.is_live()
            || owed.any(|owing| &*owing.product == product && &*owing.name == name)
    }

    /// Whether others may have the subscription of a group that is over.
    pub(crate) fn has_left(&self, group: &Group) -> bool {
        let found = self.lock().by_id.get(&group.id).map(|found| found.number);
        found != Some(group.number) && !self.owed().contains_key(&group.id)
    }

    /// Changes whenever the answers to the two questions above may.
    pub(crate) fn settled(&self) -> watch::Receiver<()> {
        self.settled.subscribe()
    }

    /// Closes a group that nobody needs any more.
    pub(crate) async fn close_idle(&self, group: &Arc<Group>) {
        let _turn = self.turn(&group.id).lock().await;
        if group.end_if_idle()
            && let Err(error) = self.leave(group).await
        {
            tracing::debug!("a subscription is not left to the others yet: {error}");
        }
    }

    /// Stores where a subscription is and stops its work here: its rows are about to be changed.
    /// Its leases are void, and cost no attempt. Errors: `STORE_BUSY`.
    pub(crate) async fn close(&self, id: &str) -> Result<()> {
        let _turn = self.turn(id).lock().await;
        self.close_in_turn(id).await
    }

    /// The same for who has the turn of the subscription.
    pub(super) async fn close_in_turn(&self, id: &str) -> Result<()> {
        let found = self.lock().by_id.get(id).cloned();
        let owed = self.owed_epoch(id);
        match (found, owed) {
            (Some(group), _) => {
                group.end();
                let left = self.leave(&group).await;
                self.look_again_for(&group);
                left
            }
            // It was closed before, and may not be stored.
            (None, Some(epoch)) => self.let_go_of(id, epoch).await,
            (None, None) => Ok(()),
        }
    }

    async fn leave(&self, group: &Arc<Group>) -> Result<()> {
        self.owe_group(group);
        self.remove(group);
        self.let_go_of(&group.id, group.epoch).await
    }

    /// In the turn of the subscription. What is not stored yet could not be stored any more once
    /// another process has it.
    async fn let_go_of(&self, id: &str, epoch: u64) -> Result<()> {
        self.parts.checkpoints.store().await?;
        let mut tx = self.parts.core.db.begin().await?;
        positions::release(&mut tx, id, epoch, &self.process).await?;
        tx.commit().await?;
        self.owe_no_more(id);
        Ok(())
    }

    /// Lets go what was neither put to work nor let go. Errors: `STORE_BUSY`.
    pub(super) async fn let_go_of_owed(&self) -> Result<()> {
        let owed: Vec<_> = self.owed().keys().cloned().collect();
        for id in owed {
            // Else somebody is about to do it.
            let Ok(_turn) = self.turn(&id).try_lock() else {
                continue;
            };
            if let Some(epoch) = self.owed_epoch(&id) {
                self.let_go_of(&id, epoch).await?;
            }
        }
        Ok(())
    }

    /// The server stops: leases return, what is known is stored, and the others may take it up.
    pub(crate) async fn release(&self) {
        for group in self.open_now() {
            group.release();
            group.end();
        }
        if let Err(error) = self.let_go().await {
            // The last checkpoint stores, and who is gone owns nothing.
            tracing::debug!("the subscriptions could not be left to the others: {error}");
        }
        self.let_go.cancel();
    }

    /// Waits until the server stops and others may have all subscriptions.
    pub(crate) async fn has_let_go(&self) {
        self.let_go.cancelled().await;
    }

    async fn let_go(&self) -> Result<()> {
        self.parts.checkpoints.store().await?;
        let mut tx = self.parts.core.db.begin().await?;
        positions::release_all(&mut tx, &self.process).await?;
        tx.commit().await?;
        Ok(())
    }
}
