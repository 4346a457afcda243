-- Requests by outcome ('' = allowed, else the reason), in spans of a minute, an hour and a day. What is
-- written at the same time lies together, so that a batch touches few pages, and no further index is
-- needed to find what is old. It takes the place of key_usage, which servers of the version before
-- still write.
create table key_counts (
    span bigint not null,
    start_time bigint not null,
    tenant_no bigint not null,
    -- In the order in which the hub compares them too.
    family text collate "C" not null,
    outcome text collate "C" not null,
    requests bigint not null,
    primary key (span, start_time, tenant_no, family, outcome)
);
insert into key_counts (span, start_time, tenant_no, family, outcome, requests)
select span, start_time, tenant_no, family, outcome, requests from key_usage;
-- Minutes are rolled up into hours, and hours into days: of each span, the last row that is part of
-- the next longer span, in the order of the rows.
create table key_count_marks (
    span bigint primary key not null,
    start_time bigint not null,
    tenant_no bigint not null,
    family text collate "C" not null,
    outcome text collate "C" not null
);
-- So far each count was added to all three.
insert into key_count_marks (span, start_time, tenant_no, family, outcome)
select s.span, coalesce(max(u.start_time) + s.span, 0), -1, '', ''
from (select cast(60000000 as bigint) as span union all select 3600000000) s
left join key_usage u on u.span = s.span group by s.span;
-- When a key was used last: small rows, since a batch writes one for each key. It takes the place of
-- api_keys.last_use_time.
create table key_uses (
    key_id text collate "C" primary key not null,
    use_time bigint not null
);
insert into key_uses (key_id, use_time)
select key_id, last_use_time from api_keys where last_use_time is not null;
