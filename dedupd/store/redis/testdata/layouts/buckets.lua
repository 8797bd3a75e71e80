-- A hash for each period of a ttl: this and the last one are asked.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i, key in ipairs(KEYS) do
  local field, owner, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], tonumber(ARGV[3 * i])
  local period = math.floor(now / ttl)
  local this = key .. string.format(':%x', period)
  if not (redis.call('HGET', this, field) or redis.call('HGET', key .. string.format(':%x', period - 1), field)) then
    local age = struct.pack('>I4', math.floor((now - period * ttl) / ttl * 16777216))
    redis.call('HSET', this, field, owner .. age:sub(2))
    if redis.call('HLEN', this) == 1 then
      redis.call('PEXPIREAT', this, (period + 2) * ttl)
    end
  end
end
