-- What retention and erasure did to a log. Events up to `floor` are gone; `bytes` is the size of the
-- stored events after it, up to `counted`; `erasures` rises with each erasure.
create table journal_floors (
    tenant_no integer primary key not null,
    floor integer not null,
    counted integer not null,
    bytes integer not null,
    erasures integer not null
) strict;

-- The listing index: for each product and type of a tenant, the sequences of its events, packed.
-- Derived from the segments, up to `covered`; with the fingerprint of the event there.
create table listing_covered (
    tenant_no integer primary key not null,
    covered integer not null,
    fingerprint integer not null
) strict;
create table listing_kinds (
    tenant_no integer not null,
    kind text not null,
    product text not null,
    kind_no integer not null,
    primary key (tenant_no, kind, product)
) strict, without rowid;
create table listing_postings (
    tenant_no integer not null,
    kind_no integer not null,
    first_seq integer not null,
    last_seq integer not null,
    n integer not null,
    data blob not null,
    primary key (tenant_no, kind_no, first_seq)
) strict, without rowid;
