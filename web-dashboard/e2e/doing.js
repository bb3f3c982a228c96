// What a newcomer does, only in the browser: deploys a sample, reads its logs, scales it, changes it, goes back, deletes a
// Pod and keeps another; by mouse and by keyboard. The cluster is asked with kubectl whether it is so.

import { browser, findings, go, kubectl, settled, shoot, visit } from './browser.js';

const { page, problems } = await visit();
const wrong = [];
const until = async (what, holds) => {
  for (let tries = 0; tries < 150; tries++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 200));
  }
  throw new Error(`it never came to be: ${what}`);
};
const deployment = (path) => kubectl('get', 'deployment/hello', '-o', `jsonpath={${path}}`);

async function step(name, does) {
  try {
    await does();
    console.log(`  ${name}`);
  } catch (error) {
    await shoot(page, `failed-${name.replace(/\W+/g, '-')}`);
    throw new Error(`${name}: ${error.message}`);
  }
}

try {
  await step('deploys the sample from YAML', async () => {
    await go(page, '/ui/create?ns=default');
    await page.click('button:has-text("Try on the server")');
    await page.waitForSelector('text=Would be made');
    await page.click('button.first:has-text("Create")');
    await page.click('li a:has-text("Deployment hello")');
    await page.waitForSelector('.title .good', { timeout: 90_000 });
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
    await go(page, '/ui/object/deployments.apps/default/hello/logs');
    await page.waitForSelector('.line, .lines p');
  });
  await step('changes it as YAML, with the difference first', async () => {
    await go(page, '/ui/object/deployments.apps/default/hello/yaml');
    await page.waitForSelector('.cm-content');
    // A label of the template: the smallest change that makes a revision.
    const text = page.locator('.cm-line', { hasText: 'app: hello' }).last();
    await text.click();
    await page.keyboard.press('End');
    await page.keyboard.type('\n');
    await page.keyboard.type('tier: web');
    await page.click('button:has-text("Review the change")');
    await page.waitForSelector('dialog .plus:has-text("tier: web")');
    wrong.push(...(await findings(page)));
    await shoot(page, 'dialog-diff');
    await page.click('dialog button.first');
    await until(
      'a second revision',
      () => deployment('.metadata.annotations.deployment\\.kubernetes\\.io/revision') === '2',
    );
  });
  await step('goes back to the first revision', async () => {
    await go(page, '/ui/object/deployments.apps/default/hello/revisions');
    await page.click('button:has-text("Roll back to 1")');
    await page.waitForSelector('dialog .minus:has-text("tier: web")');
    await shoot(page, 'dialog-rollback');
    await page.click('dialog button.first');
    await until(
      'a third revision like the first',
      () => deployment('.spec.template.metadata.labels.tier') === '',
    );
  });
  await step('keeps what it was about to delete', async () => {
    await go(page, '/ui/object/deployments.apps/default/hello');
    await page.click('.actions button:has-text("Delete")');
    await page.click('dialog button.danger');
    await page.waitForSelector('text=Delete hello in 5 seconds.');
    await shoot(page, 'toast-delete');
    await page.click('button:has-text("Keep it")');
    await page.waitForSelector('text=hello stays as it is.');
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
