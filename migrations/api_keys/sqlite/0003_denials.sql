-- Calls and decisions that were refused to keys that are known, for 7 days.
create table key_denials (
    call_id text primary key not null,
    tenant_no integer not null,
    key_id text not null,
    time integer not null,
    reason text not null,
    product text not null,
    action text not null,
    host text not null,
    path text not null,
    client_ip text not null
) strict;
create index key_denials_by_tenant on key_denials (tenant_no, time);
create index key_denials_by_time on key_denials (time);
-- How far each process has taken up the changes of keys: who revokes one waits for the others.
create table key_followers (
    process_id text primary key not null,
    epoch integer not null
) strict;
