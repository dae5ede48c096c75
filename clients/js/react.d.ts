import type { Client, Events, Hash, Member, StreamOptions, Value } from './roomcast.js'

/**
 * Follows a room while the component is there. The newest functions of `handlers` are called; a change of another member
 * opens the stream anew.
 */
export function useRoom<E extends object = Events>(
  client: Client,
  room: string,
  handlers: Omit<StreamOptions<E>, 'rooms' | 'hashes'>,
): { state: 'open' | 'waiting' | 'ended'; members: ReadonlyMap<string, Member> }

/** Watches a hash while the component is there. `hash` is there once its values are. */
export function useHash(
  client: Client,
  name: string,
  options?: { shared?: boolean | string },
): { values: ReadonlyMap<string, Value>; hash?: Hash }
