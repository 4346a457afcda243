//! WatchApiKeys: tells product backends which decisions they must not use again.
//!
//! A watcher reads the system log, as every process does, so a revocation reaches it with the
//! commit on the same process, and with the hint on others. A heartbeat each second says that
//! nothing was missed; a process that is cut off from the database sends none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hub_core::auth::{Authenticator, Caller};
use hub_core::clock::{Micros, micros, timestamp};
use hub_core::cursor::{Cursor, Stream};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Log, Page, Position, Segment};
use hub_proto::hub::api_keys::v1::ApiKeyChanges;
use hub_proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_proto::hub::core::v1::{
    CaughtUp, Closing, ClosingReason, Gap, GapReason, Opened, Progress,
};
use tokio::sync::watch;

use crate::change::{self, CREATED, Change, Whose};
use crate::error;
use crate::keys::{Keys, tenant_of};

/// Pause between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// Says "all keys" in a change.
const ALL: &str = "*";

/// An open stream.
pub(crate) struct Watcher {
    keys: Arc<Keys>,
    caller: Caller,
    log: Arc<Log>,
    head: watch::Receiver<Position>,
    /// Everything up to here was sent.
    at: Position,
    /// It goes on from a cursor, so that nothing may be missing.
    resumed: bool,
    caught_up: bool,
    ready: VecDeque<Frame>,
    spoke_at: Micros,
    ends_at: Micros,
    over: bool,
}

impl Watcher {
    /// From a cursor on; without one, from now. Errors: `CURSOR_INVALID`, `CURSOR_EXPIRED`.
    pub async fn open(keys: Arc<Keys>, caller: Caller, cursor: &str) -> Result<Watcher> {
        let log = keys.system_log().await?;
        // Watched before the position is read: a head that moves in between is not missed.
        let head = log.watch();
        let end = keys.core.journal.refresh(&log).await?;
        let now = keys.core.clock.now();
        let age = keys.core.limits.stream_age_max;
        let mut watcher = Watcher {
            caller,
            head,
            at: end,
            resumed: !cursor.is_empty(),
            caught_up: false,
            ready: VecDeque::new(),
            spoke_at: now,
            ends_at: now + micros(age + age.mul_f64(random_fraction()?)),
            over: false,
            log,
            keys,
        };
        if watcher.resumed {
            watcher.at = watcher.resume(cursor, end).await?;
        }
        watcher.ready.push_back(Frame::Opened(Opened {
            session_id: id::new("ses"),
            cursor: watcher.cursor(watcher.at),
            head_sequence: end.seq,
            heartbeat_interval: prost_types::Duration::try_from(BEAT).ok(),
        }));
        Ok(watcher)
    }

    /// The place of a cursor, if all that follows it is still there.
    async fn resume(&self, text: &str, end: Position) -> Result<Position> {
        let cursors = &self.keys.core.cursors;
        let asked = cursors.read(&tenant_of(&self.caller), Stream::Keys, text)?;
        let asked = asked.position;
        let found = match asked.seq > end.seq {
            // The log was put back to before the cursor.
            true => None,
            false if asked.seq == 0 => Some(asked),
            false => {
                self.keys
                    .core
                    .journal
                    .position_at(&self.log, asked.seq)
                    .await?
            }
        };
        match found {
            Some(found) if found.fingerprint == asked.fingerprint => Ok(asked),
            _ => Err(error::cursor_expired(
                asked.seq + 1,
                end.seq,
                &self.cursor(end),
            )),
        }
    }

