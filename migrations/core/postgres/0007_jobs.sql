-- Work that outlives the call that started it. States are those of hub.core.v1.JobState.
create table jobs (
    job_id text primary key not null,
    tenant_no bigint not null,
    kind text not null,
    state bigint not null,
    resource text not null,
    total bigint not null,
    done bigint not null,
    failed bigint not null,
    -- JSON: outcomes by name, and the first failures.
    counters text not null,
    errors text not null,
    message text not null,
    dry_run boolean not null,
    created_by text not null,
    create_time bigint not null,
    -- Null until it ends.
    complete_time bigint,
    -- Its guard is lifted.
    confirmed boolean not null,
    -- Items a second; 0 = as fast as it can.
    max_per_second bigint not null,
    -- Of the domain: what to do, and where the next chunk begins.
    parameters bytea not null,
    progress bytea not null,
    -- Failures in a row, and when the next chunk may begin.
    failures bigint not null,
    due bigint not null,
    -- The process that has a chunk of it at work, empty if none, until when it is believed, and the
    -- number of that chunk: whoever stores anything of a chunk names it.
    owner text not null,
    lease_end bigint not null,
    epoch bigint not null,
    -- When its last chunk began.
    claim_time bigint not null
);
create index jobs_by_time on jobs (tenant_no, create_time, job_id);
create index jobs_unfinished on jobs (tenant_no) where complete_time is null;
create index jobs_by_end on jobs (complete_time) where complete_time is not null;
