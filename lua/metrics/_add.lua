-- How integers reach a metric: each to its lifetime totals, and to the open window in which it was recorded.
-- A group has three targets: totals, window, and the list of the metric's open windows; and in ARGV: metric, definition, window, how
-- many pairs, pairs (field, integer). A window is open until metrics/seal has made a block of it; `open` says which ones there are, and
-- field "#" of a window how often it was added to. A gauge has no totals; its pairs "v|series" are values, of which the lowest and the
-- highest are kept. A group without pairs says what a metric is, and nothing more.
local WINDOW_US = 10000000
local REACH_BACK, REACH_AHEAD = 8640, 6 -- windows: a day back, a minute ahead
local KEEP_OPEN_MS = 604800000
local MOST_METRICS = 10000 -- of a fleet, in one partition: their names and totals stay for ever
local EXACT = 9007199254740992 -- 2^53: up to here a double holds every whole number
local OVERFLOW = 'observatory_overflow="true"'
local IDENTIFYING = {counter = {'w', 'n'}, histogram = {'s', 't', 'z', 'c'}}

local function kind_of(definition)
  return string.match(definition, '"kind":"(%a+)"')
end

-- The new sum, or a table when the store refuses it: one that cannot be added must not take the others with it, since a script is not
-- rolled back.
local function add(key, field, number)
  return redis.pcall('HINCRBY', key, field, number)
end

-- Whether another field says that a series, of which this one is new, is known already.
local function is_known(kind, total, field, text)
  for _, part in ipairs(IDENTIFYING[kind] or {}) do
    local other = string.format('%s|%s', part, text)
    if other ~= field and redis.call('HEXISTS', total, other) == 1 then
      return true
    end
  end
  return false
end

-- Keeps the lowest and the highest; false when the store refused.
local function widen(window_key, field, value)
  local text = string.sub(field, 3)
  local low, high = string.format('l|%s', text), string.format('h|%s', text)
  local known_low = redis.pcall('HGET', window_key, low)
  if type(known_low) == 'table' then
    return false
  end
  local known_high = redis.call('HGET', window_key, high)
  if not known_low or tonumber(value) < tonumber(known_low) then
    redis.call('HSET', window_key, low, value)
  end
  if not known_high or tonumber(value) > tonumber(known_high) then
    redis.call('HSET', window_key, high, value)
  end
  return true
end

-- What cannot be done (a key of another type, a right that is missing) must fail before anything is: a script is not rolled back.
local function prove_additions(names, sizes, open)
  redis.call('HLEN', names)
  redis.call('HLEN', sizes)
  redis.call('ZCARD', open)
end

-- Adds the groups whose targets begin at KEYS[target] and whose numbers begin at ARGV[at]. Returns how many additions the store
-- refused, how many came too late (or too early) for their window, and by metric how many were folded into the overflow series.
local function add_groups(target, at, names, sizes, open, now_us, max_series)
  local refused, misplaced, folded = 0, 0, {}
  local present = math.floor(now_us / WINDOW_US)
  while target < #KEYS do
    local total, window_key, listed = KEYS[target], KEYS[target + 1], KEYS[target + 2]
    local metric, definition, window, pairs_left = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    target, at = target + 3, at + 4
    local kind = kind_of(definition)
    local of_one_kind = true
    local known = redis.call('HGET', names, metric)
    if known then
      -- The fields of two kinds in one hash would be neither's.
      of_one_kind = (kind_of(known) or kind) == kind
    elseif redis.call('HLEN', names) < MOST_METRICS then
      redis.call('HSET', names, metric, definition)
    else
      of_one_kind = false
    end
    local in_reach = window > present - REACH_BACK and window <= present + REACH_AHEAD
    local verdicts, size, moved, last = {}, nil, 0, at + 2 * pairs_left - 1
    if not of_one_kind then
      refused = refused + pairs_left
    elseif kind == 'gauge' then
      for i = at, in_reach and last or 0, 2 do
        local field, value = ARGV[i], ARGV[i + 1]
        local taken
        if string.sub(field, 1, 2) == 'v|' then
          taken = widen(window_key, field, value)
        else
          taken = type(add(window_key, field, value)) == 'number'
        end
        refused = refused + (taken and 0 or 1)
      end
    else
      for i = at, last, 2 do
        local field, number = ARGV[i], ARGV[i + 1]
        local sum = add(total, field, number)
        local delta = tonumber(number)
        if sum == delta and delta < EXACT then
          local part, text = string.match(field, '^(.-)|(.*)$')
          if verdicts[text] == nil then
            verdicts[text] = is_known(kind, total, field, text)
            if not verdicts[text] then
              size = size or tonumber(redis.call('HGET', sizes, metric)) or 0
              if text == OVERFLOW or size < max_series then
                size, verdicts[text] = size + 1, true
              end
            end
          end
          if not verdicts[text] then
            redis.call('HDEL', total, field)
            field, moved = string.format('%s|%s', part, OVERFLOW), moved + 1
            sum = add(total, field, number)
          end
        end
        if type(sum) ~= 'number' or in_reach and type(add(window_key, field, number)) ~= 'number' then
          refused = refused + 1
        end
      end
    end
    if of_one_kind and not in_reach then
      misplaced = misplaced + pairs_left
    end
    at = at + 2 * pairs_left
    if size then
      redis.call('HSET', sizes, metric, string.format('%.0f', size))
    end
    if moved > 0 then
      folded[#folded + 1] = metric
      folded[#folded + 1] = moved
    end
    if pairs_left > 0 and in_reach and of_one_kind and type(add(window_key, '#', 1)) == 'number' then
      redis.call('PEXPIRE', window_key, KEEP_OPEN_MS)
      redis.call('ZADD', open, window, string.format('%.0f:%s', window, metric))
      redis.call('PEXPIRE', open, KEEP_OPEN_MS)
      redis.pcall('ZADD', listed, window, string.format('%.0f', window))
      redis.pcall('PEXPIRE', listed, KEEP_OPEN_MS)
    end
  end
  return refused, misplaced, folded
end

