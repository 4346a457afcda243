//! The bounds that an operator may choose, with their names and defaults. Each is a flag of
//! `hub serve` and a variable `HUB_…` of the environment. A bound that follows from the contract,
//! or from how something is built, is a constant where it holds.

use std::time::Duration;

/// The bounds. A size is in bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest message that an RPC reads. A Publish batch of 4 MiB fits with its framing.
    pub message_bytes_max: usize,
    /// Streams at once on one connection.
    pub connection_streams_max: u32,
    /// Requests at work at once on one connection.
    pub connection_requests_max: usize,
    /// Size of all request headers together.
    pub header_bytes_max: u32,
    /// Largest JSON body.
    pub json_bytes_max: usize,
    /// Longest unary call.
    pub request_timeout: Duration,
    /// Longest silence of a stream.
    pub heartbeat_interval: Duration,
    /// A reader that takes no frame for so long loses its stream.
    pub slow_reader_timeout: Duration,
    /// A stream is asked to reconnect after so long, plus up to as much again.
    pub stream_age_max: Duration,
    /// How long a stopping server waits for open calls.
    pub drain_timeout: Duration,
    /// Events that wait for their commit, per tenant.
    pub append_tenant_bytes_max: usize,
    /// Events that wait for their commit, of all tenants.
    pub append_bytes_max: usize,
    /// What one tenant may put into one commit; a larger batch goes alone.
    pub group_tenant_bytes_max: usize,
    /// Tenants in one commit.
    pub group_tenants_max: usize,
    /// Largest segment, about, unless a single batch is larger: who reads one event reads all of
    /// its segment from the disk.
    pub segment_bytes_max: usize,
    /// How long an append may wait for room before it is refused.
    pub append_wait_max: Duration,
    /// How long a commit waits for more events; 0 = not at all.
    pub group_linger: Duration,
    /// Shortest pause between two hints to the other processes on a PostgreSQL that logs have
    /// grown; 0 = none are sent or listened for, and logs are only polled, twice a second.
    pub notify_interval: Duration,
    /// Newest events kept in memory, of all tenants.
    pub tail_bytes_max: usize,
    /// What a reader takes from the database or the tail at once, and aims at in a frame.
    pub page_bytes_max: usize,
    /// Identities in memory before they are written to the index.
    pub identities_recent_max: usize,
    /// Identities in memory, 100 bytes each, while the index cannot be written; beyond that
    /// publishing is refused.
    pub identities_unindexed_max: usize,
    /// Events that a page of the event log examines before it ends, full or not.
    pub listing_events_max: usize,
    /// What a page of the event log reads of the database before it ends, full or not.
    pub listing_bytes_max: usize,
    /// Events of a durable subscription that may be unsettled at once; with more, those behind
    /// wait. As many redelivered ones may be besides; with more, a job of Redeliver waits.
    pub subscription_window_max: usize,
    /// Durable subscriptions at work in this process at once; others wait until one is idle.
    pub subscription_groups_max: usize,
    /// Retries of events wait longer than their policy says by up to so many percent, 0 to 10, so
    /// that what failed together does not come together again.
    pub retry_jitter_percent: u32,
    /// Durable subscriptions that the products of one tenant may make.
    pub subscriptions_max: usize,
    /// How long identities of events are remembered; at least 7 days.
    pub identities_window: Duration,
    /// How long a key in memory is believed after the database was asked last; at most 5 s.
    pub key_cache_ttl: Duration,
    /// Keys kept in memory.
    pub key_cache_max: usize,
    /// Requests to products that VerifyApiKey allows the keys of a tenant together in any minute,
    /// unless SetRateLimit says otherwise.
    pub tenant_requests_per_minute: u32,
    /// Calls of the hub's own API that one tenant may make in any minute, at each process; a
    /// stream is one. 0 = any number.
    pub api_requests_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Limits {
            message_bytes_max: 5 * MIB,
            connection_streams_max: 1000,
            connection_requests_max: 1000,
            header_bytes_max: 16 << 10,
            json_bytes_max: 8 * MIB,
            request_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(10),
            slow_reader_timeout: Duration::from_secs(60),
            stream_age_max: Duration::from_secs(30 * 60),
            drain_timeout: Duration::from_secs(10),
            append_tenant_bytes_max: 16 * MIB,
            append_bytes_max: 64 * MIB,
            group_tenant_bytes_max: MIB,
            group_tenants_max: 16,
            segment_bytes_max: 32 << 10,
            append_wait_max: Duration::from_secs(10),
            group_linger: Duration::ZERO,
            notify_interval: Duration::from_millis(5),
            tail_bytes_max: 64 * MIB,
            page_bytes_max: MIB,
            // About 13 MB when full: tables double, and this one would at 229,376. Runs of this
            // size are never merged, so that each identity is written to the index once.
            identities_recent_max: 220_000,
            identities_unindexed_max: 4_000_000,
            listing_events_max: 10_000,
            listing_bytes_max: 64 * MIB,
            subscription_window_max: 10_000,
            subscription_groups_max: 10_000,
            retry_jitter_percent: 10,
            subscriptions_max: 1000,
            identities_window: Duration::from_secs(8 * 24 * 3600),
            key_cache_ttl: Duration::from_secs(5),
            key_cache_max: 100_000,
            tenant_requests_per_minute: 100,
            api_requests_per_minute: 6_000_000,
        }
    }
}
