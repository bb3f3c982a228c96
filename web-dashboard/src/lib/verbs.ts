// What can be asked for by a word in the command palette, and which part of what is typed names an object. Pure.

export const OBJECTS = [
  'deployments.apps',
  'pods',
  'services',
  'statefulsets.apps',
  'daemonsets.apps',
  'jobs.batch',
  'nodes',
  'configmaps',
  'cronjobs.batch',
];
export const VERBS: [word: string, id: string, kinds: string[]][] = [
  ['Restart', 'restart', ['deployments.apps', 'statefulsets.apps', 'daemonsets.apps']],
  ['Scale', 'scale', ['deployments.apps', 'statefulsets.apps']],
  ['Cordon', 'cordon', ['nodes']],
  ['Drain', 'drain', ['nodes']],
  ['Run', 'run', ['cronjobs.batch']],
  ['Suspend', 'suspend', ['cronjobs.batch', 'jobs.batch']],
  ['Pause', 'pause', ['deployments.apps']],
  ['Delete', 'delete', OBJECTS.filter((word) => word !== 'nodes')],
];

/** The verb of an object that is so already, as its state says. */
export const TURNED: Record<string, [state: string, word: string, id: string]> = {
  cordon: ['Cordoned', 'Uncordon', 'uncordon'],
  pause: ['Paused', 'Resume', 'resume'],
  suspend: ['Suspended', 'Resume', 'unsuspend'],
};

/** Other words that a name may follow. */
const MORE = ['log', 'logs', 'open', 'yaml', 'event', 'events', 'map', 'rollback', 'uncordon', 'resume', 'why'];

/** The part of what is typed that names an object: `cart` of `restart cart`, nothing of `restart`. */
export function nameIn(query: string): string {
  const words = query
    .trim()
    .replace(/^roll( ba?c?k?)?(?=\s|$)/i, 'rollback')
    .split(/\s+/)
    .filter((word, at) => at !== 1 || word.toLowerCase() !== 'of');
  const first = words[0]!.toLowerCase();
  const verbs = [...VERBS.map(([word]) => word.toLowerCase()), ...MORE];
  // The beginning of a verb alone may as well be that of a name.
  const isVerb = verbs.some((verb) => (words.length > 1 ? verb.startsWith(first) : verb === first));
  return words.slice(isVerb ? 1 : 0).join(' ');
}
