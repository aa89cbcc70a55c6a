#!lua flags=allow-oom
--[[
presence/beat: say "I am here", sweep who is not, and learn what the namespace is.

The first beat ever writes the namespace's record; every beat returns it, so that after a flush of the server the fleet agrees
on one record again.

Runs also when the server is out of memory: what it takes is little, and without it nobody would know of those who free memory.

KEYS
  record         hash    layout, partitions, salt, writers (how many identities were given out), log_level (where one was told)
  members        zset    every instance, by the moment it was last seen
  peers          zset    the instances of the caller's role, likewise
  instances      hash    instance -> what it says of itself

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  instance       string  who is here
  says           string  JSON: role, version, since
  layout         int     proposed for the record
  partitions     int     proposed for the record
  salt           string  proposed for the record, hex
  gone_after_us  int us  an instance unseen for this long is no longer counted
  newcomer       0 | 1   1 gives out a number, by which writers are dealt to partitions

RETURNS {now_us, layout, partitions, salt, live, live_peers, number, log_level}
  now_us         int us  the server's time
  layout         string  the record's
  partitions     string  the record's
  salt           string  the record's
  live           int     instances seen within gone_after_us, this one included
  live_peers     int     those of the caller's role
  number         int     0, or the number given out
  log_level      string  what all instances were told to log at, or ""

COMPLEXITY  O(log N + gone): two ZADD, two ranges by score
ATOMICITY   one slot; every write repeats harmlessly
EXPIRY      members, peers, instances: a day after the last beat; the record stays
RETRY       safe (a number may be skipped)
]]
local record = KEYS[1]
local members = KEYS[2]
local peers = KEYS[3]
local instances = KEYS[4]
local now_us = tonumber(ARGV[1])
local instance = ARGV[2]
local says = ARGV[3]
local layout = ARGV[4]
local partitions = ARGV[5]
local salt = ARGV[6]
local gone_after_us = tonumber(ARGV[7])
local newcomer = ARGV[8]

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

if redis.call('HEXISTS', record, 'salt') == 0 then
  redis.call('HSET', record, 'layout', layout, 'partitions', partitions, 'salt', salt)
end
local number = 0
if newcomer == '1' then
  number = redis.call('HINCRBY', record, 'writers', 1)
end

local moment = string.format('%.0f', now_us)
local gone_before = string.format('(%.0f', now_us - gone_after_us)
redis.call('ZADD', members, moment, instance)
redis.call('ZADD', peers, moment, instance)
redis.call('HSET', instances, instance, says)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', gone_before, 'LIMIT', 0, 100)) do
  redis.call('ZREM', members, gone)
  redis.call('HDEL', instances, gone)
end
redis.call('ZREMRANGEBYSCORE', peers, '-inf', gone_before)
for _, key in ipairs({members, peers, instances}) do
  redis.call('PEXPIRE', key, 86400000)
end

local known = redis.call('HMGET', record, 'layout', 'partitions', 'salt', 'log_level')
return {
  now_us, known[1], known[2], known[3], redis.call('ZCARD', members), redis.call('ZCARD', peers), number, known[4] or ''
}
