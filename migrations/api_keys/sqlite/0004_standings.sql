-- What each process counted of a rate limit in the last minute, and may count still. On SQLite one
-- process counts alone, in memory.
create table rate_standings (
    subject text primary key not null,
    -- JSON: [[process, [[slot, requests], …], portion, its end], …]
    standings text not null,
    update_time integer not null
) strict;
create index rate_standings_by_time on rate_standings (update_time);
