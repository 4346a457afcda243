//! The newest events of a tenant in memory, so that a reader at the end never asks the database.
//!
//! Segments may be offered in any order; the tail releases only what continues it without a hole.
//! A commit is offered as one segment by who stored it, and by its rows when it is read from the
//! database: of what holds the same events the larger one stays.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, watch};

use super::TenantRef;
use super::segment::Segment;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Sequence; 0 = before the first event.
    pub seq: u64,
    /// Fingerprint of the event there.
    pub fingerprint: u64,
}

/// A tenant's log as this process sees it.
#[derive(Debug)]
pub struct Log {
    tenant: TenantRef,
    head: watch::Sender<Position>,
    /// Retention removed everything up to here, as far as this process heard.
    floor: watch::Sender<u64>,
    tail: Mutex<Tail>,
    /// Set once this process knows what the log had before (PostgreSQL).
    pub(super) met: OnceCell<()>,
    /// Somebody will read on who has not begun yet.
    pub(super) read_on: AtomicBool,
}

#[derive(Debug, Default)]
struct Tail {
    segments: VecDeque<Arc<Segment>>,
    /// Offered, but something between is missing.
    waiting: BTreeMap<u64, Arc<Segment>>,
    /// Rises when stored events change: what was read before is not shown any more.
    view: u64,
}

/// What the tail has for a reader.
pub(crate) enum Look {
    /// In order, beginning with the segment that holds the next event.
    Segments(Vec<Arc<Segment>>),
    /// Nothing newer.
    AtEnd,
    /// The next event is only in the database.
    Behind,
}

impl Log {
    pub(crate) fn new(tenant: TenantRef, head: Position) -> Self {
        Log {
            tenant,
            head: watch::Sender::new(head),
            floor: watch::Sender::new(0),
            tail: Mutex::default(),
            met: OnceCell::new(),
            read_on: AtomicBool::new(false),
        }
    }

    /// Whose log it is.
    pub fn tenant(&self) -> &TenantRef {
        &self.tenant
    }

    /// The newest position that readers may see.
    pub fn head(&self) -> Position {
        *self.head.borrow()
    }

    /// Tells of every new head; several may be told as one.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.head.subscribe()
    }

    /// The last sequence that retention removed, 0 before any; told again when it rises. Another
    /// process's removals are heard of within a minute.
    pub fn watch_floor(&self) -> watch::Receiver<u64> {
        self.floor.subscribe()
    }

    /// Somebody waits for its next head.
    pub(crate) fn is_watched(&self) -> bool {
        self.head.receiver_count() > 0
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a committed segment. Returns true if it has to wait for one that is missing.
    pub(crate) fn offer(self: &Arc<Self>, segment: Arc<Segment>, budget: &Budget) -> bool {
        let tail = self.lock();
        self.take(tail, segment, budget)
    }

    /// Takes a segment that was read from the database, unless stored events changed since `view`.
    pub(crate) fn offer_of_view(
        self: &Arc<Self>,
        segment: Arc<Segment>,
        budget: &Budget,
        view: u64,
    ) {
        let tail = self.lock();
        if tail.view == view {
            self.take(tail, segment, budget);
        }
    }

    fn take(
        self: &Arc<Self>,
        mut tail: MutexGuard<'_, Tail>,
        segment: Arc<Segment>,
        budget: &Budget,
    ) -> bool {
        let mut head = self.head();
        if segment.last() <= head.seq {
            return false;
        }
        let known = tail.waiting.get(&segment.first());
        if known.is_none_or(|known| known.last() < segment.last()) {
            tail.waiting.insert(segment.first(), segment);
        }
        while let Some(next) = tail.waiting.first_entry() {
            if *next.key() > head.seq + 1 {
                break;
            }
            let segment = next.remove();
            if segment.last() <= head.seq {
                continue;
            }
            head = Position {
                seq: segment.last(),
                fingerprint: segment.fingerprint(segment.last()).unwrap_or_default(),
            };
            let inside = |row: &mut Arc<Segment>| row.first() >= segment.first();
            while let Some(row) = tail.segments.pop_back_if(inside) {
                budget.release([row]);
            }
            budget.charge(self, &segment);
            tail.segments.push_back(segment);
        }
        let incomplete = !tail.waiting.is_empty();
        // Under the lock: who offers next must see this head, or it would go back.
        self.head.send_replace(head);
        drop(tail);
        budget.evict();
        incomplete
    }

    /// Which state of the stored events the tail shows. What was read under an earlier one may have
    /// been erased since.
    pub fn view(&self) -> u64 {
        self.lock().view
    }

    /// Stored events changed (erasure): all are read from the database again.
    pub(crate) fn forget(&self, budget: &Budget) {
        let mut tail = self.lock();
        tail.view += 1;
        let freed = std::mem::take(&mut tail.segments);
        drop(tail);
        budget.release(freed);
    }

    /// Retention removed the events up to `floor`: the tail does not outlive them.
    pub(crate) fn forget_through(&self, floor: u64, budget: &Budget) {
        let mut tail = self.lock();
        // One of which only the first rows were removed goes too: its rest is read again.
        let gone = tail.segments.partition_point(|s| s.first() <= floor);
        let freed: Vec<_> = tail.segments.drain(..gone).collect();
        drop(tail);
        budget.release(freed);
        self.floor.send_if_modified(|known| {
            let rises = *known < floor;
            *known = floor.max(*known);
            rises
        });
    }

    /// Moves on to a head whose events are only in the database.
    pub(crate) fn skip_to(&self, head: Position, budget: &Budget) {
        let mut tail = self.lock();
        if head.seq <= self.head().seq {
            return;
        }
        let later = tail.waiting.split_off(&(head.seq + 1));
        tail.waiting = later;
        let freed = std::mem::take(&mut tail.segments);
        self.head.send_replace(head);
        drop(tail);
        budget.release(freed);
    }

    /// Segments with events after `after`, about `bytes_max` of them, at least one.
    pub(crate) fn look(&self, after: u64, bytes_max: usize) -> Look {
        let tail = self.lock();
        if after >= self.head().seq {
            return Look::AtEnd;
        }
        match tail.segments.front() {
            Some(front) if front.first() <= after + 1 => {}
            _ => return Look::Behind,
        }
        let start = tail
            .segments
            .partition_point(|segment| segment.last() <= after);
        let mut found = Vec::new();
        let mut bytes = 0;
        for segment in tail.segments.range(start..) {
            found.push(segment.clone());
            bytes += segment.memory() / 2;
            if bytes >= bytes_max {
                break;
            }
        }
        Look::Segments(found)
    }

    fn drop_oldest(&self, budget: &Budget) {
        let oldest = self.lock().segments.pop_front();
        budget.release(oldest);
    }

    /// Whether a segment with this first event is in memory.
    fn holds(&self, first: u64) -> bool {
        let tail = self.lock();
        let find = |segment: &Arc<Segment>| segment.first().cmp(&first);
        tail.segments.binary_search_by(find).is_ok()
    }
}

