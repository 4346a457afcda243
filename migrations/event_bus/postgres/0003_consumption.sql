-- What a subscription does; empty = the defaults. `filter` and `retry` are encoded messages of the
-- contract, `labels` is JSON, times are microseconds. `paused_since` 0 = not paused; `paused_until`
-- 0 = until it is resumed.
alter table subscriptions add column filter bytea not null default '';
alter table subscriptions add column ordering bigint not null default 1;
alter table subscriptions add column retry bytea not null default '';
alter table subscriptions add column lease_duration bigint not null default 30000000;
alter table subscriptions add column max_per_second bigint not null default 0;
alter table subscriptions add column labels text not null default '{}';
alter table subscriptions add column version bigint not null default 1;
alter table subscriptions add column updated_by text not null default '';
alter table subscriptions add column paused_since bigint not null default 0;
alter table subscriptions add column paused_until bigint not null default 0;
alter table subscriptions add column paused_by text not null default '';
alter table subscriptions add column pause_reason text not null default '';

-- Which filter decides about which events: those from `from_seq` on, until the next row. What a
-- changed filter applies to was not reached yet when it changed.
create table subscription_filters (
    subscription_id text not null,
    from_seq bigint not null,
    tenant_no bigint not null,
    filter bytea not null,
    primary key (subscription_id, from_seq)
);
create index subscription_filters_by_tenant on subscription_filters (tenant_no);

-- How far a subscription is: everything up to `floor` is settled, everything up to `cursor` was
-- looked at, and `unsettled` packs what of that is not settled. `epoch` fences: only who raised it
-- to this number writes. Without a row nothing was ever delivered.
create table subscription_positions (
    subscription_id text primary key not null,
    tenant_no bigint not null,
    owner text not null,
    epoch bigint not null,
    floor bigint not null,
    cursor bigint not null,
    replay_until bigint not null,
    unsettled bytea not null,
    update_time bigint not null
);
create index subscription_positions_by_tenant on subscription_positions (tenant_no);

-- Events that were settled otherwise than by an ack; and acks of events that were not routed.
-- `held_key` is the ordering key that a failed event holds back, 0 = none.
create table subscription_exceptions (
    subscription_id text not null,
    seq bigint not null,
    tenant_no bigint not null,
    state bigint not null,
    attempts bigint not null,
    error text not null,
    held_key bigint not null,
    update_time bigint not null,
    primary key (subscription_id, seq)
);
create index subscription_exceptions_by_state
    on subscription_exceptions (subscription_id, state, seq);

-- Events never looked at: skipped by a seek, or expired by retention.
create table subscription_ranges (
    subscription_id text not null,
    from_seq bigint not null,
    to_seq bigint not null,
    tenant_no bigint not null,
    state bigint not null,
    update_time bigint not null,
    primary key (subscription_id, from_seq)
);
