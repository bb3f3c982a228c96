// A newcomer's walk, done and seen in the browser alone, on a cluster that has just been started: a sample is deployed,
// answers a request, is looked into, changed and rolled back, comes to rest, and is woken.

import { browser, findings, go, settled, shoot, visit } from './browser.js';
import { addLabel, create, walk } from './steps.js';

/** A container counts as at rest after 10 s without a request. */
const REST_MS = 11_000;
const hello = '/ui/object/deployments.apps/default/hello';
const { page, problems } = await visit();
const wrong = [];
const step = walk(page);
const look = async (name) => {
  wrong.push(...(await findings(page)).map((one) => `${name}: ${one}`));
  await shoot(page, name);
};
const send = async () => {
  await page.click('button.first:has-text("Send")');
  await page.waitForSelector('h2 .good:has-text("200")');
};

try {
  await step('finds Home empty, and what to do', async () => {
    await page.waitForSelector('h1:has-text("No workloads yet")');
    await look('walk-empty');
    await page.click('a.button.first:has-text("Create from YAML")');
    await page.waitForSelector('h1:has-text("Create from YAML")');
  });
  await step('deploys a sample and a Service for it', async () => {
    await create(page, 'Service');
    await create(page, 'Deployment');
    await page.waitForSelector('.title .good', { timeout: 90_000 });
    await look('walk-deployed');
  });
  await step('sends it a request', async () => {
    await go(page, '/ui/object/services/default/hello/send');
    await send();
    await page.waitForSelector('ol li:has-text("Making the instance")');
    await look('walk-answer');
  });
  await step('reads its logs', async () => {
    await go(page, `${hello}/logs`);
    await page.waitForSelector('.line, .lines p');
    await look('walk-logs');
  });
  await step('sees what its image wants and gives', async () => {
    await go(page, `${hello}/component`);
    await page.waitForSelector('code:has-text("wasi:http")');
    await page.locator('summary:has-text("types")').first().click();
    await look('walk-component');
  });
  await step('changes it', async () => {
    await addLabel(page, hello, 'tier: web', () => look('walk-difference'));
    await go(page, `${hello}/revisions`);
    await page.waitForSelector('li:has-text("2, present")');
  });
  await step('rolls it back, seeing what that changes', async () => {
    await page.click('button:has-text("Roll back to 1")');
    await page.waitForSelector('dialog .minus:has-text("tier: web")');
    await look('walk-rollback');
    await page.click('dialog button.first');
    await page.waitForSelector('li:has-text("3, present")');
    await go(page, hello);
    await page.waitForSelector('.title .good', { timeout: 90_000 });
  });
  await step('wakes it from its rest', async () => {
    await go(page, '/ui/object/services/default/hello/send');
    await send();
    await page.waitForTimeout(REST_MS);
    await send();
    await page.waitForSelector('text=It woke the handler from a rest of');
    await look('walk-woken');
  });
  await step('sees the wake among its requests', async () => {
    await go(page, `${hello}/requests`);
    await page.waitForSelector('.wakes li:has-text("woke it after")');
    await settled(page);
    await page.locator('.requests button').first().click();
    await look('walk-requests');
  });
} catch (error) {
  wrong.push(error.message);
}
await browser.close();
for (const one of [...wrong, ...problems]) console.log(one);
if (wrong.length + problems.length > 0) process.exitCode = 1;
else console.log('walk: ok');
