#!lua
--[[
rate_limiter/advance: stand in the line of one limit, leave it, and take whoever's turn has come.

A ticket is granted when it and all live tickets ahead of it fit; nobody overtakes. Tickets of an owner unseen for a second leave.
The order is that of start-time fair queueing: each class advances by cost / weight, and one class alone is first come, first served
(P. Goyal, H. Vin, H. Cheng, Start-time Fair Queuing, SIGCOMM 1996).

KEYS
  fence          string  "<replication id>,<run id>,<fenced since us>"
  state          string  the limit's (_state.lua); beside it, by suffix:
                         :line zset "owner|ticket|cost|part|lease" by tag; :owners hash owner -> last seen us, #class -> last tag,
                         "virtual" the last tag granted, "queued" the sum of costs, "epoch" when the line began

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis (always 0 in production)
  known          0|1|2   does the caller know this store's fence; 2: it needs none (_state.lua)
  limits         JSON    list of the one limit (_state.lua)
  owner          string  who asks, without "|"
  joins          JSON    list of [ticket, cost, part, class, weight, place, patience_us, lease_us]: place "back", or "front" for who
                         stood at the head of another line; patience_us -1: as long as it takes;
                         lease_us > 0: granted as a hold under the ticket's name
  leaves         JSON    list of "ticket|cost|part|lease"

RETURNS {now_us, fenced_at, epoch, wait_us, granted, refused, debt, part}
  epoch          int us  when this line began; another one than before: the line was lost, join again; -3: now_us lies outside of a
                         window that the caller named, and nothing was done
  wait_us        int us  until the caller's first ticket can be granted; -1: it has none here
  granted        list    of ticket, fence, ticket, fence, ...: charged now (or held before under this name)
  refused        list    of ticket, wait_us, ticket, wait_us, ...: they could not be served within their patience
  debt, part     int     what counts against the capacity after this call (as in decide)

COMPLEXITY  O(joins + leaves + 512): the first 512 tickets are looked at
ATOMICITY   one slot
EXPIRY      line and owners a minute after the last call
RETRY       safe for joins and leaves; a grant whose answer is lost stays charged
USES        rate_limiter/_state rate_limiter/_holds
]]
local fence = KEYS[1]
local state = KEYS[2]
local now_us = clock(tonumber(ARGV[1]))
local known = tonumber(ARGV[2])
local limits = cjson.decode(ARGV[3])
local owner = ARGV[4]
local joins = cjson.decode(ARGV[5])
local leaves = cjson.decode(ARGV[6])

local UNSEEN_US = 1000000
local LOOK_AGAIN_US = 3000
local STANDS_US = 1250000
local MOST_TICKETS = 10000
local line, owners = state .. ':line', state .. ':owners'
local fenced_at = fenced(fence, known, now_us)
local s = read(limits[1], state, now_us, fenced_at)
if not s then
  return redis.error_reply('ERR the state of a limit cannot be read')
elseif s.stale then
  return {now_us, fenced_at, -3, LOOK_AGAIN_US, {}, {}, 0, 0}
end
reap(s, fenced_at)

local seen = {}
local flat = call('HGETALL', owners)
for i = 1, #flat, 2 do
  seen[flat[i]] = tonumber(flat[i + 1])
end
local queued, virtual, epoch = seen['queued'] or 0, seen['virtual'] or 0, seen['epoch'] or 0
if epoch == 0 or epoch > now_us then
  epoch = now_us
end
seen[owner] = now_us

for _, left in ipairs(leaves) do
  local _, cost = match(left, '^([^|]*)|(%d+)')
  if call('ZREM', line, format('%s|%s', owner, left)) == 1 then
    queued = queued - tonumber(cost)
  end
end

