-- A log per tenant. The key of a segment is tenant_no << 40 | sequence of its first event, so
-- that the primary key is the order of reading. One statement stores a segment and moves the head.
create table journal_heads (
    tenant_no integer primary key not null,
    head integer not null,
    record_time integer not null
) strict;
create table journal_segments (
    key integer primary key not null,
    tenant_no integer not null,
    n integer not null,
    record_time integer not null,
    ids blob not null,
    data blob not null
) strict;
create trigger journal_segments_head after insert on journal_segments begin
    update journal_heads
    set head = (new.key & 1099511627775) + new.n - 1, record_time = new.record_time
    where tenant_no = new.tenant_no;
end;
-- The hub's own log.
insert into journal_heads (tenant_no, head, record_time) values (0, 0, 0);

create table tenants (
    tenant_no integer primary key not null,
    tenant_id text not null unique,
    name text not null unique,
    create_time integer not null
) strict;

create table secrets (
    name text primary key not null,
    value blob not null
) strict;
