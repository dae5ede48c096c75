// The types of the browser module. `tsc` compiles this, and each line that `@ts-expect-error` is above must be an error.

import { connect, RoomcastError, type Stream } from '../../../clients/js/roomcast.js'
import { useHash, useRoom } from '../../../clients/js/react.js'

const client = connect({ url: 'http://127.0.0.1:8080', token: async ({ renew }) => (renew ? 'new' : 'old') })

interface Chat {
  said: { text: string }
  typing: { who: string }
}

const stream: Stream = client.stream<Chat>({
  rooms: ['lobby'],
  onGap: ({ reason }) => reason === 'trimmed',
  onEvent(event) {
    if (event.event === 'said') event.data.text.trim()
    // @ts-expect-error: another event has other data
    if (event.event === 'typing') event.data.text.trim()
  },
})
stream.close()

// @ts-expect-error: gaps must be handled
client.stream({ rooms: ['lobby'] })

const hash = client.watch('lamp', { onChange: ({ fields }) => fields.length })
const value: string | Uint8Array | undefined = hash.values.get('colour')
hash.set('colour', value ?? 'green').catch((error: RoomcastError) => error.problem.present)
// @ts-expect-error: values are text or bytes
hash.set('colour', 1)

const { members } = useRoom<Chat>(client, 'lobby', { onGap() {}, presence: true })
members.get('ann')?.since
useHash(client, 'lamp').hash?.update('count', (count) => String(Number(count ?? 0) + 1))
