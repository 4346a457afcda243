-- What a subscription does; empty = the defaults. `filter` and `retry` are encoded messages of the
-- contract, `labels` is JSON, times are microseconds. `paused_since` 0 = not paused; `paused_until`
-- 0 = until it is resumed.
alter table subscriptions add column filter blob not null default x'';
alter table subscriptions add column ordering integer not null default 1;
alter table subscriptions add column retry blob not null default x'';
alter table subscriptions add column lease_duration integer not null default 30000000;
alter table subscriptions add column max_per_second integer not null default 0;
alter table subscriptions add column labels text not null default '{}';
alter table subscriptions add column version integer not null default 1;
alter table subscriptions add column updated_by text not null default '';
alter table subscriptions add column paused_since integer not null default 0;
alter table subscriptions add column paused_until integer not null default 0;
alter table subscriptions add column paused_by text not null default '';
alter table subscriptions add column pause_reason text not null default '';

-- Which filter decides about which events: those from `from_seq` on, until the next row. What a
-- changed filter applies to was not reached yet when it changed.
create table subscription_filters (
    subscription_id text not null,
    from_seq integer not null,
    tenant_no integer not null,
    filter blob not null,
    primary key (subscription_id, from_seq)
) strict;
create index subscription_filters_by_tenant on subscription_filters (tenant_no);

-- How far a subscription is: everything up to `floor` is settled, everything up to `cursor` was
-- looked at, and `unsettled` packs what of that is not settled. `epoch` fences: only who raised it
-- to this number writes. Without a row nothing was ever delivered.
create table subscription_positions (
    subscription_id text primary key not null,
    tenant_no integer not null,
    owner text not null,
    epoch integer not null,
    floor integer not null,
    cursor integer not null,
    replay_until integer not null,
    unsettled blob not null,
    update_time integer not null
) strict;
create index subscription_positions_by_tenant on subscription_positions (tenant_no);

-- Events that were settled otherwise than by an ack; and acks of events that were not routed.
-- `held_key` is the ordering key that a failed event holds back, 0 = none.
create table subscription_exceptions (
    subscription_id text not null,
    seq integer not null,
    tenant_no integer not null,
    state integer not null,
    attempts integer not null,
    error text not null,
    held_key integer not null,
    update_time integer not null,
    primary key (subscription_id, seq)
) strict;
create index subscription_exceptions_by_state
    on subscription_exceptions (subscription_id, state, seq);

-- Events never looked at: skipped by a seek, or expired by retention.
create table subscription_ranges (
    subscription_id text not null,
    from_seq integer not null,
    to_seq integer not null,
    tenant_no integer not null,
    state integer not null,
    update_time integer not null,
    primary key (subscription_id, from_seq)
) strict;
