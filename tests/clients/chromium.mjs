// A real Chromium, and EventSources on a page in it.

import { chromium } from 'playwright-core'
import { EVENT_TYPES, Inbox } from './support.mjs'

/** Playwright gives every launch a user data folder of its own, and removes it. */
export function launchChromium() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    chromiumSandbox: false, // a root user in a container has none
    args: [
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
}

/** Opens the page, and an EventSource in it for each `listen(path)`. */
export async function openPage(browser, url) {
  const page = await browser.newPage()
  const inboxes = new Map()
  await page.exposeFunction('heard', (path, event) => inboxes.get(path).push(event))
  await page.goto(url)
  const listen = async (path) => {
    const inbox = new Inbox()
    inboxes.set(path, inbox)
    await page.evaluate(
      ([path, types]) => {
        const source = new EventSource(path)
        for (const type of types) {
          source.addEventListener(type, ({ lastEventId, data }) => heard(path, { type, id: lastEventId, data }))
        }
        source.addEventListener('error', () => {
          if (source.readyState === EventSource.CLOSED) heard(path, { type: 'closed' })
        })
      },
      [path, EVENT_TYPES],
    )
    return inbox
  }
  return { page, listen }
}

/** Watches for the page's next POST to a URL: the status of its answer, though the page itself may not see it. */
export async function watchPost(page, url) {
  const tools = await page.context().newCDPSession(page)
  await tools.send('Network.enable')
  // The two come from different processes of the browser, in either order.
  const status = new Promise((resolve) => {
    const answers = new Map()
    let id
    const tell = () => answers.has(id) && resolve(answers.get(id))
    tools.on('Network.requestWillBeSent', ({ requestId, request }) => {
      if (request.url === url && request.method === 'POST') id = requestId
      tell()
    })
    tools.on('Network.responseReceivedExtraInfo', ({ requestId, statusCode }) => {
      answers.set(requestId, statusCode)
      tell()
    })
  })
  return { status }
}
