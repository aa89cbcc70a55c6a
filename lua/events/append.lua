--[[
events/append: put one writer's batch of events on the stream, exactly once.

The same contract as metrics/flush: a batch counts iff its number is the writer's watermark + 1.

USES events/_room

KEYS
  watermark      string  the last batch of this writer that was appended
  stream         stream  entries of up to 100 events: id -> payload
  ledger         hash    accepted, applied, dead, dropped: how many events, ever; bytes (_room.lua)

ARGV
  batch          int     1, 2, 3 …
  max_entries    int     stream entries kept; beyond, the oldest are dropped and counted
  max_bytes      int     bytes of payload kept, likewise
  events...      string  pairs (id, payload), at most 100

RETURNS {verdict, watermark, dropped}
  verdict        0 | 1 | 2   0 duplicate, 1 appended, 2 gap
  watermark      int     the last batch that is appended now
  dropped        int     events that had to make room

COMPLEXITY  O(events + dropped)
ATOMICITY   one slot; the watermark moves with the data
EXPIRY      the watermark seven days after the last batch; the stream is bounded by max_entries and max_bytes
RETRY       safe
]]
local watermark = KEYS[1]
local stream = KEYS[2]
local ledger = KEYS[3]
local batch = tonumber(ARGV[1])
local max_entries = tonumber(ARGV[2])
local max_bytes = tonumber(ARGV[3])

local last = tonumber(redis.call('GET', watermark) or 0)
if batch <= last then
  return {0, last, 0}
end
if batch > last + 1 then
  return {2, last, 0}
end

probe(stream, ledger, {'accepted', 'dropped'})
-- Once the watermark is moved a batch is a duplicate, so what carries it comes first.
local entry = {unpack(ARGV, 4)}
redis.call('XADD', stream, '*', unpack(entry))
redis.call('SET', watermark, string.format('%.0f', batch), 'PX', 604800000)
redis.call('HINCRBY', ledger, 'accepted', #entry / 2)
redis.call('HINCRBY', ledger, 'bytes', bytes_of(entry))
return {1, batch, make_room(stream, ledger, max_entries, max_bytes)}
