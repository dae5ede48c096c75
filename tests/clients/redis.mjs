// One hash, written and read through the gateway, with the npm package `redis` (node-redis) and with redis-cli.
// Its argument is the address of the gateway's Redis.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createClient, RESP_TYPES } from 'redis'
import { check, gateway, unique } from './support.mjs'

const [redisUrl] = process.argv.slice(2)
const redis = await createClient({ url: redisUrl }).connect()
const binary = redis.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer })

const hash = unique('lamp')
const key = `roomcast:hash:{${hash}}`
const BYTES = Buffer.from([0xff, 0x00, 0x0d, 0x0a, 0x80, 0x22, 0x0a])
const BINARY = { 'Content-Type': 'application/octet-stream' }

async function send(method, path, { body, headers = {} } = {}) {
  const answer = await fetch(`${gateway}/v1/hashes/${hash}${path}`, { method, body, headers })
  const bytes = Buffer.from(await answer.arrayBuffer())
  return { status: answer.status, etag: answer.headers.get('etag'), bytes, json: () => JSON.parse(bytes) }
}

async function get(field) {
  return send('GET', `/fields/${field}`, { headers: { Accept: 'application/octet-stream' } })
}

function cli(args, input = '') {
  return execFileSync('redis-cli', ['-u', redisUrl, ...args], { input, stdio: ['pipe', 'pipe', 'ignore'] })
}

function tag(value) {
  return `"${createHash('sha1').update(value).digest('hex')}"`
}

async function valuesAreTheSameForAll() {
  for (const value of ['green', '', ' é 🦀 "quoted"\nsecond line ', '12345678901234567890']) {
    await send('PUT', '/fields/colour', { body: JSON.stringify({ value }), headers: { 'Content-Type': 'application/json' } })
    check(`node-redis reads ${JSON.stringify(value)}`, await redis.hGet(key, 'colour'), value)
    check('redis-cli reads it', cli(['HGET', key, 'colour']).toString(), `${value}\n`)
    check('its entity tag comes from the value', (await get('colour')).etag, tag(value))
  }
  await send('PUT', '/fields/bytes', { body: BYTES, headers: BINARY })
  check('node-redis reads binary values', await binary.hGet(key, 'bytes'), BYTES)
  check('redis-cli reads binary values', cli(['HGET', key, 'bytes']), Buffer.concat([BYTES, Buffer.from('\n')]))

  const reversed = Buffer.from(BYTES).reverse()
  await redis.hSet(key, 'bytes', reversed)
  const answer = await get('bytes')
  check('the gateway reads binary values of node-redis', [answer.bytes, answer.etag], [reversed, tag(reversed)])
  const json = (await send('GET', '/fields/bytes')).json()
  check('and has them in Base64 in JSON', json.value_base64, reversed.toString('base64'))
  cli(['-x', 'HSET', key, 'bytes'], BYTES)
  check('the gateway reads binary values of redis-cli', (await get('bytes')).bytes, BYTES)
}

async function conditionsSeeWhatOthersWrite() {
  const { etag } = await send('PUT', '/fields/state', { body: 'on' })
  const ifMatch = (etag, body) => send('PUT', '/fields/state', { body, headers: { 'If-Match': etag } })
  for (const [who, write] of [
    ['node-redis', (value) => redis.hSet(key, 'state', value)],
    ['redis-cli', (value) => cli(['HSET', key, 'state', value])],
  ]) {
    await write(`by ${who}`)
    const foreign = await get('state')
    check(`the entity tag changes with a write of ${who}`, foreign.etag !== etag)
    const refused = await ifMatch(etag, 'off')
    check('a write with the old entity tag is refused', refused.status, 412)
    check('its answer has the present value', refused.json().present, { value: `by ${who}` })
    check('a write with the new entity tag is done', (await ifMatch(foreign.etag, 'on')).status, 200)
    check(`${who} did not write again`, await redis.hGet(key, 'state'), 'on')
  }
  await redis.hDel(key, 'state')
  check('a field that was removed there is gone here', (await get('state')).status, 404)
  check('If-Match does not hold for it', (await ifMatch(etag, 'x')).status, 412)
  const created = await send('PUT', '/fields/state', { body: 'new', headers: { 'If-None-Match': '*' } })
  check('If-None-Match does', [created.status, await redis.hSetNX(key, 'state', 'late')], [201, 0])
}

async function numbersAreCountedByAll() {
  const add = async (by) => {
    const headers = { 'Content-Type': 'application/json' }
    return (await send('POST', '/fields/count/increment', { body: JSON.stringify({ by }), headers })).json().value
  }
  check('the gateway begins to count', await add(5), '5')
  check('node-redis goes on', await redis.hIncrBy(key, 'count', 10), 15)
  check('redis-cli goes on', cli(['HINCRBY', key, 'count', '-1']).toString(), '14\n')
  check('the gateway goes on', await add(1), '15')
  check('node-redis adds a decimal', await redis.hIncrByFloat(key, 'count', 0.5), '15.5')
  check('the gateway adds to it', await add(0.25), '15.75')
}

async function wholeHashesAreTheSame() {
  cli(['DEL', key])
  check('a hash that redis-cli removed has no fields', (await send('GET', '')).json().fields, {})
  const body = JSON.stringify({ a: '1', b: '2', c: null })
  await send('PATCH', '', { body, headers: { 'Content-Type': 'application/json' } })
  check('node-redis reads all fields of a patch', { ...(await redis.hGetAll(key)) }, { a: '1', b: '2' })
  await redis.hSet(key, { b: '3', d: '4' })
  const { fields } = (await send('GET', '')).json()
  const values = Object.entries(fields).map(([name, { value }]) => [name, value])
  check('the gateway lists what node-redis sets', values, [['a', '1'], ['b', '3'], ['d', '4']])
  check('the gateway removes the hash', [(await send('DELETE', '')).status, await redis.exists(key)], [204, 0])
}

await valuesAreTheSameForAll()
await conditionsSeeWhatOthersWrite()
await numbersAreCountedByAll()
await wholeHashesAreTheSame()
redis.destroy()
