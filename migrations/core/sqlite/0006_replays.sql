-- What was answered to a request_id, kept for 24 h. What was kept before held ids, not the answer,
-- so it cannot be answered from.
drop table replays;
create table replays (
    key_id text not null,
    method text not null,
    request_id text not null,
    request_hash blob not null,
    -- The whole answer as protobuf, without its secret.
    answer blob not null,
    -- Its secret, sealed; null if there is none, and after 10 minutes.
    secret blob,
    create_time integer not null,
    primary key (key_id, method, request_id)
) strict;
create index replays_by_time on replays (create_time);
create index replays_with_secret on replays (create_time) where secret is not null;
