//! Subscribe: a reader with a cursor that the client keeps.
//!
//! One position moves through the log, first over the database, then over the tail; because
//! sequences are dense, the join is an equality. Nothing is held between two frames but the
//! position: a reader that takes nothing costs no more than the frame under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hub_core::auth::{self, Authenticator, Caller};
use hub_core::clock::{Micros, micros, timestamp};
use hub_core::cursor::{Cursor, Stream};
use hub_core::error::Result;
use hub_core::id;
use hub_core::journal::{Log, Page, Position, Segment};
use hub_core::module::Core;
use hub_proto::hub::core::v1::{
    CaughtUp, Closing, ClosingReason, Gap, GapReason, Opened, Progress,
};
use hub_proto::hub::event_bus::v1::SubscribeRequest;
use hub_proto::wire::EventBatch;
use hub_proto::wire::subscribe_response::Frame;
use tokio::sync::watch;

use crate::batch::{Batcher, FIRST_FRAME_BYTES};
use crate::filter::{Filter, Scope};
use crate::routing::{Configuration, Configurations};
use crate::{error, start};

/// What a reader of all products needs beside the scope of the RPC.
const READ_ALL: &str = "hub:events.read_all";
/// A reader that takes a frame within this time gets larger ones.
const QUICK: Duration = Duration::from_millis(200);

type Configured = (Arc<Segment>, Option<Arc<Configuration>>);

/// An open stream.
pub struct Reader {
    core: Core,
    authenticator: Arc<dyn Authenticator>,
    caller: Caller,
    log: Arc<Log>,
    configurations: Configurations,
    /// Of the segment that was read last; most are of the same epoch.
    configuration: Option<Arc<Configuration>>,
    head: watch::Receiver<Position>,
    batcher: Batcher,
    fingerprint: u64,
    /// Everything that matches up to here was sent.
    at: Position,
    /// It sees what is routed to its product, not all of the tenant.
    routed: bool,
    fail_on_gap: bool,
    stop_when_caught_up: bool,
    /// Events still to send; `None` = no limit.
    remaining: Option<u32>,
    caught_up: bool,
    frame_bytes: usize,
    ready: VecDeque<Frame>,
    spoke_at: Micros,
    /// When the key was last seen to work.
    checked_at: Micros,
    ends_at: Micros,
    over: bool,
}

impl Reader {
    /// Opens a reader at the asked place.
    ///
    /// Errors: `FILTER_INVALID`, `SCOPE_MISSING`, `CURSOR_INVALID`, `CURSOR_FILTER_MISMATCH`,
    /// `CURSOR_EXPIRED`, `LOG_REWOUND`, `SEQUENCE_AHEAD`.
    pub async fn open(
        core: Core,
        authenticator: Arc<dyn Authenticator>,
        configurations: Configurations,
        caller: Caller,
        request: SubscribeRequest,
    ) -> Result<Reader> {
        let wanted = request.filter.unwrap_or_default();
        let filter = Filter::new(&wanted)?;
        if request.all_products {
            caller.require(READ_ALL)?;
        }
        let product = caller.product()?.to_string();
        let scope = Scope {
            product,
            all_products: request.all_products,
        };
        let fingerprint = Filter::fingerprint(&wanted, &scope);
        let log = core.journal.log(caller.tenant()?).await?;
        // Watched before the position is read: a head that moves in between is not missed.
        let head = log.watch();
        let now = core.clock.now();
        let mut reader = Reader {
            batcher: Batcher::new(filter, scope, request.omit_data),
            fingerprint,
            at: Position::default(),
            routed: !request.all_products,
            fail_on_gap: request.fail_on_gap,
            stop_when_caught_up: request.stop_when_caught_up,
            remaining: Some(request.max_events).filter(|max| *max > 0),
            caught_up: false,
            frame_bytes: FIRST_FRAME_BYTES,
            ready: VecDeque::new(),
            spoke_at: now,
            checked_at: now,
            ends_at: now + micros(crate::stream_age(&core)),
            over: false,
            core,
            authenticator,
            configurations,
            configuration: None,
            caller,
            head,
            log,
        };
        let asked = request.start.and_then(|start| start.at);
        reader.at = start::position(&reader.core, &reader.log, asked, Some(fingerprint)).await?;
        reader.ready.push_back(Frame::Opened(reader.opened()));
        Ok(reader)
    }

    fn opened(&self) -> Opened {
        let interval = self.core.limits.heartbeat_interval;
        Opened {
            session_id: id::new("ses"),
            cursor: self.cursor(self.at),
            head_sequence: self.log.head().seq,
            heartbeat_interval: prost_types::Duration::try_from(interval).ok(),
        }
    }

