-- When a key was changed last, other than by its use; none = never since it was made.
alter table api_keys add column update_time integer;
