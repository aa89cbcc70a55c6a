--[[
What the fleet knows of one breaker: a hash.

  open            1 while it is open (or half open: open, and reopen_us is over)
  epoch           grows with every change; counts and probes of another epoch are of another state, and say nothing of this one
  since_us        of the last change
  reopen_us       from when on a probe is let through
  run             failures since the last success
  probe, probe_until_us   who tries whether it works again, and how long nobody else does
  window_us       over how long calls are counted
  w0 .. w9        "<start us> <calls> <failures>", each of a tenth of the window
]]

local SLICES = 10
local SLICE_NAMES = {'w0', 'w1', 'w2', 'w3', 'w4', 'w5', 'w6', 'w7', 'w8', 'w9'}

local function whole(number)
  return string.format('%.0f', number)
end

local function read(state, forced, name)
  local found = redis.call(
    'HMGET', state, 'open', 'epoch', 'since_us', 'reopen_us', 'run', 'probe', 'probe_until_us', 'window_us', unpack(SLICE_NAMES)
  )
  local breaker = {
    open = found[1] == '1',
    epoch = tonumber(found[2] or '0'),
    since_us = tonumber(found[3] or '0'),
    reopen_us = tonumber(found[4] or '0'),
    run = tonumber(found[5] or '0'),
    probe = found[6] or '',
    probe_until_us = tonumber(found[7] or '0'),
    window_us = tonumber(found[8] or '0'),
    forced = redis.call('HGET', forced, name) or '',
    slices = {},
  }
  for number = 1, SLICES do
    local start_us, calls, failures = string.match(found[8 + number] or '', '^(%d+) (%d+) (%d+)$')
    breaker.slices[number] = {tonumber(start_us or '0'), tonumber(calls or '0'), tonumber(failures or '0')}
  end
  return breaker
end

local function counted(breaker, now_us)
  local calls, failures = 0, 0
  for _, slice in ipairs(breaker.slices) do
    if slice[1] > now_us - breaker.window_us and slice[1] <= now_us then
      calls = calls + slice[2]
      failures = failures + slice[3]
    end
  end
  return calls, failures
end

local function view(breaker, now_us)
  local calls, failures = counted(breaker, now_us)
  local open = breaker.open and 1 or 0
  return {
    open, breaker.epoch, breaker.open and math.max(breaker.reopen_us - now_us, 0) or 0, breaker.forced, calls, failures,
    breaker.open and breaker.probe ~= '' and math.max(breaker.probe_until_us - now_us, 0) or 0, breaker.since_us
  }
end

-- Whoever waits for changes of any breaker or pause watches this key. A moment and not a count: what a failover took back never
-- comes again with another meaning.
local function tell(version, now_us)
  local last = tonumber(redis.call('GET', version) or '0') or 0
  redis.call('SET', version, whole(math.max(now_us, last + 1)), 'PX', 604800000)
end
