// Uses the generated client as an application would. `run.mjs` copies this file beside `client/` before it compiles
// both.

import { client } from './client/client.gen.js'
import {
  getField, incrementField, listEvents, listFields, patchFields, publishEvent, removeSubscriber, setField, streamRoom,
} from './client/index.js'

interface Harness {
  gateway: string
  proxy: { url: string; cut(): void; mend(): void }
  check(what: string, actual: unknown, expected?: unknown): void
  unique(kind: string): string
  within<T>(what: string, promise: Promise<T>): Promise<T>
}

export async function useClient(harness: Harness) {
  client.setConfig({ baseUrl: harness.gateway })
  await publishAndRead(harness)
  await setAndIncrement(harness)
  await writeOnCondition(harness)
  await patch(harness)
  await follow(harness)
}

async function publish(room: string, event: string, data: unknown): Promise<string> {
  const { data: published } = await publishEvent({ path: { room }, body: { event, data }, throwOnError: true })
  return published.id
}

async function publishAndRead({ check, unique }: Harness) {
  const room = unique('typescript')
  const first = await publish(room, 'tick', { n: 1 })
  const second = await publish(room, 'tock', [2, null, 'three'])

  const { data: page } = await listEvents({ path: { room }, throwOnError: true })
  check(
    'the log holds what was published',
    page.events.map(({ id, event, data }) => ({ id, event, data })),
    [
      { id: first, event: 'tick', data: { n: 1 } },
      { id: second, event: 'tock', data: [2, null, 'three'] },
    ],
  )
  check('the page says where the log begins and ends', [page.oldest, page.head, page.gap], [first, second, null])

  const { data: rest } = await listEvents({ path: { room }, query: { after: first, limit: 1 }, throwOnError: true })
  check('the log can be read from a position', rest.events.map(({ id }) => id), [second])
}

async function setAndIncrement({ check, unique }: Harness) {
  const hash = unique('typescript')
  const path = { hash, field: 'count' }

  const absent = await getField({ path })
  check('a field that is absent is 404', absent.response?.status, 404)
  const { type, title, status, code, request_id } = absent.error as Record<string, unknown>
  check('the 404 is a problem document', [typeof type, typeof title, status], ['string', 'string', 404])
  check('the problem has a code and the request id', [typeof code, typeof request_id], ['string', 'string'])

  const created = await setField({ path, body: { value: '41' } })
  check('a new field is 201', [created.response?.status, created.data], [201, { ...path, value: '41' }])
  const replaced = await setField({ path, body: { value: '40' } })
  check('a present one is 200', [replaced.response?.status, replaced.data], [200, { ...path, value: '40' }])

  const incremented = await incrementField({ path, body: { by: 2 }, throwOnError: true })
  check('a number can be incremented', incremented.data, { ...path, value: '42' })
  const read = await getField({ path, throwOnError: true })
  check('the value can be read', read.data, { ...path, value: '42' })
}

async function writeOnCondition({ check, unique }: Harness) {
  const path = { hash: unique('typescript'), field: 'colour' }
  const first = await setField({ path, body: { value: 'green' } })
  const headers = { 'If-Match': first.response!.headers.get('etag')! }
  const second = await setField({ path, headers, body: { value: 'red' } })
  check('a write whose condition holds is done', second.response?.status, 200)
  const third = await setField({ path, headers, body: { value: 'blue' } })
  check('a write whose condition does not hold is 412', third.response?.status, 412)
  check('the 412 has the code and the present value', [third.error?.code, third.error?.present?.value], [
    'precondition_failed',
    'red',
  ])
}

async function patch({ check, unique }: Harness) {
  const path = { hash: unique('typescript') }
  await patchFields({ path, body: { a: '1', b: '1', c: '1' }, throwOnError: true })
  const { data } = await patchFields({ path, query: { remove: ['b'] }, body: { a: '2', c: null }, throwOnError: true })
  check('a patch sets and removes', data, { ...path, created: 0, replaced: 1, removed: 2 })
  const list = await listFields({ path, throwOnError: true })
  const left = Object.entries(list.data.fields).map(([name, { value }]) => [name, value])
  check('the hash has what is left', left, [['a', '2']])
}

async function follow({ proxy, check, unique, within }: Harness) {
  const room = unique('typescript')
  const abort = new AbortController()
  const received: { event?: string; id?: string; data: unknown }[] = []
  const { stream } = await streamRoom({
    baseUrl: proxy.url,
    path: { room },
    query: { end: 'cut', subscriber: 'ann' },
    signal: abort.signal,
    // The generated stream yields only the data. Name and id come here, just before.
    onSseEvent: ({ event, id, data }) => received.push({ event, id, data }),
  })
  const next = async () => {
    await within('event of the stream', stream.next())
    return received.shift()
  }

  const opened = await next()
  check('the stream begins with stream.open', opened?.event, 'stream.open')
  const first = await publish(room, 'tick', { n: 1 })
  check('an event arrives decoded', await next(), { event: 'tick', id: first, data: { n: 1 } })

  proxy.cut()
  const missed = [await publish(room, 'tick', 2), await publish(room, 'tick', 3)]
  proxy.mend()
  const resumed = await next()
  check('after a cut, the stream resumes after its last event', [resumed?.event, resumed?.id], ['stream.open', first])
  check('it receives the missed events', [await next(), await next()], [
    { event: 'tick', id: missed[0], data: 2 },
    { event: 'tick', id: missed[1], data: 3 },
  ])

  await removeSubscriber({ path: { room, subscriber: 'ann' }, throwOnError: true })
  check('the gateway ends the stream', (await next())?.event, 'stream.end')
  const last = await publish(room, 'tick', 4)
  check('with end=cut, it resumes after the end', (await next())?.event, 'stream.open')
  check('it receives nothing twice', await next(), { event: 'tick', id: last, data: 4 })
  abort.abort()
}
