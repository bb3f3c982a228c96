// A live list as a value that components read. Made in a component, it ends with it.
import { onDestroy } from 'svelte';
import { forget, withFrame } from './frames';
import { here } from './router.svelte';
import { stream, type Look, type Open, type Status } from './stream';
import { steady, take, type Listing } from './window';

export class LiveList {
  /** Null until the first window has come. */
  listing = $state.raw<Listing | null>(null);
  /** Why there is no list. */
  refused = $state.raw<Status | null>(null);
  private id = 0;
  private pending: Listing | null = null;
  /** Somebody reads, and has not asked for anything else. */
  private held = false;

  constructor(public readonly open: Open) {
    this.id = stream.open(open, (message) => {
      if (message.error) {
        this.refused = message.error;
        return;
      }
      this.refused = null;
      this.pending = take(this.pending, message);
      // The head alone is nothing to show.
      if (message.order) withFrame(this.show);
    });
  }

  private readonly show = (): void => {
    this.listing = this.held && this.pending ? steady(this.listing, this.pending) : this.pending;
  };

  look(look: Look): void {
    this.held = false;
    stream.look(this.id, look);
  }

  /** Keeps the order as it is, or lets go of it. */
  hold(held: boolean): void {
    if (this.held === held) return;
    this.held = held;
    if (!held) this.show();
  }

  close(): void {
    forget(this.show);
    stream.close(this.id);
  }
}

/** A list for as long as the component lives, as of the time that is looked at. */
export function live(open: Open): LiveList {
  const list = new LiveList(asOf(open));
  onDestroy(() => list.close());
  return list;
}

/** The same list at the time that is looked at. */
export function asOf(open: Open): Open {
  return here.at === null ? open : { ...open, at: here.at };
}
