//! A stream of all tenants has a branch to each other live process: the consumer is connected to
//! one, but the subscriptions that it serves may be at work in any.
//!
//! A branch is served by turns. The other process says how many subscriptions wait there
//! ([`Standing`]); it gets a turn, credit for some events; it delivers, and says that the turn is
//! over and what is outstanding. Credit that was given away is charged until then, so that the
//! consumer is never given more than it asked for, wherever that comes from.

mod frames;
mod serving;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use hub_core::auth::Caller;
use hub_core::module::Core;
use hub_core::processes::Peers;
use hub_proto::hub::event_bus::v1::AckBatch;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) use frames::{Asked, Enter, Left, PATH, Said, Standing, Turn, asked, said};
pub(crate) use serving::Service;

use crate::acks;
use crate::forward::{self, Failed};
use crate::lease_id;
use crate::seat::Seat;

/// Frames that wait on either way.
const FRAMES_MAX: usize = 16;
/// Pause before a branch is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// Most events of a turn, for each subscription that waits there.
const TURN_EVENTS_MAX: u64 = crate::consume::TURN_EVENTS_MAX as u64;
/// Subscriptions that are counted for a turn.
const TURN_SUBSCRIPTIONS_MAX: u64 = 8;
/// Most bytes of a turn.
const TURN_BYTES_MAX: u64 = 1 << 20;

/// The branches of a stream.
pub(crate) struct Branches {
    core: Core,
    caller: Caller,
    enter: Enter,
    seat: Arc<Seat>,
    peers: watch::Receiver<Peers>,
    by_process: BTreeMap<Arc<str>, Branch>,
    sender: mpsc::Sender<(Arc<str>, Heard)>,
    heard: mpsc::Receiver<(Arc<str>, Heard)>,
    /// In which process the leases of a tenant are.
    holders: HashMap<i64, Arc<str>>,
    /// The branch that had the last turn.
    last: Option<Arc<str>>,
    turns: u64,
    /// How often all were asked how they are.
    asked: u64,
    /// What the stream has to know and was not told yet.
    events: VecDeque<Event>,
}

/// A branch to one process; it ends when this is dropped.
struct Branch {
    /// None while it is not open.
    up: Option<mpsc::Sender<Asked>>,
    standing: Standing,
    /// The turn that it has.
    turn: Option<Turn>,
    /// Events and bytes for which the consumer's credit is charged.
    charged: (u64, u64),
    /// It was asked for the time that this says, by the turn of this number.
    asked: (u64, u64),
    /// Everything there is settled, as it said.
    caught_up: bool,
    /// Acks that wait for room.
    backlog: VecDeque<Asked>,
    /// Leases of acks whose answers are to come, for a consumer that wants them.
    unanswered: VecDeque<Vec<String>>,
    task: JoinHandle<()>,
}

impl Branch {
    /// Whether everything there is settled, as it said since it was asked.
    fn is_caught_up(&self, asked: u64) -> bool {
        let (times, number) = self.asked;
        self.up.is_some() && self.caught_up && times == asked && self.standing.turn >= number
    }

    /// Asks how it is by a turn of no events; false if it takes nothing now.
    fn ask(&self, number: u64) -> bool {
        let turn = Turn {
            number,
            events: 0,
            bytes: 0,
        };
        let frame = Some(asked::Frame::Turn(turn));
        let up = self.up.as_ref();
        up.is_some_and(|up| up.try_send(Asked { frame }).is_ok())
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the stream has to know of its branches.
pub(crate) enum Event {
    /// One says this.
    Said(said::Frame),
    /// The one to this process has ended, and perhaps begins anew.
    Ended(Arc<str>),
    /// What became of the acks of these leases is not known: their branch ended before it said so.
    Unanswered(Vec<String>),
}

/// What comes of a branch.
enum Heard {
    /// It is open.
    Open(mpsc::Sender<Asked>),
    /// It said this.
    Said(said::Frame),
    /// It has ended.
    Ended,
}

impl Branches {
    /// To all processes that live now, and to those that will.
    pub(crate) fn new(core: &Core, caller: &Caller, enter: Enter, seat: &Arc<Seat>) -> Branches {
        let (sender, heard) = mpsc::channel(FRAMES_MAX);
        let mut branches = Branches {
            core: core.clone(),
            caller: caller.clone(),
            enter,
            seat: seat.clone(),
            peers: core.processes.watch(),
            by_process: BTreeMap::new(),
            sender,
            heard,
            holders: HashMap::new(),
            last: None,
            turns: 0,
            asked: 0,
            events: VecDeque::new(),
        };
        branches.look();
        branches
    }

    /// Opens branches to processes that are new, and drops those to processes that are gone.
    fn look(&mut self) {
        let peers = self.peers.borrow_and_update().clone();
        let gone = self.by_process.keys().filter(|id| !peers.contains_key(*id));
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        for process_id in gone {
            self.end(&process_id);
            self.by_process.remove(&process_id);
            // What it had may be free, whether there was a branch or not.
            self.events.push_back(Event::Ended(process_id));
        }
        for process_id in peers.keys() {
            if !self.by_process.contains_key(process_id) {
                let task = tokio::spawn(work(
                    self.core.clone(),
                    process_id.clone(),
                    self.caller.clone(),
                    self.enter.clone(),
                    self.sender.clone(),
                ));
                let branch = Branch {
                    up: None,
                    standing: Standing::default(),
                    turn: None,
                    charged: (0, 0),
                    asked: (0, 0),
                    caught_up: false,
                    backlog: VecDeque::new(),
                    unanswered: VecDeque::new(),
                    task,
                };
                self.by_process.insert(process_id.clone(), branch);
            }
        }
    }

    /// A branch has ended: its leases are void. False if it was not open.
    fn end(&mut self, process_id: &Arc<str>) -> bool {
        let Some(branch) = self.by_process.get_mut(process_id) else {
            return false;
        };
        let was_open = branch.up.take().is_some();
        branch.backlog.clear();
        let unanswered: Vec<String> = branch.unanswered.drain(..).flatten().collect();
        if !unanswered.is_empty() {
            self.events.push_back(Event::Unanswered(unanswered));
        }
        branch.turn = None;
        branch.standing = Standing::default();
        (branch.asked, branch.caught_up) = ((0, 0), false);
        charge(&self.seat, branch);
        self.holders.retain(|_, holder| holder != process_id);
        was_open
    }

    /// What a branch says next; none if that was for the branches themselves. Nothing is lost if
    /// this is dropped.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        tokio::select! {
            changed = self.peers.changed() => match changed {
                Ok(()) => self.look(),
                // This process ends.
                Err(_) => std::future::pending().await,
            },
            Some((process_id, heard)) = self.heard.recv() => match heard {
                Heard::Open(up) => self.enter(&process_id, up),
                Heard::Said(frame) => return self.hear(&process_id, frame).map(Event::Said),
                Heard::Ended => {
                    let was_open = self.end(&process_id);
                    return was_open.then_some(Event::Ended(process_id));
                }
            },
            () = room(&mut self.by_process) => {}
        }
        None
    }