/// Memory of all tails together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicUsize,
    bytes_max: usize,
    segments: AtomicUsize,
    /// Who holds the oldest segment, in order of commit.
    oldest: Mutex<VecDeque<Place>>,
}

/// Where a segment was put: the log, and its first event.
type Place = (Weak<Log>, u64);

/// Places of segments that are gone which stay in the queue, beside as many as there are segments.
const GONE_MAX: usize = 10_000;

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Budget {
            bytes: AtomicUsize::new(0),
            bytes_max,
            segments: AtomicUsize::new(0),
            oldest: Mutex::default(),
        }
    }

    fn charge(&self, log: &Arc<Log>, segment: &Segment) {
        self.bytes.fetch_add(segment.memory(), Ordering::Relaxed);
        self.segments.fetch_add(1, Ordering::Relaxed);
        let place = (Arc::downgrade(log), segment.first());
        self.queue().push_back(place);
    }

    /// Their places in the queue stay for a while: what is evicted in their turn is younger, which
    /// does no harm.
    fn release(&self, segments: impl IntoIterator<Item = Arc<Segment>>) {
        for segment in segments {
            self.bytes.fetch_sub(segment.memory(), Ordering::Relaxed);
            self.segments.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn evict(&self) {
        while self.bytes.load(Ordering::Relaxed) > self.bytes_max {
            let Some((log, _)) = self.queue().pop_front() else {
                return;
            };
            if let Some(log) = log.upgrade() {
                log.drop_oldest(self);
            }
        }
        if self.queue().len() > 2 * self.segments.load(Ordering::Relaxed) + GONE_MAX {
            self.clear_queue();
        }
    }

    /// Removes the places of segments that are gone. Outside of the queue's lock, which is taken
    /// under that of a log.
    fn clear_queue(&self) {
        let places = std::mem::take(&mut *self.queue());
        let is_held = |(log, first): &Place| log.upgrade().is_some_and(|log| log.holds(*first));
        let held = places.into_iter().filter(is_held).collect();
        let mut queue = self.queue();
        let newer = std::mem::replace(&mut *queue, held);
        queue.extend(newer);
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Place>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u64, count: usize) -> Arc<Segment> {
        let ids = vec![1; 32 * count];
        Arc::new(Segment::new(
            TenantRef::new(1, "t"),
            first,
            0,
            ids,
            vec![0; 100],
        ))
    }

    fn log() -> Arc<Log> {
        Arc::new(Log::new(TenantRef::new(1, "t"), Position::default()))
    }

    fn held(log: &Log) -> Vec<(u64, u64)> {
        let tail = log.lock();
        let segments = tail.segments.iter();
        segments.map(|of| (of.first(), of.last())).collect()
    }

    #[test]
    fn rows_of_a_commit_give_way_to_the_whole_of_it() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        log.offer(segment(1, 1), &budget);
        log.offer(segment(2, 2), &budget);
        log.offer(segment(4, 1), &budget);
        assert!(!log.offer(segment(2, 6), &budget));
        assert_eq!((held(&log), log.head().seq), (vec![(1, 1), (2, 7)], 7));
        let bytes: usize = log.lock().segments.iter().map(|of| of.memory()).sum();
        assert_eq!(budget.bytes(), bytes);
    }

    #[test]
    fn a_commit_that_waits_is_not_shortened_by_its_first_row() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        assert!(log.offer(segment(3, 6), &budget));
        assert!(log.offer(segment(3, 2), &budget));
        assert!(!log.offer(segment(1, 2), &budget));
        assert_eq!((held(&log), log.head().seq), (vec![(1, 2), (3, 8)], 8));
        assert!(!log.offer(segment(5, 4), &budget));
        assert_eq!(held(&log), [(1, 2), (3, 8)]);
    }

    #[test]
    fn a_commit_of_which_rows_were_removed_is_not_shown_from_memory() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        log.offer(segment(1, 6), &budget);
        log.offer(segment(7, 2), &budget);
        log.forget_through(3, &budget);
        assert_eq!((held(&log), log.head().seq), (vec![(7, 8)], 8));
        assert!(matches!(log.look(3, 1000), Look::Behind));
    }

    #[test]
    fn only_the_contiguous_prefix_is_released() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        assert!(log.offer(segment(4, 2), &budget));
        assert_eq!(log.head().seq, 0);
        assert!(matches!(log.look(0, 1000), Look::AtEnd));
        assert!(!log.offer(segment(1, 3), &budget));
        assert_eq!(log.head().seq, 5);
        let Look::Segments(found) = log.look(2, 1 << 20) else {
            panic!("behind")
        };
        assert_eq!(found.iter().map(|s| s.first()).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_leaves_first() {
        let (log, budget) = (log(), Budget::new(2000));
        for first in 1..100 {
            log.offer(segment(first, 1), &budget);
        }
        assert!(budget.bytes() <= 2000);
        assert!(matches!(log.look(0, 1000), Look::Behind));
        assert!(matches!(log.look(98, 1000), Look::Segments(_)));
        assert!(matches!(log.look(99, 1000), Look::AtEnd));
    }

    #[test]
    fn places_of_what_is_gone_do_not_fill_the_memory() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        for first in 1..100_000 {
            log.offer(segment(first, 1), &budget);
            log.forget_through(first - 1, &budget);
        }
        assert!(budget.queue().len() <= GONE_MAX + 3);
        assert_eq!(held(&log), [(99_999, 99_999)]);
        assert!(budget.queue().iter().any(|place| place.1 == 99_999));
    }

    #[test]
    fn a_skipped_part_is_read_from_the_database_and_what_follows_from_the_tail() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        log.offer(segment(1, 2), &budget);
        assert!(log.offer(segment(11, 2), &budget));
        let head = Position {
            seq: 10,
            fingerprint: 0,
        };
        log.skip_to(head, &budget);
        assert_eq!((log.head().seq, budget.bytes()), (10, 0));
        assert!(matches!(log.look(2, 1000), Look::Behind));
        assert!(!log.offer(segment(13, 1), &budget));
        assert_eq!(log.head().seq, 13);
        assert!(matches!(log.look(9, 1000), Look::Behind));
        assert!(matches!(log.look(10, 1000), Look::Segments(_)));
    }

    #[test]
    fn what_was_forgotten_is_read_from_the_database_and_the_head_stays() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        (1..=5).for_each(|first| assert!(!log.offer(segment(first, 1), &budget)));
        log.forget_through(2, &budget);
        assert!(matches!(log.look(1, 1000), Look::Behind));
        assert!(matches!(log.look(2, 1000), Look::Segments(_)));
        let view = log.view();
        log.forget(&budget);
        assert!(matches!(log.look(4, 1000), Look::Behind));
        assert_eq!((log.head().seq, budget.bytes()), (5, 0));
        log.offer_of_view(segment(6, 1), &budget, view);
        assert_eq!(log.head().seq, 5, "read before the change");
        log.offer_of_view(segment(6, 1), &budget, log.view());
        assert!(matches!(log.look(5, 1000), Look::Segments(_)));
    }

    #[test]
    fn a_segment_offered_twice_is_released_once() {
        let (log, budget) = (log(), Budget::new(1 << 20));
        log.offer(segment(1, 2), &budget);
        assert!(!log.offer(segment(1, 2), &budget));
        let Look::Segments(found) = log.look(0, 1 << 20) else {
            panic!("behind")
        };
        assert_eq!(found.len(), 1);
    }
}
