-- What fields with expiries of their own need: to be deleted, and a hash that outlives them.

-- How often in each ttl a hash is swept.
local SWEEPS = 4

-- How many fields a sweep looks at in a hash that is too large for a listpack, and how many it
-- deletes at most: the arguments of one call.
local LOOK, MOST = 32, 1000

-- sweep deletes fields whose values are dead, and reports whether it has looked at all of the
-- hash. The server gives all of a listpack at once; of a larger hash some fields, beginning
-- where the field that was just written has us begin, which is at random.
local function sweep(key, field, dead)
  local entries = redis.call('HSCAN', key, struct.unpack('>I4', field), 'COUNT', LOOK)[2]
  local whole = #entries / 2 >= redis.call('HLEN', key)
  local gone = {}
  for i = 1, #entries, 2 do
    if #gone < MOST and dead(entries[i + 1]) then
      gone[#gone + 1] = entries[i]
    end
  end
  if #gone > 0 then
    redis.call('HDEL', key, unpack(gone))
  end
  return whole and #gone < MOST
end

-- outlive makes a hash live for ttl and a little more. A hash outlives each of its fields: one
-- that is written when it would not is what makes it live longer, and is the occasion to sweep
-- it. A swept hash may live longer by a share of ttl than it has to, so that this happens a
-- few times in each ttl; one that was not swept in full may not, so that the next field goes on.
local function outlive(key, field, ttl, more, dead)
  local least = ttl + more
  if redis.call('PTTL', key) < least then
    if sweep(key, field, dead) then
      least = least + math.floor(ttl / SWEEPS)
    end
    redis.call('PEXPIRE', key, least)
  end
end

