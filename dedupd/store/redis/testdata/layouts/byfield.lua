-- An expiry of the server's for each field.
for i, key in ipairs(KEYS) do
  local field, owner, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], tonumber(ARGV[3 * i])
  if not redis.call('HGET', key, field) then
    redis.call('HSET', key, field, owner)
    redis.call('HPEXPIRE', key, ttl, 'FIELDS', 1, field)
  end
end
