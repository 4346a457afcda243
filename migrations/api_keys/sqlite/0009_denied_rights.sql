-- What a refusal named: the rights that the key lacks, or what only operators may do; empty = nothing.
alter table key_denials add column lacking text not null default '';
