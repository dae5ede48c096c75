// Tabs that share a stream, in Chromium: they join, leave, freeze and come back, and each has each event once, in order.

import { connect } from '../../../clients/js/roomcast.js'
import { launchChromium } from '../chromium.mjs'
import { check, unique } from '../support.mjs'
import { eventually, numbers, openTab, SECRET, token } from './page.mjs'
import { startReplicas } from './replicas.mjs'

const replicas = await startReplicas(2, '--jwt-hs256-secret', SECRET, '--jwt-skew', '0s', '--no-console')
const direct = connect({ url: replicas.url, token: () => token(600) })
const browser = await launchChromium()
const newContext = () => browser.newContext({ bypassCSP: true })
const streams = async (room) => (await (await direct.request(`/v1/rooms/${room}`)).json()).subscribers

async function openTabs(count, context, options) {
  const tabs = []
  for (let tab = 0; tab < count; tab++) tabs.push(await openTab(context, replicas.url, options))
  return tabs
}

function publisher(room) {
  const publish = async (count) => {
    for (let index = 0; index < count; index++) await direct.publish(room, publish.sent++)
  }
  publish.sent = 0
  return publish
}

async function checkTab(what, tab, expected) {
  await eventually(`${what}: the last event`, async () => (await tab.received()).at(-1) === expected.at(-1)).catch(async (error) => {
    throw new Error(`${error.message}: ${JSON.stringify([await tab.received(), await tab.told(), tab.errors])}`)
  })
  check(what, await tab.received(), expected)
  check(`${what}, and nothing else is told`, [await tab.told(), tab.errors], [[], []])
}

async function aTabThatReloadsJoinsTheOthers() {
  const context = await newContext()
  const room = unique('reloads')
  const publish = publisher(room)
  const options = { rooms: [room], shared: true, resume: 'reloads', subscriber: 'ann', presence: true }
  const tabs = await openTabs(3, context, options)
  await publish(5)
  for (const tab of tabs) await checkTab('each tab has the first events', tab, numbers(5))
  // Neither the leader nor another one misses what came while it was away, and the others have it once.
  for (const index of [2, 0, 1]) {
    const before = publish.sent
    await tabs[index].page.evaluate(() => window.stream.close())
    await publish(3)
    await tabs[index].start()
    await publish(2)
    await checkTab(`tab ${index} has what came while it was away`, tabs[index], numbers(publish.sent).slice(before))
  }
  await checkTab('the one that was reloaded first has all since', tabs[2], numbers(publish.sent).slice(5))
  await eventually('one stream in the end', async () => (await streams(room)) === 1)
  for (const tab of tabs) {
    await eventually('the member in each tab', async () => (await tab.page.evaluate((room) => [...window.stream.members[room].keys()].join(), room)) === 'ann')
  }
  await context.close()
}

async function aSecondTabHasTheRecentEvents() {
  const context = await newContext()
  const room = unique('recent')
  const publish = publisher(room)
  await publish(8)
  const tabs = await openTabs(3, context, { rooms: [room], shared: true, recent: 5 })
  for (const tab of tabs) await checkTab('each tab has the recent events', tab, [3, 4, 5, 6, 7])
  await publish(3)
  for (const tab of tabs) await checkTab('and those that follow', tab, numbers(11).slice(3))
  await context.close()
}

async function aFrozenLeaderIsReplacedAndComesBack() {
  const context = await newContext()
  const room = unique('frozen')
  const publish = publisher(room)
  const tabs = await openTabs(3, context, { rooms: [room], shared: true, subscriber: 'ann' })
  await publish(3)
  for (const tab of tabs) await checkTab('before the freeze', tab, numbers(3))
  const frozen = tabs[0].page.evaluate(() => {
    const end = Date.now() + 15_000
    while (Date.now() < end);
  })
  await publish(3)
  await tabs[1].page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
  for (const tab of tabs.slice(1)) await checkTab('another tab takes over', tab, numbers(6))
  await publish(3)
  await frozen
  await publish(3)
  for (const tab of tabs) await checkTab('after the freeze', tab, numbers(12))
  await eventually('one stream in the end', async () => (await streams(room)) === 1)
  await context.close()
}

