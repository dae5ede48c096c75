// Follows a stream with a client from npm, and prints each event as a line of JSON: follow.mjs CLIENT URL. The lines
// that a client needs are those of docs/clients.md.

import { EVENT_TYPES } from '../support.mjs'

const [client, url] = process.argv.slice(2)

function take(type, id, data) {
  console.log(JSON.stringify({ type, id, data }))
}

/** For clients with the interface of EventSource. */
function listen(source) {
  for (const type of EVENT_TYPES) {
    source.addEventListener(type, ({ lastEventId, data }) => take(type, lastEventId, data))
  }
}

const clients = {
  async eventsource() {
    const { EventSource } = await import('eventsource')
    listen(new EventSource(url))
  },

  async 'eventsource 5'() {
    const { EventSource } = await import('eventsource-5')
    setInterval(() => {}, 1e6)
    listen(new EventSource(url))
  },

  async 'event-source-polyfill'() {
    const { EventSourcePolyfill } = (await import('event-source-polyfill')).default
    listen(new EventSourcePolyfill(url))
  },

  async 'reconnecting-eventsource'() {
    const { EventSource } = await import('eventsource')
    const { default: ReconnectingEventSource } = await import('reconnecting-eventsource')
    listen(new ReconnectingEventSource(url, { eventSourceClass: EventSource }))
  },

  async 'eventsource-client'() {
    const { createEventSource } = await import('eventsource-client')
    createEventSource({ url, onMessage: ({ event, id, data }) => take(event, id, data) })
  },

  async 'launchdarkly-eventsource'() {
    const { EventSource } = (await import('launchdarkly-eventsource')).default
    const source = new EventSource(url)
    source.addEventListener('error', () => {})
    listen(source)
  },

  async 'extended-eventsource'() {
    const { EventSource } = await import('extended-eventsource')
    let last = ''
    const resume = (request) => {
      request.headers.set('last-event-id', last)
      return fetch(request)
    }
    const source = new EventSource(url, { fetch: resume })
    for (const type of EVENT_TYPES) source.addEventListener(type, (event) => (last = event.lastEventId))
    listen(source)
  },

  async '@microsoft/fetch-event-source'() {
    // What the client expects of a browser.
    globalThis.window = globalThis
    globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }
    const { fetchEventSource } = await import('@microsoft/fetch-event-source')
    let last = ''
    await fetchEventSource(`${url}&end=cut`, {
      onmessage({ event, id, data }) {
        last = id
        take(event, id, data)
      },
      fetch: (url, init) => {
        init.headers['last-event-id'] = last
        return fetch(url, init)
      },
    })
  },
}

await clients[client]()
