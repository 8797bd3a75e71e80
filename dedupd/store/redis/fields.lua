-- Records share hashes: each is the value of a field, behind 6 bytes of when it expires, in
-- milliseconds since 1970.

local ARGS = 5
local EXPIRY = 6

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires -- of the record that was read last

local function dead(value)
  return #value > EXPIRY and struct.unpack('>I6', value) <= now
end

-- read returns the record of an operation, false if there is none, or an error.
local function read(op)
  local value = redis.pcall('HGET', KEYS[op], ARGV[ARGS * op])
  if type(value) ~= 'string' then
    return value
  end
  if dead(value) then
    return false
  end
  expires = #value > EXPIRY and struct.unpack('>I6', value) or now
  return value:sub(EXPIRY + 1)
end

-- left is what remains of the record that was read, in milliseconds.
local function left()
  return expires - now
end

local function write(op, record, ttl)
  local key, field = KEYS[op], ARGV[ARGS * op]
  redis.call('HSET', key, field, struct.pack('>I6', now + ttl) .. record)
  outlive(key, field, tonumber(ttl), 0, dead)
end

-- rewrite writes the record that was read once more, with what remains of it.
local function rewrite(op, record)
  redis.call('HSET', KEYS[op], ARGV[ARGS * op], struct.pack('>I6', expires) .. record)
end

-- remove reports whether there was something, or returns an error.
local function remove(op)
  local there = read(op)
  if type(there) == 'table' then
    return there
  end
  redis.call('HDEL', KEYS[op], ARGV[ARGS * op])
  return there ~= false
end

