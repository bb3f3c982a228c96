// The same action on several objects: which there are for a kind, and what became of each.

import { actionsOf, type Action } from './actions';
import { call, pathOf, type KubeObject } from './api';
import { refOf, type Kind } from './kinds';

/** An object that was picked in a list. */
export interface Pick {
  uid: string;
  name: string;
  namespace?: string;
}
export interface Outcome {
  pick: Pick;
  /** Empty while it has not been tried. */
  said: string;
  failed: boolean;
}

/** Requests that are under way at a time: a list of hundreds is not a flood. */
const AT_ONCE = 4;

/** The actions that can be done with several objects at once, told on one that stands for all. */
export function bulkActions(kind: Kind): Action[] {
  const plain: KubeObject = { metadata: { name: 'each', namespace: 'its' } };
  const turned = { ...plain, spec: { paused: true, suspend: true, unschedulable: true } };
  const all = [...actionsOf(kind, plain), ...actionsOf(kind, turned)].filter((action) => !action.input);
  const ids = [...new Set(all.map((action) => action.id))];
  // What takes away stands last.
  const found = ids.map((id) => all.find((action) => action.id === id)!);
  return [...found.filter((action) => !action.danger), ...found.filter((action) => action.danger)];
}

/** The kubectl lines of an action, one for each object. */
export function bulkLines(kind: Kind, picks: Pick[], id: string): string {
  return picks
    .map((pick) => actionFor(kind, { metadata: metadataOf(pick) }, id)?.kubectl('') ?? '')
    .filter((line) => line !== '')
    .join('\n');
}

function metadataOf({ uid, name, namespace }: Pick): KubeObject['metadata'] {
  return { uid, name, ...(namespace ? { namespace } : {}) };
}

/** The action of an object; of one that is found in the other state (cordoned already) there is none. */
function actionFor(kind: Kind, object: KubeObject, id: string): Action | undefined {
  const turned = { ...object, spec: { paused: true, suspend: true, unschedulable: true } };
  const own = actionsOf(kind, object).find((action) => action.id === id);
  return own ?? ('spec' in object ? undefined : actionsOf(kind, turned).find((action) => action.id === id));
}

/** Does it with each, a few at a time; `tell` hears of every one as it ends. */
export async function doAll(
  kind: Kind,
  picks: Pick[],
  id: string,
  tell: (outcome: Outcome) => void,
): Promise<void> {
  const rest = [...picks];
  const worker = async () => {
    for (let pick = rest.shift(); pick; pick = rest.shift()) tell(await one(kind, pick, id));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function one(kind: Kind, pick: Pick, id: string): Promise<Outcome> {
  try {
    const object = await call<KubeObject>(pathOf(refOf(kind, pick.namespace, pick.name)));
    if (object.metadata.uid !== pick.uid)
      return { pick, said: 'It has been made anew meanwhile; nothing was done.', failed: true };
    const action = actionFor(kind, { spec: {}, ...object }, id);
    if (!action) return { pick, said: 'It is so already.', failed: false };
    return { pick, said: await action.run(''), failed: false };
  } catch (error) {
    return { pick, said: (error as Error).message, failed: true };
  }
}