    /// The next frame to send; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Some(frame));
            }
            if self.over {
                return Ok(None);
            }
            if self.keys.core.draining.is_cancelled() {
                self.close(ClosingReason::Draining, Duration::from_millis(500));
            } else if self.keys.core.clock.now() >= self.ends_at {
                self.close(ClosingReason::MaxAge, Duration::ZERO);
            } else {
                self.read().await?;
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let after = self.at.seq;
        match self.keys.core.journal.read_after(&self.log, after).await? {
            Page::Segments(segments) => {
                for segment in segments {
                    self.take(&segment)?;
                }
            }
            Page::Gap { from, to } if self.resumed => {
                let end = self.cursor(self.log.head());
                return Err(error::cursor_expired(from, to, &end));
            }
            Page::Gap { from, to } => self.gap(from, to).await?,
            Page::AtEnd if self.caught_up => self.wait().await?,
            Page::AtEnd => {
                (self.caught_up, self.resumed) = (true, false);
                let (cursor, sequence) = (self.cursor(self.at), self.at.seq);
                self.ready
                    .push_back(Frame::CaughtUp(CaughtUp { cursor, sequence }));
            }
        }
        Ok(())
    }

    fn take(&mut self, segment: &Segment) -> Result<()> {
        for change in change::read(segment, self.at.seq)? {
            if !self.concerns(&change) {
                continue;
            }
            let at = position(segment, change.epoch);
            self.ready.push_back(Frame::Changes(ApiKeyChanges {
                key_ids: vec![match change.whose {
                    Whose::Key(key_id) => key_id.to_string(),
                    Whose::All => ALL.to_owned(),
                }],
                epoch: change.epoch,
                cursor: self.cursor(at),
                tenant_id: change.tenant_id,
            }));
        }
        self.at = position(segment, segment.last());
        Ok(())
    }

    /// Whether the caller may have decided something by what has changed. Of a new key nobody has.
    fn concerns(&self, change: &Change) -> bool {
        let is_own = match &self.caller.tenant {
            None => true,
            Some(tenant) => change.tenant_id.is_empty() || change.tenant_id == tenant.id(),
        };
        let of_no_tenant = change.tenant_id.is_empty() && change.whose != Whose::All;
        change.kind != CREATED && is_own && (self.caller.all_tenants || !of_no_tenant)
    }

    async fn gap(&mut self, from: u64, to: u64) -> Result<()> {
        let after = self.keys.core.journal.position_at(&self.log, to).await?;
        self.at = after.unwrap_or(Position {
            seq: to,
            fingerprint: 0,
        });
        self.ready.push_back(Frame::Gap(Gap {
            from_sequence: from,
            to_sequence: to,
            reason: GapReason::Retention.into(),
            cursor: self.cursor(self.at),
        }));
        Ok(())
    }

    /// Waits for changes, and speaks each second.
    async fn wait(&mut self) -> Result<()> {
        let core = self.keys.core.clone();
        let (now, after) = (core.clock.now(), self.at.seq);
        let beat_at = self.spoke_at.min(now) + micros(BEAT);
        let is_time_to_speak = tokio::select! {
            moved = async { self.head.wait_for(|head| head.seq > after).await.is_ok() } => {
                self.over = !moved;
                false
            }
            () = core.clock.sleep_until(beat_at) => true,
            () = core.draining.cancelled() => false,
        };
        if is_time_to_speak {
            self.keys.recheck(&self.caller).await?;
            self.beat();
        }
        Ok(())
    }

    /// A process that may not see what others change does not say that nothing has changed.
    fn beat(&mut self) {
        let core = &self.keys.core;
        self.spoke_at = core.clock.now();
        if !core.processes.is_live() {
            return;
        }
        self.ready.push_back(Frame::Progress(Progress {
            cursor: self.cursor(self.at),
            sequence: self.at.seq,
            head_sequence: self.log.head().seq,
            server_time: Some(timestamp(self.spoke_at)),
        }));
    }

    fn close(&mut self, reason: ClosingReason, wait: Duration) {
        self.over = true;
        self.ready.push_back(Frame::Closing(Closing {
            reason: reason.into(),
            reconnect_after: prost_types::Duration::try_from(wait).ok(),
            cursor: self.cursor(self.at),
        }));
    }

    fn cursor(&self, position: Position) -> String {
        let cursor = Cursor {
            position,
            filter: 0,
        };
        let cursors = &self.keys.core.cursors;
        cursors.write(&tenant_of(&self.caller), Stream::Keys, cursor)
    }
}

fn position(segment: &Segment, seq: u64) -> Position {
    Position {
        seq,
        fingerprint: segment.fingerprint(seq).unwrap_or(0),
    }
}

/// A number from 0 to 1, so that not all watchers connect again at once.
fn random_fraction() -> Result<f64> {
    let mut byte = [0];
    getrandom::fill(&mut byte).map_err(Error::internal)?;
    Ok(f64::from(byte[0]) / 255.0)
}
