--[[
cache/join: take part in a cache as one generation of its class; its record is made when there is none.

KEYS
  record         string  "<version> <fingerprint> ...": the version that entries carry, and every generation that writes any

ARGV
  version        string  16 hexadecimal digits, the version of a new record; random, so that none ever comes again
  fingerprint    string  of the generation
  ttl_ms         int ms  the record's time to live from now, or three quarters of it; longer than any entry's
  most           int     generations that a record names; one with more begins anew, and every entry of the cache is a miss

RETURNS record
  record         string  as it is now

COMPLEXITY  O(generations), of which there are at most `most`
ATOMICITY   one key
EXPIRY      longer than that of any entry; without a record no entry counts, so an early end costs misses and nothing else
RETRY       safe
]]
local record = KEYS[1]
local version = ARGV[1]
local fingerprint = ARGV[2]
local ttl_ms = tonumber(ARGV[3])
local most = tonumber(ARGV[4])

local known = redis.pcall('GET', record)
if type(known) ~= 'string' then -- none, or a key of another type
  known = version
end
local is_new = not string.find(known, fingerprint, 17, true)
local _, named = string.gsub(known, ' ', '')
if named + (is_new and 1 or 0) > most then -- a write and a delete take a step for each of them
  known = version
  is_new = true
end
if is_new then
  known = string.format('%s %s', known, fingerprint)
end
-- Whatever touches it is told to everybody who keeps something near, and costs them all of it: seldom, by whoever is first.
if is_new or redis.call('PTTL', record) < ttl_ms * 3 / 4 then
  redis.call('SET', record, known, 'PX', ttl_ms)
end
return known
