// A live list as a value that components read. Made in a component, it ends with it.
import { onDestroy } from 'svelte';
import { stream, type Look, type Open, type Status } from './stream';
import { take, type Listing } from './window';

export class LiveList {
  /** Null until the first window has come. */
  listing = $state.raw<Listing | null>(null);
  /** Why there is no list. */
  refused = $state.raw<Status | null>(null);
  private id = 0;
  private frame = 0;
  private pending: Listing | null = null;

  constructor(public readonly open: Open) {
    this.id = stream.open(open, (message) => {
      if (message.error) {
        this.refused = message.error;
        return;
      }
      this.refused = null;
      this.pending = take(this.pending, message);
      // The head alone is nothing to show, and one redraw a frame is enough.
      if (message.order) this.frame ||= requestAnimationFrame(() => this.show());
    });
  }

  private show(): void {
    this.frame = 0;
    this.listing = this.pending;
  }

  look(look: Look): void {
    stream.look(this.id, look);
  }

  close(): void {
    cancelAnimationFrame(this.frame);
    stream.close(this.id);
  }
}

/** A list for as long as the component lives. */
export function live(open: Open): LiveList {
  const list = new LiveList(open);
  onDestroy(() => list.close());
  return list;
}
