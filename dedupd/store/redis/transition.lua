-- store.Transition for some operations, in their order, as one atomic step. The conformance
-- suite holds it to the Go function; where they differ, this is wrong. Before it stands
-- keys.lua or fields.lua: how records are read, written and removed.
--
-- KEYS     the key of each operation, or its hash; several may have the same
-- ARGV     of each operation: the verb; for Mark and Claim the record of a first grant,
--          for Complete, Release and Renew the token (owner and fence); the ttl in
--          milliseconds; the lease and window (10 bytes) that a settled record shall have;
--          in a hash, its field
-- returns  four of each operation: the outcome, the record that stands there now, what
--          remains of it and what is left of its lease, in milliseconds
--
-- Only what is left of a record's expiry is asked of the clock: how long ago it was
-- written is its window less that. The layout of a record is in package record.

local MARK, CLAIM, COMPLETE, RELEASE, RENEW, LOOKUP, FORGET = '1', '2', '3', '4', '5', '6', '7'
local MARKED, CLAIMED, COMPLETED, RELEASED = 1, 2, 3, 4
local GRANTED, SEEN, HELD, MISMATCH, STALE, ABSENT = 1, 2, 3, 4, 5, 6
-- No outcomes: the value is no record, or would never expire, or is of another type.
local NOT_A_RECORD, WITHOUT_EXPIRY, OTHER_TYPE = -1, -2, -3

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

local function put(op, value, ttl)
  write(op, value, ttl)
  return GRANTED, value, 0, 0
end

-- again grants what was granted before. It writes the record once more as it is: then the
-- replication of this call, for which the caller may wait, is that of the record.
local function again(op, value, remaining)
  rewrite(op, value)
  return GRANTED, value, remaining, 0
end

local function acquire(op, verb, old, value, remaining, new, ttl)
  if not old then
    return put(op, new, ttl)
  end
  local mine = old.owner == new:sub(2, 17)
  if verb == MARK and mine and old.state == MARKED then
    return again(op, value, remaining)
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
  return put(op, new, ttl)
end

local function settled_state(verb)
  if verb == COMPLETE then
    return COMPLETED
  elseif verb == RELEASE then
    return RELEASED
  end
  return CLAIMED
end

-- settle_own settles what is most often settled, the asker's own claim, by its bytes alone:
-- for that it does not matter what is left of its lease.
local function settle_own(op, verb, value, token, ttl, terms)
  if value:byte(1) ~= VERSION + CLAIMED or (#value ~= 41 and #value ~= 57) then
    return nil
  end
  if value:sub(2, 17) .. value:sub(-18, -11) ~= token then
    return nil
  end
  return put(op, string.char(VERSION + settled_state(verb)) .. value:sub(2, -11) .. terms, ttl)
end

local function settle(op, verb, old, value, remaining, token, ttl, terms)
  if not old then
    return ABSENT, '', 0, 0
  end
  if old.owner .. old.fence ~= token then
    return STALE, value, remaining, 0
  end
  local state = settled_state(verb)
  if old.state == state and verb ~= RENEW then
    return again(op, value, remaining)
  end
  if old.state ~= CLAIMED then
    return STALE, value, remaining, 0
  end
  return put(op, string.char(VERSION + state) .. value:sub(2, -11) .. terms, ttl)
end

-- unreadable is the answer where the server refuses to read, because of what stands there or else.
local function unreadable(err)
  if err.err:find('^WRONGTYPE') then
    return OTHER_TYPE, '', 0, 0
  end
  error(err)
end

local function apply(op, verb, subject, ttl, terms)
  if verb == FORGET then
    local removed = remove(op)
    if type(removed) == 'table' then
      return unreadable(removed)
    end
    return removed and GRANTED or ABSENT, '', 0, 0
  end
  local old, remaining = nil, 0
  local value = read(op)
  if type(value) == 'table' then
    return unreadable(value)
  end
  if value then
    if verb == COMPLETE or verb == RELEASE or verb == RENEW then
      local outcome, new = settle_own(op, verb, value, subject, ttl, terms)
      if outcome then
        return outcome, new, 0, 0
      end
    end
    old = parse(value)
    if not old then
      return NOT_A_RECORD, value, 0, 0
    end
    remaining = left(op)
    if remaining < 0 then
      return WITHOUT_EXPIRY, value, 0, 0
    end
  end
  if verb == MARK or verb == CLAIM then
    return acquire(op, verb, old, value, remaining, subject, ttl)
  end
  if verb ~= LOOKUP then
    return settle(op, verb, old, value, remaining, subject, ttl, terms)
  end
  if not old then
    return ABSENT, '', 0, 0
  end
  return GRANTED, value, remaining, math.max(lease_left(old, remaining), 0)
end

local results = {}
for op = 1, #KEYS do
  local at, arg = 4 * op - 3, ARGS * (op - 1)
  results[at], results[at + 1], results[at + 2], results[at + 3] =
    apply(op, ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3], ARGV[arg + 4])
end
return results
