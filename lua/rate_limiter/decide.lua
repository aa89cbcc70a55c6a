#!lua
--[[
rate_limiter/decide: answer many requests at once, each over one or several limits: look, take, hold, or borrow.

A request is answered as if it had come alone, in its turn. Of several limits all are taken or none.

KEYS
  fence          string  "<replication id>,<run id>,<fenced since us>"
  states...      string  one for every part of every request, in their order (_state.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis (always 0 in production)
  known          0|1|2   does the caller know this store's fence; 2: it needs none (_state.lua)
  limits         JSON    list of limits (_state.lua)
  requests       JSON    list of [verb, id, lease_us, limit, cost, part, limit, cost, part, ...]: verb "look", "take", "hold" or
                         "borrow"; id and lease_us of a hold (or borrowed for lease_us), else "" and 0; of each part the limit's
                         place in `limits` from 1, and the cost: time in us and numerator of a bucket, else units and 0

RETURNS {now_us, fenced_at, answer...}, flat: an answer per request being status, and, unless that is below 0, of each part fits,
        debt, part, wait_us, plain
  status         int     1 allowed, 2 held before under this id, 0 refused, -1 a state could not be read, -2 this id was held before
                         and has been reaped, -3 now_us lies outside of a window that the caller named
  fits           0 | 1   would this limit alone have allowed it
  debt           int     what counts against the capacity after this call
  part           int     bucket: its numerator; slots: the fence; windows: us until all of it is free again
  wait_us        int us  0 when it fits; else the least wait after which the same call, alone, succeeds
  plain          0 | 1   no hold, line or loan: a refusal stays one for wait_us

COMPLEXITY  O(parts): per distinct state one GET and at most one SET; one INFO, at most one TIME
ATOMICITY   every state is read before any is written; a refusal charges nothing, but may remove what has expired
EXPIRY      a minute after the limit is full again; while held, an hour; the TTL sweeps, it never decides
RETRY       unsafe (a retry would take twice; a hold with the same id is taken once)
USES        rate_limiter/_state rate_limiter/_holds
]]
local fence = KEYS[1]
local now_us = clock(tonumber(ARGV[1]))
local known = tonumber(ARGV[2])
local limits = cjson.decode(ARGV[3])
local requests = cjson.decode(ARGV[4])

local MOST_HOLDS = 10000
local fenced_at = fenced(fence, known, now_us)
local opened = {}
local replies = {now_us, fenced_at}
local place = 1

-- Requests of one batch that meet in a state share it; it is written once, at the end.
local function open(limit, key)
  local s = opened[key]
  if s and s.limit ~= limit then
    write(s)
    s = nil
  end
  if not s then
    s = read(limit, key, now_us, fenced_at)
    opened[key] = s
    if s then
      reap(s, fenced_at)
    end
  end
  return s
end

for _, request in ipairs(requests) do
  local verb, id, lease_us = request[1], request[2], request[3]
  local parts, status, again = {}, 1, true
  local status_at = #replies + 1
  replies[status_at] = 1
  for i = 4, #request, 3 do
    place = place + 1
    local limit, cost, part = limits[request[i]], request[i + 1], request[i + 2]
    local s = open(limit, KEYS[place])
    if not s then
      status = -1
    elseif s.stale then
      status = -3
    elseif status >= 0 then
      local wait_us = wait_for(s, cost, part, 0)
      local held = verb == 'hold' and call('HEXISTS', s.key .. ':holds', id) == 1
      if held then
        -- The same answer again, and nothing more is taken.
        wait_us = 0
      elseif verb == 'hold' and call('ZSCORE', s.key .. ':reaped', id) then
        status = -2
      elseif s.line_until > s.now and verb ~= 'look' and (cost > 0 or part > 0) then
        -- Nobody overtakes a line.
        wait_us = math.max(wait_for(s, cost, part, s.queued), 1000)
      elseif verb == 'borrow' and wait_us == 0 then
        local more = math.max(lease_us - (s.leased_until > s.now and s.lease or 0), 0)
        wait_us = wait_for(s, cost + more, part, 0)
      elseif verb == 'hold' and wait_us == 0 and call('HLEN', s.key .. ':holds') >= MOST_HOLDS then
        wait_us = math.max(s.reap_at - s.now, 1000)
      end
      parts[#parts + 1] = {s, cost, part, wait_us, held}
      again = again and held
      if wait_us > 0 and limit[8] == 0 and status > 0 then
        status = 0
      end
    end
  end
  for _, one in ipairs(status >= 0 and parts or {}) do
    local s, cost, part, wait_us = one[1], one[2], one[3], one[4]
    if status == 1 and wait_us == 0 and not one[5] and verb ~= 'look' and (cost > 0 or part > 0 or verb == 'hold') then
      charge(s, cost, part)
      if verb == 'borrow' then
        s.leased_until, s.lease = math.max(s.leased_until, s.now + lease_us), math.max(s.lease, lease_us)
      elseif verb == 'hold' then
        hold(s, id, cost, part, s.now + lease_us)
      end
    end
    local debt, rest = shown(s)
    local plain = s.reap_at == 0 and s.line_until <= s.now and s.leased_until <= s.now and s.limit[1] ~= 'c'
    local last = #replies
    replies[last + 1], replies[last + 2], replies[last + 3] = wait_us == 0 and 1 or 0, debt, rest
    replies[last + 4], replies[last + 5] = wait_us, plain and 1 or 0
  end
  replies[status_at] = status == 1 and verb == 'hold' and again and 2 or status
end

for _, s in pairs(opened) do
  write(s)
end
return replies