    /// The next frame to send; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        self.look_at_pace();
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.spoke_at = self.core.clock.now();
                return Ok(Some(frame));
            }
            if self.over {
                return Ok(None);
            }
            let now = self.core.clock.now();
            if self.core.draining.is_cancelled() {
                self.close(ClosingReason::Draining, Duration::from_millis(500));
            } else if now >= self.ends_at {
                self.close(ClosingReason::MaxAge, Duration::ZERO);
            } else {
                self.check_key(now).await?;
                // Ending the product's subscription stops its events within a second.
                auth::check_subscription(&self.caller, &self.core.tenancy).await?;
                self.read().await?;
            }
        }
    }

    /// How long the transport took for the last frame tells how fast the client reads.
    fn look_at_pace(&mut self) {
        if self.over {
            return;
        }
        let taken = (self.core.clock.now() - self.spoke_at).max(0);
        if taken >= micros(self.core.limits.slow_reader_timeout) {
            self.close(ClosingReason::TooSlow, Duration::from_secs(1));
        } else if taken < micros(QUICK) {
            self.frame_bytes = (self.frame_bytes * 2).min(self.core.limits.page_bytes_max);
        } else {
            self.frame_bytes = FIRST_FRAME_BYTES;
        }
    }

    async fn read(&mut self) -> Result<()> {
        match self.core.journal.read_after(&self.log, self.at.seq).await? {
            Page::Segments(segments) => {
                let segments = self.configured(segments).await?;
                let head = self.log.head().seq;
                let taken =
                    self.batcher
                        .take(&segments, self.at, self.frame_bytes, self.remaining)?;
                self.at = taken.position;
                if self.at.seq < head {
                    self.caught_up = false;
                }
                if taken.count > 0 {
                    let cursor = self.cursor(self.at);
                    let batch = EventBatch {
                        records: taken.records,
                        cursor,
                    };
                    self.ready.push_back(Frame::Events(batch));
                    self.count(taken.count);
                } else if self.is_silent_too_long() {
                    self.beat().await?;
                }
            }
            Page::Gap { from, to } => self.gap(from, to).await?,
            Page::AtEnd => self.at_end().await?,
        }
        Ok(())
    }

    /// Each segment with the configuration under which it was committed.
    async fn configured(&mut self, segments: Vec<Arc<Segment>>) -> Result<Vec<Configured>> {
        let mut configured = Vec::with_capacity(segments.len());
        for segment in segments {
            let epoch = segment.routing_epoch();
            let known = self.configuration.as_ref();
            if self.routed && known.is_none_or(|known| known.epoch != epoch) {
                let tenant = self.log.tenant();
                self.configuration = Some(self.configurations.at(tenant, epoch).await?);
            }
            configured.push((segment, self.configuration.clone()));
        }
        Ok(configured)
    }

    fn count(&mut self, sent: u32) {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(sent);
            if *remaining == 0 {
                self.close_done();
            }
        }
    }

    async fn gap(&mut self, from: u64, to: u64) -> Result<()> {
        let after = start::place(&self.core, &self.log, to).await?;
        let cursor = self.cursor(after);
        if self.fail_on_gap {
            return Err(error::cursor_expired(from, to, &cursor));
        }
        self.at = after;
        self.caught_up = false;
        self.ready.push_back(Frame::Gap(Gap {
            from_sequence: from,
            to_sequence: to,
            reason: GapReason::Retention as i32,
            cursor,
        }));
        Ok(())
    }

    /// Says so once, then waits for events, never in silence for long.
    async fn at_end(&mut self) -> Result<()> {
        if !self.caught_up {
            self.caught_up = true;
            let (cursor, sequence) = (self.cursor(self.at), self.at.seq);
            self.ready
                .push_back(Frame::CaughtUp(CaughtUp { cursor, sequence }));
            if self.stop_when_caught_up {
                self.close_done();
            }
            return Ok(());
        }
        let now = self.core.clock.now();
        let beat_at = crate::beat_at(&self.core, self.spoke_at, now);
        let after = self.at.seq;
        tokio::select! {
            // The log lives as long as its readers, so this cannot fail.
            moved = async { self.head.wait_for(|head| head.seq > after).await.is_ok() } => {
                if !moved {
                    self.over = true;
                }
            }
            () = self.core.clock.sleep_until(beat_at) => self.beat().await?,
            () = self.core.clock.sleep_until(self.ends_at) => {}
            () = self.core.draining.cancelled() => {}
        }
        Ok(())
    }

    /// A key that was revoked or narrowed meanwhile ends the stream, whether it is busy or quiet.
    async fn check_key(&mut self, now: Micros) -> Result<()> {
        if now - self.checked_at >= micros(crate::beat(&self.core)) {
            let caller = self.authenticator.recheck(&self.caller).await?;
            if !self.routed {
                caller.require(READ_ALL)?;
            }
            self.checked_at = now;
        }
        Ok(())
    }

    fn is_silent_too_long(&self) -> bool {
        self.core.clock.now() - self.spoke_at >= micros(crate::beat(&self.core))
    }

    /// A quiet filter moves on too.
    async fn beat(&mut self) -> Result<()> {
        self.check_key(self.core.clock.now()).await?;
        self.ready.push_back(Frame::Progress(Progress {
            cursor: self.cursor(self.at),
            sequence: self.at.seq,
            head_sequence: self.log.head().seq,
            server_time: Some(timestamp(self.core.clock.now())),
        }));
        Ok(())
    }

    fn close_done(&mut self) {
        let closing = self.closing(ClosingReason::Done, None);
        self.ready.push_back(Frame::Closing(closing));
        self.over = true;
    }

    fn close(&mut self, reason: ClosingReason, wait: Duration) {
        let closing = self.closing(reason, Some(wait));
        self.ready.push_back(Frame::Closing(closing));
        self.over = true;
    }

    fn closing(&self, reason: ClosingReason, wait: Option<Duration>) -> Closing {
        Closing {
            reason: reason as i32,
            reconnect_after: wait.and_then(|wait| prost_types::Duration::try_from(wait).ok()),
            cursor: self.cursor(self.at),
        }
    }

    fn cursor(&self, position: Position) -> String {
        let cursor = Cursor {
            position,
            filter: self.fingerprint,
        };
        self.core
            .cursors
            .write(self.log.tenant(), Stream::Events, cursor)
    }
}
