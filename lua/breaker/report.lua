--[[
breaker/report: count calls of one breaker, open it where too many failed, and hear how it stands.

USES  breaker/_state

KEYS
  state          hash    the breaker (_state.lua)
  forced         hash    name -> "open|closed <since us> <reason>", of those that somebody holds by hand
  version        string  changes with every change of a breaker
  known          zset    names, by the moment of the last report

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  name           string  the breaker's
  epoch          int     in which the calls, or the probe, were let through
  calls          int     that ended since the last report, >= 0
  failures       int     of these
  tail           int     failures at the end of these calls, behind the last success
  outcome        int     of a probe: 0 there was none | 1 it works | 2 it does not | 3 nobody knows: given back
  token          string  the probe's
  failure_ppm    int     opens at so many failures in a million calls
  min_calls      int     if there were so many calls in the window
  consecutive    int     and at so many failures in a row; 0: not at all
  window_us      int us  over how long calls are counted, >= 10
  open_us        int us  for how long it opens, if it opens now; the caller has added the jitter

RETURNS {open, epoch, left_us, forced, calls, failures, probing_us, since_us}
  open           0 | 1   1: open or half open
  epoch          int     of what is returned
  left_us        int us  until a probe is let through; 0: now, or closed
  forced         string  as in forced; empty: nobody holds it
  calls          int     in the window
  failures       int     in the window
  probing_us     int us  how long nobody else may probe; 0: anybody may
  since_us       int us  the moment of the last change; 0: never

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      state: a day and twice window and opening after the last report; version, known: a week; forced stays
RETRY       unsafe (calls are counted again; the outcome of a probe is not: its epoch is over)
]]
local state = KEYS[1]
local forced = KEYS[2]
local version = KEYS[3]
local known = KEYS[4]
local now_us = tonumber(ARGV[1])
local name = ARGV[2]
local epoch = tonumber(ARGV[3])
local calls = tonumber(ARGV[4])
local failures = tonumber(ARGV[5])
local tail = tonumber(ARGV[6])
local outcome = tonumber(ARGV[7])
local token = ARGV[8]
local failure_ppm = tonumber(ARGV[9])
local min_calls = tonumber(ARGV[10])
local consecutive = tonumber(ARGV[11])
local window_us = tonumber(ARGV[12])
local open_us = tonumber(ARGV[13])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

local breaker = read(state, forced, name)
breaker.window_us = window_us
local written = {'window_us', whole(window_us)}
local changed = false

local function set(field, value)
  written[#written + 1] = field
  written[#written + 1] = value
end

local function become(open)
  breaker.open = open
  breaker.epoch = breaker.epoch + 1
  breaker.since_us = now_us
  breaker.run = 0
  breaker.probe = ''
  breaker.reopen_us = open and now_us + open_us or 0
  for number, slice in ipairs(breaker.slices) do
    slice[1], slice[2], slice[3] = 0, 0, 0
    set(SLICE_NAMES[number], '')
  end
  set('open', open and '1' or '0')
  set('since_us', whole(now_us))
  set('reopen_us', whole(breaker.reopen_us))
  set('probe', '')
  changed = true
end

if breaker.open then
  if outcome == 3 and token == breaker.probe then
    breaker.probe = ''
    set('probe', '')
    changed = true
  elseif (outcome == 1 or outcome == 2) and epoch == breaker.epoch then
    become(outcome == 2)
  end
elseif calls > 0 and epoch == breaker.epoch then
  local length_us = math.floor(window_us / SLICES)
  local start_us = now_us - now_us % length_us
  local number = start_us / length_us % SLICES + 1
  local slice = breaker.slices[number]
  if slice[1] ~= start_us then
    slice[1], slice[2], slice[3] = start_us, 0, 0
  end
  slice[2] = slice[2] + calls
  slice[3] = slice[3] + failures
  set(SLICE_NAMES[number], string.format('%.0f %.0f %.0f', slice[1], slice[2], slice[3]))
  breaker.run = calls == failures and breaker.run + failures or tail
  local seen, failed = counted(breaker, now_us)
  local in_a_row = consecutive > 0 and breaker.run >= consecutive
  if breaker.forced == '' and (in_a_row or (seen >= min_calls and failed > 0 and failed * 1000000 >= failure_ppm * seen)) then
    become(true)
  end
end
set('run', whole(breaker.run))
set('epoch', whole(breaker.epoch))
redis.call('HSET', state, unpack(written))
redis.call('PEXPIRE', state, whole(86400000 + math.ceil((window_us + open_us) / 500)))
redis.call('ZADD', known, whole(now_us), name)
redis.call('ZREMRANGEBYSCORE', known, '-inf', whole(now_us - 604800000000))
redis.call('PEXPIRE', known, 604800000)
if changed then
  tell(version, now_us)
end
return view(breaker, now_us)
