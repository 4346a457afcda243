-- How many requests a refused one counted as.
alter table key_denials add column cost integer not null default 1;
