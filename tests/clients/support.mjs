// Shared by the Node scripts: the gateway's address, checks, waits, an inbox of events, a proxy that cuts
// connections.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'

assert(process.env.ROOMCAST_URL, 'ROOMCAST_URL names the gateway, for example http://127.0.0.1:8080')
export const gateway = new URL(process.env.ROOMCAST_URL).origin

const WAIT_MS = 30_000 // longer than any `retry:` of the gateway and any back-off of a client
const SCRIPT_MS = 180_000

// Ends a script whose waits all succeed but which still never ends. An uncaught error ends Node with 1 by itself.
setTimeout(() => {
  console.error(`not ok - the script took more than ${SCRIPT_MS / 1000} s`)
  process.exit(1)
}, SCRIPT_MS).unref()

export function check(what, actual, expected = true) {
  assert.deepEqual(actual, expected, `not ok - ${what}: got ${show(actual)}, expected ${show(expected)}`)
  console.log(`ok - ${what}`)
}

function show(value) {
  return JSON.stringify(value) ?? String(value)
}

/** A name that is not in use yet, so that scripts may share a gateway. */
export function unique(kind) {
  return `${kind}-${randomUUID()}`
}

export async function within(what, promise, ms = WAIT_MS) {
  let timer
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not ok - no ${what} within ${ms / 1000} s`)), ms)
  })
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer))
}

/** The events of a stream in the order of their arrival. */
export class Inbox {
  #items = []
  #arrived = () => {}

  push(item) {
    this.#items.push(item)
    this.#arrived()
  }

  async take(count, what) {
    const enough = async () => {
      while (this.#items.length < count) await new Promise((resolve) => (this.#arrived = resolve))
    }
    await within(what, enough()).catch((error) => {
      throw new Error(`${error.message}; ${this.#items.length} of ${count} arrived: ${show(this.#items)}`)
    })
    return this.#items.splice(0, count)
  }
}

export const EVENT_TYPES = [
  'message', 'tick', 'presence.join', 'presence.leave',
  'stream.open', 'stream.gap', 'stream.position', 'stream.end',
]

/** Takes `stream.open`: the first id, and the position and kind of resume of each room. */
export async function opening(inbox) {
  const [{ type, id, data }] = await inbox.take(1, 'stream.open')
  check('the stream begins with stream.open', type, 'stream.open')
  return { id, rooms: JSON.parse(data).rooms }
}

/** The received ids by room, since only events of one room have an order. */
export function idsByRoom(events, rooms) {
  const envelopes = events.map((event) => JSON.parse(event.data))
  return rooms.map((room) => envelopes.filter((envelope) => envelope.room === room).map((envelope) => envelope.id))
}

/** Publishes without a proxy. Returns the event's id. `body` is sent unchanged, so that a test decides every byte. */
export async function publish(room, body, { type = 'application/json', query = '' } = {}) {
  const response = await within(
    'answer to a publish',
    fetch(`${gateway}/v1/rooms/${room}/events${query}`, { method: 'POST', headers: { 'Content-Type': type }, body }),
  )
  const text = await response.text()
  assert.equal(response.status, 201, `not ok - publish answered ${response.status} ${text}`)
  return JSON.parse(text).id
}

/** Publishes an event named `tick`. Returns the event as an EventSource has to receive it. */
export async function tick(room, data) {
  const text = JSON.stringify(data)
  return { type: 'tick', id: await publish(room, `{"event":"tick","data":${text}}`), data: text }
}

/** Ends the streams of a subscriber properly. It may reconnect, unless the query has `deny_seconds`. */
export async function remove(room, subscriber, query = '') {
  const path = `/v1/rooms/${room}/subscribers/${subscriber}${query}`
  const response = await within('answer to a removal', fetch(gateway + path, { method: 'DELETE' }))
  assert.equal(response.status, 204, `not ok - a removal answered ${response.status}`)
}

/** A TCP proxy to `target`. Its connections can be cut, and its next answer can be torn in two. */
export async function cuttingProxy(target) {
  const { hostname, port } = new URL(target)
  const connections = new Set()
  let isCut = false
  let answer = ''
  let hasAnswered = () => {}
  let isTearing = false

  const server = net.createServer((near) => {
    if (isCut && answer) return near.on('error', () => {}).once('data', () => near.end(answer, hasAnswered))
    if (isCut) return near.resetAndDestroy()
    const far = net.connect(Number(port), hostname)
    connections.add(near)
    far.on('data', (chunk) => {
      if (near.isFrozen) return
      if (!isTearing) return near.write(chunk)
      isTearing = false
      near.end(chunk.subarray(0, chunk.length / 2))
      far.destroy()
    })
    near.pipe(far)
    near.on('error', () => {}).on('close', () => {
      connections.delete(near)
      far.destroy()
    })
    far.on('error', () => {}).on('close', () => near.destroySoon())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  /** Cuts connections. New ones are cut too, or get this answer. */
  const cut = (text = '') => {
    isCut = true
    answer = text
    for (const connection of connections) connection.resetAndDestroy()
  }
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut,
    mend: () => (isCut = false),
    /** The connections stay open, and nothing comes through them any more. */
    freeze: () => connections.forEach((connection) => (connection.isFrozen = true)),
    /** Resolves when a connection has got the answer of a cut. */
    answered: () => new Promise((resolve) => (hasAnswered = resolve)),
    tearNextAnswer: () => (isTearing = true),
    close: () => {
      server.close()
      cut()
    },
  }
}
