//! The side of a branch that has the subscriptions: it delivers when it has the turn.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use axum::Router;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered};
use futures_util::{FutureExt, StreamExt};
use hub_core::auth::{Authenticator, Caller};
use hub_core::clock::{Micros, micros};
use hub_core::error::{Error, Result};
use hub_core::module::Core;
use hub_proto::hub::core::v1::{Gap, GapReason};
use hub_proto::hub::event_bus::v1::{AckBatch, AckResult, AckResults};
use hub_proto::wire::consume_response::Frame as Told;
use hub_proto::wire::{ConsumeResponse, LeasedEvents};
use tokio::sync::watch;
use tonic::codegen::BoxStream;
use tonic::{Status, Streaming};

use super::frames::{self, Asked, Enter, Left, Said, Standing, Turn, asked, said};
use crate::acks::{self, Found};
use crate::consume::{CONFIRMING_MAX, TURN_EVENTS_MAX, cut, log_cursor};
use crate::forward;
use crate::group::{Group, Want};
use crate::groups::Groups;
use crate::seat::{News, Seat};

/// What serves branches.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) core: Core,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) groups: Arc<Groups>,
}

impl Service {
    /// Its route.
    pub(crate) fn router(self) -> Router {
        forward::serve_streams(frames::PATH, move |caller, inbound| {
            self.clone().open(caller, inbound)
        })
    }

    async fn open(
        self,
        caller: Caller,
        mut inbound: Streaming<Asked>,
    ) -> Result<BoxStream<Said>, Status> {
        let Some(asked::Frame::Enter(enter)) =
            inbound.message().await?.and_then(|asked| asked.frame)
        else {
            return Err(Error::field("enter", "is required in the first frame").into());
        };
        let serving = Serving::new(self, caller, enter, inbound)?;
        let frames = stream::unfold(Some(serving), |serving| async move {
            let mut serving = serving?;
            match serving.next().await {
                Ok(None) => None,
                Ok(Some(frame)) => Some((Ok(Said { frame: Some(frame) }), Some(serving))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(frames.boxed())
    }
}

/// A subscription that is at work here no more.
struct Leaving {
    group: Arc<Group>,
    /// Something was left to do for it.
    behind: bool,
}

/// A branch that is served.
struct Serving {
    service: Service,
    caller: Caller,
    product: Arc<str>,
    enter: Enter,
    seat: Arc<Seat>,
    credit: (i64, i64),
    inbound: Streaming<Asked>,
    /// The other process asks for nothing more.
    silent: bool,
    turn: Option<Turn>,
    told: Option<Standing>,
    /// Number of the last turn that is over.
    served: u64,
    /// Subscriptions that have more than was delivered, as far as they said.
    behind: HashSet<u64>,
    /// Whether everything is settled, as it was said last.
    caught_up: Option<bool>,
    /// Those that are at work here no more, and that others may not have yet.
    leaving: Vec<Leaving>,
    /// Who asked was told that something is on its way, and has to look once it has come.
    was_between: bool,
    settled: watch::Receiver<()>,
    confirming: FuturesOrdered<BoxFuture<'static, Vec<AckResult>>>,
    ready: VecDeque<said::Frame>,
    checked_at: Micros,
    over: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let groups = &self.service.groups;
        groups.go(&self.product, &self.enter.name, &self.seat);
    }
}

impl Serving {
    fn new(
        service: Service,
        caller: Caller,
        enter: Enter,
        inbound: Streaming<Asked>,
    ) -> Result<Serving> {
        let product = caller.product()?.clone();
        let seat = Seat::new(&enter.member, true);
        // What may be given is said with each turn.
        let credit = seat.set_credit(Seat::default_credit(), u32::MAX, u64::MAX);
        service.groups.visit(&product, &enter.name, &seat);
        Ok(Serving {
            checked_at: service.core.clock.now(),
            settled: service.groups.settled(),
            service,
            caller,
            product,
            enter,
            seat,
            credit,
            inbound,
            silent: false,
            turn: None,
            told: None,
            served: 0,
            behind: HashSet::new(),
            caught_up: None,
            leaving: Vec::new(),
            was_between: false,
            confirming: FuturesOrdered::new(),
            ready: VecDeque::new(),
            over: false,
        })
    }

    async fn next(&mut self) -> Result<Option<said::Frame>, Status> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Some(frame));
            }
            if self.over {
                return Ok(None);
            }
            self.step().await?;
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        self.settled.borrow_and_update();
        let groups = &self.service.groups;
        // Before: what has come to work meanwhile had told of itself by then.
        let between = groups.is_between(&self.product, &self.enter.name);
        while let Some((group, news)) = self.seat.news() {
            self.tell(&group, news);
        }
        self.let_leave();
        self.tell_caught_up(between);
        if let Some(turn) = self.turn.take() {
            self.serve(turn).await?;
        }
        let standing = self.standing();
        if self.told != Some(standing) {
            self.told = Some(standing);
            self.ready.push_back(said::Frame::Standing(standing));
        }
        if !self.ready.is_empty() {
            return Ok(());
        }
        let core = &self.service.core;
        let takes = !self.silent && self.confirming.len() < CONFIRMING_MAX;
        tokio::select! {
            biased;
            Some(results) = self.confirming.next() => self.answer(results),
            // The other process takes over what this one has let go.
            () = self.service.groups.has_let_go() => self.over = true,
            frame = self.inbound.message(), if takes => match frame? {
                Some(Asked { frame }) => self.take(frame)?,
                None => self.over = true,
            },
            () = self.seat.stirred() => {}
            _ = self.settled.changed(), if self.waits() => {}
            () = core.clock.sleep(crate::beat(core)) => self.beat().await?,
        }
        Ok(())
    }

