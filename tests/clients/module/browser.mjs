// The browser module in Chromium: many tabs, reloads, tokens that end, pages that sleep, and replicas that are killed.

import { connect } from '../../../clients/js/roomcast.js'
import { launchChromium } from '../chromium.mjs'
import { check, cuttingProxy, unique, within } from '../support.mjs'
import { eventually, numbers, openTab, pause, SECRET, token } from './page.mjs'
import { startReplicas } from './replicas.mjs'

const TABS = 10

const replicas = await startReplicas(2, '--jwt-hs256-secret', SECRET, '--jwt-skew', '0s', '--no-console')
const direct = connect({ url: replicas.url, token: () => token(600) })
const browser = await launchChromium()

const newContext = () => browser.newContext({ bypassCSP: true })

/** The streams that the gateway has open in a room. */
const streams = async (room) => (await (await direct.request(`/v1/rooms/${room}`, {})).json()).subscribers

async function tenTabsShareAStream() {
  const context = await newContext()
  const room = unique('tabs')
  const options = { rooms: [room], shared: true }
  const tabs = []
  for (let tab = 0; tab < TABS; tab++) tabs.push(await openTab(context, replicas.url, options))
  await eventually('one stream for ten tabs', async () => (await streams(room)) === 1)
  let sent = 0
  const publish = async (count) => {
    for (let index = 0; index < count; index++) await direct.publish(room, sent++)
  }
  await publish(5)
  // The first tab has the stream. It goes, then the next one in the middle of events, then a replica.
  await tabs.shift().page.close()
  await publish(5)
  const publishing = publish(30)
  await tabs.shift().page.close({ runBeforeUnload: false })
  await publishing
  await Promise.all([publish(20), replicas.replaceOne()])
  await publish(5)
  for (const tab of tabs) {
    await eventually('all events in a tab', async () => (await tab.received()).length >= sent)
    const [received, told] = [await tab.received(), await tab.told()]
    if (JSON.stringify(received) !== JSON.stringify(numbers(sent))) check('each event once, in order', received, numbers(sent))
    check('a tab is told of nothing else', [told, tab.errors], [[], []])
  }
  check('each tab has each event once', tabs.length, TABS - 2)
  await eventually('one stream in the end', async () => (await streams(room)) === 1)
  await context.close()
}

async function reloadsMissNothing() {
  const context = await newContext()
  const room = unique('reloads')
  let [sent, isDone] = [0, false]
  const publishing = (async () => {
    while (!isDone) {
      await direct.publish(room, sent++)
      await pause(20)
    }
  })()
  const tab = await openTab(context, replicas.url, { rooms: [room], resume: 'reloads', from: 'earliest' })
  const all = []
  for (let reload = 0; reload < 20; reload++) {
    await pause(Math.random() * 200)
    if (reload % 7 === 3) await replicas.replaceOne()
    // What the page had until it is left counts.
    await tab.page.exposeFunction(`left${reload}`, (received) => all.push(...received))
    await tab.page.evaluate((name) => {
      window.stream.close()
      return window[name](window.received)
    }, `left${reload}`)
    await tab.start()
  }
  isDone = true
  await publishing
  await eventually('the last event', async () => all.length + (await tab.received()).length >= sent)
  all.push(...(await tab.received()))
  check('twenty reloads and three killed replicas miss and repeat nothing', all, numbers(sent))
  check('they are told of no gap', await tab.told(), [])
  await context.close()
}

async function aTokenIsRenewedWithoutAHole() {
  const context = await newContext()
  const room = unique('renewed')
  const asked = []
  // Tokens of 7 s are replaced before they end; those of 3 s end.
  const giveToken = (renew) => {
    asked.push(renew)
    return token(asked.length % 2 ? 7 : 3)
  }
  const tab = await openTab(context, replicas.url, { rooms: [room], giveToken })
  let sent = 0
  const end = Date.now() + 16_000
  while (Date.now() < end) {
    await direct.publish(room, sent++)
    await pause(50)
  }
  await eventually('all events', async () => (await tab.received()).length >= sent)
  check('renewed tokens miss and repeat nothing', await tab.received(), numbers(sent))
  check('a new token was asked for', [asked[0], asked.length > 2, asked.slice(1).every(Boolean)], [false, true, true])
  check('nothing else is told', await tab.told(), [])
  const refused = await openTab(context, replicas.url, { rooms: [room] })
  await refused.page.evaluate(() => (window.giveToken = () => 'no token'))
  const end_ = refused.page.evaluate(
    (room) =>
      new Promise((resolve) => window.client.stream({ rooms: [room], onGap() {}, onEnd: ({ error }) => resolve(error.code) })),
    room,
  )
  check('a page without a valid token is told why', await within('the end', end_), 'token_invalid')
  await context.close()
}

async function aPageThatSleepsComesBack() {
  const proxy = await cuttingProxy(replicas.url)
  const context = await newContext()
  const room = unique('sleep')
  const tab = await openTab(context, proxy.url, { rooms: [room] })
  const tools = await context.newCDPSession(tab.page)
  await direct.publish(room, 0)
  await eventually('the first event', async () => (await tab.received()).length === 1)
  // Meanwhile the connection is gone, as after a night.
  await tools.send('Page.setWebLifecycleState', { state: 'frozen' })
  proxy.freeze()
  await direct.publish(room, 1)
  await pause(3000)
  await tools.send('Page.setWebLifecycleState', { state: 'active' })
  await eventually('the event of the night', async () => (await tab.received()).length === 2)
  await context.setOffline(true)
  proxy.cut()
  await direct.publish(room, 2)
  await pause(1000)
  proxy.mend()
  await context.setOffline(false)
  await eventually('the event without a network', async () => (await tab.received()).length === 3)
  check('after sleep and without a network nothing is missing', await tab.received(), numbers(3))
  check('and no gap is told', await tab.told(), [])
  await context.close()
  proxy.close()
}

await Promise.all([aTokenIsRenewedWithoutAHole(), aPageThatSleepsComesBack()])
// These kill replicas.
await Promise.all([tenTabsShareAStream(), reloadsMissNothing()])
await browser.close()
await replicas.close()
process.exit(0)
