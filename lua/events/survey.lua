--[[
events/survey: how a partition stands: what its ledger says, and what really lies there.

A page of the stream is counted in the same step as the ledger is read, so that a stream that fits a page is compared exactly. Of a
longer one further pages follow, and are worth something as long as what was taken from it meanwhile was counted before: as long as the
entry with which a page begins is still there.

KEYS
  stream         stream  entries of up to 100 events: id -> payload
  ledger         hash    accepted, applied, dead, dropped: how many events, ever
  dead           stream  events that could not be applied

ARGV
  begin          string  where the page begins: an entry id, or "-" = with the oldest
  page           int     entries counted at most; 0: none

RETURNS {accepted, applied, dead, dropped, replayed, buried, entries, oldest, counted, next}
  accepted       int     events, ever; so are applied, dead (less what was replayed or dropped since), dropped
  replayed       int     how often a dead letter was put back on the stream
  buried         int     dead letters that are there
  entries        int     entries on the stream
  oldest         string  id of the oldest entry; "" = there is none
  counted        int     events in the page
  next           string  where the next page begins; "" = this was the last

COMPLEXITY  O(events in the page)
ATOMICITY   one slot; nothing is written
EXPIRY      none
RETRY       safe
]]
local stream = KEYS[1]
local ledger = KEYS[2]
local dead = KEYS[3]
local begin = ARGV[1]
local page = tonumber(ARGV[2])

local reply = {}
for at, name in ipairs({'accepted', 'applied', 'dead', 'dropped', 'replayed'}) do
  reply[at] = tonumber(redis.call('HGET', ledger, name) or 0)
end
reply[6] = redis.call('XLEN', dead)
reply[7] = redis.call('XLEN', stream)
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
reply[8] = first and first[1] or ''

local counted, following = 0, ''
if page > 0 then
  local entries = redis.call('XRANGE', stream, begin, '+', 'COUNT', page + 1)
  for at = 1, math.min(#entries, page) do
    counted = counted + #entries[at][2] / 2
  end
  following = entries[page + 1] and entries[page + 1][1] or ''
end
reply[9], reply[10] = counted, following
return reply
