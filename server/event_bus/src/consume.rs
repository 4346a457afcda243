//! Consume: leased events down, acks up, for one subscription or for those of all tenants.
//!
//! The stream asks the subscriptions for what it may be given, one after the other; nothing is
//! pushed to it. Its leases are its own until it acks them or goes.

mod place;
mod relay;
mod settling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use hub_core::auth::{self, Authenticator, Caller};
use hub_core::clock::{Micros, micros, timestamp};
use hub_core::cursor::{Cursor, Stream};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::Position;
use hub_core::module::Core;
use hub_proto::hub::core::v1::{
    CaughtUp, Closing, ClosingReason, Gap, GapReason, Opened, Progress,
};
use hub_proto::hub::event_bus::v1::consume_request::Frame as Asked;
use hub_proto::hub::event_bus::v1::{AckOutcome, AckResult, ConsumeOpen, ConsumeRequest, Credit};
use hub_proto::wire::consume_response::Frame;
use hub_proto::wire::{ConsumeResponse, LeasedEvent, LeasedEvents};
use tonic::{Status, Streaming};

use crate::acks;
use crate::branch::{Event, said};
use crate::group::{Group, Want};
use crate::groups::Groups;
use crate::seat::{News, Seat};
use place::{All, At, Taken};
use relay::Relay;

/// Bytes of events of a frame, unless a single event is larger.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Events of a frame.
const FRAME_EVENTS_MAX: usize = 1000;
/// Events that one tenant gets before it is another's turn.
pub(crate) const TURN_EVENTS_MAX: usize = 64;
/// How long a client waits before it connects again to a server that was stopped.
const DRAINED_PAUSE: Duration = Duration::from_millis(500);
/// Batches of acks that may wait to be on disk.
pub(crate) const CONFIRMING_MAX: usize = 64;

/// An open stream.
pub(crate) struct Session {
    core: Core,
    authenticator: Arc<dyn Authenticator>,
    caller: Caller,
    groups: Arc<Groups>,
    product: Arc<str>,
    inbound: Streaming<ConsumeRequest>,
    /// The client sends nothing more.
    silent: bool,
    place: Option<Taken>,
    /// The subscription is at work in another process.
    relay: Option<Relay>,
    confirming: FuturesOrdered<BoxFuture<'static, Vec<AckResult>>>,
    /// The same for acks of subscriptions that move: one of them does not hold up the others.
    nowhere: FuturesUnordered<BoxFuture<'static, Vec<AckResult>>>,
    ready: VecDeque<ConsumeResponse>,
    spoke_at: Micros,
    checked_at: Micros,
    ends_at: Micros,
    over: bool,
}

impl Session {
    /// Begins a stream for an admitted caller; it waits for the frame that opens it.
    pub(crate) fn new(
        core: Core,
        authenticator: Arc<dyn Authenticator>,
        groups: Arc<Groups>,
        caller: Caller,
        inbound: Streaming<ConsumeRequest>,
    ) -> Result<Session> {
        let product = caller.product()?.clone();
        let now = core.clock.now();
        Ok(Session {
            ends_at: now + micros(crate::stream_age(&core)),
            core,
            authenticator,
            caller,
            groups,
            product,
            inbound,
            silent: false,
            place: None,
            relay: None,
            confirming: FuturesOrdered::new(),
            nowhere: FuturesUnordered::new(),
            ready: VecDeque::new(),
            spoke_at: now,
            checked_at: now,
            over: false,
        })
    }

