-- The tenant that a refused call of a key of all tenants named; empty = none.
alter table key_denials add column named_tenant text not null default '';
