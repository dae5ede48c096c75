// Uses the client that orval has generated, as an application would. `run.mjs` copies this file beside `client/`.

import { getField, listEvents, listFields, patchFields, publishEvent, setField } from './client/api.js'

interface Harness {
  check(what: string, actual: unknown, expected?: unknown): void
  unique(kind: string): string
}

export async function useClient({ check, unique }: Harness) {
  const room = unique('orval')
  const published = await publishEvent(room, { event: 'tick', data: { n: 1 } })
  if (published.status !== 201) throw new Error(`a publish is ${published.status}`)
  const log = await listEvents(room)
  if (log.status !== 200) throw new Error(`the log is ${log.status}`)
  check('the log holds what was published', log.data.events.map(({ id, event, data }) => ({ id, event, data })), [
    { id: published.data.id, event: 'tick', data: { n: 1 } },
  ])
  check('the log has no gap', log.data.gap, null)

  const hash = unique('orval')
  const absent = await getField(hash, 'colour')
  if (absent.status !== 404) throw new Error(`a field that is absent is ${absent.status}`)
  check('the 404 is a problem document', absent.data.code, 'field_not_found')

  const created = await setField(hash, 'colour', { value: 'green' })
  check('a new field is 201', created.status, 201)
  const headers = { 'If-Match': created.headers.get('etag')! }
  const replaced = await setField(hash, 'colour', { value: 'red' }, { headers })
  check('a write whose condition holds is done', replaced.status, 200)
  const refused = await setField(hash, 'colour', { value: 'blue' }, { headers })
  if (refused.status !== 412) throw new Error(`a write whose condition does not hold is ${refused.status}`)
  check('the 412 has the present value', refused.data.present, { value: 'red' })

  const field = 'a/b 100%?#ë'
  await setField(hash, field, { value: 'green' })
  const read = await getField(hash, field)
  if (read.status !== 200) throw new Error(`a field with any name is ${read.status}`)
  check('a field may have any name', read.data.field, field)
  await patchFields(hash, { [field]: null })

  await patchFields(hash, { a: '1', b: '1' })
  const patched = await patchFields(hash, { a: '2', colour: null }, { remove: ['b'] })
  check('a patch sets and removes', patched.data, { hash, created: 0, replaced: 1, removed: 2 })
  const list = await listFields(hash, { field: ['a', 'b'] })
  if (list.status !== 200) throw new Error(`the list is ${list.status}`)
  const left = Object.entries(list.data.fields).map(([name, { value }]) => [name, value])
  check('the hash has what is left', left, [['a', '2']])
}
