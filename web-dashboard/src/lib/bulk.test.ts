import { expect, test } from 'vitest';
import { bulkActions, bulkLines } from './bulk';
import { known } from './kinds';

test('what can be done with several, what takes away last', () => {
  const told = (word: string) => bulkActions(known(word)!).map(({ label }) => label);
  expect(told('deployments.apps')).toEqual(['Restart', 'Pause', 'Resume', 'Delete']);
  expect(told('nodes')).toEqual(['Cordon', 'Uncordon', 'Drain', 'Delete']);
  expect(told('cronjobs.batch')).toEqual(['Run now', 'Suspend', 'Resume', 'Delete']);
  expect(told('configmaps')).toEqual(['Delete']);
});

test('each object has its kubectl line', () => {
  const picks = [
    { uid: '1', name: 'a', namespace: 'shop' },
    { uid: '2', name: 'b', namespace: 'web' },
  ];
  expect(bulkLines(known('deployments.apps')!, picks, 'restart')).toBe(
    'kubectl -n shop rollout restart deployments/a\nkubectl -n web rollout restart deployments/b',
  );
  expect(bulkLines(known('nodes')!, [{ uid: '1', name: 'east' }], 'uncordon')).toBe('kubectl uncordon east');
});