    /// Whether acks wait for room: no more should come until they have gone.
    pub(crate) fn are_blocked(&self) -> bool {
        let mut branches = self.by_process.values();
        branches.any(|branch| !branch.backlog.is_empty())
    }

    fn enter(&mut self, process_id: &Arc<str>, up: mpsc::Sender<Asked>) {
        if let Some(branch) = self.by_process.get_mut(process_id) {
            // Unless it says so, or says something else when it is asked.
            (branch.up, branch.caught_up) = (Some(up), true);
        }
    }

    fn hear(&mut self, process_id: &Arc<str>, frame: said::Frame) -> Option<said::Frame> {
        let branch = self.by_process.get_mut(process_id)?;
        match &frame {
            said::Frame::Standing(standing) => {
                branch.standing = *standing;
                branch.turn = branch.turn.filter(|turn| turn.number > standing.turn);
                charge(&self.seat, branch);
                return None;
            }
            said::Frame::CaughtUp(caught_up) => branch.caught_up = *caught_up,
            said::Frame::AckResults(_) if self.enter.confirm_acks => {
                branch.unanswered.pop_front();
            }
            said::Frame::Events(given) => {
                let leases = given.events.iter().map(|event| &event.lease_id);
                let tenants = leases.filter_map(|lease| Some(lease_id::read(lease)?.0));
                for tenant in tenants {
                    self.holders.insert(tenant, process_id.clone());
                }
            }
            // Who has it next is not known yet.
            said::Frame::Left(left) => {
                let holder = self.holders.get(&left.tenant);
                if holder.is_some_and(|holder| holder == process_id) {
                    self.holders.remove(&left.tenant);
                }
            }
            _ => {}
        }
        Some(frame)
    }

    /// All are to say once more how they are.
    pub(crate) fn ask_again(&mut self) {
        self.asked += 1;
    }

    /// Whether everything at work in other processes is settled, as they have said since they were
    /// asked. Of a process that cannot be reached it is not known.
    pub(crate) fn are_caught_up(&mut self) -> bool {
        for branch in self.by_process.values_mut() {
            if branch.asked.0 < self.asked && branch.ask(self.turns + 1) {
                self.turns += 1;
                branch.asked = (self.asked, self.turns);
            }
        }
        // What was at work in a process that has just gone may be nowhere; one that has just come
        // was not asked.
        let known = self.events.is_empty() && !self.peers.has_changed().unwrap_or(true);
        let mut branches = self.by_process.values();
        known && branches.all(|branch| branch.is_caught_up(self.asked))
    }

    /// Whether answers to acks are to come.
    pub(crate) fn owe_answers(&self) -> bool {
        let mut branches = self.by_process.values();
        branches.any(|branch| !branch.unanswered.is_empty())
    }

