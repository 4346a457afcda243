-- Entries of a tenant's catalogue, over those that come with the hub. A row for each change: at an
-- epoch counts the row of a type with the greatest routing_epoch up to it. Lists are JSON. Rows that
-- were replaced twice have no schema and no example; how they routed is kept as long as events are.
create table event_types (
    tenant_no bigint not null,
    type text not null,
    routing_epoch bigint not null,
    purpose text not null,
    sources text not null,
    destinations text not null,
    json_schema text not null,
    example text not null,
    deprecated boolean not null,
    update_time bigint not null,
    updated_by text not null,
    primary key (tenant_no, type, routing_epoch)
);
create index event_types_by_epoch on event_types (tenant_no, routing_epoch);
