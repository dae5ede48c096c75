// The browser module in Node, against a gateway with a short pause before reconnects and short heartbeats.

import './parser.mjs'
import { connect } from '../../../clients/js/roomcast.js'
import { check, cuttingProxy, gateway, Inbox, remove, unique, within } from '../support.mjs'

/** A stream, and what it tells: `[kind, …]`. */
function follow(client, options) {
  const inbox = new Inbox()
  const stream = client.stream({
    onEvent: ({ room, data }) => inbox.push(['event', data, room]),
    onGap: (gap) => inbox.push(['gap', gap.reason]),
    onEnd: ({ reason, error }) => inbox.push(['end', reason ?? error.code]),
    ...options,
  })
  return { stream, inbox, take: async (count, what) => (await inbox.take(count, what)).map(([kind, value]) => [kind, value]) }
}

const open = (options, begin) =>
  new Promise((resolve) => {
    const followed = begin({ ...options, onState: (state) => state === 'open' && resolve(followed) })
  })

const events = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => ['event', first + index])

async function publishAll(client, room, first, last) {
  for (let number = first; number <= last; number++) await client.publish(room, number)
}

async function aCutOrFrozenStreamMissesAndRepeatsNothing() {
  const proxy = await cuttingProxy(gateway)
  const direct = connect({ url: gateway })
  const [a, b] = [unique('a'), unique('b')]
  const followed = await open({ rooms: [a, b] }, (options) => follow(connect({ url: proxy.url }), options))
  await publishAll(direct, a, 1, 3)
  check('events come', await followed.take(3, 'events'), events(1, 3))
  proxy.cut()
  await publishAll(direct, a, 4, 5)
  proxy.mend()
  check('after a cut the rest comes', await followed.take(2, 'the rest'), events(4, 5))
  proxy.tearNextAnswer()
  await publishAll(direct, b, 6, 6)
  check('an event that was cut in two comes once', await followed.take(1, 'the event'), events(6, 6))
  proxy.freeze()
  await publishAll(direct, a, 7, 8)
  check('a frozen connection is given up', await followed.take(2, 'events after the freeze'), events(7, 8))
  proxy.cut('HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
  await proxy.answered()
  await publishAll(direct, b, 9, 9)
  proxy.mend()
  check('after a 502 of a balancer it goes on', await followed.take(1, 'events after a 502'), events(9, 9))
  followed.stream.close()
  await publishAll(direct, a, 10, 10)
  const again = follow(direct, { rooms: [a, b], after: followed.stream.position })
  check('a position is where another stream goes on', await again.take(1, 'the last event'), events(10, 10))
  again.stream.close()
  proxy.close()
}

async function endsAndGapsAreTold() {
  const client = connect({ url: gateway })
  try {
    client.stream({ rooms: ['a'] })
    check('a stream without onGap is refused', false)
  } catch (error) {
    check('a stream without onGap is refused', [error.name, error.message.includes('onGap')], ['TypeError', true])
  }
  const room = unique('gap')
  const gap = follow(client, { rooms: [room], after: 'c1.AAAA' })
  const [[kind]] = await gap.inbox.take(1, 'the end of a stream after a wrong position')
  check('a position that is none is told', kind, 'end')

  const finished = unique('finished')
  const last = await open({ rooms: [finished] }, (options) => follow(client, options))
  await client.publish(finished, 'last', { final: true })
  check('a room that ends ends the stream', await last.take(2, 'the end'), [['event', 'last'], ['end', 'finished']])
  const late = await client.publish(finished, 'late').catch((error) => error)
  check('a publish to it is refused', [late.name, late.status, late.code], ['RoomcastError', 409, 'room_finished'])

  const removed = unique('removed')
  const one = await open({ rooms: [removed], subscriber: 'ann' }, (options) => follow(client, options))
  await remove(removed, 'ann')
  await client.publish(removed, 1)
  check('a removed stream comes back', await one.take(1, 'an event after the removal'), events(1, 1))
  await remove(removed, 'ann', '?deny_seconds=60')
  check('a denied one ends', (await one.take(1, 'the end')).map(([kind]) => kind), ['end'])

  const list = await client.events(removed)
  check('the log of a room is read', list.events.filter((event) => event.event !== 'presence.join').map((event) => event.data), [1])
}

async function anApplicationsErrorsDoNotEndTheStream() {
  const caught = []
  process.on('uncaughtException', (error) => caught.push(error.message))
  const client = connect({ url: gateway })
  const room = unique('errors')
  const inbox = new Inbox()
  const stream = await open({}, (options) =>
    client.stream({
      ...options,
      rooms: [room],
      onGap() {},
      onEvent({ data }) {
        inbox.push(data)
        if (data === 1) throw new Error('of the application')
      },
    }),
  )
  await publishAll(client, room, 1, 2)
  check('the next event comes all the same', await inbox.take(2, 'two events'), [1, 2])
  check('the error is not hidden', caught, ['of the application'])
  process.removeAllListeners('uncaughtException')
  stream.close()
}

async function aWatchedHashIsTrue() {
  const proxy = await cuttingProxy(gateway)
  const direct = connect({ url: gateway })
  const name = unique('hash')
  const inbox = new Inbox()
  const hash = connect({ url: proxy.url }).watch(name, { onChange: (change) => inbox.push([change.event, change.fields]) })
  const other = direct.watch(name)
  await within('the first state', Promise.all([hash.ready, other.ready]))
  check('the first state is told', (await inbox.take(1, 'the snapshot'))[0], ['hash.snapshot', []])
  const until = (field, value) =>
    within(`${field} to be ${value}`, (async () => {
      while (hash.values.get(field) !== value) await new Promise((resolve) => setTimeout(resolve, 10))
    })())
  await other.set('colour', 'green')
  await until('colour', 'green')
  await hash.set('colour', 'red')
  check('a change is told with its fields', (await inbox.take(2, 'two changes'))[1], ['hash.set', ['colour']])
  const stale = await direct.watch(name).ready
  stale.close()
  proxy.cut()
  await other.set('colour', 'blue', { force: true })
  proxy.mend()
  await until('colour', 'blue')
  const refused = await stale.set('colour', 'black').catch((error) => error)
  check('a conflict has the present value', [refused.status, refused.problem?.present?.value], [412, 'blue'])
  const counted = unique('counted')
  const counters = await Promise.all([1, 2, 3].map(() => direct.watch(counted).ready))
  const counting = counters.map(async (counter) => {
    for (let step = 0; step < 10; step++) await counter.update('sum', (value) => String(Number(value ?? 0) + 1))
  })
  await within('updates of three writers', Promise.all(counting))
  const sum = await fetch(`${gateway}/v1/hashes/${counted}/fields/sum`).then((response) => response.json())
  check('no update of three writers is lost', sum.value, '30')
  await other.set('bytes', new Uint8Array([255, 0, 1]))
  await within('the bytes', (async () => {
    while (!hash.values.has('bytes')) await new Promise((resolve) => setTimeout(resolve, 10))
  })())
  check('bytes are bytes', [...hash.values.get('bytes')], [255, 0, 1])
  await other.delete('bytes')
  await until('bytes', undefined)
  await fetch(`${gateway}/v1/hashes/${name}`, { method: 'DELETE' })
  await until('colour', undefined)
  check('a hash that is deleted is empty', [...hash.values], [])
  for (const each of [hash, other, ...counters]) each.close()
  proxy.close()
}

async function membersAreListed() {
  const client = connect({ url: gateway })
  const room = unique('members')
  const names = (members) => [...members.keys()].sort()
  let shown = []
  const watching = client.stream({
    rooms: [room], presence: true, subscriber: 'ann', onGap() {},
    onMembers: (_, members) => (shown = names(members)),
  })
  const until = (expected) =>
    within(`members ${expected}`, (async () => {
      while (shown.join() !== expected) await new Promise((resolve) => setTimeout(resolve, 10))
    })())
  await until('ann')
  const bob = await open({ rooms: [room], subscriber: 'bob' }, (options) => follow(client, options))
  await until('ann,bob')
  bob.stream.close()
  await until('ann')
  check('members come and go', names(watching.members[room]), ['ann'])
  watching.close()
}

/** Waits for a token longer than for a silent stream: a user logs in. And keeps positions where there is no room for them. */
async function slowTokensAndFullStoresEndNothing() {
  let asked = 0
  const token = async () => {
    asked++
    await new Promise((resolve) => setTimeout(resolve, 4000))
    return undefined
  }
  const caught = []
  const full = { getItem: () => null, setItem: () => caught.push('full') && JSON.parse('no JSON') }
  const client = connect({ url: gateway, token })
  const room = unique('slow')
  const states = []
  const inbox = new Inbox()
  const isOpen = new Inbox()
  process.on('uncaughtException', (error) => caught.push(error.name))
  const stream = client.stream({
    rooms: [room], resume: 'slow', store: full, onGap() {},
    onEvent: ({ data }) => inbox.push(data),
    onState: (state) => (states.push(state), isOpen.push(state)),
  })
  await isOpen.take(1, 'the stream')
  await publishAll(connect({ url: gateway }), room, 1, 3)
  check('events come without a store', await inbox.take(3, 'events'), [1, 2, 3])
  check('on one connection, with one token', [states, asked], [['open'], 1])
  check('the error of the store is not hidden', caught.slice(0, 2), ['full', 'SyntaxError'])
  stream.close()
  process.removeAllListeners('uncaughtException')
}

await Promise.all([
  aCutOrFrozenStreamMissesAndRepeatsNothing(),
  endsAndGapsAreTold(),
  aWatchedHashIsTrue(),
  membersAreListed(),
])
await anApplicationsErrorsDoNotEndTheStream()
await slowTokensAndFullStoresEndNothing()
