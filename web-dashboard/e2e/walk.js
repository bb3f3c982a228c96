// A newcomer's walk, done and seen in the browser alone, on a cluster that has just been started: a sample is deployed,
// answers a request, is looked into, changed and rolled back, comes to rest, and is woken. Only what is on the screen is
// used: links, buttons, tabs; no address is typed, and nothing else asks the cluster.

import { browser, findings, settled, shoot, visit } from './browser.js';
import { addLabel, make, walk } from './steps.js';

/** A container counts as at rest after 10 s without a request. */
const REST_MS = 11_000;
const { page, problems } = await visit();
const wrong = [];
const step = walk(page);
const look = async (name) => {
  wrong.push(...(await findings(page)).map((one) => `${name}: ${one}`));
  await shoot(page, name);
};
/** The sample's object in one of the sections on the left. */
const open = async (section) => {
  await page.click(`nav[aria-label="Pages"] a:has-text("${section}")`);
  await page.click('[role=row][data-name="hello"] a');
  await page.waitForSelector('h1:text-is("hello")');
};
const tab = async (title) => {
  await page.click(`nav[aria-label="Parts"] a:text-is("${title}")`);
  await settled(page);
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
    await make(page, 'Service');
    await make(page, 'Deployment');
    await page.click('li a:has-text("Deployment hello")');
    await page.waitForSelector('.title .good', { timeout: 180_000 });
    await look('walk-deployed');
  });
  await step('sends it a request', async () => {
    await open('Network');
    await tab('Send a request');
    await send();
    await page.waitForSelector('ol li:has-text("Making the instance")');
    await look('walk-answer');
  });
  await step('reads in its logs what it did', async () => {
    await open('Workloads');
    await tab('Logs');
    await page.waitForSelector('[role=log] .line:has-text("serves /")');
    await look('walk-logs');
  });
  await step('sees how one of its Pods started', async () => {
    await tab('Pods');
    await page.locator('[role=row][data-name] a').first().click();
    await page.waitForSelector('h2:has-text("How it started")');
    await page.waitForSelector('ol li:has-text("Compiled")');
    await look('walk-start');
  });
  await step('sees what its image wants and gives', async () => {
    await open('Workloads');
    await tab('Component');
    await page.waitForSelector('code:has-text("wasi:http")');
    await page.locator('summary:has-text("types")').first().click();
    await look('walk-component');
  });
  await step('changes it', async () => {
    await tab('YAML');
    await addLabel(page, 'tier: web', () => look('walk-difference'));
    await tab('Revisions');
    await page.waitForSelector('li:has-text("2, present")');
  });
  await step('rolls it back, seeing what that changes', async () => {
    await page.click('button:has-text("Roll back to 1")');
    await page.waitForSelector('dialog .minus:has-text("tier: web")');
    await look('walk-rollback');
    await page.click('dialog button.first');
    await page.waitForSelector('li:has-text("3, present")');
    await tab('History');
    await page.waitForSelector('li:has-text("labels.tier: web taken out")');
    await page.waitForSelector('.title .good', { timeout: 180_000 });
  });
  await step('wakes it from its rest', async () => {
    await open('Network');
    await tab('Send a request');
    await send();
    // On a busy machine it may come to rest later.
    let woken = false;
    for (let tries = 0; tries < 6 && !woken; tries++) {
      await page.waitForTimeout(REST_MS);
      await send();
      const told = page.waitForSelector('text=It woke the handler from a rest of', { timeout: 10_000 });
      woken = await told.then(
        () => true,
        () => false,
      );
    }
    if (!woken) throw new Error('it was never woken');
    await look('walk-woken');
  });
  await step('sees the wake among its requests', async () => {
    await open('Workloads');
    await tab('Requests');
    await page.waitForSelector('.wakes li:has-text("woke it after")');
    await settled(page);
    await page.locator('.requests button').first().click();
    await look('walk-requests');
  });
  await step('finds Home saying that all is well', async () => {
    await page.click('nav[aria-label="Pages"] a:has-text("Home")');
    await page.waitForSelector('h1:has-text("The workload is well")');
    await look('walk-home');
  });
} catch (error) {
  wrong.push(error.message);
}
await browser.close();
for (const one of [...wrong, ...problems]) console.log(one);
if (wrong.length + problems.length > 0) process.exitCode = 1;
else console.log('walk: ok');
