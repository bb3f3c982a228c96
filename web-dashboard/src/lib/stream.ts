// The one WebSocket to `/ui/stream`: lists are opened on it by number, and come to life again when it was away.

import { carried, onDoubt } from './api';
import type { Health } from './format';

export interface Column {
  name: string;
  type: string;
  description: string;
  priority: number;
}
/** One printed object. */
export interface Row {
  uid: string;
  name: string;
  namespace?: string;
  /** Seconds since 1970: creation, or when an event was last seen. */
  at: number;
  version: string;
  cells: (string | number | boolean | null)[];
  owner?: [kind: string, name: string];
  /** Of a Deployment and its ReplicaSets. */
  revision?: string;
  deleting?: boolean;
  state?: [health: Health, word: string, why: string];
}
/** What is shown of a list. */
export interface Look {
  text?: string;
  health?: Health[];
  sort?: string;
  descending?: boolean;
  from?: number;
  count?: number;
}
export interface Open extends Look {
  group: string;
  version: string;
  resource: string;
  namespaces?: string[];
  labels?: string;
  fields?: string;
  /** Only what this one controls. */
  owner?: [kind: string, name: string];
  /** As it was then, in seconds since 1970; it does not live. */
  at?: number;
}
export interface Status {
  code: number;
  message: string;
  reason?: string;
}
export interface Told {
  id?: number;
  error?: Status;
  columns?: Column[];
  namespaces?: string[] | null;
  total?: number;
  shown?: number;
  from?: number;
  health?: Partial<Record<Health, number>>;
  order?: string[];
  rows?: Row[];
  alive?: number;
}

const RETRY_MS_MIN = 250;
const RETRY_MS_MAX = 8000;
/** The server says that it is alive every 5 s; after three times that the line is dead. */
const SILENCE_MS_MAX = 15_000;

interface Opened {
  open: Open;
  told: (message: Told) => void;
}

/** How the line to the server is. */
export type Line =
  { word: 'live' } | { word: 'connecting' } | { word: 'away'; since: number } | { word: 'signed out' };

class Stream {
  private socket: WebSocket | null = null;
  private readonly lists = new Map<number, Opened>();
  private next = 1;
  private retry = RETRY_MS_MIN;
  private heard = 0;
  private since = 0;
  private timer = 0;
  private watcher: (line: Line) => void = () => {};

  /** Connects, and stays connected. */
  start(watcher: (line: Line) => void): void {
    this.watcher = watcher;
    this.connect();
    setInterval(() => this.listen(), 2000);
    // The cookie may have gone while the line that was opened with it stays.
    onDoubt(() => void this.check());
    // A laptop that wakes up should not wait for a timer.
    window.addEventListener('online', () => this.again(0));
    window.addEventListener('offline', () => void this.probe());
  }

  stop(): void {
    this.watcher = () => {};
    this.lists.clear();
    clearTimeout(this.timer);
    this.socket?.close();
  }

  open(open: Open, told: (message: Told) => void): number {
    const id = this.next++;
    this.lists.set(id, { open, told });
    this.say({ open: { id, ...open } });
    return id;
  }

  look(id: number, look: Look): void {
    const list = this.lists.get(id);
    if (!list) return;
    Object.assign(list.open, look);
    const { text = '', health = [], sort = '', descending = false, from = 0, count = 0 } = list.open;
    this.say({ look: { id, text, health, sort, descending, from, count } });
  }

  close(id: number): void {
    if (this.lists.delete(id)) this.say({ close: { id } });
  }

  private say(message: unknown): void {
    if (this.isOpen()) this.socket?.send(JSON.stringify(message));
  }

  private connect(): void {
    const address = `${location.protocol === 'http:' ? 'ws' : 'wss'}://${location.host}/ui/stream`;
    const socket = new WebSocket(address, ['wherry.stream.v1', `wherry.csrf.${carried()}`]);
    this.socket = socket;
    this.heard = Date.now();
    socket.onopen = () => {
      this.retry = RETRY_MS_MIN;
      this.since = 0;
      this.watcher({ word: 'live' });
      for (const [id, { open }] of this.lists) this.say({ open: { id, ...open } });
    };
    socket.onmessage = (event) => {
      this.heard = Date.now();
      for (const message of JSON.parse(event.data as string) as Told[])
        if (message.id !== undefined) this.lists.get(message.id)?.told(message);
    };
    socket.onclose = () => this.socket === socket && this.lost();
  }

  /** Ends a line on which nothing was heard: the network may have gone without a word. */
  private listen(): void {
    if (this.isOpen() && Date.now() - this.heard > SILENCE_MS_MAX) this.drop();
  }

  /** A browser without a network keeps its lines open; of a server on the same machine that says nothing. */
  private async probe(): Promise<void> {
    if ((await isSignedIn()) === null && this.isOpen()) this.drop();
  }

  private async check(): Promise<void> {
    if ((await isSignedIn()) === false) this.watcher({ word: 'signed out' });
  }

  private isOpen(): boolean {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Gives a line up at once: closing it takes the other side's answer. */
  private drop(): void {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.lost();
  }

  private lost(): void {
    this.since ||= this.heard;
    this.watcher({ word: 'away', since: this.since });
    this.later();
  }

  private later(): void {
    this.again(this.retry);
    this.retry = Math.min(this.retry * 2, RETRY_MS_MAX);
  }

  private again(delay: number): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.reach(), delay * (0.75 + Math.random() / 2));
  }

  /** Connects where the server answers at all. */
  private async reach(): Promise<void> {
    const signedIn = await isSignedIn();
    if ((this.socket?.readyState ?? WebSocket.CLOSED) <= WebSocket.OPEN) return;
    // A session that has ended closes the line too; then trying again is of no use.
    if (signedIn === false) this.watcher({ word: 'signed out' });
    else if (signedIn) this.connect();
    else this.later();
  }
}

/** Whether this browser is signed in; null where no server answers. */
async function isSignedIn(): Promise<boolean | null> {
  try {
    const answer = await fetch('/ui/session', { cache: 'no-store' });
    return answer.ok ? (await answer.json()) !== null : answer.status !== 401;
  } catch {
    return null;
  }
}

export const stream = new Stream();
