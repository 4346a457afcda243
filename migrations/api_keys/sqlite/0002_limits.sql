-- Keys that came from one another by rotation share limits and usage: the first one names them.
alter table api_keys add column family text not null default '';
update api_keys set family = key_id;
create index api_keys_by_family on api_keys (tenant_no, family);
-- Written by the batch, at most 10 s late.
alter table api_keys add column last_use_time integer;
-- Limits of tenants that are not the default.
create table tenant_rate_limits (
    tenant_no integer primary key not null,
    requests_per_minute integer not null,
    update_time integer not null
) strict;
-- Requests by outcome ('' = allowed, else the reason), in spans of a minute, an hour and a day.
create table key_usage (
    tenant_no integer not null,
    family text not null,
    span integer not null,
    start_time integer not null,
    outcome text not null,
    requests integer not null,
    primary key (tenant_no, family, span, start_time, outcome)
) strict, without rowid;
create index key_usage_by_time on key_usage (span, start_time);
