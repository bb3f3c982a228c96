// What several walks do: steps that are told as they are done, and the sample that the dashboard offers.

import { go, shoot } from './browser.js';

/** Runs a walk's steps one after the other; the first that fails ends it, with a picture. */
export function walk(page) {
  return async (name, does) => {
    try {
      await does();
      console.log(`  ${name}`);
    } catch (error) {
      await shoot(page, `failed-${name.replace(/\W+/g, '-')}`);
      throw new Error(`${name}: ${error.message}`);
    }
  };
}

/** Creates what the page offers under a name (`Deployment`), tried on the server first. */
export async function make(page, kind) {
  await page.click(`header button:has-text("${kind}")`);
  await page.click('button:has-text("Try on the server")');
  await page.waitForSelector('text=Would be made');
  await page.click('button.first:has-text("Create")');
  await page.waitForSelector(`li a:has-text("${kind} hello")`);
}

/** The same from anywhere; goes to what was made. */
export async function create(page, kind) {
  await go(page, '/ui/create?ns=default');
  await make(page, kind);
  await page.click(`li a:has-text("${kind} hello")`);
}

/** Changes the template of a Deployment on its YAML tab: one label more, the smallest change that makes a revision. */
export async function addLabel(page, label, look) {
  await page.waitForSelector('.cm-content');
  await page.locator('.cm-line', { hasText: 'app: hello' }).last().click();
  await page.keyboard.press('End');
  await page.keyboard.type('\n');
  await page.keyboard.type(label);
  await page.click('button:has-text("Review the change")');
  await page.waitForSelector(`dialog .plus:has-text("${label}")`);
  await look();
  await page.click('dialog button.first');
}
