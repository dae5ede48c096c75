// Hooks for React. The client comes from `connect`, and is the same at each render.

import { useEffect, useRef, useState } from 'react'

/** Follows a room while the component is there. Returns the stream's state and the room's members. */
export function useRoom(client, room, handlers) {
  const latest = useRef(handlers)
  latest.current = handlers
  const [state, setState] = useState('waiting')
  const [members, setMembers] = useState(new Map())
  const { presence, subscriber, recent, from, shared, resume } = handlers
  useEffect(() => {
    const stream = client.stream({
      rooms: [room], presence, subscriber, recent, from, shared, resume,
      onEvent: (event) => latest.current.onEvent?.(event),
      onGap: (gap) => latest.current.onGap(gap),
      onEnd: (end) => (setState('ended'), latest.current.onEnd?.(end)),
      onState: setState,
      onMembers: (_, members) => setMembers(new Map(members)),
    })
    return () => stream.close()
  }, [client, room, presence, subscriber, recent, from, shared, resume])
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
