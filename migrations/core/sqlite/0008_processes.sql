-- The hub processes on this database, and where the others reach them. Here there is one only, so
-- `beat_time` is when it started, in microseconds.
create table processes (
    process_id text not null primary key,
    address text not null,
    beat_time integer not null
) strict;

-- Those that are believed to live. Who starts removes what was left by others, since the lock of
-- the file says that they have ended.
create view live_processes as
select process_id, address from processes;
