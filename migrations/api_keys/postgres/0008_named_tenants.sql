-- The tenant that a refused call of a key of all tenants named; empty = none.
alter table key_denials add column named_tenant text not null default '';
drop index key_denials_by_tenant;
create index key_denials_by_tenant on key_denials (tenant_no, named_tenant, time);
