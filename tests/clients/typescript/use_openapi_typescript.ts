// Uses the types that openapi-typescript has generated, with openapi-fetch, as an application would. `run.mjs` copies
// this file beside `client/`.

import createClient from 'openapi-fetch'
import type { components, paths } from './client/schema.js'

interface Harness {
  gateway: string
  check(what: string, actual: unknown, expected?: unknown): void
  unique(kind: string): string
  within<T>(what: string, promise: Promise<T>): Promise<T>
}

export async function useClient({ gateway, check, unique, within }: Harness) {
  const client = createClient<paths>({ baseUrl: gateway })
  const room = unique('openapi-typescript')
  const inRoom = { params: { path: { room } } }

  const abort = new AbortController()
  const { data: body } = await client.GET('/v1/rooms/{room}/stream', { ...inRoom, parseAs: 'stream', signal: abort.signal })
  const reader = body!.pipeThrough(new TextDecoderStream()).getReader()
  let received = ''
  const until = async (text: string) => {
    while (!received.includes(text)) received += (await within('block of the stream', reader.read())).value ?? ''
  }
  await until('\n\n')
  const opened = JSON.parse(/^data: (.*)$/m.exec(received)![1]!) as components['schemas']['StreamOpen']
  check('the stream begins with stream.open', opened.rooms[room]?.resume, 'fresh')

  const published = await client.POST('/v1/rooms/{room}/events', { ...inRoom, body: { event: 'tick', data: { n: 1 } } })
  check('a publish is 201', published.response.status, 201)
  await until(`id: ${published.data!.id}\nevent: tick\ndata: {"n":1}\n\n`)
  check('the stream has the event', true)
  abort.abort()

  const log = await client.GET('/v1/rooms/{room}/events', inRoom)
  check('the log holds what was published', log.data?.events.map(({ id, data }) => ({ id, data })), [
    { id: published.data?.id, data: { n: 1 } },
  ])

  const hash = unique('openapi-typescript')
  const path = { hash, field: 'colour' }
  const absent = await client.GET('/v1/hashes/{hash}/fields/{field}', { params: { path } })
  check('a field that is absent is 404', [absent.response.status, absent.error?.code], [404, 'field_not_found'])

  const set = (value: string, header?: { 'If-Match': string }) =>
    client.PUT('/v1/hashes/{hash}/fields/{field}', { params: { path, header }, body: { value } })
  const created = await set('green')
  check('a new field is 201', created.response.status, 201)
  const header = { 'If-Match': created.response.headers.get('etag')! }
  check('a write whose condition holds is done', (await set('red', header)).response.status, 200)
  const refused = await set('blue', header)
  check('a write whose condition does not hold is 412', refused.response.status, 412)
  check('the 412 has the present value', refused.error?.present, { value: 'red' })

  const patch = (body: Record<string, string | null>, remove?: string[]) =>
    client.PATCH('/v1/hashes/{hash}', { params: { path: { hash }, query: { remove } }, body })
  await patch({ a: '1', b: '1' })
  const patched = await patch({ a: '2', colour: null }, ['b'])
  check('a patch sets and removes', patched.data, { hash, created: 0, replaced: 1, removed: 2 })
  const list = await client.GET('/v1/hashes/{hash}', { params: { path: { hash } } })
  const left = Object.entries(list.data?.fields ?? {}).map(([name, { value }]) => [name, value])
  check('the hash has what is left', left, [['a', '2']])
}
