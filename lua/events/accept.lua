--[[
events/accept: put events of strangers on the stream, each id once.

Who posts over HTTP may post again, to another instance, when an answer was lost; so the ids are remembered.

USES events/_room

KEYS
  stream         stream  entries of up to 100 events: id -> payload
  ledger         hash    accepted, applied, dead, dropped: how many events, ever; bytes (_room.lua)
  seen_now       set     ids accepted in this generation
  seen_before    set     in the one before
  seen_next      set     in the next: another instance's clock may be a little ahead

ARGV
  max_entries    int     stream entries kept; beyond, the oldest are dropped and counted
  max_bytes      int     bytes of payload kept, likewise
  keep_ms        int ms  how long a generation is remembered after its first id
  max_seen       int     ids remembered over this generation and the one before; beyond, older ones are forgotten
  events...      string  pairs (id, payload), at most 100

RETURNS {accepted, duplicates, dropped, forgotten}
  accepted       int     events that are new
  duplicates     int     events that were here already
  dropped        int     events that had to make room
  forgotten      int     ids that had to

COMPLEXITY  O(events + dropped + forgotten)
ATOMICITY   one slot
EXPIRY      a generation of ids keep_ms after its first; the stream is bounded by max_entries and max_bytes
RETRY       safe
]]
local stream = KEYS[1]
local ledger = KEYS[2]
local seen_now = KEYS[3]
local seen_before = KEYS[4]
local seen_next = KEYS[5]
local max_entries = tonumber(ARGV[1])
local max_bytes = tonumber(ARGV[2])
local keep_ms = tonumber(ARGV[3])
local max_seen = tonumber(ARGV[4])

probe(stream, ledger, {'accepted', 'dropped'})
local entry, ids, duplicates = {}, {}, 0
for at = 5, #ARGV, 2 do
  local id = ARGV[at]
  local known = ids[id]
  for _, seen in ipairs({seen_before, seen_next, seen_now}) do
    known = redis.call('SISMEMBER', seen, id) == 1 or known
  end
  if known then
    duplicates = duplicates + 1
  else
    ids[#ids + 1], ids[id] = id, true
    entry[#entry + 1] = id
    entry[#entry + 1] = ARGV[at + 1]
  end
end
if #entry == 0 then
  return {0, duplicates, 0, 0}
end

-- An id that is remembered is a duplicate, so what carries it comes first.
redis.call('XADD', stream, '*', unpack(entry))
redis.call('SADD', seen_now, unpack(ids))
redis.call('PEXPIRE', seen_now, keep_ms, 'NX')
redis.call('HINCRBY', ledger, 'accepted', #ids)
redis.call('HINCRBY', ledger, 'bytes', bytes_of(entry))

local forgotten = 0
local before = redis.call('SCARD', seen_before)
local surplus = before + redis.call('SCARD', seen_now) - max_seen
if surplus > 0 then
  -- The older generation first; its ids have been remembered for longest.
  local from_before = math.min(surplus, before, 1000)
  local from_now = math.min(surplus - from_before, 1000 - from_before)
  if from_before > 0 then
    forgotten = #redis.call('SPOP', seen_before, from_before)
  end
  if from_now > 0 then
    forgotten = forgotten + #redis.call('SPOP', seen_now, from_now)
  end
end
return {#ids, duplicates, make_room(stream, ledger, max_entries, max_bytes), forgotten}
