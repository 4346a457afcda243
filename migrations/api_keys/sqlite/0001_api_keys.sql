-- A key without its secret: only the SHA-256 of the plaintext is kept. Tenant 0 = serves all
-- tenants. Ids rise with the time of creation, so that the index is the order of lists.
create table api_keys (
    key_id text primary key not null,
    tenant_no integer not null,
    tenant_id text not null,
    product text,
    hash blob not null unique,
    hint text not null,
    name text not null,
    -- JSON: ["psa:tickets.read", …]
    scopes text not null,
    -- JSON: ["10.0.0.0/8", …]
    cidrs text not null,
    -- JSON: {"name": "value", …}
    labels text not null,
    requests_per_minute integer not null,
    expire_time integer,
    create_time integer not null,
    created_by text not null,
    revoke_time integer,
    revoked_by text,
    revoke_reason text,
    -- Sequence of the revocation in the hub's own log.
    revoke_epoch integer,
    successor_id text,
    version integer not null
) strict;
create index api_keys_by_tenant on api_keys (tenant_no, key_id);