async function aTabJoinsInTheMiddleOfASnapshot() {
  const context = await newContext()
  const name = unique('large')
  const writer = await direct.watch(name).ready
  const value = 'x'.repeat(4096)
  await Promise.all(numbers(100).map((field) => writer.set(`field-${field}`, value)))
  const watch = async (page) => {
    await page.goto(`${replicas.url}/livez`)
    await page.evaluate(async (name) => {
      const { connect } = await import('/roomcast.js')
      window.hash = connect({ token: () => window.giveToken() }).watch(name, { shared: true })
    }, name)
  }
  const pages = []
  for (let tab = 0; tab < 2; tab++) {
    const page = await context.newPage()
    await page.exposeFunction('giveToken', () => token(600))
    pages.push(page)
  }
  const slow = await context.newCDPSession(pages[0])
  await slow.send('Network.enable')
  await slow.send('Network.emulateNetworkConditions', { offline: false, latency: 0, downloadThroughput: 100_000, uploadThroughput: 100_000 })
  await watch(pages[0])
  await eventually('parts of the snapshot', () => pages[0].evaluate(() => window.hash.parts?.length > 0))
  await watch(pages[1])
  for (const page of pages) {
    const size = await page.evaluate(async () => (await window.hash.ready).values.size)
    check('each tab has the whole hash', size, 100)
  }
  writer.close()
  await context.close()
}

async function changesOfAHashAreToldOnce() {
  const context = await newContext()
  const name = unique('hash')
  const writer = await direct.watch(name).ready
  const pages = []
  for (let tab = 0; tab < 4; tab++) {
    const page = await context.newPage()
    await page.exposeFunction('giveToken', () => token(600))
    await page.goto(`${replicas.url}/livez`)
    await page.evaluate(async (name) => {
      const { connect } = await import('/roomcast.js')
      window.counts = []
      // A snapshot, which a new leader may get, tells the same state.
      const onChange = ({ hash, event }) => event === 'hash.set' && window.counts.push(Number(hash.values.get('count')))
      await connect({ token: () => window.giveToken() }).watch(name, { shared: true, onChange }).ready
    }, name)
    pages.push(page)
  }
  for (let count = 0; count < 60; count++) {
    await writer.set('count', String(count), { force: true })
    if (count % 20 === 10) await pages.shift().close()
  }
  check('a tab is left', pages.length, 1)
  for (const page of pages) {
    await eventually('the last value', async () => (await page.evaluate(() => window.counts.at(-1))) === 59)
    check('each change is told once, in order', await page.evaluate(() => window.counts), numbers(60))
  }
  writer.close()
  await context.close()
}

async function anEndIsToldToTheTabsThatItIsAbout() {
  const context = await newContext()
  const room = unique('ends')
  const publish = publisher(room)
  const options = { rooms: [room], shared: true }
  // The first tab leads, and its user is logged out.
  const first = await openTab(context, replicas.url, { ...options, giveToken: (renew) => (renew ? 'none' : token(2)) })
  const others = await openTabs(2, context, options)
  await eventually('the end of the first tab', async () => (await first.told()).length === 1)
  check('a tab is told of its own token', await first.told(), [['end', 'token_invalid']])
  await publish(3)
  for (const tab of others) await checkTab('the others go on', tab, numbers(3))
  await direct.publish(room, 'last', { final: true })
  for (const tab of others) {
    await eventually('the end of a tab', async () => (await tab.told()).length > 0)
    check('each tab is told of the end of the room', await tab.told(), [['end', 'finished']])
  }
  await context.close()
}

async function aWrongClockOpensNoStreamAnew() {
  const context = await newContext()
  await context.addInitScript(() => {
    const now = Date.now
    Date.now = () => now() + 3_600_000
  })
  const room = unique('clock')
  const publish = publisher(room)
  const tab = await openTab(context, replicas.url, { rooms: [room], giveToken: () => token(60) })
  await publish(20)
  await checkTab('a page with a wrong clock has all events', tab, numbers(20))
  check('on one connection', await tab.page.evaluate(() => window.states), ['open'])
  await context.close()
}

for (const test of [
  aTabThatReloadsJoinsTheOthers,
  aSecondTabHasTheRecentEvents,
  aTabJoinsInTheMiddleOfASnapshot,
  changesOfAHashAreToldOnce,
  anEndIsToldToTheTabsThatItIsAbout,
  aWrongClockOpensNoStreamAnew,
  aFrozenLeaderIsReplacedAndComesBack,
]) {
  if (process.argv[2] && !test.name.includes(process.argv[2])) continue
  console.log(`# ${test.name}`)
  await test()
}
await browser.close()
await replicas.close()
process.exit(0)
