// Uses the client that openapi-generator has generated as typescript-axios, as an application would.

import type { AxiosError, AxiosResponse } from 'axios'
import { Configuration, HashesApi, type Problem, RoomsApi } from './client/index.js'

const check = (what: string, holds: boolean) => {
  if (!holds) throw new Error(`not ok - ${what}`)
  console.log(`ok - ${what}`)
}
const failure = (call: Promise<unknown>): Promise<AxiosResponse<Problem>> =>
  call.then(
    () => Promise.reject(new Error('not ok - the call fails')),
    (error: AxiosError<Problem>) => error.response!,
  )

const settings = new Configuration({ basePath: process.env.ROOMCAST_URL })
const [rooms, hashes] = [new RoomsApi(settings), new HashesApi(settings)]
const name = `openapi-generator-axios-${crypto.randomUUID()}`

const { data: published } = await rooms.publishEvent(name, { event: 'tick', data: { n: 1 } })
const { data: log } = await rooms.listEvents(name)
check('the log holds what was published', log.events.length === 1 && log.events[0]!.id === published.id)
check('the log has no gap', !log.gap)

const absent = await failure(hashes.getField(name, 'colour'))
check('a field that is absent is 404', absent.status === 404)
check('the 404 is a problem document', absent.data.code === 'field_not_found')

const created = await hashes.setField(name, 'colour', { value: 'green' })
check('a new field is 201', created.status === 201)
const etag = created.headers.etag
check('a write whose condition holds is done', (await hashes.setField(name, 'colour', { value: 'red' }, etag)).status === 200)
const refused = await failure(hashes.setField(name, 'colour', { value: 'blue' }, etag))
check('a write whose condition does not hold is 412', refused.status === 412)
check('the 412 has the present value', refused.data.present?.value === 'red')

await hashes.patchFields(name, { a: '1', b: '1' })
const { data: patched } = await hashes.patchFields(name, { a: '2', colour: null }, ['b'])
check('a patch sets and removes', patched.replaced === 1 && patched.removed === 2)
const { fields } = (await hashes.listFields(name)).data
check('the hash has what is left', Object.keys(fields).join() === 'a' && fields.a!.value === '2')
