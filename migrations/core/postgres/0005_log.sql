-- What retention and erasure did to a log. Events up to `floor` are gone; `bytes` is the size of the
-- stored events after it, up to `counted`; `erasures` rises with each erasure.
create table journal_floors (
    tenant_no bigint primary key not null,
    floor bigint not null,
    counted bigint not null,
    bytes bigint not null,
    erasures bigint not null
) with (fillfactor = 50);

-- The listing index: for each product and type of a tenant, the sequences of its events, packed.
-- Derived from the segments, up to `covered`; with the fingerprint of the event there.
create table listing_covered (
    tenant_no bigint primary key not null,
    covered bigint not null,
    fingerprint bigint not null
) with (fillfactor = 50);
create table listing_kinds (
    tenant_no bigint not null,
    kind text not null,
    product text not null,
    kind_no bigint not null,
    primary key (tenant_no, kind, product)
);
create table listing_postings (
    tenant_no bigint not null,
    kind_no bigint not null,
    first_seq bigint not null,
    last_seq bigint not null,
    n bigint not null,
    data bytea not null,
    primary key (tenant_no, kind_no, first_seq)
);
