-- Work that outlives the call that started it. States are those of hub.core.v1.JobState.
create table jobs (
    job_id text primary key not null,
    tenant_no integer not null,
    kind text not null,
    state integer not null,
    resource text not null,
    total integer not null,
    done integer not null,
    failed integer not null,
    -- JSON: outcomes by name, and the first failures.
    counters text not null,
    errors text not null,
    message text not null,
    dry_run integer not null,
    created_by text not null,
    create_time integer not null,
    -- Null until it ends.
    complete_time integer,
    -- Its guard is lifted.
    confirmed integer not null,
    -- Items a second; 0 = as fast as it can.
    max_per_second integer not null,
    -- Of the domain: what to do, and where the next chunk begins.
    parameters blob not null,
    progress blob not null,
    -- Failures in a row, and when the next chunk may begin.
    failures integer not null,
    due integer not null,
    -- The process that has a chunk of it at work, empty if none, until when it is believed, and the
    -- number of that chunk: whoever stores anything of a chunk names it.
    owner text not null,
    lease_end integer not null,
    epoch integer not null,
    -- When its last chunk began.
    claim_time integer not null
) strict;
create index jobs_by_time on jobs (tenant_no, create_time, job_id);
create index jobs_unfinished on jobs (tenant_no) where complete_time is null;
create index jobs_by_end on jobs (complete_time) where complete_time is not null;
