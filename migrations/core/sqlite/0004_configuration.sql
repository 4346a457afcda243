-- The configuration by which events are routed has a version, the epoch, for each tenant. The head
-- row has the present one, each segment the one under which it was committed.
alter table journal_heads add column routing_epoch integer not null default 0;
alter table journal_segments add column routing_epoch integer not null default 0;

-- Microseconds (30 days), and bytes (0 = no limit).
alter table tenants add column retention integer not null default 2592000000000;
alter table tenants add column retention_bytes integer not null default 0;
alter table tenants add column version integer not null default 1;

-- A number is never used again, and never has another slug.
create table products (
    product_no integer primary key not null,
    product text not null unique,
    display_name text not null,
    base_urls text not null,
    rate_limited_status integer not null,
    update_time integer not null,
    version integer not null
) strict;
insert into products (product_no, product, display_name, base_urls, rate_limited_status,
    update_time, version)
values
    (1, 'psa', 'PSA', '["https://api.theonepsa.com"]', 429, 0, 1),
    (2, 'crm', 'CRM', '[]', 429, 0, 1),
    (3, 'books', 'Books', '[]', 429, 0, 1),
    (4, 'rmm', 'RMM', '[]', 429, 0, 1),
    (5, 'security', 'Security', '[]', 429, 0, 1),
    (6, 'portal', 'Portal', '[]', 429, 0, 1),
    (7, 'cmdb', 'CMDB', '[]', 429, 0, 1),
    (8, 'voice', 'Voice', '[]', 429, 0, 1),
    (9, 'oncall', 'On-Call', '[]', 429, 0, 1),
    (10, 'hub', 'Hub', '[]', 429, 0, 1),
    (11, 'defend', 'Defend', '[]', 429, 0, 1),
    (12, 'backups', 'Backups', '[]', 429, 0, 1);

-- A row for each change: at an epoch counts the row with the greatest routing_epoch up to it.
-- Without one, the twelve products above are active and every integration is on.
create table product_subscriptions (
    tenant_no integer not null,
    product_no integer not null,
    routing_epoch integer not null,
    active integer not null,
    update_time integer not null,
    updated_by text not null,
    primary key (tenant_no, product_no, routing_epoch)
) strict;
create table integrations (
    tenant_no integer not null,
    source_no integer not null,
    destination_no integer not null,
    routing_epoch integer not null,
    enabled integer not null,
    reason text not null,
    update_time integer not null,
    updated_by text not null,
    primary key (tenant_no, source_no, destination_no, routing_epoch)
) strict;

-- The row of a tenant is the lock under which its entries are numbered.
create table audit_heads (
    tenant_no integer primary key not null,
    sequence integer not null
) strict;
create table audit_entries (
    tenant_no integer not null,
    sequence integer not null,
    time integer not null,
    actor text not null,
    action text not null,
    resource text not null,
    changes text not null,
    call_id text not null,
    client_ip text not null,
    primary key (tenant_no, sequence)
) strict;
create index audit_entries_by_actor on audit_entries (tenant_no, actor, sequence);
create index audit_entries_by_resource on audit_entries (tenant_no, resource, sequence);
create index audit_entries_by_time on audit_entries (tenant_no, time, sequence);
