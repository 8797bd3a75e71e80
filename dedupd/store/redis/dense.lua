-- store.Transition for marks that share hashes: the operations of one call, in their order, as
-- one atomic step. The conformance suite holds it to the Go function; where they differ, this
-- is wrong. Before it stands sweep.lua.
--
-- KEYS[i]  the hash of operation i
-- ARGV     three of each operation: the field; the first 8 bytes of the owner for a mark, or
--          LOOKUP or FORGET; the ttl in milliseconds
-- returns  the time in milliseconds, and two of each operation: the outcome, and the value
--          that stands there now or, of a hash that is none, what the server said
--
-- A value is the first 8 bytes of the owner, and 4 bytes of the tick at which the mark is
-- forgotten: ticks of 250 ms since 1970, modulo 2^32, which is 34 years. Ticks are compared
-- by their distance, so that the longest ttl (10 years) never meets the modulus.

local LOOKUP, FORGET = 'L', 'F'
local GRANTED, SEEN, ABSENT = 1, 2, 6
-- No outcomes: the value is no mark, or the key is no hash.
local NOT_A_MARK, NOT_A_HASH = -1, -2

local TICK, TICKS = 250, 4294967296
local SIZE, OWNER = 12, 8

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tick = math.floor(now / TICK)

local function live(value)
  local left = (struct.unpack('>I4', value, OWNER + 1) - tick) % TICKS
  return left > 0 and left < TICKS / 2
end

local function dead(value)
  return #value == SIZE and not live(value)
end

local function mark(key, field, owner, ttl)
  local value = owner .. struct.pack('>I4', (math.floor((now + ttl) / TICK) + 1) % TICKS)
  redis.call('HSET', key, field, value)
  outlive(key, field, ttl, TICK, dead)
  return GRANTED, value
end

local function apply(key, field, what, ttl)
  local found = redis.pcall('HGET', key, field)
  if type(found) == 'table' then
    return NOT_A_HASH, found.err
  end
  if what == FORGET then
    local known = found and (#found ~= SIZE or live(found))
    if found then
      redis.call('HDEL', key, field)
    end
    return known and GRANTED or ABSENT, ''
  end
  if found and #found ~= SIZE then
    return NOT_A_MARK, found
  end
  if found and live(found) then
    if what == LOOKUP then
      return GRANTED, found
    end
    if found:sub(1, OWNER) == what then
      -- Once more as it is: then the replication of this call, for which the caller may wait,
      -- is that of the mark.
      redis.call('HSET', key, field, found)
      return GRANTED, found
    end
    return SEEN, found
  end
  if what == LOOKUP then
    return ABSENT, ''
  end
  return mark(key, field, what, tonumber(ttl))
end

local results = {now}
for i, key in ipairs(KEYS) do
  results[2 * i], results[2 * i + 1] = apply(key, ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i])
end
return results
