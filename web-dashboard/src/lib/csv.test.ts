import { expect, test } from 'vitest';
import { csv } from './csv';
import { known } from './kinds';
import type { Column, Row } from './stream';

const column = (name: string): Column => ({ name, type: 'string', description: '', priority: 0 });

test('a list is a file that spreadsheets read', () => {
  const columns = ['Name', 'Restarts', 'Node', 'Age'].map(column);
  const row = (name: string, restarts: string, more: Partial<Row> = {}): Row => ({
    uid: name,
    name,
    namespace: 'shop',
    at: 60,
    version: '1',
    cells: [name, restarts, '<none>', '5m'],
    ...more,
  });
  const rows = [row('a', '1 (5m ago), "x"', { state: ['bad', 'Failed', '=HYPERLINK("x")'] }), row('b', '-3', { at: 0 })];
  expect(csv(known('pods')!, columns, rows)).toBe(
    [
      'Namespace,Name,Restarts,Node,Created,State,Why',
      'shop,a,"1 (5m ago), ""x""",,1970-01-01T00:01:00Z,Failed,"\'=HYPERLINK(""x"")"',
      'shop,b,-3,,,,',
      '',
    ].join('\r\n'),
  );
  expect(csv(known('nodes')!, [column('Name')], [])).toBe('Name\r\n');
});
