-- Identities are in the segments; what makes them findable is derived, in memory and in a file of
-- each process. A table with a random key for each event cost more than all else of a commit.
drop table journal_identities;
