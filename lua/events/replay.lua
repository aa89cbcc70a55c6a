--[[
events/replay: put dead letters back on the stream, each once.

USES events/_room

KEYS
  stream         stream  entries of up to 100 events: id -> payload
  ledger         hash    accepted, applied, dead, dropped: how many events, ever; replayed: how often one was put
                         back; bytes (_room.lua)
  dead           stream  events that could not be applied: id, payload, reason

ARGV
  max_entries    int     a stream that has so many entries takes none: nothing that waits has to make room
  max_bytes      int     likewise bytes of payload
  letters...     string  ids of entries in dead, at most 100

RETURNS {replayed, missing, full}
  replayed       int     letters that are on the stream again
  missing        int     letters that are not there: replayed or dropped before, or never buried (what somebody
                         else wrote there stays)
  full           0 | 1   1: the stream is full, nothing was done

COMPLEXITY  O(letters)
ATOMICITY   one slot; a letter is on the stream or among the dead, never both
EXPIRY      nothing new is kept
RETRY       safe (the second time they are missing)
]]
local stream = KEYS[1]
local ledger = KEYS[2]
local dead = KEYS[3]
local max_entries = tonumber(ARGV[1])
local max_bytes = tonumber(ARGV[2])

probe(stream, ledger, {'dead', 'replayed'})
if redis.call('XLEN', stream) >= max_entries or tonumber(redis.call('HGET', ledger, 'bytes')) >= max_bytes then
  return {0, 0, 1}
end
local entry, places, missing = {}, {}, 0
for at = 3, #ARGV do
  local letter = redis.call('XRANGE', dead, ARGV[at], ARGV[at])[1]
  local fields = letter and not places[letter[1]] and letter[2] or {}
  if fields[1] == 'id' and fields[3] == 'payload' then
    entry[#entry + 1] = fields[2]
    entry[#entry + 1] = fields[4]
    places[#places + 1], places[letter[1]] = letter[1], true
  else
    missing = missing + 1
  end
end
local replayed = #places
if replayed > 0 then
  redis.call('XADD', stream, '*', unpack(entry))
  redis.call('XDEL', dead, unpack(places))
  redis.call('HINCRBY', ledger, 'dead', -replayed)
  redis.call('HINCRBY', ledger, 'replayed', replayed)
  redis.call('HINCRBY', ledger, 'bytes', bytes_of(entry))
end
return {replayed, missing, 0}
