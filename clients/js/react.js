// Hooks for React. The client comes from `connect`, and is the same at each render.

import { useEffect, useRef, useState } from 'react'

/** Follows a room while the component is there. Returns the stream's state and the room's members. */
export function useRoom(client, room, handlers) {
  const latest = useRef(handlers)
  latest.current = handlers
  const [state, setState] = useState('waiting')
  const [members, setMembers] = useState(new Map())
  const { store, ...rest } = handlers
  // Functions are left out, so that a render does not open the stream anew.
  const options = JSON.stringify(rest)
  useEffect(() => {
    const tell = (name, ...values) => latest.current[name]?.(...values)
    setState('waiting')
    setMembers(new Map())
    const stream = client.stream({
      ...JSON.parse(options),
      store,
      rooms: [room],
      onEvent: (event) => tell('onEvent', event),
      onGap: latest.current.onGap && ((gap) => tell('onGap', gap)),
      onEnd: (end) => (setState('ended'), tell('onEnd', end)),
      onState: (state, detail) => (setState(state), tell('onState', state, detail)),
      onMembers: (_, members) => (setMembers(new Map(members)), tell('onMembers', room, members)),
    })
    return () => stream.close()
  }, [client, room, options, store])
  return { state, members }
}

/** Watches a hash while the component is there. Returns its values, and the hash to write to. */
export function useHash(client, name, { shared } = {}) {
  const [shown, setShown] = useState({ values: new Map() })
  useEffect(() => {
    const hash = client.watch(name, {
      shared,
      onChange: ({ hash }) => setShown({ values: new Map(hash.values), hash }),
    })
    return () => hash.close()
  }, [client, name, shared])
  return shown
}
