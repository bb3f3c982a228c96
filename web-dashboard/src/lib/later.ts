// What is done in a moment: until then each has a way back of its own.

export interface Later {
  /** What it is about: `cart`. */
  name: string;
  /** `Delete cart in 5 seconds.` */
  text: string;
  /** When it is done, in milliseconds since 1970. */
  until: number;
  keep: () => void;
}

export class Waiting {
  private all: Later[] = [];

  /** `tell` hears of everything that waits, the first one first, whenever that changes. */
  constructor(private readonly tell: (all: Later[]) => void) {}

  /** Runs it after some time; where somebody takes the way back, `kept` is run instead. */
  add(name: string, text: string, ms: number, run: () => void, kept: () => void): void {
    const end = (then: () => void) => {
      clearTimeout(timer);
      this.set(this.all.filter((other) => other !== one));
      then();
    };
    const timer = setTimeout(() => end(run), ms);
    const one = { name, text, until: Date.now() + ms, keep: () => end(kept) };
    this.set([...this.all, one]);
  }

  private set(all: Later[]): void {
    this.all = all;
    this.tell(all);
  }
}
