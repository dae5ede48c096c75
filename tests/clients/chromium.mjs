// Starts Chromium, and opens EventSources on a page in it.

import { chromium } from 'playwright-core'
import { EVENT_TYPES, Inbox } from './support.mjs'

/** Playwright creates a user data folder for every launch, and removes it. */
export function launchChromium() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    chromiumSandbox: false, // Chromium has no sandbox for root in a container
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

/** Opens a page. Each call of `listen(path)` opens an EventSource on it. */
export async function openPage(browser, url) {
  const page = await browser.newPage()
  const inboxes = new Map()
  await page.exposeFunction('receive', (path, event) => inboxes.get(path).push(event))
  await page.goto(url)
  const listen = async (path) => {
    const inbox = new Inbox()
    inboxes.set(path, inbox)
    await page.evaluate(
      ([path, types]) => {
        const source = new EventSource(path)
        for (const type of types) {
          source.addEventListener(type, ({ lastEventId, data }) => receive(path, { type, id: lastEventId, data }))
        }
        source.addEventListener('error', () => {
          if (source.readyState === EventSource.CLOSED) receive(path, { type: 'closed' })
        })
      },
      [path, EVENT_TYPES],
    )
    return inbox
  }
  return { page, listen }
}

/** The status of the answer to the page's next POST to a URL, even if the answer is hidden from the page. */
export async function watchPost(page, url) {
  const tools = await page.context().newCDPSession(page)
  await tools.send('Network.enable')
  // The two events come from different processes of the browser, in either order.
  const status = new Promise((resolve) => {
    const answers = new Map()
    let id
    const resolveIfKnown = () => answers.has(id) && resolve(answers.get(id))
    tools.on('Network.requestWillBeSent', ({ requestId, request }) => {
      if (request.url === url && request.method === 'POST') id = requestId
      resolveIfKnown()
    })
    tools.on('Network.responseReceivedExtraInfo', ({ requestId, statusCode }) => {
      answers.set(requestId, statusCode)
      resolveIfKnown()
    })
  })
  return { status }
}
