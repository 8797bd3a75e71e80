-- Raises the heartbeat of a store's birth marker, and lets it be born anew where it is gone or is
-- not what the asker has seen it to be: then the store has lost what it had acknowledged.
--
-- KEYS[1]  the marker: its birth, in milliseconds since 1970, the number of its beats, and the
--          signs of the latest of these, the newest first
-- ARGV     birth, beat and sign of the asker's own last beat, zeros if this is its first; the time
--          now; the sign of this beat; how long the marker lives, in milliseconds
-- returns  the marker's birth and the number of this beat
--
-- A beat that was lost is noticed also where others have followed it: another sign has its number.

local SIGN, KEPT = 8, 32

local seen_birth, seen_beat, seen_sign = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local now, sign, life = tonumber(ARGV[4]), ARGV[5], ARGV[6]

local birth, beat, signs
local marker = redis.pcall('GET', KEYS[1])
if type(marker) == 'string' then
  birth, beat, signs = marker:match('^(%d+) (%d+) (%w+)$')
  birth, beat = tonumber(birth), tonumber(beat)
end

local function lost()
  if not birth or birth < seen_birth then
    return true
  end
  if birth > seen_birth then
    return false -- the asker's first beat, or another has noticed the loss before it
  end
  local since = beat - seen_beat
  if since < 0 then
    return true
  end
  return since < KEPT and signs:sub(since * SIGN + 1, (since + 1) * SIGN) ~= seen_sign
end

if lost() then
  birth, beat, signs = math.max(now, seen_birth + 1), 0, ''
end
beat = beat + 1
signs = (sign .. signs):sub(1, KEPT * SIGN)
redis.call('SET', KEYS[1], string.format('%.0f %.0f %s', birth, beat, signs), 'PX', life)
return {birth, beat}
