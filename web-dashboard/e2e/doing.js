// What is done in the browser, by mouse and by keyboard: deploying, scaling, changing in the form, looking into the past,
// several at once, deleting with its way back, the palette. The cluster is asked with kubectl whether it is so.

import { readFileSync } from 'node:fs';
import { browser, findings, go, kubectl, settled, shoot, visit } from './browser.js';
import { create, walk } from './steps.js';

const { page, problems } = await visit();
const wrong = [];
const until = async (what, holds) => {
  for (let tries = 0; tries < 600; tries++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 200));
  }
  throw new Error(`it never came to be: ${what}`);
};
const deployment = (path) => kubectl('get', 'deployment/hello', '-o', `jsonpath={${path}}`);

const step = walk(page);
const hello = '/ui/object/deployments.apps/default/hello';

try {
  await step('deploys the sample from YAML', async () => {
    await create(page, 'Deployment');
    await page.waitForSelector('.title .good', { timeout: 180_000 });
  });
  await step('is told of a mistake while it types over what was there', async () => {
    await go(page, '/ui/create?ns=default');
    await page.click('.cm-content');
    await page.keyboard.press('Control+a');
    await page.keyboard.insertText('kind: one\nkind: other');
    await page.waitForSelector('.cm-lintRange-error');
    await go(page, hello);
  });
  await step('scales it in a dialog that names the kubectl line', async () => {
    await page.click('.actions button:has-text("Scale")');
    await page.fill('dialog input', '3');
    await page.waitForSelector('dialog >> text=1 Pod more will start.');
    await page.waitForSelector('dialog >> text=kubectl -n default scale deployments/hello --replicas=3');
    wrong.push(...(await findings(page)));
    await shoot(page, 'dialog-scale');
    await page.click('dialog button.first');
    await until('3 ready', () => deployment('.status.readyReplicas') === '3');
  });
  await step('sees its Pods come', async () => {
    await page.waitForSelector('[role=grid][data-shown="3"]');
  });
  await step('reads the logs of all of them', async () => {
    await go(page, `${hello}/logs`);
    await page.waitForSelector('.line, .lines p');
  });
  await step('marks a line of them, and comes back to it by its address', async () => {
    // It writes a line for each request.
    const pod = kubectl('get', 'pods', '-l', 'app=hello', '-o', 'jsonpath={.items[0].metadata.name}');
    kubectl('get', '--raw', `/api/v1/namespaces/default/pods/${pod}:8080/proxy/`);
    await page.locator('.lines .line').first().dblclick();
    await page.waitForFunction(() => new URLSearchParams(location.search).get('line'));
    const address = page.url();
    await go(page, hello);
    await go(page, new URL(address).pathname + new URL(address).search);
    await page.waitForSelector('.line.marked');
    wrong.push(...(await findings(page)));
    await shoot(page, 'log-line');
  });
  await step('keeps a set of namespaces', async () => {
    await go(page, '/ui/list/pods?ns=default,kube-system');
    await page.click('button[popovertarget=namespaces]');
    await page.click('button:has-text("Keep this set of 2")');
    await shoot(page, 'namespaces');
    await page.keyboard.press('Escape');
    await go(page, '/ui/list/pods?ns=default');
    await page.click('button[popovertarget=namespaces]');
    await page.click('li button:text-is("default, kube-system")');
    await page.waitForFunction(() => location.search.includes('ns=default,kube-system'));
    await page.keyboard.press('Escape');
  });
  await step('takes what a list shows as a file', async () => {
    await go(page, '/ui/list/deployments.apps?ns=default&q=hello');
    await page.waitForSelector('[role=row][data-name=hello]');
    const take = async (label) => {
      await page.click('button[popovertarget=export]');
      const [file] = await Promise.all([page.waitForEvent('download'), page.click(`#export button:has-text("${label}")`)]);
      return readFileSync(await file.path(), 'utf8');
    };
    const rows = (await take('CSV')).trim().split('\r\n');
    if (rows.length !== 2 || !rows[1].startsWith('default,hello,')) throw new Error(`the rows are ${rows.join('; ')}`);
    const objects = JSON.parse(await take('JSON'));
    if (objects.items[0]?.kind !== 'Deployment' || objects.items.length !== 1) throw new Error('the objects are others');
  });
  await step('folds the navigation to its icons', async () => {
    const width = () => page.evaluate(() => document.querySelector('nav[aria-label="Pages"]').clientWidth);
    const wide = await width();
    await page.click('button[aria-label="Icons alone"]');
    if ((await width()) > 60) throw new Error('it is as wide as before');
    wrong.push(...(await findings(page)));
    await shoot(page, 'navigation-narrow');
    await page.click('button[aria-label="Icons alone"]');
    if ((await width()) !== wide) throw new Error('it does not come back');
  });
  await step('finds what it has typed after a look elsewhere', async () => {
    await go(page, `${hello}/yaml?as=form`);
    const memory = page.locator('label', { hasText: 'Memory, at most' }).locator('input');
    await memory.fill('32Mi');
    await memory.blur();
    await page.click('nav[aria-label="Parts"] a:text-is("Events")');
    await page.waitForFunction(() => location.pathname.endsWith('/events'));
    await page.goBack();
    await page.waitForFunction(() => [...document.querySelectorAll('main input')].some((one) => one.value === '32Mi'));
    await page.click('button:has-text("Undo all")');
  });
  await step('changes it in its form, with the difference first', async () => {
    await go(page, `${hello}/yaml?as=form`);
    const memory = page.locator('label', { hasText: 'Memory, at most' }).locator('input');
    await memory.fill('128Mi');
    await memory.blur();
    wrong.push(...(await findings(page)));
    await shoot(page, 'form');
    await page.click('button:has-text("Review the change")');
    await page.waitForSelector('dialog .plus:has-text("memory: 128Mi")');
    await page.click('dialog button.first');
    await until('a limit', () => deployment('.spec.template.spec.containers[0].resources.limits.memory') === '128Mi');
  });
  await step('puts its change and that of somebody else together', async () => {
    // What a rollout says of itself would be a third change.
    kubectl('rollout', 'status', 'deployment/hello', '--timeout=180s');
    await until('nobody leaves any more', () => deployment('.status.terminatingReplicas') === '0');
    await go(page, `${hello}/yaml?as=form`);
    const memory = page.locator('label', { hasText: 'Memory, at most' }).locator('input');
    await memory.fill('96Mi');
    await memory.blur();
    kubectl('label', 'deployment/hello', 'side=other');
    await page.waitForSelector('text=It has changed on the server since you began');
    wrong.push(...(await findings(page)));
    await page.click('button:has-text("Put both together")');
    await page.click('button:has-text("Review the change")');
    await page.waitForSelector('dialog .plus:has-text("memory: 96Mi")');
    if ((await page.locator('dialog .minus:has-text("side")').count()) > 0) throw new Error('the label would go');
    await page.click('dialog button.first');
    await until('the limit', () => deployment('.spec.template.spec.containers[0].resources.limits.memory') === '96Mi');
    if (deployment('.metadata.labels.side') !== 'other') throw new Error('the label has gone');
  });
  await step('sees in its history who did it, and how it was before', async () => {
    await go(page, `${hello}/history`);
    await page.waitForSelector('ol li:has-text("resources.limits"):has-text("wherry-dashboard")');
    await shoot(page, 'history');
    await page.click('ol li:has-text("resources.limits") a.then');
    await page.waitForSelector('text=This is how it was at');
    await settled(page);
    if ((await page.locator('.actions').count()) > 0) throw new Error('the past can be changed');
    wrong.push(...(await findings(page)));
    await shoot(page, 'past-object');
    await go(page, `/ui/list/deployments.apps?at=${Math.floor(Date.now() / 1000) - 1}`);
    await page.waitForSelector('[role=row][data-name=hello]');
    await shoot(page, 'past-list');
    await page.click('button:has-text("Back to now")');
    await page.waitForFunction(() => !location.search.includes('at='));
  });
  await step('restarts several at once, and keeps several', async () => {
    kubectl('create', 'deployment', 'other', '--image=hello-http:dev');
    await go(page, '/ui/list/deployments.apps?ns=default');
    await page.waitForSelector('[role=row][data-name=other]');
    await page.click('[aria-label="Pick hello"]');
    await page.click('[aria-label="Pick other"]', { modifiers: ['Shift'] });
    await page.waitForSelector('text=2 picked');
    await page.click('.picked button:has-text("Restart")');
    await page.waitForSelector('dialog >> text=rollout restart deployments/other');
    wrong.push(...(await findings(page)));
    await shoot(page, 'dialog-bulk');
    await page.click('dialog button.first');
    await page.waitForSelector('dialog >> text=All are done.');
    await page.click('dialog button:has-text("Close")');
    await until('restarted', () => deployment('.spec.template.metadata.annotations').includes('restartedAt'));
    await page.click('[aria-label="Pick other"]');
    await page.click('.picked button:has-text("Delete")');
    await page.click('dialog button.danger');
    await page.click('dialog button:has-text("Keep them")');
    if (!kubectl('get', 'deployments', '-o', 'name').includes('/other')) throw new Error('it was deleted');
    kubectl('delete', 'deployment', 'other');
  });
  await step('keeps what it was about to delete', async () => {
    await go(page, hello);
    await page.click('.actions button:has-text("Delete")');
    await page.click('dialog button.danger');
    await page.waitForSelector('text=Delete hello in 5 seconds.');
    await shoot(page, 'toast-delete');
    await page.click('button:has-text("Keep it")');
    await page.waitForSelector('text=hello stays as it is.');
  });
  await step('opens the palette at once after it was closed, again and again', async () => {
    for (let times = 0; times < 5; times++) {
      await page.keyboard.press('Control+k');
      await page.waitForSelector('[role=combobox]');
      await page.keyboard.press('Escape');
    }
    await page.waitForSelector('dialog', { state: 'detached' });
  });
  await step('finds a verb in the palette, by keyboard alone', async () => {
    await page.keyboard.press('Control+k');
    await page.waitForSelector('[role=combobox]');
    await page.keyboard.type('restart hello');
    await page.waitForSelector('[role=option]:has-text("Restart hello")');
    wrong.push(...(await findings(page)));
    await shoot(page, 'palette');
    await page.keyboard.press('Enter');
    await page.waitForSelector('dialog >> text=New Pods take the place');
    await page.keyboard.press('Tab');
    await page.click('dialog button.first');
    await until('restarted', () => deployment('.spec.template.metadata.annotations').includes('restartedAt'));
  });
  await step('walks a list by keyboard', async () => {
    await page.keyboard.press('g');
    await page.keyboard.press('w');
    await page.waitForSelector('[role=row][data-name=hello]');
    await page.keyboard.press('/');
    await page.keyboard.type('name:hello');
    await page.waitForFunction(() => document.querySelector('[role=grid]')?.dataset.shown === '1');
    if (!decodeURIComponent(page.url()).includes('q=name:hello'))
      throw new Error('the filter is not in the address');
    await page.focus('[role=grid]');
    await page.keyboard.press('Enter');
    await page.waitForSelector('h1:has-text("hello")');
  });
  await step('makes a token for a service account', async () => {
    kubectl('create', 'serviceaccount', 'robot');
    await go(page, '/ui/object/serviceaccounts/default/robot');
    await page.click('button:has-text("Make a token")');
    await page.waitForSelector('text=It is shown this once');
    const token = (await page.textContent('pre[aria-label="The token"]')).trim();
    const { sub } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url').toString());
    if (sub !== 'system:serviceaccount:default:robot') throw new Error(`it is the token of ${sub}`);
    wrong.push(...(await findings(page)));
  });
  await step('sees it in the audit log', async () => {
    await go(page, '/ui/cluster');
    await page.waitForSelector('td:text-is("serviceaccounts/token robot in default")');
  });
  await step('asks what it may do, in the words of people', async () => {
    await go(page, '/ui/access?who=serviceaccount%20default/robot&verb=get&what=Deployment&in=default');
    await page.waitForSelector('text=serviceaccount default/robot may not get deployments.apps in default.');
    wrong.push(...(await findings(page)));
  });
  await step('looks at it beside the list', async () => {
    await go(page, '/ui/list/deployments.apps?ns=default');
    await page.click('[role=row][data-name=hello] [role=gridcell]:last-child');
    await page.waitForSelector('.panel h2:text-is("hello")');
    await page.waitForSelector('.panel dt:has-text("Strategy")');
    if (!page.url().includes('beside=default')) throw new Error('it is not in the address');
    wrong.push(...(await findings(page)));
    await shoot(page, 'beside');
    await page.keyboard.press('Escape');
    await page.waitForSelector('.panel', { state: 'detached' });
    await page.focus('[role=grid]');
    await page.keyboard.press('ArrowRight');
    await page.click('.panel a:has-text("Open as a page")');
    await page.waitForSelector('h1:text-is("hello")');
  });
  await step('deletes it for good', async () => {
    await settled(page);
    await page.click('.actions button:has-text("Delete")');
    await page.click('dialog button.danger');
    await until('gone', () => !kubectl('get', 'deployments', '-o', 'name').includes('/hello'));
    await page.waitForSelector('text=This object has been deleted');
    await shoot(page, 'state-deleted');
  });
} catch (error) {
  wrong.push(error.message);
}
await browser.close();
for (const one of [...wrong, ...problems]) console.log(one);
if (wrong.length + problems.length > 0) process.exitCode = 1;
else console.log('doing: ok');
