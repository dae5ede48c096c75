// Shows how far a job is, until it is done.

import { connect } from '/roomcast.js'

export function showProgress({ room, token, bar, load, onDone }) {
  const show = ({ done, of }) => Object.assign(bar, { value: done, max: of })
  return connect({ token }).stream({
    rooms: [room],
    recent: 1,
    onEvent: ({ data }) => show(data),
    onGap: async () => show(await load()),
    onEnd: ({ reason }) => reason === 'finished' && onDone(),
  })
}
