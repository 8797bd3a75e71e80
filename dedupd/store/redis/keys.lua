-- Each record has a key of its own, which expires with it.

local ARGS = 4

-- read returns the record of an operation, false if there is none, or an error.
local function read(op)
  return redis.pcall('GET', KEYS[op])
end

-- left is what remains of the record that was read, in milliseconds.
local function left(op)
  return redis.call('PTTL', KEYS[op])
end

local function write(op, record, ttl)
  redis.call('SET', KEYS[op], record, 'PX', ttl)
end

-- rewrite writes the record that was read once more, with what remains of it.
local function rewrite(op, record)
  redis.call('SET', KEYS[op], record, 'KEEPTTL')
end

-- remove reports whether there was something.
local function remove(op)
  return redis.call('DEL', KEYS[op]) == 1
end

