// What is done in a moment: until then each has a way back of its own, and then it is told until it is done.

export interface Later {
  /** Tells it from all others. */
  id: number;
  /** What it is about: `cart`. */
  name: string;
  /** `Delete cart in 5 seconds.` */
  text: string;
  /** How far it is, once it has begun. */
  progress: string;
  /** When it begins, in milliseconds since 1970. */
  until: number;
  /** The way back; null once it has begun. */
  keep: (() => void) | null;
}
export interface Plan extends Pick<Later, 'name' | 'text'> {
  /** Its text once it has begun. */
  doing: string;
  /** Does it, and tells how it went; `tell` hears how far it is. */
  run: (tell: (progress: string) => void) => Promise<void>;
  /** Is run instead where somebody takes the way back. */
  kept: () => void;
}

export class Waiting {
  private all: Later[] = [];
  private next = 1;

  /** `tell` hears of everything that waits or is under way, the first one first, whenever that changes. */
  constructor(private readonly tell: (all: Later[]) => void) {}

  /** Runs it after some time. */
  add({ name, text, doing, run, kept }: Plan, ms: number): void {
    const id = this.next++;
    const leave = () => this.set(this.all.filter((one) => one.id !== id));
    const change = (more: Partial<Later>) =>
      this.set(this.all.map((one) => (one.id === id ? { ...one, ...more } : one)));
    const begin = () => {
      change({ text: doing, keep: null });
      void run((progress) => change({ progress })).finally(leave);
    };
    const timer = setTimeout(begin, ms);
    const keep = () => {
      clearTimeout(timer);
      leave();
      kept();
    };
    this.set([...this.all, { id, name, text, progress: '', until: Date.now() + ms, keep }]);
  }

  private set(all: Later[]): void {
    this.all = all;
    this.tell(all);
  }
}
