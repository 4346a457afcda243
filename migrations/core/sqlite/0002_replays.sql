-- What was done for a request_id, kept for 24 h.
create table replays (
    key_id text not null,
    method text not null,
    request_id text not null,
    request_hash blob not null,
    answer text not null,
    create_time integer not null,
    primary key (key_id, method, request_id)
) strict;
create index replays_by_time on replays (create_time);
