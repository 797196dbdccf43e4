/**
 * Joins a session and gives its room.
 *
 * `Messages` maps the types of this piece to their contents, so that `on` and `send` are checked:
 *
 * ```ts
 * const room = await session<{ move: [number, number]; wave: null }>("field");
 * room.on("move", ([x, y], { from }) => …);
 * ```
 *
 * @param slugOrUrl A slug of the server that `session.js` came from, or the URL of a session anywhere
 *   (`https://host/session/field`). Default: the slug of the page itself.
 * @returns A promise that resolves with the first welcome. It rejects with a {@link SessionError} if the server
 *   refuses for good, or if nobody has answered for 10 s. While the room is full it goes on waiting: pass
 *   `signal: AbortSignal.timeout(30_000)` to wait less.
 */
export function session<Messages extends object = Record<string, any>>(
  slugOrUrl?: string,
  options?: Options,
): Promise<Room<Messages>>;

export interface Options {
  /** What this client calls itself, at most 64 characters. Not verified by anyone. */
  name?: string;
  /** Anything else that the others may know about this client: JSON of at most 4096 bytes. */
  data?: unknown;
  /** Proof of who this is, for the room's `on_auth`. A function is called at each connect, so that it can renew it. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** Aborts the join, and leaves the room once joined. */
  signal?: AbortSignal;
}

export interface Room<Messages extends object = Record<string, any>> {
  /** Who this client is in this room. Another number after a resume that failed. */
  readonly id: number;
  readonly slug: string;
  /** In a room without code: whether this client is the one that plays referee. */
  readonly isHost: boolean;
  /** The server's clock, in seconds. Monotonic: compare it with times in messages, not with a calendar. */
  readonly time: number;
  /** The people here, oneself included; a frozen snapshot. Empty beyond 200 people, where only `count` is known. */
  readonly presence: readonly Person[];
  /** How many people are here. */
  readonly count: number;
  /** The live wires to the server; none while the connection is lost. */
  readonly links: readonly Link[];

  /** Calls `fn` for each message of this type, `"*"` for each of any type. Returns a function that undoes it. */
  on<T extends keyof Events>(type: T, fn: Listener<Events[T]>): () => void;
  on<T extends string & keyof Messages>(type: T, fn: Listener<Messages[T]>): () => void;
  /** As `on`, for one message. */
  once<T extends keyof Events>(type: T, fn: Listener<Events[T]>): () => void;
  once<T extends string & keyof Messages>(type: T, fn: Listener<Messages[T]>): () => void;
  off<T extends keyof Events>(type: T, fn: Listener<Events[T]>): void;
  off<T extends string & keyof Messages>(type: T, fn: Listener<Messages[T]>): void;

  /**
   * Sends a message to the room. Content is JSON, or bytes, which arrive as a `Uint8Array`.
   *
   * A reliable message arrives, once and in order; offline it waits in a queue of 256 messages or 1 MiB. With
   * `reliable: false` it may be lost: what is worth nothing later (a position) goes so.
   *
   * @throws TypeError if type or content cannot be sent.
   * @throws SessionError with code `full` if the queue is, `closed` after the room's end.
   */
  send<T extends string & keyof Messages>(
    type: T,
    content?: Messages[T] | ArrayBuffer | ArrayBufferView,
    options?: { reliable?: boolean },
  ): void;

  /**
   * Asks the room's code and gives its answer.
   *
   * Rejects with a {@link SessionError} if the room refuses (`refused`, `unknown`, `invalid`, …), if no answer came
   * within `timeout` milliseconds (default 10 000; `timeout`), or if the room ends first (`closed`, `lost`).
   */
  ask<Answer = any>(type: string, content?: unknown, options?: { timeout?: number }): Promise<Answer>;

  /** Gives up the seat at once. */
  leave(): void;
}

/** `from` is the sender's id, 0 the server; `reliable` is as it was sent. */
export type Listener<Content> = (content: Content, meta: Meta) => void;

export interface Meta {
  readonly from: number;
  readonly reliable: boolean;
  readonly type: string;
}

/** The library's own events. No peer can send a type that begins with `session:`. */
export interface Events {
  /** Who came, went (ids) and changed. */
  "session:presence": {
    joins: readonly Person[];
    leaves: readonly number[];
    updates: readonly Person[];
    count: number;
  };
  /** The connection is lost; it is being tried again. */
  "session:drop": { code: number; reason: string };
  /** The connection is back; `recovered` if no reliable message was missed in either direction. */
  "session:resume": { recovered: boolean };
  /** The room is over for this client, and is not tried again. */
  "session:close": { code: number; reason: string };
  /** The room could not take a message of ours. */
  "session:error": { code: string; reason: string; type?: string };
  /** The page of `piece` was edited. Without a listener it is loaded again. */
  "session:reload": { piece: string };
  /** In development: why the room's code cannot be used as it was saved, or null. Without a listener it is shown. */
  "session:fault": { error: string | null };
  /** Every message of a peer or the room's code. */
  "*": any;
}

/** One person; several clients if they share a verified `user`. */
export interface Person {
  /** The lowest of `ids`. */
  readonly id: number;
  readonly ids: readonly number[];
  /** Verified, or null. */
  readonly user: string | null;
  /** Verified, or null. */
  readonly handle: string | null;
  /** What this one says of itself. */
  readonly name: string | null;
  /** What this one says of itself. */
  readonly data: any;
  /** Whether the connection of this one is lost and the seat is kept. */
  readonly away: boolean;
}

export interface Link {
  readonly kind: "websocket" | "datachannel" | "webtransport";
  /** Round trip in milliseconds; null until measured. */
  readonly rtt: number | null;
  /** Of a data channel: the share of our messages that is lost, from 0 to 1. */
  readonly loss?: number;
  /** Of a data channel: whether messages that may be lost go there. */
  readonly active?: boolean;
}

/** `code` is a close code (a number) or one of the words named above. */
export interface SessionError extends Error {
  readonly code: number | string;
  readonly reason: string;
}