    /// Gives the next branch with something to deliver a turn, of its share of the credit that is
    /// left if subscriptions wait `here` too. False if none has.
    pub(crate) fn give_turn(&mut self, here: bool) -> bool {
        let Some((events, bytes)) = self.seat.credit_left() else {
            return false;
        };
        let waits = |branch: &Branch| {
            branch.up.is_some() && branch.turn.is_none() && branch.standing.waiting > 0
        };
        let waiting: Vec<Arc<str>> = self
            .by_process
            .iter()
            .filter(|(_, branch)| waits(branch))
            .map(|(process_id, _)| process_id.clone())
            .collect();
        let after = |id: &&Arc<str>| self.last.as_ref().is_none_or(|last| *id > last);
        let Some(process_id) = waiting.iter().find(after).or(waiting.first()) else {
            return false;
        };
        let Some(branch) = self.by_process.get_mut(process_id) else {
            return false;
        };
        let Some(up) = &branch.up else {
            return false;
        };
        let shares = (waiting.len() + usize::from(here)) as u64;
        let subscriptions = branch.standing.waiting.min(TURN_SUBSCRIPTIONS_MAX);
        let turn = Turn {
            number: self.turns + 1,
            events: (events as u64 / shares).clamp(1, TURN_EVENTS_MAX * subscriptions),
            bytes: (bytes / shares).clamp(1, TURN_BYTES_MAX),
        };
        let frame = Some(asked::Frame::Turn(turn));
        // One that takes nothing now is asked again later.
        if up.try_send(Asked { frame }).is_err() {
            return false;
        }
        self.turns = turn.number;
        branch.turn = Some(turn);
        charge(&self.seat, branch);
        self.last = Some(process_id.clone());
        true
    }

    /// The process that has leases of a tenant, if it is another one.
    pub(crate) fn holder(&self, tenant: i64) -> Option<&Arc<str>> {
        self.holders.get(&tenant)
    }

    /// Passes acks on; they come back if the branch has ended.
    pub(crate) fn settle(&mut self, process_id: &Arc<str>, acks: AckBatch) -> Option<AckBatch> {
        let branch = self.by_process.get_mut(process_id);
        let Some(branch) = branch.filter(|branch| branch.up.is_some()) else {
            return Some(acks);
        };
        if self.enter.confirm_acks {
            branch.unanswered.push_back(acks::leases(&acks));
        }
        let frame = Some(asked::Frame::Acks(acks));
        branch.backlog.push_back(Asked { frame });
        None
    }
}

/// Sends what waits, once there is room for it.
async fn room(branches: &mut BTreeMap<Arc<str>, Branch>) {
    let mut waiting = branches.values_mut();
    let waiting = waiting.find(|branch| !branch.backlog.is_empty());
    let Some(Branch {
        up: Some(up),
        backlog,
        ..
    }) = waiting
    else {
        return std::future::pending().await;
    };
    match up.reserve().await {
        Ok(room) => {
            if let Some(frame) = backlog.pop_front() {
                room.send(frame);
            }
        }
        // That it has ended is about to be heard.
        Err(_) => backlog.clear(),
    }
}

/// Charges the consumer's credit for what is outstanding and for the turn, in place of before.
fn charge(seat: &Seat, branch: &mut Branch) {
    let turn = branch.turn.map_or((0, 0), |turn| (turn.events, turn.bytes));
    let standing = (branch.standing.events, branch.standing.bytes);
    let now = (standing.0 + turn.0, standing.1 + turn.1);
    let before = std::mem::replace(&mut branch.charged, now);
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    seat.charge(count(now.0), now.1);
    seat.give_back(count(before.0), before.1);
}

/// Keeps a branch open as long as somebody wants to hear of it.
async fn work(
    core: Core,
    process_id: Arc<str>,
    caller: Caller,
    enter: Enter,
    heard: mpsc::Sender<(Arc<str>, Heard)>,
) {
    loop {
        if let Err(failed) = listen(&core, &process_id, &caller, &enter, &heard).await {
            tracing::debug!(process = &*process_id, "a branch has ended: {failed:?}");
        }
        if heard
            .send((process_id.clone(), Heard::Ended))
            .await
            .is_err()
        {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn listen(
    core: &Core,
    process_id: &Arc<str>,
    caller: &Caller,
    enter: &Enter,
    heard: &mpsc::Sender<(Arc<str>, Heard)>,
) -> Result<(), Failed> {
    let (up, frames) = mpsc::channel(FRAMES_MAX);
    let frame = Some(asked::Frame::Enter(enter.clone()));
    up.try_send(Asked { frame })
        .map_err(|_| Failed::Moving("moved"))?;
    let frames = stream::unfold(frames, |mut frames| async move {
        let frame = frames.recv().await?;
        Some((frame, frames))
    });
    let mut said = forward::open_branch(core, process_id, caller, frames).await?;
    let mut up = Some(up);
    loop {
        let next = said.message().await;
        let Some(next) = next.map_err(|status| forward::sort(status, process_id))? else {
            return Ok(());
        };
        // It is open once it says something.
        if let Some(up) = up.take()
            && heard
                .send((process_id.clone(), Heard::Open(up)))
                .await
                .is_err()
        {
            return Ok(());
        }
        if let Some(frame) = next.frame
            && heard
                .send((process_id.clone(), Heard::Said(frame)))
                .await
                .is_err()
        {
            return Ok(());
        }
    }
}
