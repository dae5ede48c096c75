// The code of docs/browser.md, in Node.

import { connect as connectTo } from '../../../clients/js/roomcast.js'
import { check, gateway, Inbox, within } from '../support.mjs'

const shown = new Inbox()
const show = (...values) => shown.push(values)
const loadEverything = () => show('all')
const login = async () => undefined
const connect = (options) => connectTo({ ...options, url: gateway })

const client = connect({
  token: async ({ renew }) => (renew ? await login() : localStorage.token),
})
globalThis.localStorage = { token: '' }

const stream = client.stream({
  rooms: ['lobby', 'news'],
  onEvent: ({ room, event, data }) => show(room, event, data),
  onGap: () => loadEverything(),
})
await within('the stream', (async () => {
  while (!stream.position) await new Promise((resolve) => setTimeout(resolve, 10))
})())
await client.publish('lobby', { text: 'hello' }, { event: 'said' })
check('the event is shown', (await shown.take(1, 'the event'))[0], ['lobby', 'said', { text: 'hello' }])
stream.close()

const lamp = client.watch('lamp', { onChange: ({ hash }) => show(hash.values.get('colour')) })
await lamp.ready
await lamp.set('colour', 'green').catch(({ problem }) => show(problem.present))
await lamp.update('count', (count) => String(Number(count ?? 0) + 1))
await within('green', (async () => {
  while (lamp.values.get('count') !== '1') await new Promise((resolve) => setTimeout(resolve, 10))
})())
check('the hash is true', [lamp.values.get('colour'), lamp.values.get('count')], ['green', '1'])
lamp.close()

const room = client.stream({
  rooms: ['lobby'],
  subscriber: 'ann',
  presence: true,
  onMembers: (room, members) => show(room, [...members.keys()]),
  onGap: () => loadEverything(),
})
await within('ann', (async () => {
  while (!room.members.lobby.has('ann')) await new Promise((resolve) => setTimeout(resolve, 10))
})())
room.close()
