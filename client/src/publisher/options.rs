//! How a publisher publishes.

use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Most events that the hub takes in one frame.
const FRAME_EVENTS_LIMIT: usize = 1000;
/// Most bytes that the hub takes in one frame.
const FRAME_BYTES_LIMIT: usize = 4 * MIB;
/// Smallest and largest queue.
const QUEUE_BYTES_LIMITS: (usize, usize) = (64 * KIB, 1024 * MIB);

/// Bounds and choices of a [`Publisher`](crate::Publisher); the defaults suit most products.
/// Values beyond a limit are cut to it.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    pub(crate) window_frames: usize,
    pub(crate) window_bytes: usize,
    pub(crate) frame_events_max: usize,
    pub(crate) frame_bytes_max: usize,
    pub(crate) queue_bytes_max: usize,
    pub(crate) delivery_timeout: Duration,
    pub(crate) full_results: bool,
    pub(crate) tenant: String,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        PublisherOptions {
            window_frames: usize::MAX,
            window_bytes: usize::MAX,
            frame_events_max: 256,
            frame_bytes_max: 256 * KIB,
            queue_bytes_max: 16 * MIB,
            delivery_timeout: Duration::from_secs(120),
            full_results: false,
            tenant: String::new(),
        }
    }
}

impl PublisherOptions {
    /// Most frames and bytes that are sent and not acknowledged. The hub's own window, 64 frames
    /// and 4 MiB at first, holds in any case; these can only make it smaller. At least one frame.
    #[must_use]
    pub fn window(mut self, frames: usize, bytes: usize) -> Self {
        self.window_frames = frames.max(1);
        self.window_bytes = bytes.max(1);
        self
    }

    /// Most events and bytes that are sent together: 1..1000 events, 256 by default, and up to
    /// 4 MiB, 256 KiB by default. A larger event goes alone.
    #[must_use]
    pub fn coalesce(mut self, events: usize, bytes: usize) -> Self {
        self.frame_events_max = events.clamp(1, FRAME_EVENTS_LIMIT);
        self.frame_bytes_max = bytes.clamp(1, FRAME_BYTES_LIMIT);
        self
    }

    /// Most bytes of events that are not settled, 16 MiB by default, 64 KiB..1 GiB; an event
    /// counts its size and 128 bytes. When they are reached, sending waits.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        let (least, most) = QUEUE_BYTES_LIMITS;
        self.queue_bytes_max = bytes.clamp(least, most);
        self
    }

    /// How long an event is tried while the hub can't be reached or can't take it, 2 min by
    /// default. Then it fails with the last error; its outcome is unknown.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Asks for sequence and id of every event. Without them the hub acknowledges ranges, which
    /// costs both sides less; duplicates and warnings are then only told where the answer says
    /// which event they are about. Errors are always told.
    #[must_use]
    pub fn full_results(mut self) -> Self {
        self.full_results = true;
        self
    }

    /// Whose events these are, `tnt_...`, for keys that serve all tenants.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }
}
