// The npm package `eventsource` reads rooms, through a proxy that cuts its connection.

import { EventSource } from 'eventsource'
import { check, cuttingProxy, EVENT_TYPES, gateway, idsByRoom, Inbox, opening } from './support.mjs'
import { publish, tick, unique } from './support.mjs'

const RFC_3339_UTC = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/

const proxy = await cuttingProxy(gateway)
const sources = []

function listen(path) {
  const source = new EventSource(proxy.url + path)
  sources.push(source)
  const inbox = new Inbox()
  for (const type of EVENT_TYPES) {
    source.addEventListener(type, ({ lastEventId, data }) => inbox.push({ type, id: lastEventId, data }))
  }
  return inbox
}

async function dataArrivesAsItWasSent() {
  const room = unique('data')
  const inbox = listen(`/v1/rooms/${room}/stream`)
  const { id, rooms } = await opening(inbox)
  check('the first id of a fresh stream is its position', [id, rooms[room].resume], [rooms[room].position, 'fresh'])

  const json = '{"price": 12345678901234567890.10, "tags": ["é", "🦀", "\\u2028"]}'
  const pretty = '{\n  "a": 1,\n  "b": [\n    null\n  ]\n}'
  const text = '  indented\nid: 7\n\nevent: forged\nlast'
  const cases = [
    ['JSON with an event name', `{"event":"tick","data":${json}}`, {}, 'tick', json],
    ['JSON without a name', `{"data":${json}}`, {}, 'message', json],
    ['a bare number of many digits', '{"data":12345678901234567890.10}', {}, 'message', '12345678901234567890.10'],
    ['a JSON string, quoted', '{"data":"two\\nlines"}', {}, 'message', '"two\\nlines"'],
    ['null', '{"data":null}', {}, 'message', 'null'],
    ['JSON of several lines', `{"data":${pretty}}`, {}, 'message', pretty],
    ['text', 'plain "words"', { type: 'text/plain' }, 'message', 'plain "words"'],
    ['text with an event name', 'now', { type: 'text/plain', query: '?event=tick' }, 'tick', 'now'],
    ['text of several lines, some like SSE fields', text, { type: 'text/plain' }, 'message', text],
    ['text with every kind of line end', 'a\rb\r\nc\n', { type: 'text/plain' }, 'message', 'a\nb\nc\n'],
    ['a body as curl -d sends it', 'a=1&b=2', { type: 'application/x-www-form-urlencoded' }, 'message', 'a=1&b=2'],
  ]
  for (const [what, body, options, type, data] of cases) {
    const id = await publish(room, body, options)
    check(`${what} arrives as it was sent`, await inbox.take(1, what), [{ type, id, data }])
  }
}

async function aCutConnectionMissesAndRepeatsNothing() {
  const room = unique('cut')
  const inbox = listen(`/v1/rooms/${room}/stream`)
  const joined = await opening(inbox)

  proxy.cut()
  const first = [await tick(room, 1), await tick(room, 2)]
  proxy.mend()
  const rejoined = await opening(inbox)
  check(
    'after a cut before its first event, the stream resumes where it joined',
    [rejoined.id, rejoined.rooms[room].resume],
    [joined.id, 'complete'],
  )
  check('it receives the events published meanwhile', await inbox.take(2, 'missed events'), first)

  const live = await tick(room, 3)
  check('it then receives live events', await inbox.take(1, 'live event'), [live])

  proxy.cut()
  const missed = []
  for (let n = 4; n < 24; n++) missed.push(await tick(room, n))
  proxy.mend()
  const resumed = await opening(inbox)
  check(
    'after another cut, the stream resumes after its last event',
    [resumed.id, resumed.rooms[room].resume],
    [live.id, 'complete'],
  )
  check('it receives the missed events once and in order', await inbox.take(20, 'missed events'), missed)

  proxy.tearNextAnswer()
  const torn = await tick(room, 'x'.repeat(10_000))
  await opening(inbox)
  check('an event that was cut in two arrives whole after the reconnect', await inbox.take(1, 'torn event'), [torn])

  const next = await tick(room, 24)
  check('it receives nothing twice', await inbox.take(1, 'next event'), [next])
}

async function severalRoomsOnOneConnection() {
  const [a, b, c] = ['a', 'b', 'c'].map(unique)
  const inbox = listen(`/v1/stream?room=${a}&room=${b}`)
  const { rooms } = await opening(inbox)
  check('a stream of two rooms opens both', [rooms[a].resume, rooms[b].resume], ['fresh', 'fresh'])

  const number = '12345678901234567890.10'
  const numberId = await publish(a, `{"event":"tick","data":${number}}`)
  const [numbered] = await inbox.take(1, 'event of the first room')
  const envelope = JSON.parse(numbered.data)
  check(
    'a stream of several rooms delivers an event in an envelope',
    [envelope.room, envelope.id, envelope.event],
    [a, numberId, 'tick'],
  )
  check('the envelope has the time of the publish', RFC_3339_UTC.test(envelope.published_at))
  check('the envelope keeps the digits of the data', numbered.data.includes(number))
  check('its SSE id is a cursor under 1 KiB', numbered.id.length > 0 && numbered.id.length < 1024)

  const textId = await publish(b, 'one\ntwo', { type: 'text/plain' })
  const [text] = await inbox.take(1, 'event of the second room')
  const { room, id, data } = JSON.parse(text.data)
  check('a text body is a JSON string in the envelope', { room, id, data }, { room: b, id: textId, data: 'one\ntwo' })

  proxy.cut()
  const missed = [[], []]
  for (let n = 0; n < 10; n++) {
    missed[0].push(await publish(a, `{"data":${n}}`))
    missed[1].push(await publish(b, `{"data":${n}}`))
  }
  proxy.mend()
  const resumed = await opening(inbox)
  check(
    'after a cut, the stream resumes both rooms',
    [resumed.rooms[a].resume, resumed.rooms[b].resume],
    ['complete', 'complete'],
  )
  const replayed = await inbox.take(20, 'missed events')
  check('it receives the missed events of each room once and in order', idsByRoom(replayed, [a, b]), missed)

  const liveId = await publish(a, '{"data":"live"}')
  const [live] = await inbox.take(1, 'live event')
  check('it then receives live events', JSON.parse(live.data).id, liveId)

  const laterId = await publish(b, '{"data":"later"}')
  const other = listen(`/v1/stream?room=${b}&room=${c}&after=${encodeURIComponent(live.id)}`)
  const changed = await opening(other)
  check(
    'the cursor resumes a stream with another list of rooms',
    [changed.rooms[b].resume, changed.rooms[c].resume],
    ['complete', 'fresh'],
  )
  const newId = await publish(c, '{"data":"new"}')
  const after = await other.take(2, 'events after the cursor')
  check('each room resumes at its own position', idsByRoom(after, [b, c]), [[laterId], [newId]])
}

for (const scenario of [dataArrivesAsItWasSent, aCutConnectionMissesAndRepeatsNothing, severalRoomsOnOneConnection]) {
  await scenario()
  // An EventSource that reconnected later would receive the torn answer of the next scenario.
  for (const source of sources.splice(0)) source.close()
}
proxy.close()
