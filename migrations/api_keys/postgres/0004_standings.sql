-- What each process counted of a rate limit in the last minute, and may count still. Nothing of it
-- is worth a sync: after a crash of the database, counting begins anew.
create unlogged table rate_standings (
    subject text primary key not null,
    -- JSON: [[process, [[slot, requests], …], portion, its end], …]
    standings text not null,
    update_time bigint not null
);
create index rate_standings_by_time on rate_standings (update_time);
