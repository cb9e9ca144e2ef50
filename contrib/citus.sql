-- Distributes the tables of failure-logger in a Citus cluster. Run it once, after `failure-logger migrate`, with a role
-- that owns the tables. docs/scaling.md says which table is where and why.

-- A statement waits for each shard that it writes: a small multiple of the cores of all workers, not the default of 32.
SET citus.shard_count = 4;

-- By its only key. A row that a client sends twice meets itself on one shard.
SELECT create_distributed_table('memory_retrieval_failures', 'event_id');