    /// The next frame to send; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<ConsumeResponse>, Status> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.spoke_at = self.core.clock.now();
                return Ok(Some(frame));
            }
            if self.over {
                (self.place, self.relay) = (None, None);
                return Ok(None);
            }
            match self.relay {
                Some(_) => self.pass_on().await?,
                None => self.step().await?,
            }
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        let now = self.core.clock.now();
        if now >= self.ends_at {
            self.close(ClosingReason::MaxAge, Duration::ZERO);
            return Ok(());
        }
        if self.is_done() {
            self.close(ClosingReason::Done, Duration::ZERO);
            return Ok(());
        }
        self.check_key(now).await?;
        self.tell_news();
        if !self.ready.is_empty() || self.over {
            return Ok(());
        }
        let beat_at = crate::beat_at(&self.core, self.spoke_at, now);
        let ends_at = self.ends_at;
        let clock = self.core.clock.clone();
        let seat = self.place.as_ref().map(|place| place.seat.clone());
        let called = async {
            match &seat {
                Some(seat) => seat.called().await,
                None => std::future::pending().await,
            }
        };
        let waiting = self.confirming.len() + self.nowhere.len();
        let mut takes = !self.silent && waiting < CONFIRMING_MAX;
        let mut branches = None;
        if let Some(Taken {
            at: At::All(all), ..
        }) = &mut self.place
        {
            takes &= !all.branches.are_blocked();
            branches = Some(&mut all.branches);
        }
        let heard = async {
            match branches {
                Some(branches) => branches.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(results) = self.confirming.next() => self.answer(results),
            Some(results) = self.nowhere.next() => self.answer(results),
            () = self.core.draining.cancelled() => {
                self.close(ClosingReason::Draining, DRAINED_PAUSE);
            }
            frame = self.inbound.message(), if takes => match frame? {
                Some(ConsumeRequest { frame }) => self.take(frame).await?,
                None => self.silent = true,
            },
            event = heard => {
                if let Some(event) = event {
                    self.hear(event);
                }
            }
            () = called => self.deliver().await?,
            () = clock.sleep_until(beat_at) => self.beat(),
            () = clock.sleep_until(ends_at) => {}
        }
        Ok(())
    }

    /// Says what the subscriptions have to say, and lets those of other processes say theirs.
    fn tell_news(&mut self) {
        // Before: what a look has found had told of itself by then.
        let is_sure = self.place.as_ref().is_some_and(Taken::is_sure);
        while let Some((group, news)) = self.place.as_ref().and_then(|place| place.seat.news()) {
            self.tell(&group, news);
        }
        if let Some(place) = &mut self.place {
            place.give_turns();
            if is_sure && place.all_caught_up() {
                self.say(Frame::CaughtUp(CaughtUp::default()));
            }
        }
    }

    /// A frame of the client.
    async fn take(&mut self, frame: Option<Asked>) -> Result<(), Status> {
        match (frame, &mut self.place) {
            (Some(Asked::Open(open)), None) => self.open(open).await,
            (Some(Asked::Open(_)), Some(_)) => {
                Err(Error::field("open", "was sent before; it is the first frame only").into())
            }
            (_, None) => Err(Error::field("open", "is required in the first frame").into()),
            (Some(Asked::Acks(acks)), Some(_)) => Ok(self.settle(acks)?),
            (Some(Asked::Credit(credit)), Some(place)) => {
                place.credit = place
                    .seat
                    .set_credit(place.credit, credit.events, credit.bytes);
                Ok(())
            }
            (None, Some(_)) => Ok(()),
        }
    }

    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `STORE_BUSY`.
    async fn open(&mut self, open: ConsumeOpen) -> Result<(), Status> {
        let seat = Seat::new(&open.member, self.caller.tenant.is_none());
        let mut credit = Seat::default_credit();
        if let Some(Credit { events, bytes }) = open.credit {
            credit = seat.set_credit(credit, events, bytes);
        }
        let at = match self.caller.tenant.clone() {
            Some(tenant) => match self.reach(&tenant, &open, &seat).await? {
                Some(group) => At::One(group),
                None => return Ok(()),
            },
            None => {
                let all = All::enter(&self.core, &self.groups, &self.caller, &open, &seat)?;
                At::All(Box::new(all))
            }
        };
        let place = Taken {
            seat,
            at,
            credit,
            confirm_acks: open.confirm_acks,
        };
        let (head_sequence, settled) = place.progress();
        let opened = Opened {
            session_id: id::new("ses"),
            cursor: self.cursor(&place, settled),
            head_sequence,
            heartbeat_interval: prost_types::Duration::try_from(
                self.core.limits.heartbeat_interval,
            )
            .ok(),
        };
        self.place = Some(place);
        // Before what it was told on entering.
        self.say(Frame::Opened(opened));
        Ok(())
    }

    /// Serves the next in line.
    async fn deliver(&mut self) -> Result<()> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        let Some((events, bytes)) = place.seat.credit_left() else {
            return Ok(());
        };
        let Some(group) = place.seat.next() else {
            return Ok(());
        };
        let turn = match &mut place.at {
            At::One(_) => FRAME_EVENTS_MAX,
            At::All(all) => {
                all.had_turn();
                TURN_EVENTS_MAX
            }
        };
        let want = Want {
            member: place.seat.member,
            events: events.min(turn),
            bytes,
            length: None,
        };
        let taken = group.take(&place.seat, want).await?;
        if taken.is_empty() {
            return Ok(());
        }
        // There may be more; the others in line come first.
        place.seat.ring(&group);
        if let At::All(all) = &mut place.at {
            all.gave(&group);
        }
        let cursor = log_cursor(&self.core, &group, taken.newest());
        for events in cut(taken.hand_over()) {
            let cursor = cursor.clone();
            self.say(Frame::Events(LeasedEvents { events, cursor }));
        }
        Ok(())
    }

    /// What comes of another process.
    fn hear(&mut self, event: Event) {
        let Some(Taken {
            at: At::All(all), ..
        }) = &mut self.place
        else {
            return;
        };
        match event {
            Event::Said(said::Frame::Events(events)) => self.say(Frame::Events(events)),
            Event::Said(said::Frame::Told(told)) => self.ready.push_back(told),
            Event::Said(said::Frame::AckResults(answer)) => self.answer(answer.results),
            Event::Said(said::Frame::CaughtUp(false)) => all.fell_behind_elsewhere(),
            Event::Said(said::Frame::Left(left)) => all.was_left(&left),
            Event::Said(said::Frame::CaughtUp(true) | said::Frame::Standing(_)) => {}
            Event::Ended(process_id) => all.has_lost(&process_id),
            Event::Unanswered(leases) => self.answer(acks::all(leases, AckOutcome::Retry)),
        }
    }

    /// What a subscription has to say.
    fn tell(&mut self, group: &Arc<Group>, news: News) {
        let Some(place) = &mut self.place else {
            return;
        };
        let tenant_id = match &place.at {
            At::One(_) => String::new(),
            At::All(_) => group.tenant.id().to_owned(),
        };
        let frame = match (news, &mut place.at) {
            (News::Gap { from, to }, _) => Some(Frame::Gap(Gap {
                from_sequence: from,
                to_sequence: to,
                reason: GapReason::Retention.into(),
                cursor: log_cursor(&self.core, group, to),
            })),
            (News::State, _) => Some(Frame::State(group.state().into())),
            (News::CaughtUp(true), At::One(_)) => Some(Frame::CaughtUp(CaughtUp {
                cursor: log_cursor(&self.core, group, group.progress().1),
                sequence: group.progress().1,
            })),
            (News::CaughtUp(false), At::One(_)) => None,
            (News::CaughtUp(false), At::All(all)) => {
                all.fell_behind(group);
                None
            }
            // What is left of it will be at work elsewhere, and is told to be settled there.
            (News::Closed, At::All(all)) if group.behind().0 > 0 => {
                all.has_left(group);
                None
            }
            (News::Closed | News::CaughtUp(true), At::All(all)) => {
                all.is_settled(group);
                None
            }
            (News::Closed, At::One(_)) => {
                match self.core.draining.is_cancelled() {
                    true => self.close(ClosingReason::Draining, DRAINED_PAUSE),
                    false => self.close(ClosingReason::Moved, Duration::ZERO),
                }
                None
            }
        };
        if let Some(frame) = frame {
            self.ready.push_back(ConsumeResponse {
                frame: Some(frame),
                tenant_id,
            });
        }
    }

    fn beat(&mut self) {
        let Some(place) = &self.place else {
            // It is not open yet: there is nothing to tell.
            self.spoke_at = self.core.clock.now();
            return;
        };
        let (head_sequence, sequence) = place.progress();
        let progress = Progress {
            cursor: self.cursor(place, sequence),
            sequence,
            head_sequence,
            server_time: Some(timestamp(self.core.clock.now())),
        };
        self.say(Frame::Progress(progress));
    }

    /// A key that was revoked or narrowed meanwhile ends the stream, as does the end of the
    /// product.
    async fn check_key(&mut self, now: Micros) -> Result<()> {
        if now - self.checked_at >= micros(crate::beat(&self.core)) {
            self.authenticator.recheck(&self.caller).await?;
            self.checked_at = now;
        }
        auth::check_subscription(&self.caller, &self.core.tenancy).await
    }

    /// Whether nothing can come of it any more: the client ended its half, has nothing, and wants
    /// nothing. Its acks were taken.
    fn is_done(&self) -> bool {
        let Some(place) = &self.place else {
            return false;
        };
        let idle = place.credit.0 == 0 && place.seat.holds_nothing(place.credit);
        let answered = self.confirming.is_empty() && self.nowhere.is_empty();
        self.silent && idle && answered && !place.owes_answers()
    }

    fn close(&mut self, reason: ClosingReason, wait: Duration) {
        let cursor = match &self.place {
            Some(place) => self.cursor(place, place.progress().1),
            None => String::new(),
        };
        let wait = (reason != ClosingReason::Done).then_some(wait);
        self.say(Frame::Closing(Closing {
            reason: reason.into(),
            reconnect_after: wait.and_then(|wait| prost_types::Duration::try_from(wait).ok()),
            cursor,
        }));
        self.over = true;
    }

    fn say(&mut self, frame: Frame) {
        self.ready.push_back(ConsumeResponse {
            frame: Some(frame),
            tenant_id: String::new(),
        });
    }

    /// A place for logs, where the stream is of one log.
    fn cursor(&self, place: &Taken, seq: u64) -> String {
        match &place.at {
            At::One(group) => log_cursor(&self.core, group, seq),
            At::All(_) => String::new(),
        }
    }
}

/// A place in the log of a subscription.
pub(crate) fn log_cursor(core: &Core, group: &Group, seq: u64) -> String {
    let position = Position {
        seq,
        fingerprint: 0,
    };
    let cursor = Cursor {
        position,
        filter: 0,
    };
    core.cursors.write(&group.tenant, Stream::Events, cursor)
}

/// Cuts events into frames.
pub(crate) fn cut(events: Vec<LeasedEvent>) -> Vec<Vec<LeasedEvent>> {
    let mut frames = Vec::new();
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for event in events {
        let size = event.record.len() + event.previous_error.len();
        if !frame.is_empty() && bytes + size > FRAME_BYTES_MAX {
            frames.push(std::mem::take(&mut frame));
            bytes = 0;
        }
        bytes += size;
        frame.push(event);
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    frames
}