-- What is held may be given back at any moment: then nobody knows how long it takes, and nobody is sent away.
local known_wait = s.limit[1] ~= 'c' and s.reap_at == 0
local fresh, refused, granted = {}, {}, {}
local tickets = call('ZCARD', line)
for _, join in ipairs(joins) do
  local ticket, cost, class, weight, place = join[1], join[2], format('#%s', join[4]), join[5], join[6]
  local member = format('%s|%s|%d|%d|%d', owner, ticket, cost, join[3], join[8])
  local stands = call('ZSCORE', line, member)
  if not stands and tickets >= MOST_TICKETS then
    refused[#refused + 1] = ticket
    refused[#refused + 1] = wait_for(s, cost, join[3], queued)
  elseif not stands then
    local tag, before = virtual, seen[class]
    if place == 'back' then
      tag = math.max(virtual, before or 0) + math.max(cost, 1) / weight
      seen[class] = tag
      call('HSET', owners, class, format('%.17g', seen[class]))
    end
    call('ZADD', line, format('%.17g', tag), member)
    queued, tickets = queued + cost, tickets + 1
    fresh[ticket] = {join[7], class, before}
  end
end

-- Nobody is ahead of the first; what those ahead will take is promised to them.
local promised, blocked, wait_us = 0, false, -1
local heads = call('ZRANGE', line, 0, 511, 'WITHSCORES')
for i = 1, #heads, 2 do
  local member, tag = heads[i], tonumber(heads[i + 1])
  local whose, ticket, cost, part, lease_us = match(member, '^([^|]*)|([^|]*)|(%d+)|(%d+)|(%d+)$')
  cost, part, lease_us = tonumber(cost), tonumber(part), tonumber(lease_us)
  local mine = whose == owner
  local function leave()
    call('ZREM', line, member)
    queued = queued - cost
  end
  if not seen[whose] or math.abs(now_us - seen[whose]) > UNSEEN_US then
    leave()
    call('HDEL', owners, whose)
  else
    local wait = (blocked and not mine) and 1 or wait_for(s, cost, part, promised)
    if wait == 0 and not blocked and mine then
      leave()
      if lease_us == 0 or call('HEXISTS', state .. ':holds', ticket) == 0 then
        charge(s, cost, part)
        if lease_us > 0 then
          hold(s, ticket, cost, part, s.now + lease_us)
        end
      end
      virtual = math.max(virtual, tag)
      granted[#granted + 1] = ticket
      granted[#granted + 1] = s.fence
    else
      blocked = blocked or wait > 0
      local new = mine and fresh[ticket]
      local patience_us = new and new[1]
      if known_wait and patience_us and patience_us >= 0 and wait > patience_us then
        leave()
        refused[#refused + 1] = ticket
        refused[#refused + 1] = wait
        if seen[new[2]] == tag then
          -- Its class has not advanced after all.
          seen[new[2]] = new[3]
          call('HDEL', owners, new[2])
          if new[3] then
            call('HSET', owners, new[2], format('%.17g', new[3]))
          end
        end
      else
        if mine and wait_us < 0 then
          wait_us = math.max(wait, 1)
        end
        promised = promised + cost + (part > 0 and 1 or 0)
        if wait_us >= 0 and #joins == 0 then
          break
        end
      end
    end
  end
end

local left = call('ZCARD', line)
if left > 0 then
  if wait_us < 0 and #heads == 1024 then
    wait_us = wait_for(s, 0, 0, queued)
  end
  call('HSET', owners, owner, integer(now_us), 'virtual', format('%.17g', virtual), 'epoch', integer(epoch))
  call('HSET', owners, 'queued', integer(math.max(queued, 0)))
  for field, last in pairs(seen) do
    if string.sub(field, 1, 1) == '#' and last <= virtual then
      -- A class that is not ahead begins like a new one.
      call('HDEL', owners, field)
    end
  end
  call('PEXPIRE', owners, 60000)
  call('PEXPIRE', line, 60000)
  s.line_until, s.queued = s.now + STANDS_US, math.max(queued, 0)
  s.dirty = true
else
  call('DEL', owners)
  s.dirty = s.dirty or s.line_until > 0
  s.line_until, s.queued = 0, 0
end
write(s)
local debt, rest = shown(s)
return {now_us, fenced_at, epoch, wait_us, granted, refused, debt, rest}
