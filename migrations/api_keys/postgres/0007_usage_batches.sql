-- The last batch of counts that each writer has added to key_usage: one whose commit was not answered
-- is sent again, and counts once.
create table key_usage_batches (
    writer_id text primary key not null,
    batch bigint not null,
    update_time bigint not null
);
