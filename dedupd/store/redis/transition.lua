-- store.Transition for the operations on one key, in their order, as one atomic step. The
-- conformance suite holds it to the Go function; where they differ, this is wrong.
--
-- KEYS[1]  the key
-- ARGV     four of each operation: the verb; for Mark and Claim the record of a first grant,
--          for Complete, Release and Renew the token (owner and fence); the ttl in
--          milliseconds; the lease and window (10 bytes) that a settled record shall have
-- returns  four of each operation: the outcome, the record that stands there now, what
--          remains of it and what is left of its lease, in milliseconds
--
-- Only what is left of the key's expiry is asked of the clock: how long ago a record was
-- written is its window less that. The layout of a record is in package record.

local MARK, CLAIM, COMPLETE, RELEASE, RENEW, LOOKUP, FORGET = '1', '2', '3', '4', '5', '6', '7'
local MARKED, CLAIMED, COMPLETED, RELEASED = 1, 2, 3, 4
local GRANTED, SEEN, HELD, MISMATCH, STALE, ABSENT = 1, 2, 3, 4, 5, 6
-- No outcomes: the value is no record, or would never expire.
local NOT_A_RECORD, WITHOUT_EXPIRY = -1, -2

local VERSION = 16
local NO_FENCE = string.rep('\0', 8)

local function number(bytes)
  local n = 0
  for i = 1, #bytes do
    n = n * 256 + bytes:byte(i)
  end
  return n
end

local function successor(fence)
  local bytes = {fence:byte(1, 8)}
  for i = 8, 1, -1 do
    if bytes[i] < 255 then
      bytes[i] = bytes[i] + 1
      break
    end
    bytes[i] = 0
  end
  return string.char(unpack(bytes))
end

local function parse(value)
  local state = (value:byte(1) or 0) - VERSION
  if state < MARKED or state > RELEASED then
    return nil
  end
  local tail = state == MARKED and 0 or 18
  local size = #value - tail
  if size ~= 23 and size ~= 39 then
    return nil
  end
  local r = {state = state, owner = value:sub(2, 17), seen = value:sub(18, 23), digest = value:sub(24, size), fence = NO_FENCE}
  if tail > 0 then
    r.fence = value:sub(-18, -11)
    r.lease = number(value:sub(-10, -7))
    r.window = number(value:sub(-6))
  end
  return r
end

local function lease_left(old, remaining)
  if old.state ~= CLAIMED then
    return 0
  end
  return old.lease - (old.window - remaining)
end

-- refuse says whether what stands there keeps an attempt from having the key.
local function refuse(old, mine, digest, remaining)
  local outcome, left = nil, 0
  if old.state == COMPLETED or (old.state == MARKED and not mine) then
    outcome = SEEN
  elseif old.state == CLAIMED and not mine then
    left = lease_left(old, remaining)
    if left > 0 then
      outcome = HELD
    end
  end
  if outcome and not mine and old.digest ~= '' and digest ~= '' and old.digest ~= digest then
    return MISMATCH, 0
  end
  return outcome, left
end

local function put(key, value, ttl)
  redis.call('SET', key, value, 'PX', ttl)
  return GRANTED, value, tonumber(ttl), 0
end

local function acquire(key, verb, old, value, remaining, new, ttl)
  if not old then
    return put(key, new, ttl)
  end
  local mine = old.owner == new:sub(2, 17)
  if verb == MARK and mine and old.state == MARKED then
    return GRANTED, value, remaining, 0
  end
  local outcome, left = refuse(old, mine, parse(new).digest, remaining)
  if outcome then
    return outcome, value, remaining, left
  end
  new = new:sub(1, 17) .. old.seen .. new:sub(24)
  if verb == CLAIM then
    local fence = old.fence
    if not (old.state == CLAIMED and mine) then
      fence = successor(fence)
    end
    new = new:sub(1, -19) .. fence .. new:sub(-10)
  end
  return put(key, new, ttl)
end

local function settle(key, verb, old, value, remaining, token, ttl, terms)
  if not old then
    return ABSENT, '', 0, 0
  end
  if old.owner .. old.fence ~= token then
    return STALE, value, remaining, 0
  end
  local state = CLAIMED
  if verb == COMPLETE then
    state = COMPLETED
  elseif verb == RELEASE then
    state = RELEASED
  end
  if old.state == state and verb ~= RENEW then
    return GRANTED, value, remaining, 0
  end
  if old.state ~= CLAIMED then
    return STALE, value, remaining, 0
  end
  return put(key, string.char(VERSION + state) .. value:sub(2, -11) .. terms, ttl)
end

local function apply(key, verb, subject, ttl, terms)
  if verb == FORGET then
    if redis.call('DEL', key) == 0 then
      return ABSENT, '', 0, 0
    end
    return GRANTED, '', 0, 0
  end
  local old, remaining = nil, 0
  local value = redis.call('GET', key)
  if value then
    old = parse(value)
    if not old then
      return NOT_A_RECORD, value, 0, 0
    end
    remaining = redis.call('PTTL', key)
    if remaining < 0 then
      return WITHOUT_EXPIRY, value, 0, 0
    end
  end
  if verb == MARK or verb == CLAIM then
    return acquire(key, verb, old, value, remaining, subject, ttl)
  end
  if verb ~= LOOKUP then
    return settle(key, verb, old, value, remaining, subject, ttl, terms)
  end
  if not old then
    return ABSENT, '', 0, 0
  end
  return GRANTED, value, remaining, math.max(lease_left(old, remaining), 0)
end

local results = {}
for i = 1, #ARGV, 4 do
  local outcome, value, remaining, left = apply(KEYS[1], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  results[i], results[i + 1], results[i + 2], results[i + 3] = outcome, value, remaining, left
end
return results
