// Uses the client that openapi-generator has generated as typescript-fetch, as an application would.

import { Configuration, HashesApi, ResponseError, RoomsApi } from './client/index.js'

const check = (what: string, holds: boolean) => {
  if (!holds) throw new Error(`not ok - ${what}`)
  console.log(`ok - ${what}`)
}
const failure = (call: Promise<unknown>): Promise<Response> =>
  call.then(
    () => Promise.reject(new Error('not ok - the call fails')),
    (error: ResponseError) => error.response,
  )

const settings = new Configuration({ basePath: process.env.ROOMCAST_URL })
const [rooms, hashes] = [new RoomsApi(settings), new HashesApi(settings)]
const name = `openapi-generator-fetch-${crypto.randomUUID()}`

const published = await rooms.publishEvent({ room: name, publish: { event: 'tick', data: { n: 1 } } })
const log = await rooms.listEvents({ room: name })
check('the log holds what was published', log.events.length === 1 && log.events[0]!.id === published.id)
check('the log has no gap', !log.gap)

const path = { hash: name, field: 'colour' }
const absent = await failure(hashes.getField(path))
check('a field that is absent is 404', absent.status === 404)
check('the 404 is a problem document', (await absent.json()).code === 'field_not_found')

const created = await hashes.setFieldRaw({ ...path, setField: { value: 'green' } })
check('a new field is 201', created.raw.status === 201)
const ifMatch = created.raw.headers.get('etag')!
check('a write whose condition holds is done', (await hashes.setField({ ...path, ifMatch, setField: { value: 'red' } })).value === 'red')
const refused = await failure(hashes.setField({ ...path, ifMatch, setField: { value: 'blue' } }))
check('a write whose condition does not hold is 412', refused.status === 412)
check('the 412 has the present value', (await refused.json()).present.value === 'red')

await hashes.patchFields({ hash: name, requestBody: { a: '1', b: '1' } })
const patched = await hashes.patchFields({ hash: name, requestBody: { a: '2', colour: null }, remove: ['b'] })
check('a patch sets and removes', patched.replaced === 1 && patched.removed === 2)
const { fields } = await hashes.listFields({ hash: name })
check('the hash has what is left', Object.keys(fields).join() === 'a' && fields.a!.value === '2')
