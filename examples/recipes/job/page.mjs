// Shows how far a job is, until it is done.

import { connect } from '/roomcast.js'

export function showProgress({ room, token, bar, load, onDone }) {
  const client = connect({ token })
  const show = ({ done, of }) => Object.assign(bar, { value: done, max: of })
  const stream = client.stream({
    rooms: [room],
    recent: 1,
    onEvent: ({ data }) => show(data),
    onGap: async () => show(await load()),
    onState: (state) => state === 'open' && clearTimeout(timer),
    onEnd: ({ reason }) => {
      clearTimeout(timer)
      if (reason === 'finished') onDone()
    },
  })
  // Nothing comes through a proxy that buffers.
  const timer = setTimeout(() => {
    stream.close()
    poll({ client, room, show, load, onDone })
  }, 5000)
}

async function poll({ client, room, show, load, onDone }) {
  let query = 'limit=1000'
  let renew = false
  for (;;) {
    const path = `/v1/rooms/${room}/events?${query}`
    const response = await client.request(path, {}, renew).catch(() => undefined)
    renew = response?.status === 401
    if (response?.ok) {
      const { events, gap, next, finished } = await response.json()
      if (gap) show(await load())
      if (events.length) show(events.at(-1).data)
      if (finished) return onDone()
      query = `limit=1000&wait=25&after=${next}`
    } else {
      await new Promise((resolve) => setTimeout(resolve, 2000))
    }
  }
}
