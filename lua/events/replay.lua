--[[
events/replay: put dead letters back on the stream, each once.

KEYS
  stream         stream  entries of up to 100 events: id -> payload
  ledger         hash    accepted, applied, dead, dropped: how many events, ever; replayed: how often one was put back
  dead           stream  events that could not be applied: id, payload, reason

ARGV
  max_entries    int     a stream that has so many entries takes none: nothing that waits has to make room
  letters...     string  ids of entries in dead, at most 100

RETURNS {replayed, missing, full}
  replayed       int     letters that are on the stream again
  missing        int     letters that are not there: replayed or dropped before, or never buried
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

if redis.call('XLEN', stream) >= max_entries then
  return {0, 0, 1}
end
local entry, missing = {}, 0
for at = 2, #ARGV do
  local letter = redis.call('XRANGE', dead, ARGV[at], ARGV[at])[1]
  if letter then
    entry[#entry + 1] = letter[2][2]
    entry[#entry + 1] = letter[2][4]
    redis.call('XDEL', dead, ARGV[at])
  else
    missing = missing + 1
  end
end
local replayed = #entry / 2
if replayed > 0 then
  redis.call('XADD', stream, '*', unpack(entry))
  redis.call('HINCRBY', ledger, 'dead', -replayed)
  redis.call('HINCRBY', ledger, 'replayed', replayed)
end
return {replayed, missing, 0}
