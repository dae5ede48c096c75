-- Writes to a hash in one step, all or nothing.
-- KEYS and ARGV are those of hash_unwatched.lua or hash_log.lua, one of which stands before the script. WORDS are:
-- kind of write, what belongs to the kind, and with an idempotency key: digest of the content, the key's lifetime (ms).
--   set        field, value, condition (always, absent, present, matches), entity tags…
--   remove     field, '', condition, entity tags…
--   increment  field, number, condition, entity tags…
--   patch      triples: require, field, ''; test, field, value; set, field, value; remove, field, ''; copy, from, to
--   clear      nothing
--   expire     lifetime (ms) or '' for none; 'refresh' or '': whether each later write begins the lifetime anew
-- Returns what was done, as text: "<fields created> <replaced> <removed> <bytes copied>", and after an increment the sum.
-- Or one of these, and then nothing was changed by this call:
--   {replayed, what was done}  an earlier call with the same idempotency key and content has done it
--   {reused}                   that call had other content
--   {refused}                  the condition, or a test of a patch, does not hold
--   {absent}, {absent, field}  the hash, or a field that the write needs, does not exist
-- No answer has a value but a sum: values can be large, and not every caller may read them.
-- The limits MAX_… and LIFETIME, what the refresh key holds, are set before the script.

local hash, refresh, once, kind = KEYS[1], REFRESH, ONCE, WORDS[1]
local once_lifetime = once and table.remove(WORDS)
local digest = once and table.remove(WORDS)

