-- The hub processes on this database, and where the others reach them. `beat_time` is when a
-- process last said that it lives, in microseconds of the database's clock: the clocks of processes
-- differ, and only one may judge.
create table processes (
    process_id text not null primary key,
    address text not null,
    beat_time bigint not null
);

-- Those that are believed to live: their last beat is younger than 1.5 s. A statement judges by the
-- time at which it began, which is also the time of what it sees of the table.
create view live_processes as
select process_id, address from processes
where beat_time > cast(extract(epoch from statement_timestamp()) * 1000000 as bigint) - 1500000;
