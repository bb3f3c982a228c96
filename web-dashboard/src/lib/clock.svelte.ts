// The time, once a second, for everything that shows an age.
let now = $state(Date.now());
setInterval(() => (now = Date.now()), 1000);

export const clock = {
  get now(): number {
    return now;
  },
};