-- Checks a right before the first write, since nothing may fail once something is written.
local function require_right(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    error({ err = 'NOPERM the user has no permission to run ' .. command })
  end
end

if once then
  local stored = redis.call('GET', once)
  if stored then
    local content, done = string.match(stored, '^(%S+) (.+)$')
    return content == digest and { 'replayed', done } or { 'reused' }
  end
  require_right('SET', once, '')
end

if kind == 'set' or kind == 'remove' or kind == 'increment' then
  local condition = WORDS[4]
  if condition ~= 'always' then
    -- The value is read only if it is compared: it may be large.
    local present, holds = redis.call('HEXISTS', hash, WORDS[2]) == 1, false
    if condition == 'absent' then
      holds = not present
    elseif condition == 'present' then
      holds = present
    elseif present and redis.call('HSTRLEN', hash, WORDS[2]) <= MAX_TAGGED_BYTES then
      local tag = redis.sha1hex(redis.call('HGET', hash, WORDS[2]))
      for index = 5, #WORDS do
        holds = holds or WORDS[index] == tag
      end
    end
    if not holds then
      return { 'refused' }
    end
  end
end

-- The lifetime that the write begins, and when it ends. The refresh key has the lifetime that each write begins anew. It
-- belongs to the hash if both expire in the same millisecond: not if another client has set the expiry since, or has
-- removed the hash and made it again.
local lifetime, expires_at = LIFETIME, nil
if kind == 'expire' then
  lifetime = WORDS[2] ~= '' and WORDS[2]
elseif lifetime then
  local shared = redis.call('PEXPIRETIME', hash)
  lifetime = shared >= 0 and shared == redis.call('PEXPIRETIME', refresh) and tonumber(lifetime)
end
if lifetime then
  local time = redis.call('TIME')
  expires_at = time[1] * 1000 + math.floor(time[2] / 1000) + lifetime
  require_right('PEXPIREAT', hash, expires_at)
  require_right('UNLINK', refresh)
end

local failure = LOG and LOG.begin()
if failure then
  return failure
end

-- For the log: names and values of the fields that were set, by turns, and names of those that were removed.
local set, gone, done
-- Keyspace notifications that commands about the expiry have caused.
local notifications = 0
if kind == 'set' then
  local is_new = redis.call('HSET', hash, WORDS[2], WORDS[3]) == 1
  -- Counted afterwards, since most writes add no field. If the user lacks a right for it, the field stays.
  local count = is_new and redis.pcall('HLEN', hash)
  if type(count) == 'number' and count > MAX_FIELDS and redis.pcall('HDEL', hash, WORDS[2]) == 1 then
    return redis.error_reply('TOOMANYFIELDS the hash would have too many fields')
  end
  set = LOG and { WORDS[2], WORDS[3] }
  done = is_new and '1 0 0 0' or '0 1 0 0'
elseif kind == 'remove' then
  if redis.call('HDEL', hash, WORDS[2]) == 0 then
    return { 'absent', WORDS[2] }
  end
  gone = LOG and { WORDS[2] }
  done = '0 0 1 0'
elseif kind == 'clear' then
  if redis.call('HLEN', hash) == 0 then
    return { 'absent' }
  end
  -- UNLINK frees the memory in the background. DEL of a hash that other programs made large would take seconds.
  redis.call('UNLINK', hash, refresh)
  done = '0 0 1 0'
elseif kind == 'expire' then
  if redis.call('HLEN', hash) == 0 then
    return { 'absent' }
  end
  require_right('UNLINK', refresh)
  require_right('PERSIST', hash)
  if WORDS[3] == 'refresh' then
    redis.call('SET', refresh, lifetime)
  else
    redis.call('UNLINK', refresh)
  end
  if not lifetime then
    notifications = redis.call('PERSIST', hash)
  end
  done = '0 0 0 0'
elseif kind == 'increment' then
  local field, by = WORDS[2], WORDS[3]
  -- A value of another client may be large, and Lua would copy it.
  if redis.call('HSTRLEN', hash, field) > MAX_NUMBER_BYTES then
    return redis.error_reply('NOTANUMBER the value is too long for a number')
  end
  local present = redis.call('HGET', hash, field)
  local value = present or '0'
  if not present and redis.call('HLEN', hash) >= MAX_FIELDS then
    return redis.error_reply('TOOMANYFIELDS the hash would have too many fields')
  end
  local sum
  if string.find(by .. value, '.', 1, true) then
    -- The sum of decimals as src/broker/hash/number.rs has it. It is exact, since Lua's numbers are for whole ones below
    -- 2^53.
    local function parse(text)
      if #text > MAX_NUMBER_BYTES then
        return nil
      end
      local sign, digits = string.match(text, '^(%-?)(%d+)$')
      local decimals = ''
      if not sign then
        sign, digits, decimals = string.match(text, '^(%-?)(%d+)%.(%d+)$')
      end
      if not sign or string.find(digits, '^0%d') then
        return nil
      end
      decimals = string.gsub(decimals, '0+$', '')
      return { is_negative = sign == '-', digits = digits .. decimals, decimals = #decimals }
    end
    local function scaled(number, decimals)
      local digits = string.gsub(number.digits .. string.rep('0', decimals - number.decimals), '^0+', '')
      if #digits > MAX_DIGITS then
        return nil
      end
      return (tonumber(digits) or 0) * (number.is_negative and -1 or 1)
    end
    local first, second = parse(value), parse(by)
    local decimals = first and second and math.max(first.decimals, second.decimals)
    local left = decimals and decimals <= MAX_DIGITS and scaled(first, decimals)
    local right = left and scaled(second, decimals)
    local digits = right and string.format('%.0f', math.abs(left + right))
    if not digits or #digits > MAX_DIGITS then
      return redis.error_reply('NOTANUMBER the value, or the sum, is not a number that can be added to')
    end
    digits = string.rep('0', decimals + 1 - #digits) .. digits
    sum = string.sub(digits, 1, #digits - decimals)
    local rest = string.gsub(string.sub(digits, #sum + 1), '0+$', '')
    sum = (left + right < 0 and '-' or '') .. sum .. (rest ~= '' and '.' .. rest or '')
    redis.call('HSET', hash, field, sum)
  else
    -- As text, since Lua's numbers are exact only below 2^53.
    redis.call('HINCRBY', hash, field, by)
    sum = redis.call('HGET', hash, field)
  end
  set = LOG and { field, sum }
  done = (present and '0 1 0 0 ' or '1 0 0 0 ') .. sum
else
  -- The values of fields as the steps so far have left them: false for a field that is removed. Other fields are as they
  -- are stored. `changed` has their names, in order.
  local values, changed, sets, copied = {}, {}, 0, 0
  local function change(field, value)
    if values[field] == nil then
      changed[#changed + 1] = field
    end
    values[field] = value
  end
  local function exists(field)
    local value = values[field]
    if value == nil then
      return redis.call('HEXISTS', hash, field) == 1
    end
    return value ~= false
  end
  -- The size first, so that no value is read in vain: it may be large.
  local function size(field)
    return values[field] and #values[field] or redis.call('HSTRLEN', hash, field)
  end
  local function read(field)
    return values[field] or redis.call('HGET', hash, field)
  end
  for index = 2, #WORDS, 3 do
    local step, field, value = WORDS[index], WORDS[index + 1], WORDS[index + 2]
    if step == 'set' then
      change(field, value)
    elseif step == 'remove' then
      change(field, false)
    elseif step == 'test' then
      if not exists(field) or size(field) ~= #value or read(field) ~= value then
        return { 'refused' }
      end
    elseif not exists(field) then
      return { 'absent', field }
    elseif step == 'copy' then
      copied = copied + size(field)
      if copied > MAX_COPIED_BYTES then
        return redis.error_reply('TOOMANYBYTES the patch would copy too many bytes')
      end
      change(value, read(field))
    end
  end

  for _, field in ipairs(changed) do
    sets = sets + (values[field] and 1 or 0)
  end
  local present = redis.call('HLEN', hash)
  if sets > 0 and present + sets > MAX_FIELDS then
    local added = 0
    for _, field in ipairs(changed) do
      added = added + (values[field] and 1 or 0) - redis.call('HEXISTS', hash, field)
    end
    if added > 0 and present + added > MAX_FIELDS then
      return redis.error_reply('TOOMANYFIELDS the hash would have too many fields')
    end
  end
  require_right('HDEL', hash, '')
  local created, replaced, removed = 0, 0, 0
  set, gone = {}, {}
  -- The first write is an HSET if there is one, so that nothing is half done if Redis refuses it for lack of memory.
  for _, field in ipairs(changed) do
    if values[field] then
      if redis.call('HSET', hash, field, values[field]) == 1 then
        created = created + 1
      else
        replaced = replaced + 1
      end
      set[#set + 1], set[#set + 2] = field, values[field]
    end
  end
  for _, field in ipairs(changed) do
    if not values[field] and redis.call('HDEL', hash, field) == 1 then
      removed = removed + 1
      gone[removed] = field
    end
  end
  done = created .. ' ' .. replaced .. ' ' .. removed .. ' ' .. copied
end

if expires_at and redis.call('PEXPIREAT', hash, expires_at) == 1 then
  notifications = 1
  redis.call('PEXPIREAT', refresh, expires_at)
elseif expires_at then
  -- The write has removed the last field.
  redis.call('UNLINK', refresh)
end
if LOG then
  LOG.notifications = notifications
  if kind == 'clear' then
    LOG.clear('removed')
  elseif kind == 'expire' then
    LOG.append_expiry()
  else
    LOG.set(set)
    LOG.remove(gone)
  end
end
if once then
  redis.call('SET', once, digest .. ' ' .. done, 'PX', once_lifetime)
end
return done
