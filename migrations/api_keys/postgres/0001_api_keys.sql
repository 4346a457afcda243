-- A key without its secret: only the SHA-256 of the plaintext is kept. Tenant 0 = serves all
-- tenants. Ids rise with the time of creation, so that the index is the order of lists.
create table api_keys (
    key_id text collate "C" primary key not null,
    tenant_no bigint not null,
    tenant_id text not null,
    product text,
    hash bytea not null unique,
    hint text not null,
    name text not null,
    -- JSON: ["psa:tickets.read", …]
    scopes text not null,
    -- JSON: ["10.0.0.0/8", …]
    cidrs text not null,
    -- JSON: {"name": "value", …}
    labels text not null,
    requests_per_minute bigint not null,
    expire_time bigint,
    create_time bigint not null,
    created_by text not null,
    revoke_time bigint,
    revoked_by text,
    revoke_reason text,
    -- Sequence of the revocation in the hub's own log.
    revoke_epoch bigint,
    successor_id text,
    version bigint not null
);
create index api_keys_by_tenant on api_keys (tenant_no, key_id);
