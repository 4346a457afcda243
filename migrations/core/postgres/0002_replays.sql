-- What was done for a request_id, kept for 24 h.
create table replays (
    key_id text not null,
    method text not null,
    request_id text not null,
    request_hash bytea not null,
    answer text not null,
    create_time bigint not null,
    primary key (key_id, method, request_id)
);
create index replays_by_time on replays (create_time);
