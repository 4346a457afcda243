-- A log per tenant. The key of a segment is tenant_no << 40 | sequence of its first event, so
-- that the primary key is the order of reading. The head row is the lock of its log.
create table journal_heads (
    tenant_no bigint primary key not null,
    head bigint not null,
    record_time bigint not null
) with (fillfactor = 50);
create table journal_segments (
    key bigint primary key not null,
    tenant_no bigint not null,
    n bigint not null,
    record_time bigint not null,
    ids bytea not null,
    data bytea not null
);
-- Encoded events compress badly and are read whole.
alter table journal_segments alter column data set storage external;
alter table journal_segments alter column ids set storage external;
-- Only here: with several processes the unique key is the authority on what was stored.
create table journal_identities (
    identity bytea primary key not null,
    key bigint not null,
    content bytea not null
);
-- The hub's own log.
insert into journal_heads (tenant_no, head, record_time) values (0, 0, 0);

create table tenants (
    tenant_no bigint primary key not null,
    tenant_id text not null unique,
    name text not null unique,
    create_time bigint not null
);

create table secrets (
    name text primary key not null,
    value bytea not null
);
