-- Durable readers. A default one, named as its product, is made when the product becomes active; it
-- is dormant until `used_time` is set.
create table subscriptions (
    subscription_id text primary key not null,
    tenant_no bigint not null,
    product text not null,
    name text not null,
    is_default bigint not null,
    create_time bigint not null,
    used_time bigint not null default 0,
    unique (tenant_no, product, name)
);

-- Up to which routing epoch the default subscriptions of a tenant were made.
create table subscription_epochs (
    tenant_no bigint primary key not null,
    routing_epoch bigint not null
);
