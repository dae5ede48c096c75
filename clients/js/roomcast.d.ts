/** A gateway. Nothing is opened before a stream is. */
export function connect(options?: ClientOptions): Client

export interface ClientOptions {
  /** Where the gateway is. By default, where the page is from. */
  url?: string
  /**
   * Gives a token for each request. With `renew` the last one is refused or about to expire, so a new one is needed. A
   * stream asks for it before its token expires, and goes on without a hole.
   */
  token?: (request: { renew: boolean }) => string | undefined | Promise<string | undefined>
  /** In place of the global `fetch`. */
  fetch?: typeof fetch
}

/** What rooms carry: the data by the event's name. An interface with these members tells the events apart. */
export type Events = Record<string, any>

/** One of the events. The name of an event that was published without one is null. */
export type EventOf<E extends object> = string extends keyof E
  ? RoomEvent<string | null, E[keyof E]>
  : { [N in keyof E & string]: RoomEvent<N, E[N]> }[keyof E & string]

export interface Client {
  readonly url: string
  /** Opens a stream of up to 20 rooms and hashes. It resumes by itself until it is closed or ends. */
  stream<E extends object = Events>(options: StreamOptions<E>): Stream
  /** Watches a hash on a stream of its own. */
  watch(name: string, options?: Partial<StreamOptions>): Hash
  /**
   * Publishes an event. It is sent again, with the same idempotency key, until its outcome is known, for half a minute.
   * Rejects with a `RoomcastError` if the gateway refuses it.
   */
  publish(room: string, data: unknown, options?: PublishOptions): Promise<Published>
  /** Sends any request to the gateway, with the token; with `renew`, with a new one. */
  request(path: string, init?: RequestInit, renew?: boolean): Promise<Response>
  /** Reads a part of a room's log: after or before an id, or its start. */
  events(room: string, range?: { after?: string; before?: string; limit?: number }): Promise<EventList>
}

export interface PublishOptions {
  /** The event's name. */
  event?: string
  /** Ends the room: no event follows. */
  final?: boolean
  /** Subscribers that do not get the event. */
  except?: string[]
  /** Makes the publish safe to repeat. A random one by default. */
  key?: string
}

export interface Published {
  room: string
  id: string
}

export interface EventList {
  room: string
  events: RoomEvent[]
  gap?: { from: string; to: string; reason: string } | null
  oldest: string | null
  head: string
}

export interface StreamOptions<E extends object = Events> {
  rooms?: string[]
  hashes?: string[]
  /** Only events with these names. */
  events?: string[]
  /** Only these fields of the hashes. */
  fields?: string[]
  /** The name on the member list, the same at each page load. */
  subscriber?: string
  /** Keeps the members of the rooms, and calls `onMembers`. */
  presence?: boolean
  /** The profile that other members see, where the gateway takes it from the query. */
  info?: unknown
  /** Seconds between heartbeats, 5 to 300. A stream that says nothing for two of them is dead, and opened again. */
  heartbeat?: number
  /** Begins with the last events. */
  recent?: number
  /** Begins with the oldest event. */
  from?: 'earliest'
  /** Begins after a position, which `stream.position` gave. */
  after?: string
  /** Goes on over page loads: the name under which the position is kept in `store`. For streams of rooms alone. */
  resume?: string
  /** Where the position is kept: `sessionStorage` by default. */
  store?: Pick<Storage, 'getItem' | 'setItem'>
  /**
   * One connection for all tabs of the origin whose streams have the same options. A value other than `true` is part of
   * what has to be the same: give the user's name where tabs can have different users. Where the browser has no Web Locks
   * or no BroadcastChannel, each tab has a connection of its own.
   */
  shared?: boolean | string
  /** An event of a room. */
  onEvent?: (event: EventOf<E>) => void
  /**
   * Events after `from`, up to and including `to`, may be missing: load the application's state anew. It must be handled,
   * so it must be there. For a hash nothing is to be done: a snapshot follows.
   */
  onGap: (gap: Gap) => void
  /** Fields of a hash have changed. */
  onChange?: (change: HashChange) => void
  /** The members of a room have changed. */
  onMembers?: (room: string, members: ReadonlyMap<string, Member>) => void
  /** `open`: events come. `waiting`: the connection is lost or refused for now, and will be opened again. */
  onState?: (state: 'open' | 'waiting', detail: unknown) => void
  /**
   * The stream has ended for good, with the reason that the gateway gave, or an error: a `RoomcastError` if the request was
   * refused. Not called after `close`.
   */
  onEnd?: (end: { reason?: string; reconnect?: string; error?: Error }) => void
}

export interface RoomEvent<N extends string | null = string | null, D = any> {
  room: string
  id: string
  event: N
  data: D
  published_at: string
  publish_id?: string
  final?: boolean
}

export interface Gap {
  room?: string
  hash?: string
  from: string
  to: string
  reason: 'trimmed' | 'expired' | 'lost_tail' | 'log_lost' | 'diverged' | 'unknown_position'
}

export interface Member {
  subscriber: string
  user?: string
  info?: unknown
  since: string
}

export class Stream {
  private constructor()
  /** The position up to which everything was passed on. */
  readonly position: string | undefined
  /** The hashes, by name. */
  readonly hashes: ReadonlyMap<string, Hash>
  /** With `presence`: the members of the rooms. */
  readonly members: Readonly<Record<string, ReadonlyMap<string, Member>>>
  close(): void
}

export interface HashChange {
  hash: Hash
  event: 'hash.snapshot' | 'hash.set' | 'hash.delete' | 'hash.clear'
  /** The fields that were set or deleted. */
  fields: string[]
  /** The subject of the token with which the change was made. */
  by?: string | null
}

/** A value: text, or bytes that are not UTF-8. */
export type Value = string | Uint8Array

/** A watched hash. */
export class Hash {
  private constructor()
  readonly name: string
  /** The fields as they are now. */
  readonly values: ReadonlyMap<string, Value>
  /** The entity tags of the values. */
  readonly etags: ReadonlyMap<string, string>
  /** Resolves once `values` has what the hash has. */
  readonly ready: Promise<Hash>
  /**
   * Sets a field, on condition that it still is as it is in `values`. Otherwise it rejects with a `RoomcastError` of status
   * 412, whose `problem.present` is the present value. `force` sets it in any case.
   */
  set(field: string, value: Value, options?: WriteOptions): Promise<unknown>
  /** Deletes a field, on the same condition. */
  delete(field: string, options?: WriteOptions): Promise<unknown>
  /** Sets a field to what `change` makes of its value, and begins again if another write came between. */
  update(field: string, change: (value: Value | undefined) => Value): Promise<unknown>
  /** Closes the hash's stream. */
  close(): void
}

export interface WriteOptions {
  /** Writes in any case. */
  force?: boolean
  /** The entity tag that the field must have, if not the one in `etags`: that of a value that was shown earlier. */
  ifMatch?: string
  /** Makes the write safe to repeat. A random one by default. */
  key?: string
}

/** What the gateway refused, with its problem document. */
export class RoomcastError extends Error {
  readonly status: number | undefined
  readonly code: string | undefined
  readonly problem: Record<string, unknown>
}

export interface Block {
  event: string
  data: string | undefined
  id: string
  retry?: number
}

/** A parser of event streams: a function that takes text as it arrives. */
export function eventStreamParser(onBlock: (block: Block) => void): (text: string) => void
