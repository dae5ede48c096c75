// Shows an answer while it is made, and after each reload.

import { connect } from '/roomcast.js'

/** Shows the answer in an element. `load` gives the whole text, as the application keeps it. */
export function showAnswer({ room, token, element, load, onDone }) {
  const client = connect({ token })
  let text = ''
  const show = (whole) => (element.textContent = text = whole)
  const loadAll = async () => {
    stream.close()
    onDone(show(await load()))
  }
  const stream = client.stream({
    rooms: [room],
    from: 'earliest',
    onEvent: ({ data }) => {
      if (data.at !== text.length) return loadAll()
      show(text + data.text)
    },
    onGap: loadAll,
    onEnd: ({ reason }) => (reason === 'finished' ? onDone(text) : loadAll()),
  })
  return { stop: () => client.publish(`${room}.stop`, null, { event: 'stop' }) }
}
