"""The Lua that counts in Redis: one script, so that a charge is all or nothing. Knows Redis's clock; knows no request.

KEYS: a hash (buckets of the four rates, bytes in flight, when they were drained), a sorted set of the requests that
run (by when each is given up: a gateway that died settles nothing), and the tokens of the month.
ARGV: 'take' or 'settle'; the request's member `<id>:<bytes>` of the sorted set; seconds until it is given up; the
limits of the four rates (-1 is none); what is asked of each (take) or to be added to each (settle); limits of requests
at once, of bytes in flight, of the month; tokens for the month; limits.TOLERANCE.
Answers: whether it was taken, then levels before that: four buckets as texts, since Redis cuts numbers to integers,
requests, bytes and the month's tokens. For settle: whether it was there.
"""

from typing import Final

SCRIPT: Final = """
local state, leases, month = KEYS[1], KEYS[2], KEYS[3]
local member, lease = ARGV[2], tonumber(ARGV[3])
local rates, tolerance = 4, tonumber(ARGV[16])
local function number(index) return tonumber(ARGV[index]) end
local function bytes_of(name) return tonumber(string.match(name, ':(%d+)$')) end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local kept = redis.call('HMGET', state, 'at', 'bytes', 'rate1', 'rate2', 'rate3', 'rate4')
local elapsed = math.max(0, now - (tonumber(kept[1] or now)))
local bytes = tonumber(kept[2] or 0)

for _, abandoned in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
  redis.call('ZREM', leases, abandoned)
  bytes = math.max(0, bytes - bytes_of(abandoned))
end

local used = {}
for i = 1, rates do
  local limit = number(3 + i)
  used[i] = limit < 0 and 0 or math.max(0, tonumber(kept[2 + i] or 0) - limit / 60 * elapsed)
end

local function keep()
  local values = {'at', string.format('%.17g', now), 'bytes', bytes}
  for i = 1, rates do
    values[#values + 1] = 'rate' .. i
    values[#values + 1] = string.format('%.17g', used[i])
  end
  redis.call('HSET', state, unpack(values))
  redis.call('EXPIRE', state, 2 * lease + 3600)
  redis.call('EXPIRE', leases, 2 * lease + 3600)
end

local function spend(tokens)
  if tokens ~= 0 then
    redis.call('INCRBY', month, tokens)
    redis.call('EXPIRE', month, 40 * 86400)
  end
end

if ARGV[1] == 'settle' then
  if redis.call('ZREM', leases, member) == 0 then return 0 end
  bytes = math.max(0, bytes - bytes_of(member))
  for i = 1, rates do used[i] = math.max(0, used[i] + number(7 + i)) end
  keep()
  spend(number(15))
  return 1
end

local running, spent = redis.call('ZCARD', leases), tonumber(redis.call('GET', month) or 0)
local answer = {1}
for i = 1, rates do answer[1 + i] = string.format('%.17g', used[i]) end
answer[6], answer[7], answer[8] = running, bytes, spent

local function over(limit, count, asked, slack) return limit >= 0 and asked > 0 and count + asked - limit > slack end
local refused = over(number(12), running, 1, 0) or over(number(13), bytes, bytes_of(member), 0)
refused = refused or over(number(14), spent, number(15), 0)
for i = 1, rates do refused = refused or over(number(3 + i), used[i], number(7 + i), tolerance) end

if refused then
  answer[1] = 0
else
  for i = 1, rates do used[i] = used[i] + number(7 + i) end
  bytes = bytes + bytes_of(member)
  redis.call('ZADD', leases, now + lease, member)
  spend(number(15))
end
keep()
return answer
"""

# KEYS: the sorted set. ARGV: seconds from now, then members. Only what is still there: what was given up is not counted
# as bytes in flight any more.
RENEWAL: Final = """
local clock = redis.call('TIME')
local ends = tonumber(clock[1]) + tonumber(clock[2]) / 1000000 + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
redis.call('EXPIRE', KEYS[1], math.ceil(2 * tonumber(ARGV[1]) + 3600))
return 0
"""