    fn take(&mut self, frame: Option<asked::Frame>) -> Result<()> {
        match frame {
            Some(asked::Frame::Turn(turn)) => self.turn = Some(turn),
            Some(asked::Frame::Acks(acks)) => self.settle(acks)?,
            Some(asked::Frame::Enter(_)) | None => {}
        }
        Ok(())
    }

    /// The line is served until the turn is used up, or nobody has anything.
    async fn serve(&mut self, turn: Turn) -> Result<()> {
        let (mut events, mut bytes) = (turn.events, turn.bytes);
        while events > 0
            && bytes > 0
            && let Some(group) = self.seat.next()
        {
            let most = usize::try_from(events).unwrap_or(usize::MAX);
            let want = Want {
                member: self.seat.member,
                events: most.min(TURN_EVENTS_MAX),
                bytes,
                length: None,
            };
            let taken = group.take(&self.seat, want).await?;
            if taken.is_empty() {
                continue;
            }
            self.seat.ring(&group);
            if !group.is_caught_up() {
                self.behind.insert(group.number);
                self.set_caught_up(false);
            }
            let cursor = log_cursor(&self.service.core, &group, taken.newest());
            for given in cut(taken.hand_over()) {
                let size: usize = given.iter().map(|event| event.record.len()).sum();
                events = events.saturating_sub(given.len() as u64);
                bytes = bytes.saturating_sub(size as u64);
                let given = LeasedEvents {
                    events: given,
                    cursor: cursor.clone(),
                };
                self.ready.push_back(said::Frame::Events(given));
            }
        }
        self.served = turn.number;
        Ok(())
    }

    fn standing(&self) -> Standing {
        let (events, bytes) = self.seat.outstanding(self.credit);
        Standing {
            turn: self.served,
            waiting: self.seat.waiting() as u64,
            events,
            bytes,
        }
    }

    fn settle(&mut self, batch: AckBatch) -> Result<()> {
        let (groups, product) = (&self.service.groups, &self.product);
        let name = &self.enter.name;
        let settled = acks::settle(acks::read(batch)?, |tenant| {
            match groups.find_named(tenant, product, name) {
                Some(group) => Found::Here(group),
                None => Found::Moving,
            }
        });
        if self.enter.confirm_acks {
            self.confirming.push_back(settled.saved().boxed());
        } else {
            self.answer(acks::refused(settled.results));
        }
        Ok(())
    }

    fn answer(&mut self, results: Vec<AckResult>) {
        if !results.is_empty() {
            let results = AckResults { results };
            self.ready.push_back(said::Frame::AckResults(results));
        }
    }

    fn tell(&mut self, group: &Arc<Group>, news: News) {
        let told = match news {
            News::Gap { from, to } => Some(Told::Gap(Gap {
                from_sequence: from,
                to_sequence: to,
                reason: GapReason::Retention.into(),
                cursor: log_cursor(&self.service.core, group, to),
            })),
            News::State => Some(Told::State(group.state().into())),
            News::CaughtUp(false) => {
                self.behind.insert(group.number);
                self.set_caught_up(false);
                None
            }
            News::CaughtUp(true) => {
                self.behind.remove(&group.number);
                None
            }
            News::Closed => {
                self.behind.remove(&group.number);
                let behind = group.behind().0 > 0;
                let group = group.clone();
                self.leaving.push(Leaving { group, behind });
                None
            }
        };
        if told.is_some() {
            self.ready.push_back(said::Frame::Told(ConsumeResponse {
                frame: told,
                tenant_id: group.tenant.id().to_owned(),
            }));
        }
    }

    /// Whether it depends on what becomes of others what is to be said.
    fn waits(&self) -> bool {
        let quiet = self.behind.is_empty() && self.caught_up != Some(true);
        !self.leaving.is_empty() || quiet
    }

    /// Says which are at work here no more, once others may have them: who looks for one before
    /// finds it here.
    fn let_leave(&mut self) {
        let groups = &self.service.groups;
        let has_left = |leaving: &mut Leaving| groups.has_left(&leaving.group);
        for Leaving { group, behind } in self.leaving.extract_if(.., has_left) {
            self.ready.push_back(said::Frame::Left(Left {
                tenant: group.tenant.number(),
                subscription_id: group.id.to_string(),
                behind,
            }));
        }
    }

    /// Says whether everything is settled, if that has changed. Who asks is told so only if no
    /// subscription is on its way to or from this process (`between`).
    fn tell_caught_up(&mut self, between: bool) {
        let is_asked = self.turn.is_some_and(|turn| turn.events == 0);
        let was_told = self.caught_up == Some(true) && !is_asked;
        let is_left = self.leaving.iter().any(|leaving| leaving.behind);
        let is_settled = self.behind.is_empty() && !is_left;
        let between = between && !was_told;
        if self.was_between && !between {
            // It may have come to nothing, and be free.
            self.ready.push_back(said::Frame::Left(Left {
                behind: true,
                ..Left::default()
            }));
        }
        self.was_between = between && (is_asked || self.was_between);
        self.set_caught_up(is_settled && !between);
    }

    fn set_caught_up(&mut self, caught_up: bool) {
        if self.caught_up != Some(caught_up) {
            self.caught_up = Some(caught_up);
            self.ready.push_back(said::Frame::CaughtUp(caught_up));
        }
    }

    /// A key that was revoked or narrowed meanwhile ends the branch. The other process hears that
    /// it lives.
    async fn beat(&mut self) -> Result<()> {
        let now = self.service.core.clock.now();
        if now - self.checked_at >= micros(crate::beat(&self.service.core)) {
            self.service.authenticator.recheck(&self.caller).await?;
            self.checked_at = now;
        }
        self.told = None;
        Ok(())
    }
}
